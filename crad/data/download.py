"""Downloading MVTec AD and VisA."""

import hashlib
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from lzma import LZMAError
from pathlib import Path
from types import MappingProxyType
from typing import Literal
from urllib.error import HTTPError, URLError

from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from crad.errors import DataError
from crad.files import full_path, irregular, new_folder

_CHUNK = 1 << 20
_SECONDS = 60  # timeout of the server


@dataclass(frozen=True)
class Archive:
    """A data set and the archive that it is published as, of ``size`` bytes."""

    title: str
    licence: str
    page: str
    url: str
    sha256: str
    size: int

    @property
    def file_name(self) -> str:
        """Name of the archive."""
        return self.url.rpartition("/")[2]


ArchiveName = Literal["mvtec", "visa"]

ARCHIVES: Mapping[ArchiveName, Archive] = MappingProxyType(
    {
        "mvtec": Archive(
            title="MVTec AD",
            licence="CC BY-NC-SA 4.0: not for commercial use",
            page="https://www.mvtec.com/company/research/datasets/mvtec-ad",
            url="https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/"
            "420938113-1629960298/mvtec_anomaly_detection.tar.xz",
            sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
            size=5_264_982_680,
        ),
        "visa": Archive(
            title="VisA",
            licence="CC BY 4.0",
            page="https://github.com/amazon-science/spot-diff",
            url="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
            sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
            size=1_929_840_640,
        ),
    }
)
"""The archives by name."""


def get(
    name: ArchiveName, folder: Path, *, url: str | None = None, archive_file: Path | None = None
) -> Path:
    """Download a data set, check its SHA-256 and extract it into a folder of its name.

    An extracted data set and a complete or partial archive of an earlier call are used.

    Args:
        name: of the data set.
        folder: for the archive and the data set.
        url: another address of the archive.
        archive_file: the archive, if it is downloaded already.

    Returns:
        ``folder/name``, which is missing or empty until everything is extracted.

    Raises:
        DataError: the archive cannot be downloaded or is wrong, or there is too little space.
        OSError: a file cannot be read or written.
    """
    archive, target = ARCHIVES[name], folder / name
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        return target
    path = archive_file or folder / archive.file_name
    if archive_file or path.exists():
        way_out = "give another --archive" if archive_file else "remove it to download it again"
        _check(path, archive, way_out)
    else:
        partial = path.with_name(f"{path.name}.part")
        _download(archive, url or archive.url, partial)
        try:
            _check(partial, archive, "it is removed; run the command again, or give another --url")
        except DataError:
            partial.unlink()
            raise
        partial.rename(path)
    place = full_path(target)  # the empty folder may be a link to another disk
    _check_space(place, archive.size)  # the images take about as much as the archive
    with new_folder(place) as unfinished:
        _extract(path, unfinished)
    return target


def _download(archive: Archive, url: str, path: Path) -> None:
    """Download a file, or the rest of it if the file is there; not all servers can send a part."""
    begun = path.stat().st_size if path.exists() else 0
    if begun >= archive.size:
        return
    _check_space(path.parent, 2 * archive.size - begun)
    path.parent.mkdir(parents=True, exist_ok=True)
    way_out = (
        f"run the command again to resume, give another address with --url, or get "
        f"{archive.file_name} from {archive.page} and give it with --archive"
    )

    @contextmanager
    def receiving() -> Iterator[None]:
        try:
            yield
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, HTTPError):
                error.close()  # it is also a response, with an open connection
            reason = error.reason if type(error) is URLError else error
            raise DataError(f"download: cannot read '{url}': {reason}; {way_out}") from error

    with receiving():
        headers = {"Range": f"bytes={begun}-"} if begun else {}
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.urlopen(request, timeout=_SECONDS)
    with response:
        if response.status != 206:
            begun = 0
        rest = response.headers["Content-Length"]
        if rest and begun + int(rest) != archive.size:
            raise DataError(
                f"download: '{url}' has {begun + int(rest)} bytes, but {archive.file_name} has "
                f"{archive.size}; {way_out}"
            )
        with path.open("ab") as file, _progress("download", archive.size, begun) as bar:
            file.truncate(begun)
            while True:
                with receiving():
                    chunk = response.read(_CHUNK)
                if not chunk:
                    break
                file.write(chunk)
                bar.update(len(chunk))
    received = path.stat().st_size
    if received < archive.size:
        raise DataError(
            f"download: '{url}' ended after {received} of {archive.size} bytes; {way_out}"
        )


def _check(path: Path, archive: Archive, way_out: str) -> None:
    """Refuse a file that is not the archive."""
    if kind := irregular(path):
        raise DataError(f"archive: '{path}' is {kind}; {way_out}")
    digest = hashlib.sha256()
    with path.open("rb") as file, _progress("check", path.stat().st_size) as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != archive.sha256:
        raise DataError(
            f"archive: '{path}' is damaged, or not {archive.file_name}: its SHA-256 is "
            f"{digest.hexdigest()}, not {archive.sha256}; {way_out}"
        )


def _extract(path: Path, folder: Path) -> None:
    """Extract an archive whose members may neither lie nor point outside the folder."""
    if not hasattr(tarfile, "data_filter"):
        raise DataError(
            "archive: safe extraction needs Python 3.11.4 or later; upgrade, or extract it "
            f"yourself: tar -xf '{path}' -C FOLDER"
        )
    try:
        with (
            path.open("rb") as file,
            _progress("extract", path.stat().st_size) as bar,
            tarfile.open(fileobj=CallbackIOWrapper(bar.update, file, "read"), mode="r|*") as tar,
        ):
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, LZMAError, EOFError) as error:
        raise DataError(
            f"archive: cannot extract '{path}': {error}; remove it and run the command again"
        ) from error


def _check_space(folder: Path, needed: int) -> None:
    """Refuse a folder whose disk has too little free space."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise DataError(f"data: '{there}' is a file; give a folder")
    free = shutil.disk_usage(there).free
    if free < needed:
        raise DataError(
            f"space: {needed / 1e9:.1f} GB are needed in '{folder}', but it has {free / 1e9:.1f} "
            "GB free; free some space, or give another folder"
        )


def _progress(what: str, total: int, done: int = 0) -> "tqdm[None]":
    return tqdm(total=total, initial=done, desc=what, unit="B", unit_scale=True, mininterval=0.5)
