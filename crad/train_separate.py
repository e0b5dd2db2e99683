"""Training a model for each class, and measuring all of them together."""

import secrets
import shlex
from dataclasses import replace
from functools import partial
from typing import Protocol

from crad.data import find_dataset
from crad.data.samples import Dataset
from crad.devices import select_device
from crad.errors import CheckpointError
from crad.report.results import Results, combine_results, write_results
from crad.report.summary import summary
from crad.report.suspects_page import join_suspects
from crad.scoring.held_back import check_share
from crad.scoring.interest import mask_files
from crad.train_options import TrainOptions
from crad.train_products import join_classes
from crad.train_resume import (
    BEGIN_AGAIN,
    finished_results,
    resuming_command,
    settle_epochs,
    stored_run,
)
from crad.training import processes
from crad.training.checkpoint import ALL_PARTS, Checkpoint, read_checkpoint
from crad.training.inputs import bit_depth_of
from crad.training.run_record import RunRecord, read_record
from crad.training.separate_run import find_products
from crad.training.whole import Whole


class TrainOne(Protocol):
    """`crad.train.train_model`, as far as it is used here."""

    def __call__(self, options: TrainOptions, *, show: bool, whole: Whole) -> Results:
        """Train and measure the model of a class."""


def train_separately(options: TrainOptions, train_one: TrainOne) -> Results:
    """Train a model on each class alone, and measure all of them together.

    The run of a class is an ordinary one, in the folder of its name in the output folder. A class
    that is finished is not trained again when the whole is resumed.

    Args:
        options: of all runs.
        train_one: trains the model of a class.

    Raises:
        CradError: what ``train_one`` raises.
        KeyboardInterrupt: the user stopped it; the message says how to resume.
    """
    output, data, folder = options.output, options.config.data, options.run
    with folder.locked():
        folder.check(overwrite=output.overwrite, resume=output.resume, separate=True)
        dataset = processes.on_main(lambda: find_dataset(data.source, classes=data.classes))
        names = dataset.classes
        folder.check_sheets(names)
        if not output.resume:
            check_share(dataset, options.config.decisions.calibrates)
        whole = Whole(folder, processes.on_main(lambda: _separate_record(options, names)))
        roi, ignored = (
            processes.on_main(partial(mask_files, option, path, names)) if path else {}
            for option, path in (("--roi", data.roi), ("--ignore", data.ignored))
        )
        runs = [
            replace(
                options,
                config=replace(
                    options.config,
                    data=replace(
                        data, classes=(name,), roi=roi.get(name), ignored=ignored.get(name)
                    ),
                ),
                output=replace(output, folder=folder.of_class(name), separate=False),
            )
            for name in names
        ]
        # A folder in use is found before hours of training.
        stored = [stored_run(run, parts=(), whole=whole) for run in runs]
        begun = next(filter(None, stored), None)
        known = begun.config.model.bit_depth if begun else options.config.model.bit_depth
        bit_depth = known or bit_depth_of(dataset, options.config)
        runs = [run.with_bit_depth(bit_depth) for run in runs]
        stored = [_with_epochs(*each) for each in zip(runs, stored, strict=True)]

        for line in dataset.left_out:
            print(line, flush=True)
        parts: list[Results] = []
        try:
            for number, (name, run, former) in enumerate(zip(names, runs, stored, strict=True), 1):
                done = finished_results(run, former, [name])
                note = " (finished)" if done else ""
                print(f"class {number} of {len(names)}: {name}{note}", flush=True)
                parts.append(done or train_one(run, show=False, whole=whole))
                if not done and processes.is_main():  # its pages are of former models
                    folder.clear_evidence()
                    folder.clear_suspects()
            results = combine_results(parts)
            processes.on_main(lambda: join_suspects(folder, parts))
            _finish(options, whole.record, dataset, results)
            if number := len(results.get("suspects", ())):
                print(f"suspicious: {number} in all; open {folder.suspects} in a browser")
        except KeyboardInterrupt as interrupt:
            way_on = (
                f"{len(parts)} of {len(names)} classes are finished; continue with: "
                f"{shlex.join(resuming_command(options))} --separate"
            )
            on_disk = (read_record(folder.path) or RunRecord()).id == whole.record.id
            raise KeyboardInterrupt(way_on if on_disk else BEGIN_AGAIN) from interrupt
        return results


def _finish(options: TrainOptions, record: RunRecord, dataset: Dataset, results: Results) -> None:
    """Write what all classes together have, and print their results."""
    folder = options.run
    record = replace(record, replaces=False)

    def is_there() -> bool:
        record.write(folder.path)
        return folder.page.exists() and find_products(folder.path, record)

    problem = None
    if not processes.on_main(is_there):
        try:
            device = select_device(options.compute.device)
            join_classes(options, record, dataset, results, device)
        except CheckpointError as error:
            problem = f"not one model: {error}"
        else:
            return
    processes.on_main(lambda: write_results(folder.results, results))
    print(f"{summary(results)}\nwritten to {folder.path}")
    if problem:
        print(problem)


def _with_epochs(run: TrainOptions, stored: Checkpoint | None) -> Checkpoint | None:
    """Settle the epochs of a class, of all classes before any is trained on."""
    if not stored or not run.gives_epochs:
        return stored
    if stored.config.training.epochs == run.config.training.epochs:
        return stored
    with run.run.locked():
        print(f"class {run.config.data.classes[0]}: ", end="")
        return settle_epochs(run, read_checkpoint(run.run.checkpoint, ALL_PARTS))


def _separate_record(options: TrainOptions, names: tuple[str, ...]) -> RunRecord:
    """The record of the run to resume, or of a new one."""
    output, source = options.output, options.config.data.source
    new = RunRecord(source, secrets.token_hex(8), names, replaces=output.overwrite)
    former = read_record(options.run.path) if output.resume else None
    return replace(new, id=former.id, replaces=former.replaces) if former else new
