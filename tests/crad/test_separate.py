"""The separate setting: ordinary runs of one class each, joined in one table."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import crad
import crad.evaluate
from crad.data import find_dataset
from crad.report.results import Results, combine_results
from crad.scoring.metrics import METRIC_NAMES, summarise
from crad.train import main
from crad.train_options import parse_options
from crad.train_resume import finished_results, stored_run
from crad.training.checkpoint import ALL_PARTS, CHECKPOINT_NAME, read_checkpoint
from tests.fixtures import before_call, before_step, ctrl_c, files_of, run

Train = Callable[..., int]

FILES = {
    "brick", "gauge", "results.json", "run.json",
    "products.safetensors", "report.html", "pictures", "scores.csv", "sheets",
}  # fmt: skip


def written(folder: Path) -> int:
    """When the last epoch of a run was."""
    return (folder / CHECKPOINT_NAME).stat().st_mtime_ns


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def main_resumes(output: Path) -> int:
    """Resume as a user does who gives nothing but the folder; the exit code."""
    return run(main, "--separate", "--resume", "--output", str(output))


@pytest.fixture(scope="module")
def separate(
    tmp_path_factory: pytest.TempPathFactory, demo_root: Path, train_command: Train
) -> Path:
    """The output folder of a finished run on brick and gauge; not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "separate"
    assert train_command(demo_root, output, "--separate") == 0
    return output


@pytest.mark.slow
def test_the_run_of_a_class_is_an_ordinary_one(
    separate: Path, demo_root: Path, train_command: Train, tmp_path: Path
) -> None:
    assert train_command(demo_root, tmp_path / "by name", "--classes", "brick") == 0
    assert train_command(demo_root / "gauge", tmp_path / "by folder") == 0
    for alone, name in (("by name", "brick"), ("by folder", "gauge")):
        assert results_of(tmp_path / alone)["classes"] == results_of(separate / name)["classes"]
    assert {path.name for path in (separate / "brick").iterdir()} == {
        "checkpoint.safetensors", "exemplars.safetensors", "results.json", "run.json", "sheets",
        "scores.csv", "report.html", "pictures",
    }  # fmt: skip
    image = next((demo_root / "brick" / "test").rglob("*.png"))
    assert len(crad.load(separate / "brick").predict(image)) == 1


def test_the_results_of_all_name_the_protocols_of_their_decisions(separate: Path) -> None:
    """A class that an older crad finished has no name of it in its results."""
    brick, gauge = (results_of(separate / name) for name in ("brick", "gauge"))
    assert combine_results([brick, gauge])["decisions"]["protocol"] == "peak"
    del brick["decisions"]["protocol"]
    assert combine_results([brick, gauge])["decisions"]["protocol"] == "crad, peak"


def test_the_results_of_all_have_the_keys_of_one(separate: Path, trained) -> None:
    whole, parts = results_of(separate), [results_of(separate / n) for n in ("brick", "gauge")]
    assert whole.keys() == {*trained.results, "note"}
    assert whole["classes"] == parts[0]["classes"] | parts[1]["classes"]
    for metric, value in whole["mean"].items():
        assert value == pytest.approx(sum(part["mean"][metric] for part in parts) / 2)
    assert whole["timing"].keys() == trained.results["timing"].keys()
    for phase, seconds in whole["timing"].items():
        assert seconds == pytest.approx(sum(part["timing"][phase] for part in parts))
    assert (whole["epoch"], whole["data"]) == (3, str(trained.data))
    assert whole["note"] == (
        "one model for each class; warning: 3 training steps in all, and with fewer than 100 a "
        "detector may miss most defects; give --epochs 100 or more"
    )
    assert {path.name for path in separate.iterdir()} == FILES


def test_one_table(
    demo_root: Path, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command(demo_root, tmp_path / "run", "--separate", "--epochs", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    begun = [line for line in lines if line.startswith("class ")]
    assert begun[:2] == ["class 1 of 2: brick", "class 2 of 2: gauge"]
    assert len(begun) == 4  # the last two are heads of the tables of metrics and decisions
    for word, tables in {"brick": 2, "gauge": 2, "mean": 1, "all": 1}.items():
        assert sum(line.startswith(f"{word} ") for line in lines) == tables
    page = tmp_path / "run" / "report.html"
    assert lines[-1] == f"written to {tmp_path / 'run'}; open {page} in a browser"


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_finished_class_is_not_trained_again(
    separate: Path,
    demo_root: Path,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
    epoch: int,
) -> None:
    """Interrupted in the second class, before and after its first epoch, which is one step."""
    output = tmp_path / "run"
    with before_step(3 + epoch, ctrl_c):
        assert train_command(demo_root, output, "--separate") == 130
    error = capsys.readouterr().err
    assert "1 of 2 classes" in error
    assert f"crad train --resume --output {output} --separate" in error
    assert not (output / "results.json").exists()
    assert (output / "gauge" / CHECKPOINT_NAME).exists() == bool(epoch)
    finished = written(output / "brick")
    assert train_command(demo_root, output, "--separate") == 1
    assert "--resume" in capsys.readouterr().err
    with before_step(3 - epoch, ctrl_c):  # one more step than there are left
        assert train_command(demo_root, output, "--separate", "--resume") == 0
    assert written(output / "brick") == finished
    assert "class 1 of 2: brick (finished)" in capsys.readouterr().out
    assert results_of(output)["classes"] == results_of(separate)["classes"]


def test_nothing_of_what_is_replaced_is_taken_for_the_new(
    demo_root: Path,
    separate: Path,
    train_command: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "run"
    shutil.copytree(separate, output)
    with before_step(0, ctrl_c):  # nothing of the new run is on disk, so all of the former stays
        assert train_command(demo_root, output, "--separate", "--overwrite") == 130
    assert "start again" in capsys.readouterr().err
    assert files_of(output) == files_of(separate)
    with before_step(1, ctrl_c):  # the first epoch of the first class is
        assert train_command(demo_root, output, "--separate", "--overwrite") == 130
    assert "0 of 2 classes" in capsys.readouterr().err
    assert not (output / "results.json").exists()
    assert not (output / "brick" / "results.json").exists()
    assert files_of(output / "gauge") == files_of(separate / "gauge")
    # The rest of the first class, and the second from its beginning.
    with before_step(5, ctrl_c):
        assert main_resumes(output) == 0
    assert results_of(output)["classes"] == results_of(separate)["classes"]
    assert written(output / "gauge") != written(separate / "gauge")


def test_a_run_of_another_origin_is_no_part(
    demo_root: Path,
    separate: Path,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "run"
    with before_step(1, ctrl_c):
        assert train_command(demo_root, output, "--separate") == 130
    shutil.copytree(separate / "gauge", output / "gauge")
    assert main_resumes(output) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    for told in (str(output / "gauge"), "not a part", "--output"):
        assert told in error
    assert files_of(output / "gauge") == files_of(separate / "gauge")


def test_a_finished_training_replaces_no_run_any_more(
    demo_root: Path, tmp_path: Path, train_command: Train
) -> None:
    output = tmp_path / "run"
    options = ("--separate", "--overwrite", "--epochs", "1")
    assert train_command(demo_root, output, *options) == 0
    alone = ("--classes", "brick", "--overwrite", "--epochs", "1")
    assert train_command(demo_root, output / "brick", *alone) == 0
    before = files_of(output)
    assert main_resumes(output) == 1
    assert files_of(output) == before


def test_an_ordinary_run_is_no_part_of_a_new_training(
    demo_root: Path, tmp_path: Path, train_command: Train
) -> None:
    output = tmp_path / "run"
    assert train_command(demo_root, output / "brick", "--classes", "brick") == 0
    before = files_of(output)
    assert train_command(demo_root, output, "--separate", "--resume") == 1
    assert files_of(output) == before


@pytest.mark.slow
def test_runs_of_an_older_version_are_resumed(
    separate: Path, demo_root: Path, tmp_path: Path, train_command: Train
) -> None:
    """They do not say what they are a part of."""
    output = shutil.copytree(separate, tmp_path / "run")
    (output / "run.json").unlink()
    for name in ("brick", "gauge"):
        stored = read_checkpoint(output / name, ALL_PARTS)
        replace(stored, part_of=None).write(output / name / CHECKPOINT_NAME)
    before = written(output / "brick")
    with before_step(0, ctrl_c):
        assert train_command(demo_root, output, "--separate", "--resume") == 0
    assert written(output / "brick") == before
    assert results_of(output)["classes"] == results_of(separate)["classes"]


def test_the_settings_come_from_the_runs_of_the_classes(
    demo_root: Path, tmp_path: Path, train_command: Train
) -> None:
    output = tmp_path / "run"
    options = ("--separate", "--classes", "gauge", "brick", "--depth", "1")
    with before_step(1, ctrl_c):
        assert train_command(demo_root, output, *options) == 130
    resumed = parse_options(["--separate", "--resume", "--output", str(output)]).config
    assert resumed.model.depth == 1
    assert resumed.data.classes == ("brick", "gauge")
    assert resumed.data.source == str(demo_root)
    assert main_resumes(output) == 0
    assert [*results_of(output)["classes"]] == ["brick", "gauge"]


def test_resuming_what_is_finished_trains_nothing(
    separate: Path,
    demo_root: Path,
    tmp_path: Path,
    train_command: Train,
) -> None:
    output = shutil.copytree(separate, tmp_path / "run")
    (output / "results.json").unlink()
    with before_call(nn.Module, ctrl_c):  # nor does it compute anything else
        assert train_command(demo_root, output, "--separate", "--resume") == 0
    assert results_of(output) == results_of(separate)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b"null", b'{"epoch": 3, "classes": {"brick": {}}}', b'{"classes": 3}'],
)
def test_results_of_something_else_are_none(separate: Path, tmp_path: Path, content: bytes) -> None:
    output = shutil.copytree(separate / "brick", tmp_path / "brick")
    options = parse_options(["--resume", "--output", str(output)])
    stored = stored_run(options, parts=())
    assert finished_results(options, stored, ["brick"]) == results_of(output)
    assert finished_results(options, stored, ["gauge"]) is None
    (output / "results.json").write_bytes(content)
    assert finished_results(options, stored, ["brick"]) is None


def test_results_that_are_missing_are_measured_again(
    separate: Path, demo_root: Path, tmp_path: Path, train_command: Train
) -> None:
    output = shutil.copytree(separate, tmp_path / "run")
    (output / "brick" / "results.json").unlink()
    assert train_command(demo_root, output, "--separate", "--resume") == 0
    assert results_of(output)["classes"] == results_of(separate)["classes"]


def test_results_of_an_evaluation_are_none_of_training(
    separate: Path,
    demo_root: Path,
    tmp_path: Path,
    train_command: Train,
    command: Train,
) -> None:
    """They lack what only training measures: a baseline, say. The class is measured again."""
    output = shutil.copytree(separate, tmp_path / "run")
    again = ["--checkpoint", str(output / "brick"), "--output", str(output / "brick")]
    assert command(crad.evaluate.main, *again, "--overwrite") == 0
    assert "training" not in results_of(output / "brick")["timing"]
    with before_step(0, ctrl_c):
        assert train_command(demo_root, output, "--separate", "--resume") == 0
    for folder in (output, output / "brick"):
        assert "training" in results_of(folder)["timing"]
    assert results_of(output)["classes"] == results_of(separate)["classes"]


@pytest.mark.slow
def test_the_best_epoch_of_each_class_is_joined(
    demo_root: Path, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command(demo_root, tmp_path, "--separate", "--track-best") == 0
    best = {name: results_of(tmp_path / name)["best_on_test"] for name in ("brick", "gauge")}
    joined = results_of(tmp_path)["best_on_test"]
    assert joined["epoch"] == {name: each["epoch"] for name, each in best.items()}
    assert joined["classes"] == {name: each["classes"][name] for name, each in best.items()}
    for metric, value in joined["mean"].items():
        assert value == pytest.approx(sum(each["mean"][metric] for each in best.values()) / 2)
    assert "best_on_test: each class after its own epoch" in capsys.readouterr().out


def test_other_settings_are_refused_before_any_training(
    separate: Path,
    demo_root: Path,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = shutil.copytree(separate, tmp_path / "run")
    shutil.rmtree(output / "brick")
    with before_call(nn.Module, ctrl_c):
        assert train_command(demo_root, output, "--separate", "--resume", "--seed", "1") == 2
    error = capsys.readouterr().err
    for told in ("--seed", str(output / "gauge"), "0, not 1"):
        assert told in error


def test_one_model_and_many_are_not_mixed_up(
    trained,
    separate: Path,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = shutil.copytree(trained.output, tmp_path / "one")
    many = shutil.copytree(separate, tmp_path / "many")
    for arguments in ([], ["--resume"]):
        assert train_command(trained.data, one, "--separate", *arguments) == 1
        assert train_command(trained.data, many, *arguments) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 4
    for line, folder in zip(lines, [one, many] * 2, strict=True):
        assert f"'{folder}'" in line
        assert "--overwrite" in line
    assert ["--resume" in line for line in lines] == [True, True, False, False]
    assert "one model" in lines[2]
    assert "no checkpoint" in lines[3]
    assert results_of(one) == trained.results
    assert results_of(many) == results_of(separate)
    assert train_command(trained.data, one, "--separate", "--overwrite", "--epochs", "1") == 0
    assert {path.name for path in one.iterdir()} == FILES


def test_some_of_the_classes(
    trained, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--separate", "--classes", "gauge", "--epochs", "1"]
    assert train_command(trained.data, tmp_path / "run", *arguments) == 0
    assert [*results_of(tmp_path / "run")["classes"]] == ["gauge"]
    assert not (tmp_path / "run" / "brick").exists()
    assert train_command(trained.data, tmp_path / "other", "--classes", "nut") == 1
    error = capsys.readouterr().err
    for told in ("'nut'", str(trained.data), "brick, gauge"):
        assert told in error
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["sheets", "results.json", "Checkpoint.safetensors"])
def test_a_class_named_like_a_file_of_the_run(
    demo_root: Path,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    shutil.copytree(demo_root / "brick", tmp_path / "data" / name)
    assert train_command(tmp_path / "data", tmp_path / "run", "--separate") == 1
    (line,) = capsys.readouterr().err.splitlines()
    for told in (f"'{name}'", "--separate"):
        assert told in line
    if name == "sheets":
        assert train_command(tmp_path / "data", tmp_path / "run", "--epochs", "1") == 0
        assert (tmp_path / "run" / "sheets" / "sheets.png").exists()


def test_the_default_output_is_another_than_that_of_one_model() -> None:
    assert parse_options(["--separate"]).output.folder == Path("runs/demo-separate")
    options = parse_options(["--separate", "--data", "x/parts"])
    assert options.output.folder == Path("runs/parts-separate")


def test_classes_are_part_of_the_settings(
    tmp_path: Path, demo_root: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert train_command(demo_root, output, "--classes", "gauge", "--epochs", "1") == 0
    assert "| classes gauge" in capsys.readouterr().out
    main(["--resume", "--output", str(output)])
    assert [*results_of(output)["classes"]] == ["gauge"]
    with pytest.raises(SystemExit):
        main(["--resume", "--output", str(output), "--classes", "brick"])
    error = capsys.readouterr().err
    for told in ("error: --classes", str(output), "gauge", "brick"):
        assert told in error


@pytest.mark.slow
def test_visa_gives_what_the_same_images_give_in_another_layout(
    separate: Path, demo_root: Path, tmp_path: Path, train_command: Train
) -> None:
    root, found = tmp_path / "VisA", find_dataset(demo_root)
    table = ["object,split,label,image,mask"]
    for number, sample in enumerate((*found.train, *found.test)):
        label = "anomaly" if sample.is_anomaly else "normal"
        names = []
        for kind, file in (("Images", sample.path), ("Masks", sample.mask)):
            name = f"{sample.class_name}/Data/{kind}/{label.capitalize()}/{number:03}.png"
            if file:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, root / name)
            names.append(name if file else "")
        split = "train" if number < len(found.train) else "test"
        table.append(",".join([sample.class_name, split, label, *names]))
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(table))
    assert train_command(root, tmp_path / "run", "--separate") == 0
    assert results_of(tmp_path / "run")["classes"] == results_of(separate)["classes"]


def part(name: str, auroc: float | None, note: str | None = None) -> Results:
    unknown = dict.fromkeys(METRIC_NAMES)
    entry: Any = unknown | {"image_auroc": auroc, "n_train": 1, "n_test": 2}
    metrics: Any = summarise({name: entry})
    results: Results = {
        "protocol": "crad",
        "seed": 0,
        "epoch": 1,
        **metrics,
        "timing": {"training": 1.0},
        "environment": {},
        "data": "data",
        "baselines": {"nearest_neighbour": metrics},
        "other_protocols": {"paper": metrics},
    }
    if note:
        results["note"] = note
    return results


def test_the_mean_is_over_what_is_measured() -> None:
    whole = combine_results([part("a", 0.5), part("b", None), part("c", 1.0)])
    assert whole["mean"] == dict.fromkeys(METRIC_NAMES) | {"image_auroc": 0.75}
    for joined in (whole["baselines"]["nearest_neighbour"], whole["other_protocols"]["paper"]):
        assert joined == {"classes": whole["classes"], "mean": whole["mean"]}
        assert [*joined["classes"]] == ["a", "b", "c"]


def test_notes() -> None:
    def note(*notes: str | None) -> str:
        parts = [part(name, 0.5, text) for name, text in zip("ab", notes, strict=True)]
        return combine_results(parts)["note"]

    assert note(None, None) == "one model for each class"
    assert note("demo", "demo") == "one model for each class; demo"
    assert note("demo", "demo; 1 image") == "one model for each class; a: demo; b: demo; 1 image"
    assert note(None, "1 image") == "one model for each class; b: 1 image"
