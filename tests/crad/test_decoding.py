"""Decoding: bit depth, order of channels, further pages, the largest size, irregular files."""

import os
import shutil
import socket
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from PIL import Image

import crad
import crad.evaluate
import crad.predict
from crad.data import find_dataset
from crad.data.batches import load_batches
from crad.data.bit_depth import recognise_bit_depth
from crad.data.decoding import DEFAULT_DECODING, Decoding, displayed_size
from crad.data.download import get
from crad.data.images import decode_file, open_image, to_rgb
from crad.data.masks import open_mask
from crad.data.samples import Sample, has_more_note
from crad.errors import CheckpointError, DataError, ImageError, UsageError
from crad.report.sheets import write_sheet
from crad.scoring.prediction import Prediction
from crad.tensor_files import read_tensors
from crad.training.checkpoint import read_checkpoint
from crad.training.run_folder import RunFolder
from crad.training.run_record import RECORD_NAME

RAMP = np.linspace(0, 4095, 12 * 20).round().astype(np.uint16).reshape(12, 20)
COLOUR = np.stack([RAMP, RAMP[::-1], 4095 - RAMP], axis=2)
ALPHA = np.full((12, 20, 1), 7, np.uint16)
TWELVE = Decoding(bit_depth=12)

Command = Callable[..., int]
Writer = Callable[[Path, npt.NDArray[np.uint16]], None]


def pixels(image: Image.Image) -> npt.NDArray[np.int_]:
    return np.asarray(image).astype(int)


def scaled(levels: npt.NDArray[np.uint16], bit_depth: int) -> npt.NDArray[np.int_]:
    """As `to_rgb` rounds, of grey in three channels."""
    colours = levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=2)
    return np.floor(colours * 255.0 / (2**bit_depth - 1) + 0.5).astype(int)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path: Path, levels: npt.NDArray[np.uint16], *extra: bytes) -> None:
    """Write 16-bit PNG files, which Pillow only writes in grey."""
    levels = np.atleast_3d(levels)
    height, width, channels = levels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    body = [
        chunk(b"IHDR", header),
        *extra,
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))


def write_tiff(path: Path, levels: npt.NDArray[np.uint16]) -> None:
    tifffile.imwrite(path, levels, photometric="minisblack" if levels.ndim == 2 else "rgb")


def write_planes(path: Path, levels: npt.NDArray[np.uint16]) -> None:
    planes = levels.transpose(2, 0, 1)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")


def write_big_endian(path: Path, levels: npt.NDArray[np.uint16]) -> None:
    tifffile.imwrite(path, levels, photometric="rgb", byteorder=">", compression="zlib")


def write_ppm(path: Path, levels: npt.NDArray[np.uint16]) -> None:
    kind = b"P5" if levels.ndim == 2 else b"P6"
    path.write_bytes(kind + b"\n# of a camera\n20 12\n65535\n" + levels.astype(">u2").tobytes())


# Bit depth


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("writer", [write_png, write_tiff, write_ppm])
def test_greys_of_a_bit_depth_have_the_range_of_8_bits(
    tmp_path: Path, depth: int, writer: Writer
) -> None:
    levels = np.linspace(0, 2**depth - 1, 240).round().astype(np.uint16).reshape(12, 20)
    writer(tmp_path / "x", levels)
    found = pixels(open_image(tmp_path / "x", Decoding(depth)))
    np.testing.assert_array_equal(found, scaled(levels, depth))
    assert (found.min(), found.max()) == (0, 255)
    np.testing.assert_array_equal(pixels(to_rgb(levels, Decoding(depth))), found)
    tensor = torch.from_numpy(levels[None])
    np.testing.assert_array_equal(pixels(to_rgb(tensor, Decoding(depth))), found)
    np.testing.assert_array_equal(pixels(to_rgb(Image.fromarray(levels), Decoding(depth))), found)


@pytest.mark.parametrize(
    "writer", [write_png, write_tiff, write_planes, write_big_endian, write_ppm]
)
def test_colours_of_16_bits_are_read_in_full_depth(tmp_path: Path, writer: Writer) -> None:
    writer(tmp_path / "x", COLOUR)
    for depth in (12, 16):
        found = pixels(open_image(tmp_path / "x", Decoding(depth)))
        np.testing.assert_array_equal(found, scaled(COLOUR, depth))
    assert len(np.unique(pixels(open_image(tmp_path / "x", TWELVE)))) > 200


def test_alpha_of_16_bits_is_dropped(tmp_path: Path) -> None:
    write_png(tmp_path / "rgba.png", np.dstack([COLOUR, ALPHA]))
    write_png(tmp_path / "la.png", np.dstack([RAMP, ALPHA]))
    write_tiff(tmp_path / "rgba.tif", np.dstack([COLOUR, ALPHA]))
    for name, levels in (("rgba.png", COLOUR), ("la.png", RAMP), ("rgba.tif", COLOUR)):
        np.testing.assert_array_equal(
            pixels(open_image(tmp_path / name, TWELVE)), scaled(levels, 12)
        )


def test_colours_of_16_bits_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    write_png(tmp_path / "x.png", np.rot90(COLOUR), data)
    np.testing.assert_array_equal(
        pixels(open_image(tmp_path / "x.png", TWELVE)), scaled(COLOUR, 12)
    )
    assert displayed_size(tmp_path / "x.png", TWELVE) == (12, 20)


def save_turned(path: Path, kind: str, orientation: int) -> None:
    """Save a picture of 20 x 12 pixels with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.new("RGB", (20, 12))
    if kind.startswith("PNG, late"):
        frames = [Image.new("RGB", (20, 12), "red")] * kind.endswith("animated")
        picture.save(path, "PNG", save_all=True, append_images=frames)
        data = path.read_bytes()
        start = data.index(b"IDAT") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4])
        late = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        path.write_bytes(data[:end] + late + data[end:])
    else:
        picture.save(path, kind, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "kind", ["PNG", "PNG, late", "PNG, late, animated", "TIFF", "JPEG", "WEBP"]
)
def test_the_displayed_size_is_that_of_the_decoded_image(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    save_turned(tmp_path / "x", kind, orientation)
    size = (12, 20) if orientation < 5 else (20, 12)
    assert displayed_size(tmp_path / "x", DEFAULT_DECODING) == size
    assert open_image(tmp_path / "x").size[::-1] == size


def test_zero_stands_for_white_where_a_tiff_says_so(tmp_path: Path) -> None:
    for path, levels, depth in (
        (tmp_path / "8.tif", (RAMP // 16).astype(np.uint8), 8),
        (tmp_path / "12.tif", RAMP, 12),
        (tmp_path / "16.tif", RAMP * 16, 16),
        (tmp_path / "float.tif", (RAMP / 4095).astype(np.float32), 16),
    ):
        tifffile.imwrite(path, levels, photometric="minisblack")
        black_is_zero = pixels(open_image(path, Decoding(depth)))
        tifffile.imwrite(path, levels, photometric="miniswhite")
        np.testing.assert_array_equal(
            pixels(open_image(path, Decoding(depth))), 255 - black_is_zero
        )
        with Image.open(path) as image:
            inverted = pixels(to_rgb(image, Decoding(depth)))
        np.testing.assert_array_equal(inverted, 255 - black_is_zero)
    found = recognise_bit_depth([tmp_path / "12.tif"], DEFAULT_DECODING)
    assert found is not None
    assert found.bit_depth == 12


def test_16_bit_colours_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    four = np.dstack([COLOUR, ALPHA])
    tifffile.imwrite(tmp_path / "cmyk.tif", four, photometric="separated")
    tifffile.imwrite(tmp_path / "pre.tif", four, photometric="rgb", extrasamples=["assocalpha"])
    text = " ".join(map(str, COLOUR.ravel()))
    (tmp_path / "text.ppm").write_text(f"P3\n20 12\n65535\n{text}\n")
    for name in ("cmyk.tif", "pre.tif", "text.ppm"):
        with pytest.raises(ImageError, match=rf"{name}.*16-bit colours.*save it"):
            open_image(tmp_path / name)
    write_png(tmp_path / "x.png", COLOUR)
    with Image.open(tmp_path / "x.png") as image, pytest.raises(ImageError, match="8 of the 16"):
        to_rgb(image)
    write_png(tmp_path / "cut.png", COLOUR)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200])
    with pytest.raises(ImageError, match=r"cut\.png"):
        open_image(tmp_path / "cut.png")


def test_a_file_that_states_its_range_is_scaled_from_that(tmp_path: Path) -> None:
    (tmp_path / "x.pgm").write_bytes(b"P5\n20 12\n4095\n" + RAMP.astype(">u2").tobytes())
    for depth in (10, 12, 16):
        found = pixels(open_image(tmp_path / "x.pgm", Decoding(depth)))
        np.testing.assert_array_equal(found, scaled(RAMP, 12))
    assert recognise_bit_depth([tmp_path / "x.pgm"], DEFAULT_DECODING) is None


def test_a_value_beyond_the_bit_depth_is_named_with_the_way_out(tmp_path: Path) -> None:
    write_png(tmp_path / "grey.png", RAMP)
    write_png(tmp_path / "colour.png", COLOUR)
    message = r"largest value is 4095, beyond the 1023 of bit depth 10; .*--bit-depth 12"
    for name in ("grey.png", "colour.png"):
        with pytest.raises(ImageError, match=rf"{name}.*{message}"):
            open_image(tmp_path / name, Decoding(10))
    with pytest.raises(ImageError, match=rf"images\[1\]: .*{message}"):
        list(load_batches([RAMP // 8, RAMP], size=8, batch_size=2, decoding=Decoding(10)))


@pytest.mark.parametrize(
    ("largest", "depth"),
    [(0, 8), (255, 8), (256, 10), (1023, 10), (4013, 12), (4096, 14), (16384, 16), (65535, 16)],
)
def test_the_bit_depth_is_the_least_that_holds_the_largest_value(
    tmp_path: Path, largest: int, depth: int
) -> None:
    for number, value in enumerate((largest // 3, largest)):
        write_png(tmp_path / f"{number}.png", np.full((2, 2), value, np.uint16))
    Image.new("RGB", (2, 2), "white").save(tmp_path / "8-bit.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = recognise_bit_depth(sorted(tmp_path.iterdir()), DEFAULT_DECODING)
    assert found is not None
    assert (found.bit_depth, found.largest, found.n_images) == (depth, largest, 2)
    assert found.note == (
        f"bit depth {depth}: the largest value of 2 16-bit images is {largest}; "
        "--bit-depth overrides"
    )


def test_colours_and_32_bit_integers_count_for_the_bit_depth(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", COLOUR)
    Image.fromarray(np.full((2, 2), 9000, np.int32)).save(tmp_path / "b.tif")
    for names, expected in ((["a.tif"], 12), (["a.tif", "b.tif"], 14)):
        found = recognise_bit_depth([tmp_path / name for name in names], DEFAULT_DECODING)
        assert found is not None
        assert found.bit_depth == expected


def test_images_of_8_bits_have_no_bit_depth_to_recognise(demo_root: Path) -> None:
    assert recognise_bit_depth([*demo_root.rglob("*.png")], DEFAULT_DECODING) is None


@pytest.mark.parametrize("wrong", [{"bit_depth": 7}, {"bit_depth": 17}, {"max_megapixels": 0.0}])
def test_settings_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Decoding(**wrong)


# Order of channels


def test_bgr_is_rgb_the_other_way_round() -> None:
    rgb = (COLOUR // 16).astype(np.uint8)
    expected = pixels(to_rgb(rgb))
    rgba = np.dstack([rgb, ALPHA.astype(np.uint8)])
    bgra = rgba[..., [2, 1, 0, 3]]
    for image in (rgb[..., ::-1], bgra):
        np.testing.assert_array_equal(pixels(to_rgb(image, channel_order="bgr")), expected)
        tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)
        np.testing.assert_array_equal(pixels(to_rgb(tensor, channel_order="bgr")), expected)
    grey = rgb[..., 0]
    np.testing.assert_array_equal(pixels(to_rgb(grey, channel_order="bgr")), pixels(to_rgb(grey)))


def test_files_and_pillow_images_name_their_channels(tmp_path: Path) -> None:
    image = Image.fromarray((COLOUR // 16).astype(np.uint8))
    image.save(tmp_path / "x.png")
    sources = [image, tmp_path / "x.png"]
    (rgb,) = load_batches(sources, size=8, batch_size=2)
    (bgr,) = load_batches(sources, size=8, batch_size=2, channel_order="bgr")
    torch.testing.assert_close(rgb.images, bgr.images)


def test_another_order_is_refused(trained) -> None:
    with pytest.raises(UsageError, match=r"channel_order.*'gbr'"):
        to_rgb(RAMP, channel_order="gbr")
    with pytest.raises(UsageError, match=r"channel_order.*'gbr'"):
        crad.load(trained.output).iterate(RAMP, channel_order="gbr")


def test_a_detector_takes_bgr_and_a_bit_depth(trained) -> None:
    rgb = (COLOUR // 16).astype(np.uint8)
    detector = crad.load(trained.output, "cpu")
    (expected,), (swapped,), (unlike,) = (
        detector.predict(rgb),
        detector.predict(rgb[..., ::-1], channel_order="bgr"),
        detector.predict(rgb[..., ::-1]),
    )
    assert swapped.score == expected.score != unlike.score
    deep = crad.load(trained.output, "cpu", bit_depth=12)
    as_8_bits = pixels(to_rgb(COLOUR, TWELVE)).astype(np.uint8)
    assert deep.predict(COLOUR)[0].score == detector.predict(as_8_bits)[0].score
    with pytest.raises(UsageError, match="bit_depth"):
        crad.load(trained.output, "cpu", bit_depth=4)


# Further pages and frames


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".png", ".webp"])
def test_the_first_of_several_pages_or_frames_is_used_and_that_is_told(
    tmp_path: Path, suffix: str
) -> None:
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    path, single = tmp_path / f"several{suffix}", tmp_path / f"single{suffix}"
    options = {} if suffix == ".tif" else {"duration": 100}
    first.save(path, save_all=True, append_images=[second], **options)
    first.save(single)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_file(path)
        assert not decode_file(single).has_more
    assert decoded.has_more
    np.testing.assert_array_equal(pixels(decoded.image), 255)
    (batch,) = load_batches([path, single, first], size=8, batch_size=3)
    assert [sample.has_more for sample in batch.samples] == [True, False, False]
    with pytest.raises(ImageError, match=rf"several\{suffix}.*further pages"):
        open_mask(path)


def test_files_of_several_images_are_named_up_to_three() -> None:
    root = Path("/some/where")
    samples = [Sample(root / f"nut/{name}.tif", has_more=name != "c") for name in "abcde"]

    def note(chosen: list[Sample]) -> str | None:
        return has_more_note(chosen, lambda path: path.relative_to(root))

    assert note(samples[2:3]) is None
    assert note(samples[:1]) == (
        "1 file has further pages or frames, of which only the first is used: 'nut/a.tif'"
    )
    assert note(samples) == (
        "4 files have further pages or frames, of which only the first is used: 'nut/a.tif', "
        "'nut/b.tif', 'nut/d.tif', ..."
    )


def test_further_pages_are_told_in_one_line(
    trained, tmp_path: Path, train_command: Command, command: Command, capsys
) -> None:
    root = shutil.copytree(trained.data, tmp_path / "data")
    names = ["'brick/train/good/000.tif'", "'brick/test/good/000.tif'"]
    for name in names:
        path = (root / name.strip("'")).with_suffix(".png")
        pages = np.repeat(np.asarray(open_image(path))[None], 2, axis=0)
        path.unlink()
        tifffile.imwrite(path.with_suffix(".tif"), pages, photometric="rgb")
    told = "further pages or frames, of which only the first is used: "
    run, test = str(tmp_path / "run"), str(root / "brick" / "test")
    assert train_command(root, tmp_path / "run", "--epochs", "1") == 0
    assert f"2 files have {told}{', '.join(names)}" in capsys.readouterr().out.splitlines()
    assert command(crad.evaluate.main, "--checkpoint", run) == 0
    assert f"1 file has {told}{names[1]}" in capsys.readouterr().out.splitlines()
    assert command(crad.predict.main, "--checkpoint", run, test) == 0
    assert f"1 file has {told}'good/000.tif'" in capsys.readouterr().out.splitlines()


# The largest size


def test_the_limit_of_pixels_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (500, 400)).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match=r"x\.png.* 0\.2 million.* 0\.1 million.*--max-megapixels"):
        open_image(tmp_path / "x.png", Decoding(max_megapixels=0.1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow would refuse
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(8) as pool:
            sizes = [image.size for image in pool.map(open_image, [tmp_path / "x.png"] * 100)]
    assert sizes == [(500, 400)] * 100
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_the_largest_size_of_every_command(
    trained, tmp_path: Path, train_command: Command, command: Command, capsys
) -> None:
    few = ["--max-megapixels", "0.001"]
    image = next((trained.data / "brick" / "test" / "good").iterdir())
    checkpoint = ["--checkpoint", str(trained.output)]
    assert train_command(trained.data, tmp_path, *few) == 1
    assert command(crad.evaluate.main, *checkpoint, *few) == 1
    assert command(crad.predict.main, *checkpoint, str(image), *few) == 1
    assert capsys.readouterr().err.count("more than the limit of 0.001 million") == 3
    assert command(crad.predict.main, *checkpoint, str(image), "--max-megapixels", "1") == 0
    assert command(crad.predict.main, *checkpoint, str(image), "--max-megapixels", "-1") == 2


# What is no regular file


def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        found = {
            tmp_path / "fifo.png": "a FIFO",
            tmp_path / "folder.png": "a folder",
            tmp_path / "s": "a socket",
            Path("/dev/zero"): "a device",
        }
        for path, kind in found.items():
            for read in (open_image, open_mask):
                with pytest.raises(ImageError, match=rf"{path}.*{kind}, not a regular file"):
                    read(path)


def test_no_file_beside_images_is_waited_for(trained, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ValueError, match="fifo': it is a FIFO"):
        read_tensors(fifo)
    with pytest.raises(CheckpointError, match="fifo' is a FIFO"):
        crad.load(fifo)
    with pytest.raises(DataError, match=r"archive: '.*fifo' is a FIFO; give another --archive"):
        get("visa", tmp_path / "data", archive_file=fifo)
    run = shutil.copytree(trained.output, tmp_path / "run")
    for name in (RECORD_NAME, "results.json"):
        (run / name).unlink()
        os.mkfifo(run / name)
    assert read_checkpoint(run).config.data.source == ""
    assert RunFolder(run).read_results() is None
    (tmp_path / "visa" / "split_csv").mkdir(parents=True)
    os.mkfifo(tmp_path / "visa" / "split_csv" / "1cls.csv")
    with pytest.raises(DataError, match=r"1cls\.csv' is a FIFO"):
        find_dataset(tmp_path / "visa")


def test_a_fifo_is_refused_wherever_a_path_is_given(
    trained, tmp_path: Path, command: Command, train_command: Command, capsys
) -> None:
    fifo = tmp_path / "fifo.png"
    os.mkfifo(fifo)
    checkpoint = ["--checkpoint", str(trained.output)]
    assert command(crad.predict.main, *checkpoint, str(fifo)) == 1
    assert command(crad.predict.main, "--checkpoint", str(fifo), str(trained.data)) == 1
    assert command(crad.predict.main, *checkpoint, str(fifo), "--skip-bad") == 1  # nothing is left
    more = ["--backbone", "resnet18", "--weights", str(fifo)]
    assert train_command(trained.data, tmp_path / "out", *more) == 1
    err = capsys.readouterr().err
    assert err.count("fifo.png") == err.count("is a FIFO") == 4


def test_a_sheet_shows_the_bit_depth(deep_image: Path) -> None:
    for decoding, shown in ((TWELVE, 255), (DEFAULT_DECODING, 16)):
        prediction = Prediction(
            path=deep_image, defect="good", score=1.0, scored_map=np.zeros((8, 8), np.float32)
        )
        write_sheet(deep_image.with_name("sheet.png"), "nut", [prediction], decoding=decoding)
        with Image.open(deep_image.with_name("sheet.png")) as sheet:
            assert (shown,) * 3 == sheet.getpixel((256, 130))


@pytest.fixture
def deep_image(tmp_path: Path) -> Path:
    write_png(tmp_path / "white.png", np.full((64, 64), 4095, np.uint16))
    return tmp_path / "white.png"


@pytest.mark.filterwarnings("default")
def test_a_cut_tiff_is_one_line(
    trained, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.tif"
    Image.new("RGB", (40, 40)).save(file)
    file.write_bytes(file.read_bytes()[:48])
    assert command(crad.predict.main, "--checkpoint", str(trained.output), str(file)) == 1
    error = capsys.readouterr().err
    assert "a.tif" in error
    assert "warn" not in error.lower()
