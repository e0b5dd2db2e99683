"""The first result comes with the first image, and one image takes the time of one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import crad
from crad.backbones.base import Backbone
from crad.data.batches import load_batches
from crad.data.sources import call_ahead
from crad.detector import Detector
from crad.errors import ImageError, UsageError
from tests.fixtures import before_call


@pytest.fixture(scope="module")
def detector(trained) -> Detector:
    return crad.load(trained.output, "cpu")


def camera(taken: list[int], count: int = 60) -> Iterator[np.ndarray]:
    """Images that are counted as they are taken."""
    for number in range(count):
        taken.append(number)
        yield np.full((40, 40, 3), number, np.uint8)


def test_the_first_result_needs_the_first_image_only(detector: Detector) -> None:
    taken: list[int] = []
    found = detector.iterate(camera(taken))
    next(found)
    assert len(taken) == 1
    assert len([*found]) == 59


def test_results_need_few_images_more_than_their_own(detector: Detector) -> None:
    """Those of their batch, which doubles up to its size, and as many that are looked ahead."""
    taken: list[int] = []
    for number, _ in enumerate(detector.iterate(camera(taken), batch_size=8), 1):
        assert len(taken) <= 3 * number + 16
    taken.clear()
    for number, _ in enumerate(detector.iterate(camera(taken, 9), batch_size=1), 1):
        assert len(taken) <= number + 2


def test_batches_grow_to_their_size() -> None:
    images = [np.zeros((8, 8), np.uint8)] * 40
    grown = [
        len(batch.samples) for batch in load_batches(images, size=8, batch_size=12, growing=True)
    ]
    assert grown == [1, 2, 4, 8, 12, 12, 1]
    plain = [len(batch.samples) for batch in load_batches(images, size=8, batch_size=12)]
    assert plain == [12, 12, 12, 4]


def test_results_are_looked_ahead_as_far_as_asked() -> None:
    taken: list[int] = []

    def arguments() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    seen = []
    for future in call_ahead(lambda number: number, arguments(), ahead=5):
        seen.append(len(taken) - future.result() - 1)
    assert seen[:8] == [0, 1, 2, 3, 4, 5, 5, 5]
    assert max(seen) == 5


def test_one_image_is_one_image(detector: Detector, trained, tmp_path: Path) -> None:
    path = trained.data / "brick" / "test" / "good" / "000.png"
    calls = []
    with before_call(type(detector.model), lambda number, _: calls.append(number)):
        found = detector.predict_one(path)
    assert calls == [0]
    (expected,) = detector.predict(path, batch_size=1)
    assert (found.score, found.class_name) == (expected.score, "brick")
    np.testing.assert_array_equal(found.scored_map, expected.scored_map)
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    assert detector.predict_one(pixels, class_name="brick").score == pytest.approx(found.score)
    bgr = detector.predict_one(pixels[..., ::-1].copy(), channel_order="bgr")
    assert bgr.score == pytest.approx(found.score)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    assert detector.predict_one(tensor[None]).score == pytest.approx(found.score)
    for several in ([path, path], np.stack([pixels] * 3), []):
        with pytest.raises(UsageError, match="expected one image"):
            detector.predict_one(several)
    with pytest.raises(ImageError, match=r"none\.png"):
        detector.predict_one(tmp_path / "none.png")


def test_it_is_the_backbone_that_sees_one_image(detector: Detector) -> None:
    shapes = []

    def note(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, Backbone):
            shapes.append(len(arguments[0]))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        detector.predict_one(np.zeros((40, 40), np.uint8))
        detector.predict([np.zeros((40, 40), np.uint8)] * 5)
    finally:
        handle.remove()
    assert shapes == [1, 1, 2, 2]
