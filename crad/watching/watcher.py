"""What becomes of the images that arrive: scored, recorded, moved."""

import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crad.data.images import open_image
from crad.errors import ImageError
from crad.files import write_atomically
from crad.png import write_png
from crad.predictor import Predictor
from crad.report.heat_maps import heat_map
from crad.report.scores import COLUMNS, row_of
from crad.report.tables import printable
from crad.scoring.prediction import Prediction
from crad.watching.inbox import Arrival, Inbox, identity_of
from crad.watching.moving import finish_move, free_names, move
from crad.watching.record import Record

RECORD = "scores.csv"

_DECISIONS = ("good", "defect", "uncertain", "unknown")
_UNREADABLE = "unreadable"
_HEAT_MAPS = "heat_maps"
_BATCH = 64  # images after which new ones are looked for
_LEFTOVER = re.compile(r"\..*\.\d+\.tmp", re.DOTALL)


class Watcher:
    """Scores, records and moves images.

    Args:
        detector: with thresholds.
        record: of what was done.
        inbox: that images arrive in.
        output: the folder that they move into, absolute.
        class_name: of all images; None recognises it.
        batch_size: images that are scored together.
        keep: whether images stay where they are.
        heat_maps: whether to write one of each image.

    Raises:
        UsageError: there is no such class.
    """

    def __init__(
        self,
        detector: Predictor,
        record: Record,
        inbox: Inbox,
        output: Path,
        *,
        class_name: str | None,
        batch_size: int,
        keep: bool,
        heat_maps: bool,
    ) -> None:
        detector.iterate([], batch_size=batch_size, class_name=class_name)  # checks the two
        self._detector = detector
        self._record = record
        self._inbox = inbox
        self._output = output
        self._class_name = class_name
        self._batch_size = batch_size
        self._keep = keep
        self._heat_maps = heat_maps
        self._done: set[Arrival] = set()  # that stay in the folder

    def run(self, ending: threading.Event) -> None:
        """Watch until an event is set, and end after the image in hand.

        Raises:
            DataError: the folder cannot be read.
            StorageError: a file cannot be written or moved.
        """
        while not ending.is_set():
            if found := self._inbox.look(self._done)[:_BATCH]:
                self._score(found, ending)
            else:
                ending.wait(self._inbox.interval)

    def recover(self) -> None:
        """End what a crash cut short: at most the last row is of an image that has not moved.

        Raises:
            StorageError: the image cannot be moved.
        """
        if self._record.n_removed:
            say(f"{RECORD}: removed part of a row that a crash had left; its image comes again")
        for folder in (*(*_DECISIONS, _UNREADABLE), *(f"{_HEAT_MAPS}/{e}" for e in _DECISIONS)):
            for file in (self._output / folder).glob(".*.tmp"):
                if _LEFTOVER.fullmatch(file.name):
                    file.unlink(missing_ok=True)
        if self._keep:
            self._done = {each.arrival for each in self._record.entries()}
            return
        last = self._record.last()
        if last and last.moved_to and identity_of(last.arrival.path) == last.arrival.identity:
            target = self._output / last.moved_to
            if not finish_move(last.arrival.path, target):
                self._move(last.arrival.path, target)

    def _score(self, arrivals: Iterable[Arrival], ending: threading.Event) -> None:
        """Score, record and move images, until a signal comes."""
        waiting = {arrival.path: arrival for arrival in arrivals}
        bad: list[ImageError] = []
        found = self._detector.iterate(
            [*waiting],
            batch_size=self._batch_size,
            skip=bad.append,
            class_name=self._class_name,
        )
        for prediction in found:
            assert prediction.path
            for path in _before(waiting, prediction.path):
                self._take_bad(waiting.pop(path), bad.pop(0))
            self._take(waiting.pop(prediction.path), prediction)
            if ending.is_set():
                return
        for arrival, error in zip(waiting.values(), bad, strict=True):
            self._take_bad(arrival, error)

    def _take(self, arrival: Arrival, prediction: Prediction) -> None:
        """Record an image, and move it."""
        decision = str(prediction.decision)
        if identity_of(arrival.path) != arrival.identity:
            return  # it has changed or gone meanwhile
        target = self._target(decision, arrival)
        picture = ""
        if self._heat_maps:
            try:
                image = open_image(arrival.path, self._detector.decoding)
            except ImageError:
                return  # it has gone meanwhile
            picture_name = f"{(target or arrival.path).name}.png"
            file = next(free_names(self._output / _HEAT_MAPS / decision, picture_name))
            scale = self._detector.colour_scale
            write_png(file, heat_map(image, prediction.anomaly_map, *scale))
            picture = str(file.relative_to(self._output))
        self._end(arrival, row_of(prediction), target, picture)
        p_value = "-" if prediction.p_value is None else f"{prediction.p_value:.3f}"
        name = printable(arrival.path.name)
        say(f"{prediction.score:10.4g}  {p_value:>7}  {decision:>10}  {name}")

    def _take_bad(self, arrival: Arrival, error: ImageError) -> None:
        """Record an image that cannot be read, and move it, with the reason beside it."""
        if identity_of(arrival.path) != arrival.identity:
            return
        target = self._target(_UNREADABLE, arrival, ".txt")
        if target:
            text = f"{error}\n".encode("utf-8", errors="backslashreplace")
            write_atomically(f"{target}.txt", lambda file: file.write(text))
        row: dict[str, Any] = {**dict.fromkeys(COLUMNS), "decision": _UNREADABLE}
        self._end(arrival, row, target, "")
        say(f"{'-':>10}  {'-':>7}  {_UNREADABLE}  {printable(str(error))}")

    def _target(self, decision: str, arrival: Arrival, beside: str = "") -> Path | None:
        """Where an image goes; None if it stays."""
        if self._keep:
            return None
        return next(free_names(self._output / decision, arrival.path.name, beside))

    def _end(self, arrival: Arrival, row: Any, target: Path | None, picture: str) -> None:
        moved_to = str(target.relative_to(self._output)) if target else ""
        self._record.add(arrival, row, moved_to=moved_to, heat_map=picture)
        if target:
            self._move(arrival.path, target)
        else:
            self._done.add(arrival)

    def _move(self, path: Path, target: Path) -> None:
        """Move an image; if somebody else has just taken the name, to another one."""
        try:
            move(path, target)
        except FileExistsError:
            other = next(free_names(target.parent, path.name))
            move(path, other)
            say(f"{RECORD}: '{target.name}' was taken meanwhile; the image is '{other.name}'")


def _before(paths: Iterable[Path], path: Path) -> list[Path]:
    """The paths before another one."""
    found = []
    for each in paths:
        if each == path:
            break
        found.append(each)
    return found


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)
