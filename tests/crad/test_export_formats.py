"""Exported files of other formats, other precisions, and other models."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm

import crad
from crad.data import find_dataset
from crad.errors import DataError, UsageError
from crad.export import ExportOptions, export
from crad.exporting.thresholds import check_held_back, find_images, own_thresholds
from crad.scoring.calibration import Calibration
from crad.scoring.held_back import hold_back
from crad.training.checkpoint import read_checkpoint

Command = Callable[..., int]


def images(data: Path) -> list[Path]:
    return [sample.path for sample in find_dataset(data).test if sample.path]


def needs_onnx() -> None:
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name)


# Thresholds of a file whose scores are not those of its detector


def test_a_file_sets_its_thresholds_as_training_did(trained) -> None:
    """Of the same scores follow the same decisions, from the images held back."""
    checkpoint = read_checkpoint(trained.output)
    good = find_images(checkpoint, None)
    held = hold_back(find_dataset(trained.data), 0.1, 0)[1]
    assert [each.path for each in good.samples] == [each.path for each in held]
    detector = crad.load(trained.output, "cpu", "fp32", false_alarm_rate=0.2, uncertain_rate=0.7)
    own = own_thresholds(detector, good, 0.2, 0.7, 0.1)
    for name, scores in detector.calibration.items():
        assert own.calibration[name] == pytest.approx(scores, rel=1e-6)
        for which in ("thresholds", "uncertain", "pixel_thresholds"):
            one, other = (getattr(each, which)[name] for each in (own, detector))
            assert (one.score, one.n_images) == (pytest.approx(other.score, rel=1e-6), 1)


def test_images_that_set_no_threshold_of_the_checkpoint_set_none_of_the_file(
    trained, tmp_path: Path
) -> None:
    """Those of training do not count, once others have set the thresholds."""
    good = trained.data / "brick" / "train" / "good"
    checkpoint = read_checkpoint(trained.output)
    more = Calibration(checkpoint.calibration | {"brick": (1.0, 2.0)})
    with pytest.raises(DataError, match=r"other images than those held back.*--good"):
        find_images(replace(checkpoint, calibration=more), None)
    for source, problem in ((str(tmp_path / "gone"), "gone"), ("", "does not say where")):
        data = replace(checkpoint.config.data, source=source)
        moved = replace(checkpoint, config=replace(checkpoint.config, data=data))
        with pytest.raises(DataError, match=rf"not there.*{problem}.*--good"):
            find_images(moved, None)
    detector = crad.load(trained.output, "cpu", "fp32")
    only = find_images(checkpoint, good)
    assert [each.class_name for each in only.samples] == [None] * 6
    with pytest.raises(DataError, match="no image shows gauge"):
        own_thresholds(detector, only, 0.1, None, 0.1)


def test_images_that_have_changed_since_training_set_no_threshold(trained, tmp_path: Path) -> None:
    """As many as before, under the same names, but other pictures."""
    checkpoint = read_checkpoint(trained.output)
    good = find_images(checkpoint, None)
    detector = crad.load(trained.output, "cpu", "fp32")
    check_held_back(detector, good, checkpoint)
    tested = find_dataset(trained.data).test
    scores = [each.score for each in detector.predict([str(each.path) for each in tested])]
    by_score = sorted(zip(scores, tested, strict=True), key=lambda each: each[0])
    highest = {sample.class_name: sample for _, sample in by_score}
    changed = replace(good, samples=[highest[each.class_name] for each in good.samples])
    with pytest.raises(DataError, match=r"have changed since.*--good"):
        check_held_back(detector, changed, checkpoint)
    # Those that were taken for defects set no threshold.
    check_held_back(detector, replace(changed, contamination=0.1), checkpoint)


def test_a_float32_file_has_the_thresholds_of_its_checkpoint(trained, tmp_path: Path) -> None:
    options = ExportOptions(trained.output, tmp_path / "model.onnx", good=trained.data)
    with pytest.raises(UsageError, match=r"--good.*crad calibrate"):
        export(options)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "precision"),
    [("half.onnx", "float16"), ("eight.onnx", "int8"), ("half.xml", "float16")],
)
def test_a_file_decides_by_its_own_scores(
    trained, tmp_path: Path, name: str, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also what it computes itself of its decisions, for programs that know no crad."""
    needs_onnx()
    if name.endswith(".xml"):
        pytest.importorskip("openvino")
    path = tmp_path / name
    export(ExportOptions(trained.output, path, precision=precision))  # type: ignore[arg-type]
    assert re.search("so are its thresholds: from 2 good images", capsys.readouterr().out)
    exported = crad.load_exported(path)
    held = find_images(read_checkpoint(trained.output), None).samples
    for sample in held:
        (found,) = exported.predict([sample.path])
        threshold = exported.thresholds[str(sample.class_name)].score
        assert found.score == pytest.approx(threshold, rel=1e-5)
        assert exported.calibration[str(sample.class_name)] == (threshold,)


# Other formats, each of which takes a while


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "arguments", "tolerance"),
    [
        ("model.pt2", {}, 1e-5),
        ("model.xml", {}, 1e-4),
        ("half.onnx", {"precision": "float16"}, 0.02),
        ("eight.onnx", {"precision": "int8"}, 0.2),
        ("float.onnx", {"input": "float"}, 1e-5),
        ("resizes.onnx", {"with_preprocessing": True}, 0.02),
    ],
)
def test_other_formats(
    trained, tmp_path: Path, name: str, arguments: dict[str, object], tolerance: float
) -> None:
    if name.endswith(".xml"):
        pytest.importorskip("openvino")
    path = tmp_path / name
    export(ExportOptions(trained.output, path, **arguments))  # type: ignore[arg-type]
    exported, detector = crad.load_exported(path), crad.load(trained.output, "cpu", "fp32")
    paths = images(trained.data)
    with ThreadPoolExecutor(2) as pool:  # which share the file
        alone = [each.score for each in pool.map(exported.predict_one, paths)]
    assert alone == pytest.approx([each.score for each in exported.predict(paths)], rel=1e-4)
    for one, other in zip(exported.predict(paths), detector.predict(paths), strict=True):
        assert one.score == pytest.approx(other.score, rel=tolerance)
        assert one.class_name == other.class_name
    export(ExportOptions(trained.output, path, overwrite=True, **arguments))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    "arguments",
    [
        ("--local.resolution", "3", "3", "3", "3"),  # of which ONNX has no GridSample
        ("--local.memory", "attention", "--global.memory", "none"),
        ("--backbone", "test_resnet", "--weights", "WEIGHTS", "--image-size", "64"),
        ("--image-size", "32", "48"),
    ],
)
def test_other_models(
    demo_root: Path, tmp_path: Path, train_command: Command, arguments: tuple[str, ...]
) -> None:
    weights = tmp_path / "weights.safetensors"
    model = timm.create_model("test_resnet", pretrained=False)
    safetensors.torch.save_file(model.state_dict(), weights)
    given = [str(weights) if each == "WEIGHTS" else each for each in arguments]
    assert train_command(demo_root, tmp_path / "run", *given) == 0
    agreement = export(ExportOptions(tmp_path / "run", tmp_path / "model.onnx"))
    assert agreement.score_error < 1e-4
    assert agreement.n_changed == 0
