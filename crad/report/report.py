"""What every measurement ends with: the tables on the screen, results.json and sheets on disk."""

from collections.abc import Sequence

from torch import Tensor

from crad.data.samples import Sample
from crad.files import remove_leftovers
from crad.report.results import Results, write_results
from crad.report.sheets import write_sheet
from crad.report.summary import summary
from crad.scoring.evaluation import Evaluation
from crad.scoring.protocols import Protocol
from crad.training.run_folder import RunFolder


def report(
    results: Results,
    evaluation: Evaluation,
    anomaly_maps: Tensor,
    protocol: Protocol,
    run: RunFolder | None,
    *,
    show: bool = True,
) -> None:
    """Replace results and sheets in a folder; print the tables and what cannot be measured.

    Args:
        results: what to write and print.
        evaluation: the test images.
        anomaly_maps: as for `Evaluation.measure`.
        protocol: the one that the sheets show, which is that of decisions.
        run: the folder; None writes nothing.
        show: whether to print the table.

    Raises:
        ImageError: an image for a sheet cannot be read any more.
        StorageError: a file cannot be written.
    """
    if run:  # before anything is printed, as the reader of the output may have seen enough
        note = f"{results['data']}: {results['note']}" if "note" in results else None
        sheets = {name: run.sheet(name) for name in results["classes"]}
        run.keep_sheets(sheets.values())
        remove_leftovers(sheets.values())
        for name, predictions in evaluation.predictions(anomaly_maps, protocol):
            write_sheet(sheets[name], name, predictions, note=note, decoding=evaluation.decoding)
        write_results(run.results, results)  # last, as a run that has them is finished
    if show:
        print(summary(results))
    if missing := _not_measured(results, evaluation.samples):
        print(missing)
    if run:
        print(f"written to {run.path}")


def _not_measured(results: Results, samples: Sequence[Sample]) -> str | None:
    if not samples:
        return "not measured: there are no test images (expected <class>/test/{good,<defect>})"
    if results["mean"]["image_auroc"] is None:
        return "not measured: the metrics need normal and anomalous test images of a class"
    if results["mean"]["pixel_auroc"] is None:
        return (
            "pixel metrics not measured: there are no usable masks (<class>/ground_truth/<defect>)"
        )
    defective = [sample for sample in samples if sample.is_anomaly]
    if without := sum(sample.mask is None for sample in defective):
        return (
            f"pixel metrics leave out {without} of {len(defective)} defective images, which have "
            "no mask"
        )
    return None
