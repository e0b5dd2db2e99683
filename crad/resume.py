"""Runs that are gone on with: whether a folder holds that very run, and what it lacks."""

import json
from collections.abc import Sequence
from dataclasses import replace

from crad.command_line import CommandError
from crad.options import TrainOptions, other_settings
from crad.report.results import Results
from crad.scoring.evaluation import RESULTS_NAME
from crad.scoring.protocols import choose_protocols
from crad.training.checkpoint import CHECKPOINT_NAME, read_checkpoint


def checked(run: TrainOptions) -> TrainOptions:
    """Check, before any work is done, that a run can use its folder, and may go on there.

    Returns:
        The run, with what its checkpoint has for settings that were chosen when it began.

    Raises:
        CheckpointError: the checkpoint there is damaged.
        CommandError: the folder cannot be used, or holds a run with other settings.
    """
    run.check_output()
    if not run.resume or not (run.output / CHECKPOINT_NAME).exists():
        return run
    config, stored = run.config, read_checkpoint(run.output, parts=()).config
    if config.precision == "auto":  # the checkpoint holds what was taken
        config = replace(config, precision=stored.precision)
    if message := other_settings(config, stored, run.output):
        raise CommandError(message)
    return replace(run, config=stored)


def finished(run: TrainOptions, classes: Sequence[str]) -> Results | None:
    """The results of a run that is to be resumed, if nothing of it is left to do.

    Those that an evaluation has put in their place lack some of what a training run says.

    Args:
        run: what `checked` gave.
        classes: of the run.
    """
    if not run.resume or not (run.output / CHECKPOINT_NAME).exists():
        return None
    config = run.config
    protocols = [protocol.name for protocol in choose_protocols(config.protocol)]
    try:
        results: Results = json.loads((run.output / RESULTS_NAME).read_text(encoding="utf-8"))
        found = (
            results["data"],
            results["epoch"],
            [*results["classes"]],
            [results["protocol"], *results.get("other_protocols", ())],
        )
        is_of_training = "training" in results["timing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # there are none, or they are something else
    expected = (config.data, config.epochs, [*classes], protocols)
    return results if is_of_training and found == expected else None
