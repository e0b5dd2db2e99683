"""What a run resumes from, and what to type for that."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from crad.config import Config, changed_setting
from crad.errors import CheckpointError, OutputError, UsageError
from crad.report.results import Results
from crad.scoring.protocols import choose_protocols
from crad.train_options import TrainOptions
from crad.training import processes
from crad.training.checkpoint import Checkpoint, read_checkpoint
from crad.training.schedule import other_rates
from crad.training.whole import Whole

BEGIN_AGAIN = "no epoch was finished; start again with the same command"


def stored_run(
    options: TrainOptions, parts: Sequence[str], whole: Whole | None = None
) -> Checkpoint | None:
    """Read the checkpoint that a run resumes from; None for a new run.

    Args:
        options: of the run.
        parts: as for `crad.training.checkpoint.read_checkpoint`.
        whole: what the run is a part of.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        OutputError: the folder cannot be used.
        UsageError: the run there has another setting, or more epochs than it is to have.
    """
    output, run = options.output, options.run
    run.check(overwrite=output.overwrite, resume=output.resume, separate=output.separate)
    if not (output.resume and run.checkpoint.exists()):
        return None
    stored = read_checkpoint(run.checkpoint, parts)
    if whole and not whole.has(stored):
        if whole.record.replaces:
            return None
        raise OutputError(
            f"output: '{run.path}' holds a run that is not a part of the one in "
            f"'{whole.folder.path}'; move it away, or choose another folder with --output DIR"
        )
    _check_settings(options, stored)
    if "optimizer" in parts and not stored.optimizer:
        raise CheckpointError(
            f"checkpoint: '{run.checkpoint}' was stripped or converted, so training cannot be "
            "resumed; start again with --overwrite or in another --output"
        )
    return stored


def _check_settings(options: TrainOptions, stored: Checkpoint) -> None:
    """Refuse settings that are not those of the run to resume, with a `UsageError`."""
    config, run = options.config, options.run
    if options.gives_epochs:
        if config.training.epochs < stored.epoch:
            raise UsageError(
                f"--epochs: the run in '{run.path}' has {stored.epoch} epochs already, more than "
                f"{config.training.epochs}; give at least {stored.epoch}, or start a new run in "
                "another --output"
            )
        config = replace(config, training=replace(config.training, **_length_of(stored.config)))
    changed = changed_setting(config, stored.config)
    precision = options.compute.precision
    if not changed and precision not in ("auto", stored.precision):
        changed = "--precision", precision, stored.precision
    if changed:
        name, value, former = changed
        way_out = f"leave {name} out to resume it, or start a new run in another --output"
        if name in ("--epochs", "--minutes"):
            former, way_out = f"{stored.config.training.epochs} epochs", "--epochs N changes that"
        raise UsageError(
            f"{name}: the run in '{run.path}' was started with {former}, not {value}; {way_out}"
        )


def _length_of(config: Config) -> dict[str, Any]:
    """The settings that say how long a run trains."""
    return {name: getattr(config.training, name) for name in ("epochs", "minutes", "epochs_chosen")}


def settle_epochs(options: TrainOptions, stored: Checkpoint) -> Checkpoint:
    """Give a run to resume the number of epochs that the options give it, and print what changes.

    The checkpoint has it at once, so that what is interrupted goes on to that number.

    Args:
        options: of the run.
        stored: its `stored_run`, with all parts.

    Raises:
        StorageError: the checkpoint cannot be written.
    """
    done, former, new = stored.epoch, stored.config.training.epochs, options.config.training.epochs
    if not options.gives_epochs or new == former:
        return stored
    training = replace(stored.config.training, **_length_of(options.config))
    changed = replace(stored, config=replace(stored.config, training=training))
    if processes.is_main():
        changed.save(options.run.path)
    line = f"epochs: {new} instead of {former}, of which {done} are done"
    if other := other_rates(done, former, new):
        rate = "a tenth of" if new > former else "ten times"
        epochs = f"{other[0]} to {other[-1]}" if len(other) > 1 else str(other[0])
        line += f"; epoch {epochs} had {rate} the learning rate of a run that begins with {new}"
    print(line, flush=True)
    return changed


def finished_results(
    options: TrainOptions, stored: Checkpoint | None, classes: Sequence[str]
) -> Results | None:
    """The results of a run to resume, if it is complete.

    An evaluation may have replaced them; its results lack some entries of a training run.

    Args:
        options: of the run.
        stored: its `stored_run`.
        classes: of the run.
    """
    results, config = options.run.read_results(), options.config
    epochs = stored.config.training.epochs if stored else None
    if not results or not stored or stored.epoch != epochs:
        return None
    protocols = [protocol.name for protocol in choose_protocols(config.decisions.protocol)]
    try:
        found = (
            results["data"],
            results["epoch"],
            [*results["classes"]],
            [results["protocol"], *results.get("other_protocols", ())],
        )
        is_of_training = "training" in results["timing"]
    except (AttributeError, KeyError, TypeError):
        return None  # they are something else
    expected = (config.data.source, epochs, [*classes], protocols)
    return cast(Results, results) if is_of_training and found == expected else None


@contextmanager
def saying_how_to_resume(options: TrainOptions) -> Iterator[None]:
    """Give Ctrl-C in the block a message that says what is on disk and how to resume.

    Raises:
        KeyboardInterrupt: Ctrl-C, with that message.
    """
    former = None if options.output.resume else options.run.written()
    try:
        yield
    except KeyboardInterrupt as interrupt:
        begun = options.run.written() != former
        way_on = _how_to_resume(options) if begun else BEGIN_AGAIN
        raise KeyboardInterrupt(way_on) from interrupt


def _how_to_resume(options: TrainOptions) -> str:
    try:
        checkpoint = read_checkpoint(options.run.checkpoint, parts=())
    except CheckpointError:
        return BEGIN_AGAIN
    epochs = checkpoint.config.training.epochs
    command = shlex.join(resuming_command(options))
    return f"epoch {checkpoint.epoch} of {epochs} is on disk; continue with: {command}"


def resuming_command(options: TrainOptions) -> list[str]:
    """The command that resumes a run."""
    command = [*processes.start_command(), "crad", "train"]
    command += ["--resume", "--output", str(options.output.folder)]
    if options.adding.add:
        command += ["--add", str(options.adding.add)]
        command += ["--checkpoint", str(options.adding.checkpoint)]
        command += ["--data", options.config.data.source] if options.adding.gives_data else []
    if options.compute.compile:
        command.append("--compile")
    if options.compute.device != "auto":
        command += ["--device", options.compute.device]
    if options.config.data.feature_cache:
        command += ["--feature-cache", str(options.config.data.feature_cache)]
    return command
