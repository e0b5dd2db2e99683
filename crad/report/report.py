"""What every measurement ends with: tables on the screen, results, a page and sheets on disk."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from crad.data.samples import Sample
from crad.files import remove_leftovers
from crad.report.evidence import Mark, write_evidence
from crad.report.heat_maps import colour_scale, some_pixels
from crad.report.results import Results, write_results
from crad.report.sheets import write_sheet
from crad.report.summary import summary
from crad.report.verdicts import Verdict, verdict_of
from crad.scoring.evaluation import Evaluation
from crad.scoring.interest import Interest
from crad.scoring.maps import Maps
from crad.scoring.prediction import Prediction
from crad.scoring.protocols import Protocol
from crad.training.checkpoint import Checkpoint
from crad.training.run_folder import RunFolder

_SCALE_IMAGES = 64  # normal images whose maps set a colour scale


def report(
    results: Results,
    evaluation: Evaluation,
    anomaly_maps: Maps,
    protocol: Protocol,
    run: RunFolder | None,
    *,
    checkpoint: Checkpoint,
    show: bool = True,
) -> None:
    """Replace results, page and sheets in a folder; print the tables and what is not measured.

    Args:
        results: what to write and print.
        evaluation: the test images.
        anomaly_maps: as for `Evaluation.measure`.
        protocol: the one that the sheets show, which is that of decisions.
        run: the folder; None writes nothing.
        checkpoint: what was measured.
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
        run.clear_evidence()
        mark = _marking(checkpoint)
        verdicts: list[Verdict] = []
        scales = {}
        for name, predictions in evaluation.predictions(anomaly_maps, protocol):
            numbered = zip(evaluation.numbers(name), predictions, strict=True)
            normal: list[npt.NDArray[np.float32]] = []
            passed = _passing(numbered, checkpoint, name, mark, verdicts, normal)
            write_sheet(sheets[name], name, passed, note=note, decoding=evaluation.decoding)
            scales[name] = colour_scale(normal) if normal else checkpoint.colour_scale
        if verdicts:
            write_evidence(
                *(run, results, verdicts, evaluation, anomaly_maps, protocol),
                scales=scales,
                mark=mark,
            )
        write_results(run.results, results)  # last, as a run that has them is finished
    if show:
        print(summary(results))
    if missing := _not_measured(results, evaluation.samples):
        print(missing)
    if run:
        page = f"; open {run.page} in a browser" if run.page.exists() else ""
        print(f"written to {run.path}{page}")


def _marking(checkpoint: Checkpoint) -> Mark:
    """What gives a prediction its pixel threshold, and the part of its image that counts."""
    frame = checkpoint.config.model.frame
    interest = Interest.from_state(checkpoint.interest, [*checkpoint.n_train], frame)
    return lambda prediction: replace(
        prediction,
        pixel_threshold=checkpoint.pixel_thresholds.score_of(prediction.class_name),
        interest=interest.of(prediction.class_name),
    )


def _passing(
    numbered: Iterable[tuple[int, Prediction]],
    checkpoint: Checkpoint,
    class_name: str,
    mark: Mark,
    verdicts: list[Verdict],
    normal: list[npt.NDArray[np.float32]],
) -> Iterator[Prediction]:
    """Pass predictions on, and keep what is said of each, and some pixels of normal images."""
    threshold = checkpoint.thresholds.score_of(class_name)
    for number, scored in numbered:
        p_value = checkpoint.calibration.p_value(class_name, scored.score)
        prediction = replace(mark(scored), p_value=p_value)
        # Of a copy, as regions keep maps of the size of the image.
        verdicts.append(verdict_of(number, replace(prediction), threshold))
        if not prediction.is_anomaly and len(normal) < _SCALE_IMAGES:
            normal.append(some_pixels(prediction.scored_map))
        yield prediction


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
