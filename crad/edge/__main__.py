"""``crad-edge``: score images with an exported file, where PyTorch is not installed."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from crad.data.bad_images import BadImages
from crad.data.inputs import find_inputs
from crad.data.samples import has_more_note
from crad.edge.detector import load_exported
from crad.errors import CradError, DataError, UsageError
from crad.outputs import check_outputs
from crad.report.decided import how_decided
from crad.report.scores import Csv, Json, ScoreFile, row_of
from crad.report.tables import printable
from crad.scoring.prediction import Prediction
from crad.scoring.regions import can_find_regions
from crad.version import VERSION
from crad.words import count, one_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error is one line, and the exit code is 1, or 2 for a wrong option."""
    try:
        _predict(_parser().parse_args(arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever reads the table has had enough
        _close_output()
        sys.exit(1)
    except (CradError, OSError) as error:
        if not isinstance(error, CradError):  # files have names, the standard output has none
            _close_output()
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _close_output() -> None:
    """Let what is still to be printed go nowhere; on exit it would be a second error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crad-edge", description="Score images with a file that crad export wrote."
    )
    parser.add_argument("model", type=Path, help="the exported file")
    parser.add_argument(
        "images", type=Path, nargs="+", help="image files, and folders with their sub-folders"
    )
    parser.add_argument("--class", dest="class_name", help="the class of all images")
    parser.add_argument("--csv", type=Path, help="write the scores to this CSV file")
    parser.add_argument("--json", type=Path, help="write the scores to this JSON file")
    parser.add_argument("--threads", type=int, help="of the runtime; default: all cores")
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out images that cannot be read",
    )
    parser.add_argument("--version", action="version", version=f"crad-edge {VERSION}")
    return parser


def _predict(options: argparse.Namespace) -> None:
    tables = [
        ScoreFile(option, path, kind)
        for option, path, kind in (
            ("--csv", options.csv, Csv()),
            ("--json", options.json, Json()),
        )
        if path
    ]
    found, n_masks = find_inputs(options.images)
    images = [*found]
    check_outputs([table.output for table in tables], [*images, options.model])
    for table in tables:
        table.check()
    detector = load_exported(options.model, threads=options.threads)
    bad = BadImages(skip=options.skip_bad)
    finds_regions = can_find_regions()
    if tables and not finds_regions:
        print("no regions: they need scikit-image; pip install scikit-image")
    print("     score  p-value   decision  image")
    done: list[Prediction] = []
    with ExitStack() as stack:
        for table in tables:
            stack.enter_context(closing(table))
        for each in detector.iterate(images, skip=bad, class_name=options.class_name):
            for table in tables:
                table.add(row_of(each if finds_regions else replace(each, pixel_threshold=None)))
            done.append(each.without_maps())
            p_value = "-" if each.p_value is None else f"{each.p_value:.3f}"
            name = printable(str(each.path))
            print(f"{each.score:10.4g}  {p_value:>7}  {each.decision or '-':>9}  {name}")
    if not done:
        raise DataError(
            f"crad-edge: none of {count(len(images), 'image')} can be read; replace them"
        )
    masks = f"{count(n_masks, 'mask')} of a data set left out; name their folder to score them"
    more = has_more_note(done, lambda path: found[path])
    decided = how_decided(done, detector, options.class_name)
    for note in filter(None, (masks if n_masks else None, bad.note(), more, *decided)):
        print(note)


if __name__ == "__main__":
    main()
