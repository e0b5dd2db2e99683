"""Features on disk, where later runs find them: ``--feature-cache``.

The folder has a folder for each way to compute features, named by a hash of all that they depend on
but the image, and in it a file for each image, named by a hash of the image file. Each is written
whole or not at all, and has a checksum. So there is neither an index nor a lock, and any number of
runs may share the folder.
"""

import errno
import hashlib
import importlib.metadata
import json
import platform
import struct
import sys
import time
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL
import safetensors.torch
import torch
from torch import Tensor

import crad.backbones.base
import crad.data.batches
import crad.data.decoding
import crad.data.frames
import crad.data.images
import crad.data.tile_batches
import crad.data.tiles
from crad.backbones import Backbone
from crad.data.decoding import Decoding
from crad.data.frames import Frame
from crad.data.samples import Sample
from crad.data.sources import BATCH_SIZE
from crad.errors import StorageError
from crad.files import irregular, replacing
from crad.training import processes
from crad.words import count

_MAGIC = b"crad-ft1"  # of this format; its last character is the version
_START = struct.Struct("<8sI")  # and the checksum of the rest
_IMAGE = struct.Struct("<II?")  # height and width of the image, whether its file has more pages

_PREPARATION = (  # of images, beside the module of the backbone
    crad.data.decoding,
    crad.data.images,
    crad.data.frames,
    crad.data.batches,
    crad.data.tiles,
    crad.data.tile_batches,
    crad.backbones.base,
)
_SUFFIX = ".feature"
_STALE_SECONDS = 24 * 60 * 60  # writing an entry takes less
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def recipe(backbone: Backbone, frame: Frame, decoding: Decoding, device: torch.device) -> str:
    """A hash of all that a feature depends on but the image.

    That is the backbone with its weights and statistics, how images are decoded and brought to the
    frame, the code of both, the packages that they use, and the kind of processor, as rounding
    differs between them.
    """
    modules = (*_PREPARATION, sys.modules[type(backbone).__module__])
    settings = {name: value for name, value in vars(backbone).items() if not name.startswith("_")}
    cuda = device.type == "cuda"
    parts = {
        "format": _MAGIC.decode(),
        "backbone": settings,
        "frame": asdict(frame),
        "bit_depth": decoding.bit_depth,
        "reduced": decoding.reduced,
        "batch_size": BATCH_SIZE,
        "code": [_source(module) for module in modules],
        "packages": [torch.__version__, np.__version__, PIL.__version__]
        + [importlib.metadata.version(name) for name in ("tifffile", "timm")],
        "machine": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
    }
    found = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16)
    for name, tensor in backbone.state_dict().items():
        found.update(json.dumps([name, str(tensor.dtype), tuple(tensor.shape)]).encode())
        found.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _source(module: ModuleType) -> str:
    """A hash of the code of a module."""
    assert module.__file__
    return hashlib.blake2b(Path(module.__file__).read_bytes(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class _Counts:
    """What a process has done, in images unless it says otherwise.

    Attributes:
        read: whose features were found.
        computed: whose features were not.
        stored: of the latter.
        n_bytes: bytes of what was stored.
        damaged: entries that could not be used.
        foreign: the first file that is no entry, or cannot be read, and what is wrong with it.
        unwritable: why nothing can be stored.
    """

    read: int = 0
    computed: int = 0
    stored: int = 0
    n_bytes: int = 0
    damaged: int = 0
    foreign: str = ""
    unwritable: str = ""

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(
            read=self.read + other.read,
            computed=self.computed + other.computed,
            stored=self.stored + other.stored,
            n_bytes=self.n_bytes + other.n_bytes,
            damaged=self.damaged + other.damaged,
            foreign=self.foreign or other.foreign,
            unwritable=self.unwritable or other.unwritable,
        )


class FeatureCache:
    """Find and store the features of images in a folder, which is made if missing.

    Args:
        folder: the folder; nothing in it that crad did not write is changed.

    Raises:
        StorageError: it is no folder, or cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._counts = _Counts()
        self._damaged: set[Path] = set()
        self._foreign: dict[Path, str] = {}
        self._unwritable = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"feature-cache: '{folder}' is no folder and cannot be made one "
                f"({error.strerror}); give another one with --feature-cache"
            ) from error
        for leftover in folder.glob(f"*/.*{_SUFFIX}.*.tmp"):  # of a killed run
            with suppress(OSError):  # another run may remove it at the same time
                if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                    leftover.unlink()

    def read(self, recipe: str, sample: Sample, into: Tensor) -> Sample | None:
        """Read the feature of an image, or those of its tiles; None if there are none, or damaged.

        Any number of threads may read at once.

        Args:
            recipe: how it was computed.
            sample: the image, with its digest.
            into: contiguous float32, on the CPU, which it is read into. After None, it may hold
                anything.

        Returns:
            The sample, with `Sample.size` and `Sample.has_more`.
        """
        head = bytearray(_IMAGE.size)
        if not self._read(self._entry(recipe, sample), head, _bytes_of(into)):
            return None
        height, width, has_more = _IMAGE.unpack(head)
        return replace(sample, size=(height, width), has_more=has_more)

    def write(self, recipe: str, sample: Sample, feature: Tensor) -> None:
        """Store the feature of an image, unless the folder is read-only.

        Args:
            recipe: how it was computed.
            sample: the image, with its digest, once it has been decoded.
            feature: contiguous float32, on the CPU.

        Raises:
            StorageError: there is no space.
        """
        assert sample.size
        head = _IMAGE.pack(*sample.size, sample.has_more)
        data = _bytes_of(feature)
        if self._write(self._entry(recipe, sample), head, data):
            self._counts += _Counts(stored=1, n_bytes=len(data))

    def read_state(self, recipe: str, like: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Read the fitted state of a backbone; None if there is none, or it is damaged.

        Args:
            recipe: how it was fitted.
            like: a state of the same shapes.
        """
        data = bytearray(safetensors.torch.save(like))
        if not self._read(self._state(recipe), bytearray(), memoryview(data)):
            return None
        return safetensors.torch.load(bytes(data))

    def write_state(self, recipe: str, state: dict[str, Tensor]) -> None:
        """Store the fitted state of a backbone; otherwise as `write`."""
        self._write(self._state(recipe), b"", memoryview(safetensors.torch.save(state)))

    def note(self, *, read: int, computed: int) -> None:
        """Count images for `report`."""
        self._counts += _Counts(read, computed)

    def report(self) -> str:
        """Say in a line what was found and stored; all processes call this together."""
        problems = _Counts(
            damaged=len(self._damaged),
            foreign=next((f"'{path}': {why}" for path, why in self._foreign.items()), ""),
            unwritable=self._unwritable,
        )
        own = processes.machine(), self._counts + problems
        everywhere = [each for machine, each in processes.gather(own) if machine == own[0]]
        return _line(self.folder, sum(everywhere, _Counts()))

    def _entry(self, recipe: str, sample: Sample) -> Path:
        assert sample.digest
        return self.folder / recipe / f"{sample.digest.hex()}{_SUFFIX}"

    def _state(self, recipe: str) -> Path:
        return self.folder / "fitted" / f"{recipe}{_SUFFIX}"

    def _read(self, path: Path, head: bytearray, data: memoryview) -> bool:
        """Read an entry whose length is known; whether it is there and whole."""
        start = bytearray(_START.size)
        parts = (start, head, data)
        try:
            if kind := irregular(path):
                self._foreign[path] = f"it is {kind}"
                return False
            with path.open("rb") as file:
                lengths = [file.readinto(each) for each in parts]
                is_longer = bool(file.read(1))
        except FileNotFoundError:
            return False
        except OSError as error:
            self._foreign[path] = error.strerror or str(error)
            return False
        magic, checksum = _START.unpack(start)
        if lengths[0] and magic != _MAGIC:
            self._foreign[path] = "crad did not write it"
        elif lengths != [*map(len, parts)] or is_longer or _checksum(head, data) != checksum:
            self._damaged.add(path)
        else:
            return True
        return False

    def _write(self, path: Path, head: bytes, data: memoryview) -> bool:
        """Write an entry, if that is possible; whether it was."""
        if self._unwritable or path in self._foreign:
            return False
        try:
            path.parent.mkdir(exist_ok=True)
            with replacing(path, durable=False) as temporary, temporary.open("wb") as file:
                file.write(_START.pack(_MAGIC, _checksum(head, data)) + head)
                file.write(data)
        except OSError as error:
            if error.errno is None:
                raise  # an error of ours, with a message of its own
            if error.errno not in _READ_ONLY:
                reason = f"{error.strerror}, for --feature-cache"
                raise StorageError(error.errno, reason, str(self.folder)) from error
            self._unwritable = error.strerror or str(error)
            return False
        return True


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, which may be read and written."""
    return memoryview(tensor.numpy().data).cast("B")


def _checksum(head: bytes | bytearray, data: memoryview) -> int:
    return zlib.crc32(data, zlib.crc32(head))


def _line(folder: Path, counts: _Counts) -> str:
    """What was found and stored, and what is wrong with the folder."""
    total = count(counts.read + counts.computed, "image")
    parts = [f"features: {counts.read} of {total} from '{folder}'"]
    if counts.stored:
        size, unit = (
            (counts.n_bytes / 1e9, "GB") if counts.n_bytes >= 1e9 else (counts.n_bytes / 1e6, "MB")
        )
        parts.append(f"{counts.stored} computed and stored ({size:.3g} {unit})")
    if unstored := counts.computed - counts.stored:
        why = f" ({counts.unwritable})" if counts.unwritable else ""
        parts.append(f"{unstored} computed and not stored{why}")
    if counts.damaged:
        parts.append(f"{count(counts.damaged, 'file')} there damaged and not used")
    if counts.foreign:
        parts.append(f"not used: {counts.foreign}; move it away")
    return "; ".join(parts)
