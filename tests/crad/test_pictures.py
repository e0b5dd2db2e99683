import os
import weakref
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from crad.errors import ImageError
from crad.report.heat_maps import colour_scale, heat_map
from crad.report.sheets import write_sheet
from crad.scoring.prediction import Prediction


def lightness(rgb):
    """Relative luminance of sRGB colours."""
    linear = (np.asarray(rgb) / 255) ** 2.2
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.fixture
def images(tmp_path):
    """Test images of a class whose name is wide."""
    random = np.random.default_rng(0)
    found = []
    for defect, count in (("bent", 5), ("good", 6), ("scratch", 5)):
        for index in range(count):
            path = tmp_path / "data" / "面板 2" / defect / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (50, 9), dtype=np.uint8)).save(path)
            values = random.random((16, 16), dtype=np.float32) + (defect != "good")
            truth = np.full((16, 16), defect != "good")
            found.append(
                Prediction(
                    path=path,
                    class_name="面板 2",
                    defect=defect,
                    score=1.5,
                    scored_map=values,
                    truth=None if index == 1 else truth,
                )
            )
    return found


def read(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def test_a_sheet(tmp_path, images):
    file = tmp_path / "new" / "sheets" / "面板 2.png"
    write_sheet(file, "面板 2", images, note="demo set: a stand-in")
    assert [*file.parent.iterdir()] == [file]
    assert min(read(file).size) > 500


def test_rows_are_limited_and_mixed(tmp_path, images):
    shown = {f"{kind}/{i}" for kind in ("bent", "scratch") for i in range(3)} | {"good/0", "good/1"}
    paths = {f"{image.path.parent.name}/{image.path.stem}": image.path for image in images}
    for name in paths.keys() - shown:
        paths[name].unlink()  # it is not opened
    write_sheet(tmp_path / "a.png", "a", images, rows=8)
    for name in shown:
        content = paths[name].read_bytes()
        paths[name].unlink()
        with pytest.raises(ImageError, match=name):
            write_sheet(tmp_path / "a.png", "a", images, rows=8)
        paths[name].write_bytes(content)


def test_images_that_are_not_shown_are_not_held(tmp_path, images):
    held, most = weakref.WeakSet(), 0

    def stream():
        nonlocal most
        for image in images:
            copy = replace(image)
            held.add(copy)
            yield copy
            most = max(most, len(held))

    write_sheet(tmp_path / "streamed.png", "a", stream(), rows=2)
    assert most <= 2 + 2 + 2 + 1  # two of each kind, and the next one
    write_sheet(tmp_path / "whole.png", "a", images, rows=2)
    assert (tmp_path / "streamed.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


@pytest.mark.parametrize("kept", [["good"], ["bent"], ["bent", "good"]])
def test_classes_without_defects_or_without_normal_images(tmp_path, images, kept):
    some = [image for image in images if image.defect in kept]
    for count in (len(some), 1):
        write_sheet(tmp_path / f"{count}.png", "a", some[:count])
        assert read(tmp_path / f"{count}.png").width > 500
    write_sheet(tmp_path / "none.png", "a", [])
    assert not (tmp_path / "none.png").exists()


def test_names_of_any_bytes_and_any_length(tmp_path):
    name = os.fsdecode(b"caf\xe9\nline 2") + "x" * 150
    path = tmp_path / name / "0.png"
    path.parent.mkdir()
    Image.new("L", (8, 8)).save(path)
    blank = np.zeros((4, 4), np.float32)
    image = Prediction(path=path, class_name=name, defect=name, score=1e30, scored_map=blank)
    write_sheet(tmp_path / f"{name}.png", name, [image])
    assert (tmp_path / f"{name}.png").exists()


def test_an_image_that_is_gone_is_named(tmp_path, images):
    images[0].path.unlink()
    with pytest.raises(ImageError, match=r"bent/0\.png"):
        write_sheet(tmp_path / "a.png", "a", images)


def test_the_scale_comes_from_normal_maps_and_survives_constant_ones():
    maps = [np.linspace(2, 3, 10_001, dtype=np.float32).reshape(73, 137)] * 2
    low, high = colour_scale(maps)
    assert low == pytest.approx(2.5, abs=1e-3)
    assert high == pytest.approx(2.5 + 3 * 0.495, abs=1e-3)
    assert colour_scale([np.zeros((4, 4), np.float32)]) == (0.0, 0.0)


@pytest.mark.parametrize("size", [(64, 64), (301, 77), (1, 1)])
def test_a_heat_map_has_the_size_of_its_image(size):
    image = Image.new("RGB", size, (10, 200, 30))
    before = image.copy()
    drawn = heat_map(image, np.random.default_rng(0).random((16, 16), np.float32), 0.0, 1.0)
    assert (drawn.mode, drawn.size) == ("RGB", size)
    assert image == before


def test_what_is_normal_is_left_unchanged_and_what_is_not_stands_out():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    values = np.zeros((16, 16), np.float32)
    values[:, 8:] = 5
    drawn = np.asarray(heat_map(image, values, low=1.0, high=2.0)).astype(int)
    original = np.asarray(image).astype(int)
    np.testing.assert_array_equal(drawn[:, :24], original[:, :24])
    assert np.abs(drawn[:, 40:] - original[:, 40:]).mean() > 50


def test_the_same_value_has_the_same_colour_in_every_image():
    image = Image.new("RGB", (32, 32))
    low_contrast = np.full((8, 8), 1.5, np.float32)
    high_contrast = low_contrast.copy()
    high_contrast[:4] = 100
    one = np.asarray(heat_map(image, low_contrast, 0, 3))[-1, 0]
    other = np.asarray(heat_map(image, high_contrast, 0, 3))[-1, 0]
    np.testing.assert_array_equal(one, other)


def test_colours_become_lighter_all_the_way():
    ramp = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (4, 1))
    shown = np.asarray(heat_map(Image.new("RGB", (256, 4)), ramp, 0, 1))[0]
    assert (np.diff(lightness(shown)) > -1e-3).all()
    assert lightness(shown)[-1] > 10 * lightness(shown)[80]


def test_a_scale_without_extent_does_not_fail():
    image = Image.new("RGB", (8, 8), (90, 90, 90))
    values = np.zeros((8, 8), np.float32)
    np.testing.assert_array_equal(np.asarray(heat_map(image, values, 0.0, 0.0)), np.asarray(image))
    values[:] = 1e30
    assert np.asarray(heat_map(image, values, 0.0, 0.0)).max() > 90
