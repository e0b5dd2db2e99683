"""Images in batches: nothing before a bad one is lost, and the bad one is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crad.data.batches import load_batches
from crad.data.sources import split_images
from crad.errors import ImageError

GOOD = np.zeros((5, 5), np.uint8)
BAD = np.full((5, 5), 3.0)


def test_an_image_in_memory_is_named_by_its_position() -> None:
    for images in ([GOOD, GOOD, BAD], [GOOD, Image.new("L", (3, 3)), BAD[None]]):
        with pytest.raises(ImageError, match=r"^images\[2\]: "):
            list(load_batches(images, size=8, batch_size=2))
    errors: list[ImageError] = []
    batches = load_batches([BAD, GOOD, BAD], size=8, batch_size=2, skip=errors.append)
    assert [len(batch.images) for batch in batches] == [1]
    assert [str(error)[:9] for error in errors] == ["images[0]", "images[2]"]


def test_images_before_a_bad_one_come_before_its_error(tmp_path: Path) -> None:
    batches = load_batches([GOOD, GOOD, GOOD, tmp_path / "none.png"], size=8, batch_size=2)
    assert len(next(batches).images) == 2
    assert len(next(batches).images) == 1
    with pytest.raises(ImageError, match=r"'.*none\.png'"):
        next(batches)


def test_batches_are_full_again_after_a_bad_one() -> None:
    images = [GOOD, BAD, GOOD, GOOD, GOOD]
    batches = list(load_batches(images, size=8, batch_size=2, skip=lambda _: None))
    assert [len(batch.images) for batch in batches] == [1, 2, 1]
    sizes = [[each.size for each in batch.samples] for batch in batches]
    assert sizes == [
        [(5, 5)],
        [(5, 5)] * 2,
        [(5, 5)],
    ]


@pytest.mark.parametrize("wrong", [None, 3, b"a.png", bytearray(b"a.png"), ["a.png", None]])
def test_what_is_no_image_is_named_by_its_type(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"(NoneType|int|byte)"):
        list(split_images(wrong))


def test_collections_are_taken_apart() -> None:
    assert list(split_images([["a"], ("b", Path("c")), {"d": 1}])) == ["a", "b", Path("c"), "d"]
