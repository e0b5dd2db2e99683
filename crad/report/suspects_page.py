"""`suspects.html`: a page of the normal images that may not be normal, the worst first."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from crad.data.decoding import Decoding
from crad.data.frames import Frame
from crad.files import remove_leftovers, write_atomically
from crad.report.markup import Pictures, document, escaped, figures
from crad.report.pictures import draw
from crad.report.results import Results, SuspectEntry, suspect_entry
from crad.scoring.maps import Maps, choose
from crad.scoring.prediction import Prediction
from crad.scoring.protocols import Protocol
from crad.scoring.suspects import Suspect
from crad.training.run_folder import RunFolder
from crad.words import count

_MOST = 150  # images with pictures


def write_suspects(
    run: RunFolder,
    suspects: Sequence[Suspect],
    anomaly_maps: Maps,
    protocol: Protocol,
    *,
    frame: Frame,
    decoding: Decoding,
    colour_scale: tuple[float, float],
) -> None:
    """Replace the page and its pictures in a folder; without suspects there is none.

    Args:
        run: the folder.
        suspects: the worst first; their images are files.
        anomaly_maps: of them, before any protocol.
        protocol: that decides.
        frame: of the images that the backbone gets.
        decoding: how images are read.
        colour_scale: of heat maps.

    Raises:
        ImageError: an image cannot be read any more.
        StorageError: a file cannot be written.
    """
    run.clear_suspects()
    shown = suspects[:_MOST]
    sizes = [each.sample.size for each in shown]
    scored = protocol.score_in_turn(choose(anomaly_maps, slice(_MOST)), frame, sizes)
    for number, (each, (scored_map, _)) in enumerate(zip(shown, scored, strict=True)):
        files = _files(run, number)
        remove_leftovers(files.values())
        prediction = Prediction(**vars(each.sample), score=each.score, scored_map=scored_map)
        draw(prediction, files, decoding, colour_scale)
    _write(run, [(suspect_entry(each), _files(run, n)) for n, each in enumerate(suspects)])


def join_suspects(run: RunFolder, parts: Iterable[Results]) -> None:
    """Replace the page of a run of several models, with the pictures of their own pages.

    Args:
        run: the folder of all.
        parts: the results of each model.

    Raises:
        StorageError: the page cannot be written.
    """
    run.clear_suspects()
    found = [
        (each, _files(RunFolder(run.of_class(each["class"])), number))
        for part in parts
        for number, each in enumerate(part.get("suspects", ()))
    ]
    _write(run, sorted(found, key=lambda one: -one[0]["times_the_median"]))


def _files(run: RunFolder, number: int) -> dict[str, Path]:
    """The pictures of a suspect by what they show."""
    return {
        "image": run.pictures / f"suspect-{number:05}-image.jpg",
        "overlay": run.pictures / f"suspect-{number:05}-overlay.jpg",
    }


def _write(run: RunFolder, suspects: Sequence[tuple[SuspectEntry, Mapping[str, Path]]]) -> None:
    if not suspects:
        return
    title = "crad: suspicious training images"
    score = "scores" if len(suspects) == 1 else "score"
    cases = []
    for each, files in suspects[:_MOST]:
        pictures = {
            what: _address(file, run) if file.exists() else None for what, file in files.items()
        }
        cases.append(_case(each, pictures))
    most = f"<p>{_MOST} of {len(suspects)}; all are in results.json.</p>\n"
    page = document(
        title,
        f"<header>\n<h1>{title}</h1>\n<p>{count(len(suspects), 'normal image')} {score} far above "
        "the others of the class, the worst first. Look at them, remove those that are defective, "
        "and train again; or give the share that may be defective with --contamination. An image "
        "that is normal after all may stay.</p>\n</header>\n",
        f'<main class="suspects">\n{most if len(suspects) > _MOST else ""}',
        *(*cases, "</main>\n"),
    )
    write_atomically(run.suspects, lambda file: file.write(page.encode("utf-8")))


def _address(file: Path, run: RunFolder) -> str:
    """The address of a picture from the page; the names of classes may have any characters."""
    return quote(os.fsencode(file.relative_to(run.path)))


def _case(suspect: SuspectEntry, pictures: Pictures) -> str:
    return (
        f'<article class="case">\n<header><h3>{escaped(suspect["class"])}</h3>'
        f"<span>score {suspect['score']:.4g}, {suspect['times_the_median']:.2f} times the median "
        f'of its class</span></header>\n<p class="faint">{escaped(suspect["image"])}</p>\n'
        f"{figures(pictures)}</article>\n"
    )
