"""Exported files: they say what their detector says, and nothing is written that does not."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import crad
import crad.edge.__main__
import crad.export
import crad.predict
from crad.backbones.scattering import ScatteringBackbone
from crad.data import find_dataset
from crad.data.frames import Frame
from crad.edge.description import DECISIONS, Description
from crad.edge.detector import ExportedDetector
from crad.edge.runtimes import open_runtime
from crad.errors import CheckpointError, DataError, ExportError, ImageError, UsageError
from crad.export import ExportOptions, export
from crad.exporting.check import compare
from crad.exporting.formats import write_onnx
from crad.exporting.pipeline import Pipeline
from crad.exporting.scattering import MatrixScattering
from crad.scoring.calibration import Threshold, Thresholds
from crad.scoring.interest import Interest
from crad.scoring.prediction import Prediction
from crad.scoring.protocols import PROTOCOLS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

Command = Callable[..., int]


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as an ONNX file; not to be changed."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    agreement = export(ExportOptions(trained.output, path))
    assert agreement.score_error < 1e-5
    assert agreement.n_changed == 0
    return path


@pytest.fixture(scope="module")
def exported(file: Path) -> ExportedDetector:
    return crad.load_exported(file)


def images(data: Path) -> list[Path]:
    return [sample.path for sample in find_dataset(data).test if sample.path]


def assert_alike(got: list[Prediction], expected: list[Prediction]) -> None:
    assert len(got) == len(expected) > 0
    for one, other in zip(got, expected, strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-5)
        np.testing.assert_allclose(one.scored_map, other.scored_map, rtol=1e-4)
        assert one.threshold == other.threshold
        assert (one.path, one.class_name, one.size) == (other.path, other.class_name, other.size)
        if abs(other.score - (other.threshold or 0)) > 1e-5 * other.score:
            assert one.decision == other.decision
            assert one.p_value == other.p_value


# What a file says


def test_a_file_predicts_as_its_detector_does(trained, exported: ExportedDetector) -> None:
    detector = crad.load(trained.output, "cpu", "fp32")
    paths = images(trained.data)
    assert_alike(exported.predict(paths), detector.predict(paths))
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    assert_alike(exported.predict(arrays, batch_size=5), detector.predict(arrays))
    one = exported.predict_one(arrays[0][..., ::-1], channel_order="bgr")
    assert one.score == pytest.approx(detector.predict_one(arrays[0]).score, rel=1e-5)
    named = exported.predict(paths, class_name="gauge")
    assert_alike(named, detector.predict(paths, class_name="gauge"))
    assert exported.classes == detector.classes
    assert exported.image_size == detector.image_size
    assert exported.colour_scale == detector.colour_scale


def test_another_rate_needs_no_other_file(trained, file: Path) -> None:
    rates = {"false_alarm_rate": 0.4, "uncertain_rate": 0.6}
    detector = crad.load(trained.output, "cpu", "fp32", **rates)
    exported = crad.load_exported(file, **rates)
    paths = images(trained.data)
    assert_alike(exported.predict(paths), detector.predict(paths))
    with pytest.raises(UsageError, match="more than 0 and less than 1, but got 3"):
        crad.load_exported(file, false_alarm_rate=3)
    with pytest.raises(UsageError, match="bit_depth"):
        crad.load_exported(file, bit_depth=99)
    for threads in (0, -1, 99999, 1.5, "2"):
        with pytest.raises(UsageError, match="threads: expected a whole number from 1 to 1024"):
            crad.load_exported(file, threads=threads)  # type: ignore[arg-type]


def test_a_band_is_kept_at_another_rate_or_refused(trained, tmp_path: Path, file: Path) -> None:
    """That of a file is for its own p-value."""
    path = tmp_path / "band.onnx"
    shutil.copy(file, path)
    described = crad.load_exported(file).description
    model = onnx.load(path)
    band = described.calibration.thresholds(0.6)
    write_onnx(model, replace(described, uncertain=band, uncertain_rate=0.6), path)
    assert crad.load_exported(path).uncertain == band
    assert crad.load_exported(path, false_alarm_rate=0.4).uncertain == band
    other = described.calibration.thresholds(0.7)
    assert crad.load_exported(path, uncertain_rate=0.7).uncertain == other
    with pytest.raises(UsageError, match=r"more than the false alarm rate, 0[.]8"):
        crad.load_exported(path, false_alarm_rate=0.8)


def test_a_process_is_given_a_detector(trained, exported: ExportedDetector) -> None:
    path = images(trained.data)[0]
    other = pickle.loads(pickle.dumps(exported))
    assert other.predict_one(path).score == exported.predict_one(path).score
    assert other.description.to_json() == exported.description.to_json()


def test_a_bad_image_leaves_its_neighbours_alone(
    trained, exported: ExportedDetector, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = images(trained.data)[:3]
    errors: list[Exception] = []
    found = exported.iterate([good[0], broken, *good[1:]], skip=errors.append)
    assert [each.path for each in found] == good
    assert [str(broken) in str(error) for error in errors] == [True]


def test_the_command_takes_a_file_for_a_checkpoint(
    trained, file: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(trained.data / "brick" / "test")
    rows = []
    for checkpoint in (file, trained.output):
        output = tmp_path / checkpoint.name
        arguments = ("--checkpoint", str(checkpoint), folder, "--output", str(output))
        assert command(crad.predict.main, *arguments) == 0
        rows.append(json.loads((output / "scores.json").read_text()))
        assert len([*output.rglob("*_heatmap.png")]) == len(rows[-1])
    assert [row["decision"] for row in rows[0]] == [row["decision"] for row in rows[1]]
    assert [row["score"] for row in rows[0]] == pytest.approx([row["score"] for row in rows[1]])
    mask = str(tmp_path / "mask.png")
    Image.new("L", (64, 64), 255).save(mask)
    wrongs = (("--compile",), ("--precision", "bf16"), ("--device", "cuda"))
    for wrong in (*wrongs, ("--roi", mask), ("--ignore", mask)):
        arguments = ("--checkpoint", str(file), folder, *wrong)
        assert command(crad.predict.main, *arguments) == 2
        assert f"{wrong[0]}" in capsys.readouterr().err


ALLOWED = ("numpy", "PIL", "onnxruntime", "tifffile", "tqdm", "crad", "google", "flatbuffers")


def without_torch(code: str, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python that has no packages but those of crad-edge."""
    guard = f"""
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        if first not in sys.stdlib_module_names and first not in {(*ALLOWED, "packaging")!r}:
            raise ModuleNotFoundError(f"No module named '{{first}}'", name=first)
sys.meta_path.insert(0, Guard())
"""
    return subprocess.run(
        [sys.executable, "-c", f"{before}\n{guard}\n{code}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_file_needs_no_pytorch(trained, file: Path, exported: ExportedDetector) -> None:
    path = images(trained.data)[0]
    code = """
import crad
detector = crad.load_exported(sys.argv[1])
found = detector.predict_one(sys.argv[2])
print(found.score, found.decision, found.anomaly_map.shape, found.anomaly_mask.shape)
try:
    crad.load(sys.argv[1])
except crad.CradError as error:
    print(error)
"""
    ended = without_torch(code, str(file), str(path))
    assert ended.returncode == 0, ended.stderr
    first, second = ended.stdout.splitlines()
    expected = exported.predict_one(path)
    assert float(first.split()[0]) == pytest.approx(expected.score, rel=1e-6)
    assert first.split()[1] == expected.decision
    assert "crad.load needs PyTorch" in second
    assert "install crad instead of crad-edge" in second


def test_the_edge_command(trained, file: Path, tmp_path: Path, exported: ExportedDetector) -> None:
    run = "from crad.edge.__main__ import main; main(sys.argv[1:])"
    folder, table = trained.data / "gauge" / "test", tmp_path / "scores.json"
    ended = without_torch(run, str(file), str(folder), "--json", str(table))
    assert ended.returncode == 0, ended.stderr
    assert "no regions: they need scikit-image" in ended.stdout
    rows = json.loads(table.read_text())
    expected = exported.predict([row["image"] for row in rows])
    assert [row["score"] for row in rows] == pytest.approx([each.score for each in expected])
    assert [row["decision"] for row in rows] == [each.decision for each in expected]
    assert "images per class, as recognised: gauge 6" in ended.stdout
    assert "thresholds from 1 normal image a class promise" in ended.stdout
    ended = without_torch(run, str(file), str(tmp_path / "none"))
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "there is no file or folder" in ended.stderr
    ended = without_torch(run, str(file), str(folder), "--class", "nut")
    assert ended.returncode == 2
    assert "no class 'nut'; it has brick, gauge" in ended.stderr


def test_the_edge_command_replaces_nothing_of_the_user(
    trained, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, image = tmp_path / "model.onnx", tmp_path / "image.png"
    shutil.copy(file, model)
    shutil.copy(images(trained.data)[0], image)
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    same = tmp_path / "same"
    for arguments, problem in (
        (("--csv", image), "is an input of this command"),
        (("--json", model), "is an input of this command"),
        (("--csv", notes), "was not written by crad"),
        (("--csv", tmp_path), "is a folder"),
        (("--csv", same, "--json", same), "is written by --csv too"),
    ):
        before = {path: path.read_bytes() for path in (model, image, notes)}
        with pytest.raises(SystemExit) as ended:
            crad.edge.__main__.main([str(each) for each in (model, image, *arguments)])
        assert ended.value.code == 1
        assert problem in capsys.readouterr().err
        assert {path: path.read_bytes() for path in before} == before
        assert not same.exists()


def test_the_edge_command_says_what_it_could_not_do(
    trained, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "a\nb.png"
    shutil.copy(images(trained.data)[0], odd)
    crad.edge.__main__.main([str(file), str(odd)])
    assert capsys.readouterr().out.splitlines()[1].endswith(r"a\nb.png")
    odd.write_bytes(b"no image")
    with pytest.raises(SystemExit) as ended:
        crad.edge.__main__.main([str(file), str(odd), "--skip-bad"])
    assert ended.value.code == 1
    assert "none of 1 image can be read" in capsys.readouterr().err


def test_the_example_of_the_docs(
    trained, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    _, _, rest = page.partition("```python\n")
    example, _, _ = rest.partition("```")
    (tmp_path / "demo.onnx").symlink_to(file)
    (tmp_path / "a.png").symlink_to(images(trained.data)[0])
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(example, found)
    assert found["heat"].shape == (64, 64)


def test_a_file_of_training_with_fit_takes_images_of_its_aspect_ratio(
    trained, file: Path, exported: ExportedDetector
) -> None:
    description = replace(exported.description, frame=Frame(32, 32, 8))
    detector = ExportedDetector(
        open_runtime(file), description, exported.thresholds, 0.01, Thresholds()
    )
    square = np.asarray(Image.open(images(trained.data)[0]).convert("RGB"))
    assert_alike(detector.predict(square), exported.predict(square))
    with pytest.raises(ImageError, match=r"64 x 40 pixels.*aspect ratio of 32 x 32 only"):
        detector.predict(square[:, :40])


# What is refused


def test_a_class_beside_regions_of_interest_is_refused_at_once(
    file: Path, exported: ExportedDetector
) -> None:
    mask = np.ones(exported.frame.mask_size, np.bool_)
    description = replace(exported.description, interest=Interest({"gauge": mask}, exported.frame))
    detector = ExportedDetector(
        open_runtime(file), description, exported.thresholds, 0.01, Thresholds()
    )
    with pytest.raises(UsageError, match="takes those of the class that it recognises"):
        detector.iterate([], class_name="gauge")  # before an image is asked for


def test_nothing_is_written_that_says_something_else(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(expected: list[Prediction], got: list[Prediction], tolerance: float) -> object:
        return compare(
            expected, [replace(each, score=1.001 * each.score) for each in got], tolerance
        )

    monkeypatch.setattr(crad.export, "compare", wrong)
    monkeypatch.setattr(crad.export, "to_onnx", lambda _: None)
    monkeypatch.setattr(crad.export, "write_onnx", lambda *_: None)
    monkeypatch.setattr(
        crad.export, "load_exported", lambda _: crad.load(trained.output, "cpu", "fp32")
    )
    with pytest.raises(ExportError, match=r"differ by up to 0\.001 of their value.*nothing was"):
        export(ExportOptions(trained.output, tmp_path / "model.onnx"))
    assert not [*tmp_path.iterdir()]


def test_a_decision_counts_unless_the_score_is_on_its_threshold() -> None:
    empty = np.ones((1, 1), np.float32)
    base = Prediction(score=1.0, scored_map=empty, threshold=1.0, class_name="nut")
    assert base.decision == "good"
    close = replace(base, score=1.00001)
    assert close.decision == "defect"
    assert compare([base], [close], 1e-4).n_changed == 0
    assert compare([base], [close], 1e-6).n_changed == 1
    assert compare([base], [replace(base, class_name="bolt")], 1e-4).n_changed == 1
    assert compare([base], [replace(base, score=float("nan"))], 1e-4).score_error != 0


def test_nothing_of_the_user_is_replaced(
    trained, file: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(output: Path, *arguments: str) -> str:
        code = command(
            crad.export.main, "--checkpoint", str(trained.output), str(output), *arguments
        )
        assert code in (1, 2)
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    earlier = tmp_path / "earlier.onnx"
    earlier.write_bytes(file.read_bytes())
    assert "--overwrite replaces it" in fails(earlier)
    foreign = tmp_path / "foreign.onnx"
    foreign.write_text("mine")
    assert "was not written by crad" in fails(foreign, "--overwrite")
    assert foreign.read_text() == "mine"
    assert "none of the suffixes .onnx, .xml, .pt2" in fails(tmp_path / "model.bin")
    assert "has the suffix of onnx, not of torch" in fails(earlier, "--format", "torch")
    assert "leave --input float out" in fails(
        tmp_path / "a.onnx", "--with-preprocessing", "--input", "float"
    )
    assert "is of float32" in fails(tmp_path / "a.pt2", "--precision", "int8")
    assert "no folder" in fails(tmp_path / "a.onnx", "--images", str(tmp_path / "none"))


def test_a_suffix_in_capitals_names_another_file(
    trained, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = file.read_bytes()
    monkeypatch.setattr(crad.export, "to_onnx", lambda _: None)
    monkeypatch.setattr(crad.export, "write_onnx", lambda *given: given[-1].write_bytes(model))
    earlier, other = tmp_path / "model.onnx", tmp_path / "model.ONNX"
    earlier.write_text("mine")
    export(ExportOptions(trained.output, other))
    assert (earlier.read_text(), other.read_bytes()) == ("mine", model)


def test_images_that_are_gone_must_be_named(trained, tmp_path: Path) -> None:
    moved = tmp_path / "checkpoint.safetensors"
    moved.write_bytes((trained.output / "checkpoint.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"images of training cannot be used.*--images"):
        export(ExportOptions(moved, tmp_path / "model.onnx"))


def test_a_file_of_others_is_no_detector(tmp_path: Path, file: Path) -> None:
    import onnx

    with pytest.raises(CheckpointError, match=r"file of crad export.*crad\.load_exported take"):
        crad.load(file)
    for name, message in (("none.onnx", "no file"), ("model.txt", "none of .onnx")):
        with pytest.raises(CheckpointError, match=message):
            crad.load_exported(tmp_path / name)
    model = onnx.load(file)
    entry = model.metadata_props[0]
    for value, message in (
        ('{"version": 9}', "of version 9"),
        ('{"version": 1}', "damaged"),
        ("nothing", "damaged"),
    ):
        entry.value = value
        onnx.save(model, tmp_path / "other.onnx")
        with pytest.raises(CheckpointError, match=message):
            crad.load_exported(tmp_path / "other.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match="has no description"):
        crad.load_exported(tmp_path / "other.onnx")
    (tmp_path / "other.onnx").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        crad.load_exported(tmp_path / "other.onnx")


# The parts of the program


@pytest.mark.parametrize("size", [(32, 32), (64, 24), (40, 96)])
def test_matrices_scatter_as_fourier_transforms_do(size: tuple[int, int]) -> None:
    height, width = size
    backbone = ScatteringBackbone(12)
    backbone.fit([torch.rand(8, 3, height, width)])
    images = torch.rand(3, 3, height, width)
    torch.testing.assert_close(
        MatrixScattering(backbone, height, width)(images), backbone(images), rtol=1e-4, atol=1e-4
    )


def programs(trained) -> Iterator[tuple[crad.Detector, str]]:
    for kind in ("plain", "interest", "no thresholds", "uncertain", "no products", *PROTOCOLS):
        detector = crad.load(trained.output, "cpu", "fp32")
        if kind == "interest":
            mask = np.zeros(detector.frame.mask_size, np.bool_)
            mask[:, 8:20] = True
            detector.interest = Interest({"gauge": mask}, detector.frame)
        elif kind == "no thresholds":
            detector.thresholds = Thresholds()
        elif kind == "uncertain":
            detector.uncertain = Thresholds(
                {name: Threshold(0.9 * each.score, 1) for name, each in detector.thresholds.items()}
            )
        elif kind == "no products":
            detector.products = None
        elif kind in PROTOCOLS:
            detector.protocol = PROTOCOLS[kind]
        yield detector, kind


def test_the_program_of_any_detector_predicts_as_it_does(trained) -> None:
    paths = images(trained.data)
    pixels = [np.asarray(Image.open(path).convert("RGB").resize((32, 32), 2)) for path in paths]
    batch = torch.from_numpy(np.stack(pixels))
    for detector, kind in programs(trained):
        expected = detector.predict(pixels)
        with torch.inference_mode():
            scores, decisions, maps, classes = Pipeline(detector).eval()(batch)
        for at, each in enumerate(expected):
            assert scores[at].item() == pytest.approx(each.score, rel=1e-5), kind
            np.testing.assert_allclose(maps[at], each.scored_map, rtol=1e-4)
            name = detector.classes[classes[at]] if classes[at] >= 0 else None
            assert name == each.class_name, kind
            decision = DECISIONS[decisions[at]] if decisions[at] >= 0 else None
            assert decision == each.decision, kind


def test_a_description_survives_its_file(trained, exported: ExportedDetector) -> None:
    detector = crad.load(trained.output, "cpu", "fp32")
    found = exported.description
    mask = np.zeros(found.frame.mask_size, np.bool_)
    mask[3:7, 5:] = True
    masked = replace(found, interest=Interest({"brick": mask}, found.frame))
    again = Description.from_json(masked.to_json(), 50.0, None)
    assert (again.interest.masks["brick"] == mask).all()
    assert again.calibration == found.calibration == detector.calibration
    assert again.thresholds == detector.thresholds
    assert again.decoding.max_megapixels == 50
    assert found.check["n_images"] == 24


@pytest.mark.slow
def test_the_distribution_of_the_edge(trained, file: Path, tmp_path: Path) -> None:
    """It is built from a copy of the tree, and has all that its command imports."""
    root = Path(__file__).parents[2]
    shutil.copytree(root / "crad", tmp_path / "tree" / "crad")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    site = tmp_path / "site"
    subprocess.run([*pip, "--target", site, tmp_path / "tree" / "crad" / "edge"], check=True)
    for name in ("crad_kernels", "crad/model", "crad/training"):
        assert not (site / name).exists()
    run = "from crad.edge.__main__ import main; main(sys.argv[1:])"
    path = str(images(trained.data)[0])
    before = f"import sys; sys.path.insert(0, {str(site)!r})"
    ended = without_torch(run, str(file), path, before=before)
    assert ended.returncode == 0, ended.stderr
    assert path in ended.stdout
