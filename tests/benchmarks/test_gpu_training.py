"""What is measured of training on a GPU, on the CPU: so small that the times mean nothing."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_training, standin, training_pieces
from benchmarks.gpu import report
from benchmarks.gpu.steps import End
from benchmarks.training_pieces import PIECES, Setting


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(torch.device("cpu"), tmp_path_factory.mktemp("work"), small=True)


def measured(piece: str, setting: Setting) -> list[report.Report]:
    output = setting.work / f"{piece}.json"
    output.unlink(missing_ok=True)
    training_pieces.measure(piece, setting, output, 60.0)
    written = json.loads(output.read_text())
    assert written["finished"]
    assert not [row["error"] for row in written["rows"] if "error" in row]
    return written["rows"]


def test_every_piece_has_a_limit() -> None:
    assert set(gpu_training.LIMITS) == set(PIECES)


def test_a_step_beside_the_released_model(setting: Setting) -> None:
    rows = measured("steps", setting)
    assert [row["name"] for row in rows] == ["a step, bf16", "a step, TF32", "a step, float32"]
    for row in rows:
        assert row["times_as_fast"] == pytest.approx(row["released_ms"] / row["ms"])
        assert row["inference_ms"] > 0


def test_training_on_the_standin(setting: Setting) -> None:
    (images,) = measured("stand-in", setting)
    paths = list(setting.images.rglob("*.png"))
    assert len(paths) == images["images"] == 30
    assert len({path.read_bytes() for path in paths}) == 30  # all are different
    classes = Counter(path.relative_to(setting.images).parts[0] for path in paths)
    assert list(classes.values()) == [2] * standin.N_CLASSES

    (run,) = measured("training", setting)
    assert (run["images"], run["epochs"]) == (30, 1)
    assert run["seconds_of_50_epochs"] == pytest.approx(50 * run["epochs_seconds"])
    written = (setting.run / "checkpoint.safetensors").stat().st_mtime_ns
    (again,) = measured("training", setting)  # of another report, so anew
    assert (setting.run / "checkpoint.safetensors").stat().st_mtime_ns > written
    assert again["epochs"] == 1

    assert [row["images"] for row in measured("inference", setting)] == [30, 30]


def test_training_that_is_interrupted_goes_on(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured("stand-in", setting)
    measured("training", setting)

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training_pieces, "train_model", interrupted)
    output = tmp_path / "rows.json"
    begun = {"name": "50 epochs, bf16", "unfinished": True}
    report.write_json(output, {"rows": [begun]})
    training_pieces.measure("training", setting, output, 60.0)
    written = json.loads(output.read_text())
    assert not written["finished"]
    (row,) = written["rows"]
    assert row["unfinished"]
    assert row["epochs"] == 1
    monkeypatch.undo()
    training_pieces.measure("training", setting, output, 60.0)  # goes on: here, at the end
    (resumed,) = json.loads(output.read_text())["rows"]
    assert resumed["epochs_seconds"] == row["epochs_seconds"]
    assert "unfinished" not in resumed


def test_the_account_of_an_epoch(setting: Setting) -> None:
    (row,) = measured("account", setting)
    parts = row["features_share"], row["clipping_share"], row["optimizer_share"]
    assert min(parts) > 0
    assert row["outside_model_share"] == pytest.approx(sum(parts))
    assert sum(row["operators"].values()) <= 1
    # Its name depends on the CPU: `_slow_conv2d_forward`, `mkldnn_convolution`.
    assert any("conv2d" in name or "convolution" in name for name in row["operators"])


def test_precisions_beside_each_other(setting: Setting) -> None:
    rows = measured("neutrality", setting)
    assert [row["name"].split(", ")[1] for row in rows] == ["float32", "TF32", "bf16"]
    assert {row["image_auroc"] for row in rows[:2]} == {rows[0]["image_auroc"]}


def test_the_images_of_mvtec(tmp_path: Path) -> None:
    parts = list(standin._parts(tmp_path, standin.N_IMAGES, 224))
    counts = Counter()
    for part in parts:
        counts[part.folder] += part.count
    assert sum(counts.values()) == standin.N_IMAGES
    assert len(counts) == standin.N_CLASSES
    assert len({part.seed for part in parts}) == len(parts)


def test_rows_that_are_there_are_kept(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[str] = []

    def rows(setting: Setting) -> list[training_pieces.Row]:
        def run(name: str) -> report.Report:
            ran.append(name)
            if name == "b" and ran.count("b") == 1:
                raise RuntimeError("out of luck")
            return {"ms": 1.0}

        return [(name, lambda name=name: run(name)) for name in "abc"]

    monkeypatch.setitem(PIECES, "steps", rows)
    output = tmp_path / "rows.json"
    training_pieces.measure("steps", setting, output, -1.0)
    assert json.loads(output.read_text()) == {"rows": [], "finished": False}
    training_pieces.measure("steps", setting, output, 60.0)
    assert [row.get("error") for row in json.loads(output.read_text())["rows"]] == [
        None, "RuntimeError: out of luck", None,
    ]  # fmt: skip
    training_pieces.measure("steps", setting, output, 60.0)
    assert ran == ["a", "b", "c", "b"]


@pytest.mark.parametrize(
    ("rows", "finished", "code", "status"),
    [
        ([{"name": "a", "ms": 1.0}], True, 0, "passed"),
        ([{"name": "a", "ms": 1.0}], False, 0, "unfinished"),
        ([{"name": "a", "error": "out of memory"}], True, 0, "failed"),
        ([{"name": "a", "ms": 1.0}], False, None, "timed out"),
    ],
)
def test_how_a_piece_ended(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    rows: list[report.Report],
    finished: bool,
    code: int | None,
    status: str,
) -> None:
    def run(command: list[str], seconds: float) -> End:
        report.write_json(Path(command[4]), {"rows": rows, "finished": finished})
        return End(code, "")

    monkeypatch.setattr(gpu_training, "run", run)
    (step,) = gpu_training.steps(["steps"], "cuda", tmp_path, False)
    result = step.run(60.0, {})
    assert (result["status"], result["rows"]) == (status, rows)


@pytest.mark.thorough
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--small", "--device", "cpu", "--only", "steps", "--work", str(tmp_path)]
    assert gpu_training.main(arguments) == 0
    (path,) = tmp_path.glob("*-none.json")
    assert json.loads(path.read_text())["steps"]["training, steps"]["status"] == "passed"
    assert "a step, bf16: batch 4" in capsys.readouterr().out
    assert gpu_training.main(arguments) == 0  # passed before


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_training.main([]) == 2
    assert "no GPU" in capsys.readouterr().err
    for wrong in (["--device", "cpu"], ["--only", "guesses"]):
        with pytest.raises(SystemExit):
            gpu_training.main(wrong)


def test_the_table_has_what_was_measured_of_training() -> None:
    row = {"name": "an epoch", "ms": 1.25, "images": 30, "operators": {"aten::mul": 0.125}}
    steps = {"training, account": {"status": "passed", "seconds": 3.2, "rows": [row]}}
    lines = list(report.table({"machine": {}, "steps": steps}))
    assert lines[:2] == ["an epoch: ms 1.25, images 30", "   12.5%  operators: aten::mul"]
