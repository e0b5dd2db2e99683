"""The separate setting: a model for each class, and one table of all."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from crad.data import find_dataset
from crad.data.demo import DEMO_NAMES, demo_dataset
from crad.options import TrainOptions
from crad.report.results import Results, table, write_results
from crad.resume import checked, finished
from crad.scoring.evaluation import RESULTS_NAME, clear_run
from crad.scoring.metrics import Metrics, summarise
from crad.training import processes

SEPARATE_NOTE = "one model for each class"
"""The beginning of the `note` of every result in the separate setting."""


def train_separately(
    options: TrainOptions, train_model: Callable[[TrainOptions], Results]
) -> Results:
    """Train a model on each class alone, and measure all of them together.

    The run of a class is an ordinary one, in the folder of its name in the output folder. A class
    that is finished is not trained again when the whole is resumed.

    Args:
        options: as for one model, with the output folder and the classes of the whole.
        train_model: trains one, as `crad.train.train_model` does.

    Raises:
        CommandError: an output folder holds another run.
        DataError: the data are not what they should be.
        KeyboardInterrupt: the user stopped it; the message says how to go on.
        Exception: what `train_model` raises.
    """
    data, output = options.config.data, options.output
    options.check_output()
    root = processes.on_main(lambda: demo_dataset(data)) if data in DEMO_NAMES else data
    names = find_dataset(root, classes=options.config.classes).classes
    runs = [_run_of_class(options, name) for name in names]
    if options.overwrite and processes.is_main():
        # All of them now: none is to be taken for one of this run when it is gone on with.
        for folder in (output, *(run.output for run in runs)):
            clear_run(folder)

    parts: list[Results] = []
    try:
        for number, (name, run) in enumerate(zip(names, runs, strict=True), 1):
            done = finished(run, [name])
            print(
                f"class {number} of {len(names)}: {name}{' (finished)' if done else ''}",
                flush=True,
            )
            parts.append(done or train_model(run))
    except KeyboardInterrupt as interrupt:
        instead = " in place of --overwrite" if options.overwrite else ""
        raise KeyboardInterrupt(
            f"{len(parts)} of {len(names)} classes are finished; go on with the same command and "
            f"--resume{instead}"
        ) from interrupt

    results = combine(parts)
    if processes.is_main():
        write_results(output / RESULTS_NAME, results)
    print(f"{table(results)}\nwritten to {output}")
    return results


def _run_of_class(options: TrainOptions, name: str) -> TrainOptions:
    """The run of one class, checked: no hours are spent before a folder is found to be in use."""
    config = replace(options.config, classes=(name,))
    return checked(replace(options, config=config, output=options.output / name, separate=False))


def combine(parts: Sequence[Results]) -> Results:
    """Join the results of classes that were trained alone, in the order given.

    Timing is the sum; the mean is over the classes in which a metric can be measured. The best
    epoch on the test images is each class's own.
    """
    timing: Counter[str] = Counter()
    for part in parts:
        timing.update(part["timing"])
    last, joined = parts[-1], _join(parts)
    results: Results = {
        "protocol": last["protocol"],
        "seed": last["seed"],
        "epoch": last["epoch"],
        "classes": joined["classes"],
        "mean": joined["mean"],
        "timing": {phase: round(seconds, 2) for phase, seconds in timing.items()},
        "environment": last["environment"],
        "data": last["data"],
        "note": _note(parts),
    }
    if "baselines" in last:
        results["baselines"] = _join_by_name(part["baselines"] for part in parts)
    if "other_protocols" in last:
        results["other_protocols"] = _join_by_name(part["other_protocols"] for part in parts)
    if "best_on_test" in last:
        best = [part["best_on_test"] for part in parts]
        epochs = {name: cast(int, each["epoch"]) for each in best for name in each["classes"]}
        results["best_on_test"] = {"epoch": epochs, **_join(best)}
    if decided := [part["decisions"] for part in parts if "decisions" in part]:
        results["decisions"] = {
            "false_alarm_rate": decided[0]["false_alarm_rate"],
            "classes": {name: each for part in decided for name, each in part["classes"].items()},
        }
    return results


def _join_by_name(parts: Iterable[Mapping[str, Metrics]]) -> dict[str, Metrics]:
    parts = list(parts)
    return {name: _join([each[name] for each in parts]) for name in parts[0]}


def _join(parts: Sequence[Metrics | Results]) -> Metrics:
    return summarise({name: entry for part in parts for name, entry in part["classes"].items()})


def _note(parts: Sequence[Results]) -> str:
    """Say what the classes' notes say, once if that is the same."""
    notes = {name: part["note"] for part in parts for name in part["classes"] if "note" in part}
    if len(notes) == len(parts) and len({*notes.values()}) == 1:
        return f"{SEPARATE_NOTE}; {parts[0]['note']}"
    return "; ".join([SEPARATE_NOTE, *(f"{name}: {note}" for name, note in notes.items())])
