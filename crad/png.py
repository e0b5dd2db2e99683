"""PNG and JPEG files with a mark by which crad knows what it has written."""

import os
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from crad.files import write_atomically

_SIGNATURE, _KEYWORD, _VALUE = b"\x89PNG\r\n\x1a\n", "Software", "crad"
_JPEG_SIGNATURE, _COMMENT = b"\xff\xd8\xff", b"crad"


def write_png(path: str | os.PathLike[str], picture: Image.Image, *, durable: bool = True) -> None:
    """Write a marked PNG; otherwise as `crad.files.write_atomically`."""
    mark = PngInfo()
    mark.add_text(_KEYWORD, _VALUE)
    write_atomically(
        path, lambda file: picture.save(file, format="PNG", pnginfo=mark), durable=durable
    )


def is_own_png(path: Path) -> bool:
    """Whether `write_png` wrote a file."""
    try:
        with path.open("rb") as file:
            head = file.read(256)  # texts come before the pixels
    except OSError:
        return False
    return head.startswith(_SIGNATURE) and f"tEXt{_KEYWORD}\0{_VALUE}".encode() in head


def write_jpeg(path: str | os.PathLike[str], picture: Image.Image) -> None:
    """Write a marked JPEG; otherwise as `crad.files.write_atomically`, not waiting for the disk."""
    write_atomically(
        path,
        lambda file: picture.save(file, format="JPEG", quality=85, comment=_COMMENT),
        durable=False,
    )


def is_own_jpeg(path: Path) -> bool:
    """Whether `write_jpeg` wrote a file."""
    try:
        with path.open("rb") as file:
            head = file.read(256)  # comments come before the pixels
    except OSError:
        return False
    segment = b"\xff\xfe" + (2 + len(_COMMENT)).to_bytes(2, "big") + _COMMENT
    return head.startswith(_JPEG_SIGNATURE) and segment in head
