"""The detector from Python: every kind of input, one answer."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import crad
from crad.detector import Detector
from crad.devices import select_precision
from crad.errors import CheckpointError, ImageError, UsageError
from crad.training.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def detector(trained) -> Detector:
    return crad.load(trained.output, device="cpu")


@pytest.fixture
def image(demo_root: Path) -> Path:
    return demo_root / "brick" / "test" / "good" / "000.png"


def test_one_image_in_any_form(detector: Detector, image: Path) -> None:
    picture = Image.open(image)
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [image, str(image), picture, array, array / 255.0, tensor, tensor.float() / 255]
    predictions = [*(detector.predict(form)[0] for form in forms), *detector.predict(forms)]
    assert len({prediction.score for prediction in predictions}) == 1
    assert predictions[0].path == predictions[1].path == image
    assert predictions[2].path is None


def test_batches_as_one_array_or_tensor(detector: Detector, image: Path) -> None:
    array = np.stack([np.asarray(Image.open(image))] * 3)
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    assert len(detector.predict(array)) == len(detector.predict(tensor)) == 3


def test_the_batch_size_does_not_matter(detector: Detector, demo_root: Path) -> None:
    paths = sorted((demo_root / "gauge").rglob("*.png"))
    one = detector.predict(paths, batch_size=1)
    many = detector.predict(paths, batch_size=7)
    assert [p.path for p in one] == [p.path for p in many] == paths
    np.testing.assert_allclose([p.score for p in one], [p.score for p in many], rtol=1e-4)


def test_maps_have_the_size_of_their_image(detector: Detector) -> None:
    wide, high = Image.new("RGB", (90, 31)), Image.new("L", (17, 200))
    for picture, prediction in zip((wide, high), detector.predict([wide, high]), strict=True):
        assert prediction.anomaly_map.shape == (picture.height, picture.width)
        assert prediction.anomaly_map.dtype == np.float32
        assert prediction.scored_map.shape == (32, 32)
        assert prediction.anomaly_map.min() >= 0
        assert prediction.anomaly_map.max() <= prediction.scored_map.max()


def test_no_images_no_predictions(detector: Detector) -> None:
    assert detector.predict([]) == []


def test_images_are_taken_as_they_come(detector: Detector, image: Path) -> None:
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield image

    predictions = detector.iterate(endless(), batch_size=2)
    for _ in range(4):
        next(predictions)
    predictions.close()
    assert taken < 20


def test_a_bad_image_is_named_or_skipped(detector: Detector, image: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(image.read_bytes()[:300])
    with pytest.raises(ImageError, match=r"bad\.png"):
        detector.predict([image, bad])
    errors: list[ImageError] = []
    predictions = list(detector.iterate([image, bad, image], skip=errors.append))
    assert [p.path for p in predictions] == [image, image]
    assert "bad.png" in str(errors[0])


CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)
NO_IMAGE = "expected images as file names, Pillow images, arrays or tensors, but got"
NO_TYPE = "expected bool, uint8, uint16 or float"
NO_TENSOR = "expected a dense one of bool, uint8, uint16 or float"


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (np.zeros((5, 5, 2), np.uint8), ImageError, r"images\[0\]: .* but got \(5, 5, 2\)"),
        (np.zeros((1, 1, 5, 5, 3)), ImageError, "but got"),
        (np.array(3.0), ImageError, r"but got \(\)"),
        (np.full((5, 5), 3.0), ImageError, "expected 0 to 1"),
        (np.full((5, 5), np.nan), ImageError, "NaN"),
        (np.zeros((5, 5), object), ImageError, NO_TYPE),
        (np.zeros((2, 5, 5, 3), object), ImageError, NO_TYPE),
        (np.zeros((5, 5), complex), ImageError, NO_TYPE),
        (np.zeros((5, 5), np.int64), ImageError, NO_TYPE),
        (np.full((5, 5), "a"), ImageError, NO_TYPE),
        (np.array(["a.png"]), ImageError, r"but got \(1,\)"),
        (torch.zeros(2, 5, 5), ImageError, r"but got \(2, 5, 5\)"),
        (torch.tensor(1.0), ImageError, r"but got \(\)"),
        (torch.zeros(3, 5, 5).to_sparse(), ImageError, NO_TENSOR),
        (torch.zeros(2, 3, 5, 5).to_sparse(), ImageError, NO_TENSOR),
        (torch.zeros(2, 3, 5, 5, device="meta"), ImageError, NO_TENSOR),
        (torch.zeros(3, 5, 5, dtype=torch.complex64).conj(), ImageError, NO_TENSOR),
        (Image.new("RGB", (0, 5)), ImageError, "0 x 5 pixels"),
        ("a\0b", ImageError, "null byte"),
        ("", ImageError, "folder"),
        (None, TypeError, f"{NO_IMAGE} NoneType"),
        ([None], TypeError, f"{NO_IMAGE} NoneType"),
        (3, TypeError, f"{NO_IMAGE} int"),
        ((each for each in [3]), TypeError, f"{NO_IMAGE} int"),
        (CIRCLE, TypeError, "a collection that holds itself"),
        (b"a.png", TypeError, f"{NO_IMAGE} bytes"),
    ],
)
def test_what_is_no_image(
    detector: Detector, wrong: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        detector.predict(wrong)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("batch_size", "a", TypeError),
        ("batch_size", 1.5, TypeError),
        ("batch_size", None, TypeError),
        ("batch_size", np.zeros(3, int), TypeError),
        ("batch_size", 0, UsageError),
        ("class_name", 3, TypeError),
        ("class_name", ["brick"], TypeError),
        ("class_name", np.zeros(3), TypeError),
        ("class_name", "nut", UsageError),
        ("channel_order", 3, UsageError),
        ("channel_order", np.zeros(3), UsageError),
        ("skip", 3, TypeError),
    ],
)
def test_wrong_arguments_are_named_at_once(
    detector: Detector, image: Path, name: str, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=name.removesuffix("_name")):
        detector.iterate(image, **{name: value})
    if name != "skip":
        with pytest.raises(error, match=name.removesuffix("_name")):
            detector.predict(image, **{name: value})
    if name != "class_name":
        with pytest.raises(error, match=name):
            list(detector.map_images(image, **{name: value}))


def test_arguments_besides_images_go_by_name(detector: Detector, image: Path) -> None:
    for method in (detector.predict, detector.iterate, detector.map_images):
        with pytest.raises(TypeError, match="positional"):
            method(image, 16)
    for size in (np.int64(2), True):
        assert len(detector.predict(image, batch_size=size)) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": 3}, TypeError, "not int"),
        ({"path": None}, TypeError, "not NoneType"),
        ({"path": "a\0"}, CheckpointError, "null byte"),
        ({"path": ""}, CheckpointError, "there is no file"),
        ({"device": 3}, TypeError, "device: expected auto, cpu, cuda"),
        ({"device": []}, TypeError, "device: expected auto, cpu, cuda"),
        ({"precision": 3}, UsageError, "precision: expected one of auto"),
        ({"precision": np.zeros(3)}, UsageError, "precision: expected one of auto"),
        ({"bit_depth": "a"}, UsageError, "bit_depth: expected 8 to 16, but got 'a'"),
        ({"bit_depth": 8.5}, UsageError, "bit_depth: expected 8 to 16"),
        ({"bit_depth": np.zeros(3)}, UsageError, "bit_depth: expected 8 to 16"),
        ({"max_megapixels": "a"}, UsageError, "max_megapixels: expected a number above 0"),
        ({"max_megapixels": float("nan")}, UsageError, "max_megapixels: expected a number"),
    ],
)
def test_wrong_arguments_of_load(
    trained, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        crad.load(**({"path": trained.output, "device": "cpu"} | arguments))


def test_exports_are_looked_up_once() -> None:
    vars(crad).pop("load", None)
    load = crad.load
    assert vars(crad)["load"] is load


def test_a_loaded_detector_needs_nothing_but_its_checkpoint(trained, tmp_path: Path) -> None:
    shutil.copy(trained.output / "checkpoint.safetensors", tmp_path / "moved.safetensors")
    detector = crad.load(tmp_path / "moved.safetensors")
    assert len(detector.predict(Image.new("RGB", (64, 64)))) == 1


def test_a_model_that_is_spoilt_decides_nothing(trained, tmp_path: Path) -> None:
    spoilt = read_checkpoint(trained.output)
    spoilt.model["local_representation.memory.weight"][0, 0, 0] = torch.nan
    spoilt.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"memory\.weight'.*NaN.*--overwrite"):
        crad.load(tmp_path)


def test_bf16_is_used_only_where_asked_for_or_large(trained, image: Path) -> None:
    exact, rounded = (crad.load(trained.output, "cpu", each) for each in ("fp32", "bf16"))
    (expected,), (actual,) = exact.predict(image), rounded.predict(image)
    assert actual.score != expected.score
    assert actual.score == pytest.approx(expected.score, rel=0.02)
    assert crad.load(trained.output, "cpu").precision == "fp32"


def test_the_precision_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for native in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": native})  # noqa: B023
        assert select_precision("auto", cpu, 1e10) == ("bf16" if native else "fp32")
        assert select_precision("auto", cpu, 1e8) == "fp32"
        assert select_precision("auto", cuda, 1e10) == "fp32"
        assert select_precision("bf16", cpu, 1e8) == "bf16"


def test_an_unknown_precision(trained, detector: Detector) -> None:
    with pytest.raises(UsageError, match=r"precision: .* auto, fp32, bf16, but got 'fp16'"):
        crad.load(trained.output, device="cpu", precision="fp16")
    with pytest.raises(UsageError, match=r"precision: .* fp32, bf16, but got 'auto'"):
        Detector(
            detector.backbone,
            detector.model,
            image_size=32,
            device=detector.device,
            colour_scale=(0, 1),
            protocol=detector.protocol,
            precision="auto",
        )


def test_an_unknown_device() -> None:
    with pytest.raises(ValueError, match="device"):
        crad.load("nowhere", device="gpu")
