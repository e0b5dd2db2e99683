"""``crad data get``: download a data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from crad.command_line import make_command
from crad.data import find_dataset
from crad.data.download import ARCHIVES, ArchiveName, get
from crad.errors import UsageError


@dataclass(frozen=True)
class GetOptions:
    """Options of the command."""

    action: Positional[Literal["get"]]
    """Download, check and extract."""
    name: Positional[ArchiveName]
    """The data set: MVTec AD (5.3 GB) or VisA (1.9 GB); extracted, it takes as much again."""
    folder: Positional[Path]
    """Parent folder of the data set."""
    url: str | None = None
    """Another address of the archive."""
    archive: Path | None = None
    """The archive, if it is downloaded already."""


def _get(options: GetOptions) -> None:
    if options.url and options.archive:
        raise UsageError("--url and --archive exclude each other")
    source = ARCHIVES[options.name]
    print(f"{source.title} | licence {source.licence} | {source.page}", flush=True)
    try:
        folder = get(options.name, options.folder, url=options.url, archive_file=options.archive)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("run the same command to resume") from interrupt
    found = find_dataset(folder)
    print(
        f"{len(found.classes)} classes, {len(found.train)} training and {len(found.test)} test "
        f"images in {folder}\ntrain on them: crad train --data {folder}"
    )


main = make_command(
    GetOptions, _get, "data", "Download a data set. What is there already is not downloaded again."
)

if __name__ == "__main__":
    main()
