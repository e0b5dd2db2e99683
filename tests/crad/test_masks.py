"""Masks: every way to save one reads alike, or is refused by name; none vanishes unsaid."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import crad.evaluate
from crad.data.bad_images import BadImages
from crad.data.masks import open_mask, resize_mask
from crad.data.samples import Sample
from crad.errors import ImageError, MaskError, UsageError
from crad.scoring.evaluation import Evaluation, Truths
from crad.scoring.protocols import PROTOCOLS
from tests.crad.test_decoding import write_png, write_tiff
from tests.crad.test_images import RAMP, save

MASK = RAMP > 200
REGION = np.zeros((12, 20), bool)
REGION[3:7, 4:11] = True
INDEX = REGION.astype(np.uint8)
WHITE = INDEX * np.uint8(255)


def palette(index: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(index)
    image.putpalette(sum(colours, ()))
    return image


BLACK, RED, GREEN, PURPLE, YELLOW = (0, 0, 0), (200, 0, 0), (0, 9, 0), (68, 1, 84), (253, 231, 37)
PICTURES = {
    "plain": Image.fromarray(WHITE),
    "0/1": Image.fromarray(INDEX),
    "ids": Image.fromarray(INDEX * np.uint8(3)),
    "1-bit": Image.fromarray(REGION),
    "16-bit": Image.fromarray(INDEX.astype(np.uint16)),
    "colour": Image.fromarray(np.dstack([0 * INDEX, INDEX, 0 * INDEX])),
    "palette": palette(INDEX, BLACK, RED),
    "palette of black": palette(INDEX, BLACK, BLACK),
    "palette of black and red": palette(INDEX * np.uint8(2), BLACK, RED, BLACK),
    "palette without black": palette(INDEX, PURPLE, YELLOW),
    "palette from the brightest": palette(1 - INDEX, (255, 255, 255), BLACK),
    "palette with a transparent background": palette(INDEX, BLACK, RED),
    "LA": Image.merge("LA", [Image.fromarray(WHITE), Image.new("L", (20, 12), 255)]),
    "RGBA": Image.fromarray(np.dstack([WHITE] * 3 + [np.full_like(WHITE, 255)])),
    "alpha alone": Image.fromarray(np.dstack([0 * WHITE] * 3 + [WHITE])),
    "white alpha": Image.fromarray(np.dstack([0 * WHITE + 255] * 3 + [WHITE])),
    "grey alpha": Image.merge("LA", [Image.new("L", (20, 12), 128), Image.fromarray(WHITE)]),
    "red on a transparent white": Image.fromarray(
        np.dstack([0 * WHITE + 255, 255 - WHITE, 255 - WHITE, WHITE])
    ),
    "invisible everywhere": Image.fromarray(np.dstack([WHITE] * 3 + [0 * WHITE])),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_the_same_region_reads_alike(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    transparent = suffix == ".png" and "transparent background" in name
    PICTURES[name].save(path, **({"transparency": 0} if transparent else {}))
    np.testing.assert_array_equal(open_mask(path), REGION)


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".pgm", ".webp", ".jpg"])
def test_other_formats_read_alike(tmp_path: Path, suffix: str) -> None:
    mask = np.kron(WHITE, np.ones((8, 8), np.uint8))
    image = Image.fromarray(mask)
    (image.convert("RGB") if suffix == ".webp" else image).save(tmp_path / f"mask{suffix}")
    assert (open_mask(tmp_path / f"mask{suffix}") != (mask > 0)).mean() < 0.01


def test_integers_of_32_bits_read_alike(tmp_path: Path) -> None:
    Image.fromarray(INDEX.astype(np.int32)).save(tmp_path / "m.tif")
    np.testing.assert_array_equal(open_mask(tmp_path / "m.tif"), REGION)


@pytest.mark.parametrize("levels", [255 - WHITE, 65535 - INDEX.astype(np.uint16), 1.0 - REGION])
def test_zero_stands_for_white_where_a_tiff_says_so(tmp_path: Path, levels: np.ndarray) -> None:
    levels = levels.astype(np.float32) if levels.dtype.kind == "f" else levels
    tifffile.imwrite(tmp_path / "m.tif", levels, photometric="miniswhite")
    np.testing.assert_array_equal(open_mask(tmp_path / "m.tif"), REGION)


@pytest.mark.parametrize("write", [write_png, write_tiff])
def test_16_bit_colours_below_the_high_byte_count(tmp_path: Path, write: Callable) -> None:
    level = INDEX.astype(np.uint16)
    write(tmp_path / "m", np.dstack([0 * level, level, 0 * level]))
    np.testing.assert_array_equal(open_mask(tmp_path / "m"), REGION)


def test_16_bit_alpha_counts(tmp_path: Path) -> None:
    level = INDEX.astype(np.uint16) * np.uint16(65535)
    write_png(tmp_path / "la.png", np.dstack([0 * level, level]))
    write_png(tmp_path / "rgba.png", np.dstack([0 * level] * 3 + [level]))
    for name in ("la.png", "rgba.png"):
        np.testing.assert_array_equal(open_mask(tmp_path / name), REGION)


@pytest.mark.parametrize(
    "levels",
    [
        MASK,
        MASK.astype(np.uint8),
        MASK.astype(np.uint8) * np.uint8(255),
        MASK.astype(np.uint8) * np.uint8(3),
        MASK.astype(np.uint16),
        np.dstack([0 * RAMP, MASK.astype(np.uint8), 0 * RAMP]),
        np.dstack([MASK.astype(np.uint8)] * 3 + [np.full_like(RAMP, 255)]),
    ],
    ids=["1-bit", "0/1", "0/255", "class ids", "16-bit 0/1", "one colour", "RGBA"],
)
def test_a_mask_is_what_is_above_zero(tmp_path: Path, levels: np.ndarray) -> None:
    mask = open_mask(save(tmp_path / "m.png", levels))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, MASK)


def test_masks_of_integers_floats_greyscale_alpha_and_palette(tmp_path: Path) -> None:
    grey_alpha = Image.merge(
        "LA", [Image.fromarray(MASK.astype(np.uint8)), Image.new("L", (20, 12), 255)]
    )
    palette = Image.fromarray(MASK.astype(np.uint8))
    palette.putpalette([0, 0, 0, 0, 0, 200])
    for path in (
        save(tmp_path / "i.tif", MASK.astype(np.int32)),
        save(tmp_path / "f.tif", MASK.astype(np.float32)),
        save(tmp_path / "la.png", grey_alpha),
        save(tmp_path / "p.png", palette),
    ):
        np.testing.assert_array_equal(open_mask(path), MASK, err_msg=path.name)


def test_a_jpeg_mask_is_not_smeared(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 24:44] = 255
    opened = open_mask(save(tmp_path / "m.jpg", mask, quality=75))
    assert (opened != (mask > 0)).mean() < 0.01


# Resizing


def test_a_mask_is_resized_to_the_frame_of_its_image(tmp_path: Path) -> None:
    mask = np.zeros((60, 100), np.uint8)
    mask[30:, 50:] = 1
    resized = open_mask(save(tmp_path / "m.png", mask), 32)
    expected = np.zeros((32, 32), bool)
    expected[16:, 16:] = True
    np.testing.assert_array_equal(resized, expected)


def test_a_mask_resized_bilinearly_keeps_what_covers_half_a_pixel(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :33] = 1  # in the quarter size, 8 columns and a quarter of the next
    mask[8:11, 48:52] = 1  # three quarters of a pixel; the filter spreads it over more
    path = save(tmp_path / "m.png", mask)
    resized = open_mask(path, 16, "bilinear")
    expected = np.zeros((16, 16), bool)
    expected[:, :8] = True
    np.testing.assert_array_equal(resized, expected)
    enlarged = np.repeat(np.repeat(mask > 0, 2, axis=0), 2, axis=1)
    np.testing.assert_array_equal(open_mask(path, 128, "bilinear"), enlarged)
    np.testing.assert_array_equal(open_mask(path, 64, "bilinear"), mask > 0)


def test_any_loses_no_defect() -> None:
    for size in (3, 7, 224, 1024, 1500):
        for row, column in ((0, 0), (511, 700), (1023, 1023)):
            mask = np.zeros((1024, 1024), bool)
            mask[row, column] = True
            resized = resize_mask(mask, size, "any")
            assert resized.shape == (size, size)
            assert resized[row * size // 1024, column * size // 1024]
            assert resized.sum() <= 4 * max(1, -(-size // 1024)) ** 2
    assert not resize_mask(np.zeros((5, 9), bool), 4, "any").any()


def test_any_takes_every_pixel_that_is_touched() -> None:
    mask = np.zeros((6, 4), bool)
    mask[2, 1] = True
    np.testing.assert_array_equal(resize_mask(mask, 2, "any"), [[True, False], [False, False]])
    np.testing.assert_array_equal(
        resize_mask(mask, 4, "any"),
        np.outer([False, True, False, False], [False, True, False, False]),
    )
    mask = np.zeros((6, 4), bool)
    mask[1, 1] = True  # in rows 0 and 1 of four
    np.testing.assert_array_equal(resize_mask(mask, 4, "any")[:, 1], [True, True, False, False])


def test_another_way_to_resize_is_refused(tmp_path: Path) -> None:
    Image.fromarray(WHITE).save(tmp_path / "m.png")
    message = "resize: expected one of nearest, bilinear, any, but got 'bogus'"
    for size in (None, 8):
        with pytest.raises(UsageError, match=message):
            open_mask(tmp_path / "m.png", size, "bogus")
    with pytest.raises(UsageError, match=message):
        resize_mask(REGION, 8, "bogus")


# Masks that contradict their image


def sample(folder: Path, mask: np.ndarray, defect: str = "dent", exif: int | None = None) -> Sample:
    options = {}
    if exif:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = exif
    Image.new("RGB", (20, 12)).save(folder / "image.jpg", **options)
    Image.fromarray(mask).save(folder / "mask.png")
    return Sample(folder / "image.jpg", "nut", defect, folder / "mask.png")


@pytest.mark.parametrize(
    ("mask", "defect", "exif", "message"),
    [
        (0 * WHITE, "dent", None, r"mask\.png' is empty"),
        (WHITE, "good", None, "marks a defect.*normal"),
        (WHITE[:, :15], "dent", None, "15 x 12 pixels.*displayed at 20 x 12$"),
        (np.kron(WHITE, np.ones((2, 2), np.uint8)), "dent", None, "40 x 24.* 20 x 12$"),
        (WHITE, "dent", 6, "20 x 12 pixels.*displayed at 12 x 20.*EXIF"),
        (WHITE.T, "dent", None, "12 x 20 pixels.*displayed at 20 x 12.*EXIF"),
    ],
    ids=["empty", "of a good image", "aspect", "size", "before EXIF", "turned"],
)
def test_a_mask_that_contradicts_its_image_is_named(
    tmp_path: Path, mask: np.ndarray, defect: str, exif: int | None, message: str
) -> None:
    wrong = sample(tmp_path, np.ascontiguousarray(mask), defect, exif)
    with pytest.raises(MaskError, match=message) as caught:
        wrong.read_truth(8)
    assert str(caught.value).startswith(f"mask of '{wrong.path}': ")
    with pytest.raises(MaskError, match="replace or remove the mask, or go on without it with"):
        Truths(8, BadImages(skip=False)).read([wrong], PROTOCOLS["crad"])
    skipping = BadImages(skip=True)
    assert Truths(8, skipping)(wrong, PROTOCOLS["crad"]) is None
    assert skipping.note() == "1 mask could not be used; pixel metrics leave out its image"


def test_a_mask_that_fits_the_image_as_it_is_displayed(tmp_path: Path) -> None:
    turned = sample(tmp_path, np.ascontiguousarray(WHITE.T), exif=6)
    np.testing.assert_array_equal(turned.read_truth(20), resize_mask(REGION.T, 20))
    good = sample(tmp_path, 0 * WHITE, "good")
    assert not good.read_truth(8).any()


def test_an_unreadable_image_is_no_fault_of_its_mask(tmp_path: Path) -> None:
    one = sample(tmp_path, WHITE)
    one.path.write_bytes(b"no image")
    assert one.read_truth(8).any()


def test_an_unreadable_mask_is_named(tmp_path: Path) -> None:
    one = sample(tmp_path, WHITE)
    one.mask.write_bytes(one.mask.read_bytes()[:40])
    with pytest.raises(ImageError, match=r"mask of '.*image\.jpg': .*mask\.png"):
        one.read_truth(8)


# Masks that vanish


def test_masks_that_vanish_are_counted(tmp_path: Path) -> None:
    samples = []
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        Image.new("RGB", (1024, 1024)).save(folder / "image.png")
        mask = np.zeros((1024, 1024), np.uint8)
        side = 3 if number < 2 else 400
        mask[103 : 103 + side, 103 : 103 + side] = 1
        if number < 3:
            Image.fromarray(mask).save(folder / "mask.png")
            samples.append(Sample(folder / "image.png", "nut", "dent", folder / "mask.png"))
        else:
            samples.append(Sample(folder / "image.png", "nut", "good"))
    truths = Truths(56, BadImages(skip=False))
    own, ader = PROTOCOLS["crad"], PROTOCOLS["ader"]
    size = own.map_size(56)
    assert truths.vanished(samples, own) == (
        f"protocol crad: 2 of 3 masks vanish at {size} x {size} pixels (its rule: nearest); their "
        "defects count as normal pixels"
    )
    assert (truths.vanished(samples[1:], ader) or "").startswith(
        "protocol ader: 1 of 2 masks vanishes at "
    )
    assert truths.vanished(samples[2:], own) is None
    notes = Evaluation(samples, {"nut": 0}, truths).notes([own, ader])
    assert [note[:13] for note in notes] == ["protocol crad", "protocol ader"]


def test_masks_that_vanish_are_told_with_the_results(
    trained,
    tmp_path: Path,
    train_command: Callable[..., int],
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = shutil.copytree(trained.data, tmp_path / "data")
    for mask in (root / "gauge" / "ground_truth").rglob("*.png"):
        marks = np.zeros((64, 64), np.uint8)
        marks[0, 0] = 255
        Image.fromarray(marks).save(mask)
    assert train_command(root, tmp_path / "run", "--epochs", "1") == 0
    note = json.loads((tmp_path / "run" / "results.json").read_text())["note"]
    assert "masks vanish at 32 x 32 pixels (its rule: nearest)" in note
    assert note in capsys.readouterr().out
    assert command(crad.evaluate.main, "--checkpoint", str(tmp_path / "run")) == 0
    of_masks = note[note.index("protocol crad:") :]  # behind what is said of the training alone
    assert of_masks in capsys.readouterr().out


def test_nan_in_a_mask_is_refused(tmp_path: Path) -> None:
    levels = np.zeros((8, 8), np.float32)
    levels[2:4, 2:4], levels[6, 6] = 1, np.nan
    Image.fromarray(levels).save(tmp_path / "mask.tif")
    with pytest.raises(ImageError, match=r"mask\.tif.*NaN"):
        open_mask(tmp_path / "mask.tif")
