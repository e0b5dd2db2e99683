"""Images that clients send, held in memory as files that a detector can open by a path."""

import os
import threading
from pathlib import Path

from crad.errors import ImageError

# How files of the formats of `crad.data.folders.IMAGE_SUFFIXES` begin. Pillow knows others, some of
# which start programs (EPS).
_BEGINNINGS = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"),
    *(b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
)


class Places:
    """The places for images that are being received, wait, or are computed.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take a place; False if there is none."""
        with self._lock:
            if self.taken >= self.count:
                return False
            self.taken += 1
            return True

    def free(self) -> None:
        """Give a place back."""
        with self._lock:
            self.taken -= 1


class Upload:
    """An image in memory, with a place that it holds until it is closed.

    The detector reads it as it reads a file, so that both have the same score.

    Args:
        name: what the client calls it; never a path that is opened.
        places: of which one has been taken for it.

    Attributes:
        path: under which this process can open it.
        size: bytes written so far.
    """

    def __init__(self, name: str | None, places: Places) -> None:
        self.name = name
        self.size = 0
        self._places = places
        try:
            self._file = os.fdopen(os.memfd_create("crad-image", os.MFD_CLOEXEC), "wb")
        except BaseException:
            places.free()
            raise
        self.path = Path(f"/proc/self/fd/{self._file.fileno()}")

    def write(self, data: bytes) -> None:
        """Add to its end."""
        self._file.write(data)
        self.size += len(data)

    def check(self) -> None:
        """Refuse what is not in one of the formats that images are sent in.

        Raises:
            ImageError: it is not.
        """
        self._file.flush()
        head = os.pread(self._file.fileno(), 12, 0)
        if not head:
            raise ImageError("the file is empty")
        is_webp = head[:4] == b"RIFF" and head[8:] == b"WEBP"
        if not is_webp and not head.startswith(_BEGINNINGS):
            raise ImageError("not an image in BMP, JPEG, PNG, PNM, TIFF or WebP")

    def reason(self, error: ImageError) -> str:
        """What an error of reading it says, without its path in this process."""
        return str(error).removeprefix(f"cannot read image '{self.path}': ")

    def close(self) -> None:
        """Drop it and give its place back; again does nothing."""
        if not self._file.closed:
            self._file.close()
            self._places.free()
