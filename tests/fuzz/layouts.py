"""Folders of images of any shape: all that is in them is used, or said to be left out."""

import csv
import io
import json
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from PIL import Image

from crad.data import find_dataset
from tests.fuzz.harness import (
    TINY,
    Ended,
    Problem,
    added,
    api,
    changed,
    command,
    crad_command,
    is_image,
    new_root,
    tree_of,
    wrong_end,
)
from tests.fuzz.search import Fuzzer

CHECKPOINT = Path(__file__).parents[1] / "crad" / "checkpoints" / "version-2.safetensors"

Kind = Literal["image", "mask", "text", "empty", "folder", "fifo", "broken", "loop", "same", "copy"]
Act = Literal["train", "separate", "evaluate", "predict"]


@dataclass(frozen=True)
class Entry:
    """A file below the data folder.

    Attributes:
        path: its path there.
        kind: what lies there. ``same`` is a link to the entry before, ``copy`` has its content.
        mode: of the image: a mode of Pillow's, or ``rgb16``, ``clear`` (P with transparency),
            ``12-bit`` and the like (``I;16`` of as many bits).
        size: width and height in pixels.
        orientation: of the EXIF data; 0 has none.
        cut: the share of the file that is missing, in percent.
    """

    path: str
    kind: Kind = "image"
    mode: str = "RGB"
    size: tuple[int, int] = (40, 40)
    orientation: int = 0
    cut: int = 0

    def __repr__(self) -> str:
        """What differs from an image as usual."""
        named = [
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)[1:]
            if getattr(self, each.name) != each.default
        ]
        return f"Entry({', '.join([repr(self.path), *named])})"


@dataclass(frozen=True)
class Layout:
    """A data folder, and what is done with it.

    Attributes:
        entries: the files.
        act: the command.
        options: some of its options.
        table: the lines of VisA's table; None has no table.
    """

    entries: tuple[Entry, ...]
    act: Act = "train"
    options: tuple[str, ...] = ()
    table: bytes | None = None


_CLASSES = (
    *("brick", "nut", "sheets", "results.json", "run.json", "checkpoint.safetensors", "mutter ü"),
    *(
        "two words",
        "a\nb",
        "-x",
        "c" * 200,
        "good",
        "train",
        "\udcff",
        "ground_truth",
        "%s",
        "日本",
    ),
    *("Brick", "CON", ".hidden", "{}", "a'b", "x.png", "split_csv"),
)
_FOLDERS = (
    *("train", "test", "good", "ground_truth", "scratch", "Good", "GOOD", "ok", "OK", "normal"),
    *("valid", "validation", "masks", "mask", "Ground Truth", "GroundTruth", "Train", "TEST"),
    *("bad", "defect", "Images", "images", "Data", ".git", "__MACOSX", "sub", "good ", "x.png"),
)
_NAMES = (
    *("000.png", "001.png", "002.png", "001.jpg", "001_mask.png", "001.PNG", "002.bmp", "003.tif"),
    *(
        "004.webp",
        "005.pgm",
        "001_mask.jpg",
        "_mask.png",
        "000_mask_mask.png",
        "scores.csv",
        ".png",
    ),
    *(".hidden.png", "._001.png", "plain", "x.gif", "x.txt", "Thumbs.db", "ü.png", "a\nb.png"),
    *("-x.png", "\udcff.png", "n" * 240 + ".png", "m" * 251 + ".png", "1.0.png", "two words.png"),
    *(
        "000.PNG",
        "000.jpeg",
        "000_heatmap.png",
        "check.safetensors",
        "x.png.txt",
        "%d.png",
        "٣.png",
    ),
)
_MODES = (
    *("RGB", "1", "L", "LA", "P", "clear", "RGBA", "CMYK", "10-bit", "12-bit", "14-bit", "16-bit"),
    *("I", "F", "rgb16", "YCbCr", "LAB", "HSV", "PA", "pages", "nan"),
)
_SIZES = ((40, 40), (1, 1), (1, 300), (300, 1), (33, 47), (64, 64), (47, 33), (5, 5))


@st.composite
def _pictures(draw: st.DrawFn, path: str, kind: Kind = "image", odd: int = 8) -> Entry:
    """A file of one in ``odd`` that is unusual in some way."""
    entry = Entry(path, kind)
    if draw(st.integers(0, odd)) < odd:
        return entry
    way = draw(st.sampled_from(("mode", "size", "orientation", "cut", "kind")))
    if way == "mode":
        return replace(entry, mode=draw(st.sampled_from(_MODES)))
    if way == "size":
        return replace(entry, size=draw(st.sampled_from(_SIZES)))
    if way == "orientation":
        return replace(entry, orientation=draw(st.integers(0, 9)), size=(33, 47))
    if way == "cut":
        return replace(entry, cut=draw(st.sampled_from((1, 10, 50, 90, 99))))
    kinds = st.sampled_from(("text", "empty", "folder", "fifo", "broken", "loop", "same", "copy"))
    return replace(entry, kind=draw(kinds))


@st.composite
def _trees(draw: st.DrawFn) -> tuple[Entry, ...]:
    """Classes in the layout of MVTec AD, more or less."""
    entries: list[Entry] = []
    classes = draw(st.lists(st.sampled_from(_CLASSES), min_size=1, max_size=2, unique=True))
    for name in classes:
        good = draw(st.sampled_from(("train/good",) * 9 + ("train/Good", "train", "train/ok", "")))
        for number in range(draw(st.integers(1, 4))):
            entries.append(draw(_pictures(f"{name}/{good}/{number:03}.png")))
        folders = st.sampled_from(("good", "scratch", "dent", *_FOLDERS))
        for folder in draw(st.lists(folders, max_size=3, unique=True)):
            for number in range(draw(st.integers(0, 2))):
                entries.append(draw(_pictures(f"{name}/test/{folder}/{number:03}.png")))
                if folder != "good" and draw(st.booleans()):
                    mask = f"{name}/ground_truth/{folder}/{number:03}"
                    ending = draw(
                        st.sampled_from(("_mask.png",) * 6 + (".png", "_mask.jpg", "-m.png"))
                    )
                    entries.append(draw(_pictures(mask + ending, "mask", odd=3)))
    for _ in range(draw(st.integers(0, 3))):  # and anything anywhere
        inner = draw(st.lists(st.sampled_from(_FOLDERS), max_size=4))
        below = [draw(st.sampled_from(classes))] if draw(st.integers(0, 9)) else []
        path = "/".join([*below, *inner, draw(st.sampled_from(_NAMES))])
        entries.append(draw(_pictures(path, odd=2)))
    return tuple(entries)


_ROWS = (
    *("brick,train,normal,brick/Data/Images/Normal/0.JPG,",) * 3,
    "brick,train,normal,brick/Data/Images/Normal/1.JPG,",
    "brick,test,normal,brick/Data/Images/Normal/2.JPG,",
    "brick,test,anomaly,brick/Data/Images/Anomaly/0.JPG,brick/Data/Masks/Anomaly/0.png",
    "brick,test,anomaly,brick/Data/Images/Anomaly/1.JPG,",
    "brick,train,anomaly,brick/Data/Images/Anomaly/1.JPG,",
    "brick,valid,normal,brick/Data/Images/Normal/2.JPG,",
    "brick,test,Normal,brick/Data/Images/Normal/2.JPG,",
    "nut,train,normal,nut/Data/Images/Normal/0.JPG,",
    "brick,test,normal,../brick/Data/Images/Normal/2.JPG,",
    "brick,test,normal,/etc/passwd,",
    "brick,test,normal,brick,",
    "brick,test,normal,brick/Data/Images/Normal/missing.JPG,",
    "brick,test",
    ",,,,",
    "",
    '"brick',
    "brick,test,normal,./brick/Data/Images/Normal/2.JPG,",
    "brick,test,normal,brick/Data/Images/Normal/\0.JPG,",
    "sheets,train,normal,brick/Data/Images/Normal/3.JPG,",
    "brick,test,anomaly,brick/Data/Images/Anomaly/0.JPG,split_csv/1cls.csv",
    "a,b,c,d,e,f,g,h",
)
_HEADERS = ("object,split,label,image,mask",) * 6 + ("object,split,label,image", "", "x")


@st.composite
def _tables(draw: st.DrawFn) -> tuple[tuple[Entry, ...], bytes]:
    """Classes in the layout of VisA, more or less, and the table."""
    entries = []
    for name in ("brick", "nut")[: draw(st.integers(1, 2))]:
        for number in range(4):
            path = f"{name}/Data/Images/Normal/{number}.JPG"
            entries.append(draw(_pictures(path, odd=20)))
        for number in range(2):
            path = f"{name}/Data/Images/Anomaly/{number}.JPG"
            entries.append(draw(_pictures(path, odd=20)))
            entries.append(draw(_pictures(f"{name}/Data/Masks/Anomaly/{number}.png", "mask")))
    rows = draw(
        st.lists(st.sampled_from(_ROWS), min_size=1, max_size=8, unique=draw(st.booleans()))
    )
    text = "\n".join([draw(st.sampled_from(_HEADERS)), *rows])
    start, encoding = draw(
        st.sampled_from(
            ((b"", "utf-8"),) * 6 + ((b"\xff", "utf-8"), (b"", "utf-8-sig"), (b"", "utf-16"))
        )
    )
    return tuple(entries), start + text.encode(encoding)


@st.composite
def _cases(draw: st.DrawFn) -> Layout:
    if draw(st.integers(0, 7)) < 7:
        entries, table = draw(_trees()), None
    else:
        entries, table = draw(_tables())
    act: Act = draw(st.sampled_from(("train",) * 5 + ("separate", "evaluate", "predict")))
    options: list[str] = []
    if act in ("train", "separate"):
        share = draw(st.sampled_from(("0", "0.34")))
        options += ["--calibration-share", share]
    if draw(st.booleans()):
        options.append("--skip-bad")
    return Layout(entries, act, tuple(options), table)


def write(layout: Layout, data: Path) -> None:
    """Write a data folder; an entry that cannot lie beside another is left out."""
    data.mkdir()
    former: Path | None = None
    for number, entry in enumerate(layout.entries):
        path = Path(os.path.normpath(data / entry.path))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(path):
                _write_entry(entry, path, number, former)
                former = path
        except (FileExistsError, NotADirectoryError):
            continue
    if layout.table is not None:
        (data / "split_csv").mkdir(exist_ok=True)
        (data / "split_csv" / "1cls.csv").write_bytes(layout.table)


def _write_entry(entry: Entry, path: Path, number: int, former: Path | None) -> None:
    former = former or path.parent / "nothing.png"
    if entry.kind == "text":
        path.write_text("no image")
    elif entry.kind == "empty":
        path.touch()
    elif entry.kind == "folder":
        path.mkdir()
    elif entry.kind == "fifo":
        os.mkfifo(path)
    elif entry.kind == "broken":
        path.symlink_to("nowhere.png")
    elif entry.kind == "loop":
        path.symlink_to(path.name)
    elif entry.kind == "same":
        path.symlink_to(former)
    elif entry.kind == "copy" and former.is_file():
        path.write_bytes(former.read_bytes())
    else:
        data = _encoded(entry, path.suffix.lower(), number)
        path.write_bytes(data[: len(data) - len(data) * entry.cut // 100])


def _encoded(entry: Entry, suffix: str, number: int) -> bytes:
    """The bytes of an image file, in the format of its suffix if that can hold it, else as TIFF."""
    width, height = entry.size
    levels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if entry.kind == "mask":
        levels[:] = 0
        levels[height // 3 : height // 2 + 1, width // 3 : width // 2 + 1] = 255
    if entry.mode == "rgb16":
        return _png16(levels)
    image = _in_mode(Image.fromarray(levels), entry.mode)
    exif = Image.Exif()
    if entry.orientation:
        exif[0x0112] = entry.orientation
    formats = Image.registered_extensions()
    for kind in (formats.get(suffix, "PNG"), "PNG", "TIFF"):
        file = io.BytesIO()
        try:
            if entry.mode == "pages":
                image.save(file, "TIFF", save_all=True, append_images=[image.rotate(90)])
            elif exif:
                image.save(file, kind, exif=exif)
            else:
                image.save(file, kind)
            return file.getvalue()
        except (OSError, KeyError, ValueError):
            continue
    return b"no format holds this"


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    grey = np.asarray(image.convert("L"))
    if mode.endswith("-bit"):
        bits = int(mode.removesuffix("-bit"))
        return Image.fromarray((grey.astype(np.float64) / 255 * (2**bits - 1)).astype(np.uint16))
    if mode == "I":
        return Image.fromarray(grey.astype(np.int32) * 257)
    if mode in ("F", "nan"):
        levels = grey.astype(np.float32) / 255
        if mode == "nan":
            levels[0, 0] = np.nan
        return Image.fromarray(levels)
    if mode == "clear":
        palette = image.convert("P")
        palette.info["transparency"] = 0
        return palette
    if mode == "LAB":
        return Image.frombytes("LAB", image.size, image.tobytes())
    if mode == "pages":
        return image
    if mode == "PA":
        return image.convert("P").convert("PA")
    return image.convert(mode)


def _png16(levels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG of three channels of 16 bits, which Pillow does not write."""
    height, width, _ = levels.shape
    rows = (levels.astype(np.uint16) * 257).astype(">u2").reshape(height, -1)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def check(layout: Layout) -> Iterator[Problem]:
    """Say what is wrong: what the command changed, how it ended, what it left out in silence."""
    with new_root() as root:
        data = root / "data"
        write(layout, data)
        before = tree_of(root)
        images = [path for path in _files(data) if is_image(path)]
        asked = api(lambda: _print_used(data, layout.act), root)
        yield from wrong_end(asked)
        ended = crad_command(_arguments(layout), root)
        yield from wrong_end(ended)
        after = tree_of(root)
        yield from changed(before, after)
        if ended.stuck:
            return
        yield from added(before, after, root)
        if ended.code == 0 and layout.act == "predict":
            yield from _unpredicted(images, ended, root / "out" / "scores.csv")
        elif ended.code == 0 and asked.code == 0:
            yield from _unused(images, json.loads(asked.out), ended, root / "out")
        elif ended.code == 0:
            yield Problem("find_dataset refuses what a command takes", asked.err)
        elif ended.code == 1 and not re.search(r"['/]", ended.err):
            yield Problem("an error about a data set without a path", ended.err)


def _arguments(layout: Layout) -> list[str]:
    if layout.act in ("train", "separate"):
        line = command("train", {"--data": ("data",), "--output": ("out",), **TINY})
        return [*line, *layout.options, *(["--separate"] if layout.act == "separate" else [])]
    options = {"--checkpoint": (str(CHECKPOINT),), "--output": ("out",)}
    if layout.act == "evaluate":
        return [*command("evaluate", {**options, "--data": ("data",)}), *layout.options]
    return [*command("predict", options, ["data"]), *layout.options]


def _print_used(data: Path, act: Act) -> None:
    found = find_dataset(data, need_train=act != "evaluate")
    files = [path for each in (*found.train, *found.test) for path in (each.path, each.mask)]
    samples = len(found.test) + (0 if act == "evaluate" else len(found.train))
    print(json.dumps({"samples": samples, "used": [str(path) for path in files if path]}))


def _files(folder: Path) -> list[str]:
    """All that is below a folder and no folder; links to folders are not followed."""
    return [
        os.path.relpath(os.path.join(inner, name), folder)
        for inner, folders, names in os.walk(folder)
        for name in (
            *names,
            *(each for each in folders if os.path.islink(os.path.join(inner, each))),
        )
        if not os.path.isdir(os.path.join(inner, name))
    ]


_LEFT_OUT = re.compile(
    r"left out|leaves? out|ignored?|not used|unused|skipped|not searched|without|no mask|duplicate"
)


def _counted(ended: Ended) -> int:
    """How many files the lines count that say what was left out."""
    lines = [line for line in ended.lines if _LEFT_OUT.search(line)]
    return sum(
        int(number)
        for line in lines
        for number in re.findall(
            r"(\d+)(?: of \d+)?(?: [\w-]+){0,3} (?:image|mask|file|picture)", line
        )
    )


def _unreadable(ended: Ended) -> int:
    """How many images could not be read."""
    return sum(map(int, re.findall(r"(\d+) images? could not be read", ended.out)))


def _unused(
    images: Sequence[str], asked: dict[str, Any], ended: Ended, out: Path
) -> Iterator[Problem]:
    """Compare the images with those that were used, and those with what was measured."""
    if shared := [path for path, times in Counter(asked["used"]).items() if times > 1]:
        yield Problem("a file is used twice", f"{shared[0]!r}\n{ended.out[-1500:]}")
    used = {os.path.relpath(path, out.parent / "data") for path in asked["used"]}
    left = [path for path in images if os.path.normpath(path) not in used]
    if (said := _counted(ended)) < len(left):
        first = left[0]
        yield Problem(
            f"left out in silence: {_place(first)}",
            f"{len(left)} files, {said} counted, such as {first!r}\n{ended.out[-1500:]}",
        )
    if not (out / "results.json").exists():
        yield Problem("success without results.json", ended.out)
        return
    results = json.loads((out / "results.json").read_text("utf-8"))
    is_evaluation = "training" not in results["timing"]
    classes = results["classes"].values()
    measured = sum(each["n_test"] + (0 if is_evaluation else each["n_train"]) for each in classes)
    if not is_evaluation:
        decisions = results.get("decisions", {"classes": {}})["classes"].values()
        measured += sum(each["n_calibration"] for each in decisions)
    if measured + _unreadable(ended) != asked["samples"]:
        yield Problem(
            "images are used, but not counted in results.json",
            f"{asked['samples']} images, {measured} measured\n{ended.out[-1500:]}",
        )


def _unpredicted(images: Sequence[str], ended: Ended, scores: Path) -> Iterator[Problem]:
    """Compare the images with the rows of the scores."""
    if not scores.exists():
        yield Problem("success without scores.csv", ended.out)
        return
    with scores.open(encoding="utf-8", newline="") as file:
        rows = len(list(csv.DictReader(file)))
    if rows + _unreadable(ended) + _masks(ended) != len(images):
        yield Problem(
            "images are neither scored nor counted",
            f"{len(images)} images, {rows} rows\n{ended.out[-1500:]}",
        )


def _masks(ended: Ended) -> int:
    """How many masks were left out."""
    return sum(map(int, re.findall(r"(\d+) masks? of a data set left out", ended.out)))


def _place(path: str) -> str:
    """Where a file lies, without what differs from case to case."""
    class_, *folders, name = path.split("/") if "/" in path else ("", path)
    usual = folders[:1] in (["train"], ["test"], ["ground_truth"], ["Data"])
    known = ["CLASS" if class_ else "ROOT", *(folders[:1] if usual else folders[:1] and ["OTHER"])]
    if folders[:2] == ["train", "good"]:
        known.append("good")
    deeper = ["..."] if len(folders) > len(known) - 1 + (folders[:1] == ["test"]) else []
    return "/".join([*known, *deeper, "*_mask" if Path(name).stem.endswith("_mask") else "*"])


def _example(*entries: Entry, act: Act = "train") -> Layout:
    good = tuple(Entry(f"brick/train/good/{number}.png") for number in range(3))
    return Layout((*good, *entries), act)


_DEFECT = Entry("brick/test/bad/0.png")
_MASK = Entry("brick/ground_truth/bad/0_mask.png", kind="mask")
_EXAMPLES = (
    _example(_DEFECT, _MASK),
    _example(Entry("brick/train/good/inner/0.png")),
    _example(Entry("brick/valid/good/0.png")),
    _example(_DEFECT, _MASK, Entry("brick/test/bad/0.jpg")),
    _example(_DEFECT, _MASK, Entry("brick/ground_truth/bad/0.png", kind="mask")),
    _example(_DEFECT, _MASK, Entry("brick/ground_truth/bad/1_mask.png", kind="mask")),
    _example(_DEFECT, _MASK, Entry("brick/masks/bad/0_mask.png", kind="mask")),
    _example(Entry("brick/train/good/fifo.png", kind="fifo")),
    _example(Entry("n" * 240 + ".png"), act="predict"),
)

FUZZER = Fuzzer(_cases(), check, _EXAMPLES)
