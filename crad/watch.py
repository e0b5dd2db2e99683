"""``crad watch``: score the images that arrive in a folder, and sort them by the decision."""

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

from tyro.conf import Positional, arg

from crad.command_line import DetectorOptions, InferenceOptions, make_command
from crad.errors import CheckpointError, DataError, OutputError, UsageError
from crad.files import full_path
from crad.outputs import locked
from crad.report.tables import printable
from crad.scoring.calibration import promise
from crad.watching.inbox import Inbox
from crad.watching.record import Record
from crad.watching.watcher import RECORD, Watcher, say


@dataclass(frozen=True)
class WatchOptions:
    """What the command takes."""

    checkpoint: Path
    """A checkpoint, the output folder of a training run, or a file of crad export."""
    folder: Positional[Annotated[Path, arg(metavar="IN")]]
    """The folder that images arrive in; its sub-folders are left alone."""
    output: Path
    """Folder to move the images into, by the decision, with scores.csv."""
    class_: Annotated[str | None, arg(name="class")] = None
    """The class of all images. Default: a model of several classes recognises that of each
    image."""
    keep: bool = False
    """Leave the images in IN, and only record them."""
    heat_maps: bool = False
    """Write a heat map of each image."""
    interval: float = 1.0
    """Seconds between two looks into IN. A file whose size and time are the same in both is
    complete."""
    detector: DetectorOptions = field(default_factory=DetectorOptions)
    compute: InferenceOptions = field(default_factory=InferenceOptions)

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            DataError: there is no folder to watch.
            OutputError: the images would arrive in the output folder.
            UsageError: a number is out of range.
        """
        self.compute.check()
        if not 0 < self.interval < math.inf:
            raise UsageError(f"--interval: expected a number above 0, but got {self.interval}")
        if not self.folder.is_dir():
            raise DataError(f"watch: there is no folder '{self.folder}'; name one")
        if not self.keep and not os.access(self.folder, os.W_OK | os.X_OK):
            raise OutputError(
                f"watch: images cannot be moved out of '{self.folder}', as writing there is not "
                "permitted; --keep leaves them there"
            )
        if full_path(self.folder).is_relative_to(full_path(self.output)):
            raise OutputError(
                f"output: '{self.folder}' lies in '{self.output}', where its images are to go; "
                "choose another --output"
            )


def watch(options: WatchOptions) -> None:
    """Score images as they arrive, until SIGTERM or Ctrl-C.

    Raises:
        CheckpointError: the checkpoint cannot be used, or has no thresholds.
        DataError: there is no folder to watch.
        DeviceError: the device is not there.
        OutputError: another command writes there, or the output cannot be used.
        StorageError: a file cannot be written or moved.
        UsageError: an option is out of range, or the model has no such class.
    """
    options.check()
    folder, output = full_path(options.folder), full_path(options.output)
    with ExitStack() as stack:
        stack.enter_context(locked(output))
        if not options.keep:
            stack.enter_context(locked(folder))
        record = stack.enter_context(Record(output / RECORD))
        detector = options.compute.load(options.checkpoint, options.detector.choices())
        if not detector.thresholds:
            raise CheckpointError(
                "watch: the checkpoint has no thresholds to decide by; crad calibrate --good "
                "FOLDER sets some"
            )
        numbers = [each.n_images for each in detector.thresholds.values()]
        if note := promise(numbers, detector.false_alarm_rate):
            say(note)
        watcher = Watcher(
            detector,
            record,
            Inbox(folder, options.interval),
            output,
            class_name=options.class_,
            batch_size=options.compute.batch_size,
            keep=options.keep,
            heat_maps=options.heat_maps,
        )
        watcher.recover()
        say(f"watching {printable(str(options.folder))}; Ctrl-C ends it")
        say("     score  p-value    decision  image")
        with _ending() as ending:
            watcher.run(ending)
    say("stopped; every image that is recorded is in its place")


@contextmanager
def _ending() -> Iterator[threading.Event]:
    """Yield what the first SIGINT or SIGTERM sets; a second one interrupts."""
    ending = threading.Event()
    former: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)
        former.clear()

    def end(number: int, frame: FrameType | None) -> None:
        restore()
        ending.set()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            former[number] = signal.signal(number, end)
    try:
        yield ending
    finally:
        restore()


main = make_command(
    WatchOptions, watch, "watch", "Score the images that arrive in a folder, and sort them."
)

if __name__ == "__main__":
    main()
