import io
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, features

from crad.data.images import open_image, to_rgb
from crad.data.masks import open_mask
from crad.data.tensors import to_tensor
from crad.errors import ImageError

RAMP = np.linspace(0, 255, 12 * 20).round().astype(np.uint8).reshape(12, 20)
COLOUR = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=2)


def pixels(image):
    return np.asarray(image).astype(int)


def grey(array):
    return np.repeat(np.asarray(array).astype(int)[..., None], 3, axis=2)


def save(path, array_or_image, **options):
    image = array_or_image
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(path, **options)
    return path


# Reading: every mode that a file may have


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".ppm", ".PNG"])
def test_colour_is_read_as_it_is(tmp_path, suffix):
    image = open_image(save(tmp_path / f"spaced näme{suffix}", COLOUR))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(pixels(image), COLOUR)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_lossy_formats_are_read(tmp_path, suffix):
    if suffix == ".webp" and not features.check("webp"):
        pytest.skip("this Pillow was built without WebP")
    image = open_image(save(tmp_path / f"x{suffix}", COLOUR, quality=95))
    assert image.mode == "RGB"
    assert np.abs(pixels(image) - COLOUR).mean() < 12


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_greyscale_is_repeated(tmp_path, suffix):
    np.testing.assert_array_equal(
        pixels(open_image(save(tmp_path / f"x{suffix}", RAMP))), grey(RAMP)
    )


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_one_bit_becomes_black_and_white(tmp_path, suffix):
    path = save(tmp_path / f"x{suffix}", RAMP > 99)
    np.testing.assert_array_equal(pixels(open_image(path)), grey(255 * (RAMP > 99)))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    path = save(tmp_path / f"x{suffix}", RAMP.astype(np.uint16) * 257)
    np.testing.assert_array_equal(pixels(open_image(path)), grey(RAMP))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_of_either_byte_order(order):
    mode = "I;16" if order == "<u2" else "I;16B"
    levels = (RAMP.astype(np.uint16) * 257).astype(order)
    image = Image.frombytes(mode, (20, 12), levels.tobytes())
    np.testing.assert_array_equal(pixels(to_rgb(image)), grey(RAMP))


def test_integers_of_32_bits_have_the_range_of_16(tmp_path):
    path = save(tmp_path / "x.tif", RAMP.astype(np.int32) * 257)
    np.testing.assert_array_equal(pixels(open_image(path)), grey(RAMP))
    for outside in (65536, -1):
        path = save(tmp_path / "y.tif", np.full((2, 2), outside, np.int32))
        with pytest.raises(ImageError, match=rf"y\.tif.*integers from {outside} .*8 or 16 bits"):
            open_image(path)


def test_floats_have_the_range_of_0_to_1(tmp_path):
    path = save(tmp_path / "x.tif", RAMP.astype(np.float32) / 255)
    np.testing.assert_array_equal(pixels(open_image(path)), grey(RAMP))
    for outside in (200.0, -0.5):
        path = save(tmp_path / "y.tif", np.full((2, 2), outside, np.float32))
        with pytest.raises(ImageError, match=r"y\.tif.*float pixels.*divide"):
            open_image(path)
    for lost in (np.nan, np.inf, -np.inf):
        path = save(tmp_path / "z.tif", np.array([[0.5, lost]], np.float32))
        with pytest.raises(ImageError, match=r"z\.tif.*NaN or infinite.*replace"):
            open_image(path)


def test_alpha_is_dropped(tmp_path):
    alpha = np.full_like(RAMP, 7)
    rgba = save(tmp_path / "rgba.png", np.dstack([COLOUR, alpha]))
    np.testing.assert_array_equal(pixels(open_image(rgba)), COLOUR)
    la = Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(alpha)])
    np.testing.assert_array_equal(pixels(open_image(save(tmp_path / "la.png", la))), grey(RAMP))


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128, 255])])
def test_palettes_with_and_without_transparency(tmp_path, transparency):
    image = Image.fromarray(RAMP // 64)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    options = {} if transparency is None else {"transparency": transparency}
    path = save(tmp_path / "x.png", image, **options)
    expected = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]])[RAMP // 64]
    np.testing.assert_array_equal(pixels(open_image(path)), expected)


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_colour_declared_transparent_is_a_colour_like_others(tmp_path, mode):
    image = Image.fromarray(COLOUR).convert(mode)
    transparency = (0, 255, 255) if mode == "RGB" else 0
    path = save(tmp_path / "x.png", image, transparency=transparency)
    np.testing.assert_array_equal(pixels(open_image(path)), pixels(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX", "RGBA", "PA"])
def test_rare_modes_become_rgb(mode):
    image = Image.fromarray(COLOUR).convert("P" if mode == "PA" else "RGB")
    converted = to_rgb(image.convert(mode))
    assert converted.mode == "RGB"
    assert np.abs(pixels(converted) - pixels(image.convert("RGB"))).max() <= 8


def test_a_mode_that_cannot_be_converted_says_so():
    with pytest.raises(ImageError, match="La"):
        to_rgb(Image.fromarray(RAMP).convert("LA").convert("La"))


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path):
    path = save(tmp_path / "x.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=95)
    assert np.abs(pixels(open_image(path)) - [255, 0, 0]).max() < 12


def test_a_photograph_taken_with_the_camera_turned_is_upright(tmp_path):
    for orientation, turn in [(3, 2), (6, 1), (8, 3)]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(tmp_path / f"{orientation}.png", np.rot90(COLOUR, turn).copy(), exif=exif)
        np.testing.assert_array_equal(pixels(open_image(path)), COLOUR)
        with Image.open(path) as image:
            np.testing.assert_array_equal(pixels(to_rgb(image)), COLOUR)


def test_damaged_exif_costs_only_the_orientation_and_is_warned_of(tmp_path):
    path = save(tmp_path / "x.png", COLOUR, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        np.testing.assert_array_equal(pixels(open_image(path)), COLOUR)


def test_the_first_picture_of_several_is_taken(tmp_path):
    path = tmp_path / "x.tif"
    others = [Image.fromarray(255 - COLOUR)]
    Image.fromarray(COLOUR).save(path, save_all=True, append_images=others)
    np.testing.assert_array_equal(pixels(open_image(path)), COLOUR)


@pytest.mark.parametrize("shape", [(1, 1), (1, 57), (301, 3)])
def test_odd_sizes(tmp_path, shape):
    path = save(tmp_path / "x.png", np.full(shape, 51, np.uint8))
    tensor = to_tensor(open_image(path), 32)
    assert tensor.shape == (3, 32, 32)
    torch.testing.assert_close(tensor, torch.full((3, 32, 32), 0.2))


def test_several_threads_read_at_once(tmp_path):
    path = save(tmp_path / "x.png", COLOUR)
    with ThreadPoolExecutor(8) as pool:
        for image in pool.map(open_image, [path] * 200):
            np.testing.assert_array_equal(pixels(image), COLOUR)


# Reading: what is no image


def encoded(format_name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format_name)
    return file.getvalue()


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6])
def test_a_truncated_file_is_named(tmp_path, format_name, kept):
    data = encoded(format_name)
    path = tmp_path / f"cut.{format_name.lower()}"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ImageError, match=r"'.*cut\."):
        open_image(path)
    with pytest.raises(ImageError, match=r"'.*cut\."):
        open_mask(path, 8)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF"])
def test_a_damaged_file_is_read_or_named(tmp_path, format_name):
    if format_name == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow was built without WebP")
    data = encoded(format_name)
    random = np.random.default_rng(0)
    path = tmp_path / "damaged"
    errors = []
    for _ in range(60):
        damaged = bytearray(data)
        for at in random.integers(0, min(len(data), 400), 4):
            damaged[at] = random.integers(256)
        path.write_bytes(damaged)
        try:
            assert open_image(path).mode == "RGB"
        except ImageError as error:
            errors.append(str(error))
    assert errors
    assert all(str(path) in message for message in errors)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"not an image at all\n", "not an image"), (b"\x89PNG\r\n", "not an image")],
)
def test_what_is_no_image_is_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"x\.png.*{reason}"):
        open_image(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png.*No such file"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match=re.escape(f"'{tmp_path}'")):
        open_image(tmp_path)
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=r"link\.png"):
        open_image(tmp_path / "link.png")


@pytest.mark.parametrize("over", [1.1, 3.0])  # Pillow warns, or refuses
def test_an_image_too_large_to_be_genuine_is_refused(tmp_path, over):
    side = int((over * Image.MAX_IMAGE_PIXELS) ** 0.5)
    png = bytearray(save(tmp_path / "bomb.png", np.zeros((100, 100), np.uint8)).read_bytes())
    png[16:24] = struct.pack(">II", side, side)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    (tmp_path / "bomb.png").write_bytes(png)
    with pytest.raises(ImageError, match=r"bomb\.png.*89\.48 million.*--max-megapixels"):
        open_image(tmp_path / "bomb.png")


def test_a_limit_of_pixels_that_was_lifted_is_none(tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", np.zeros((100, 100), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_image(path).size == (100, 100)


# In memory


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64, bool])
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays_and_tensors_agree(dtype, channels):
    full = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
    levels = np.array([[0, 1], [1, 1], [1, 0]]) * full
    array = levels.astype(dtype)
    if channels:
        array = np.repeat(array[..., None], channels, axis=2)
    expected = grey(np.array([[0, 255], [255, 255], [255, 0]]))
    np.testing.assert_array_equal(pixels(to_rgb(array)), expected)
    if channels:
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        np.testing.assert_array_equal(pixels(to_rgb(tensor)), expected)


def test_a_tensor_survives_the_round_trip():
    tensor = to_tensor(Image.fromarray(COLOUR).resize((16, 16)), 16)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    torch.testing.assert_close(to_tensor(to_rgb(tensor), 16), tensor)
    again = to_tensor(to_rgb(tensor.bfloat16().requires_grad_()), 16)
    torch.testing.assert_close(again, tensor, atol=0.01, rtol=0)


def test_arrays_need_not_be_contiguous_and_are_left_alone():
    before = COLOUR.copy()
    np.testing.assert_array_equal(pixels(to_rgb(COLOUR[::-1, ::2])), COLOUR[::-1, ::2])
    np.testing.assert_array_equal(COLOUR, before)


def test_a_little_overshoot_of_a_filter_is_clipped():
    levels = np.array([[-0.0005, 1.0005]], np.float32)
    np.testing.assert_array_equal(pixels(to_rgb(levels)), grey([[0, 255]]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"\(2, 8, 8, 3\)"),
        (np.zeros(8, np.uint8), r"\(8,\)"),
        (np.zeros((0, 8), np.uint8), "at least one pixel"),
        (np.zeros((8, 8), np.int64), "int64"),
        (np.full((8, 8), 255.0), "divide"),
        (np.full((8, 8), np.nan), "NaN"),
        (torch.tensor([[[0.5, np.inf]]]), "NaN"),
        (torch.zeros(8, 8, 3), r"\(8, 8, 3\)"),
        (torch.zeros(2, 3, 8, 8), r"\(2, 3, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.complex64), "complex"),
    ],
)
def test_what_cannot_be_an_image_says_why(image, message):
    with pytest.raises(ImageError, match=message):
        to_rgb(image)


def test_other_types_are_a_type_error():
    with pytest.raises(TypeError, match="list"):
        to_rgb([[0, 1]])
