"""What a decision can be judged by: a table of all test images, and a page with pictures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from crad.files import remove_leftovers, write_atomically
from crad.report.markup import Pictures
from crad.report.page import make_page
from crad.report.pictures import draw
from crad.report.results import Results
from crad.report.scores import Csv, boxes_of
from crad.report.verdicts import Verdict, choose_sections, with_margins
from crad.scoring.evaluation import Evaluation
from crad.scoring.maps import Maps
from crad.scoring.prediction import Prediction
from crad.scoring.protocols import Protocol
from crad.training.run_folder import SCORES_HEAD, RunFolder

Mark = Callable[[Prediction], Prediction]

COLUMNS = (*SCORES_HEAD.rstrip(",").split(","), "p_value", "threshold", "decision", "regions")


def write_evidence(
    run: RunFolder,
    results: Results,
    verdicts: Sequence[Verdict],
    evaluation: Evaluation,
    anomaly_maps: Maps,
    protocol: Protocol,
    *,
    scales: Mapping[str, tuple[float, float]],
    mark: Mark,
) -> None:
    """Write the table of the test images, the page, and its pictures beside it.

    Args:
        run: the folder, without the evidence of a former measurement.
        results: what was measured.
        verdicts: on all test images; margins are set here.
        evaluation: of them.
        anomaly_maps: as for `Evaluation.measure`.
        protocol: that decides.
        scales: the colour scales of heat maps by class.
        mark: gives a prediction what its regions need, which are outlined.

    Raises:
        ImageError: an image for a picture cannot be read any more.
        StorageError: a file cannot be written.
    """
    verdicts = with_margins(verdicts)
    sections = choose_sections(verdicts)
    chosen = [each.number for section in sections for each in section.shown]
    files = {number: _files(run, number) for number in chosen}
    remove_leftovers(file for each in files.values() for file in each.values())
    pictures: dict[int, Pictures] = {}
    for number, prediction in zip(
        chosen, evaluation.score(chosen, anomaly_maps, protocol), strict=True
    ):
        name = str(prediction.class_name)
        written = draw(mark(prediction), files[number], evaluation.decoding, scales[name])
        pictures[number] = {
            title: f"{run.pictures.name}/{files[number][title].name}" if written[title] else None
            for title in files[number]
        }
    page = make_page(results, verdicts, sections, pictures)
    write_atomically(run.page, lambda file: file.write(page.encode("utf-8")))
    table = b"".join([Csv.line(COLUMNS), *(Csv.line(_row(each)) for each in verdicts)])
    write_atomically(run.scores, lambda file: file.write(table))


def _row(verdict: Verdict) -> list[object]:
    sample = verdict.sample
    return [
        sample.path,
        sample.class_name,
        sample.defect,
        "defect" if sample.is_anomaly else "good",
        verdict.score,
        verdict.p_value,
        verdict.threshold,
        {True: "defect", False: "good", None: None}[verdict.is_defective],
        None if verdict.boxes is None else boxes_of(verdict.boxes),
    ]


def _files(run: RunFolder, number: int) -> dict[str, Path]:
    """The pictures of an image by what they show, in the order of the page."""
    return {
        "image": run.pictures / f"{number:05}-image.jpg",
        "truth": run.pictures / f"{number:05}-truth.png",
        "anomaly map": run.pictures / f"{number:05}-map.jpg",
        "overlay": run.pictures / f"{number:05}-overlay.jpg",
    }
