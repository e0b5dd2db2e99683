"""The picture of a comparison: accuracy against cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import Record
from benchmarks.detectors.page import (
    COLUMNS,
    in_order,
    mean_of,
    protocols_of,
    rows_of,
    sections_by,
    title_of,
)
from crad.errors import MissingPackageError
from crad.files import replacing

_METRIC = "image_auroc"


def has_costs(records: Sequence[Record]) -> bool:
    """Whether there is anything to draw."""
    return any("images_per_second" in record for record in records)


def check_matplotlib() -> None:
    """Refuse to go on without matplotlib.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "report: the picture needs matplotlib; install it with pip install 'crad[report]'"
        ) from error


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw a panel for each set, as an SVG that is the same for the same records.

    Args:
        records: some of which have ``images_per_second``.
        path: of the picture.

    Raises:
        MissingPackageError: matplotlib is not installed.
        OSError: it cannot be written.
    """
    check_matplotlib()
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    ordered = in_order(each for each in records if "images_per_second" in each)
    protocol = protocols_of(ordered)[0]
    sections = sections_by(ordered, protocol)
    style: dict[Any, Any] = {"svg.hashsalt": "crad", "svg.fonttype": "none", "font.size": 9}
    with pyplot.rc_context(style), replacing(path) as temporary:
        figure, panels = pyplot.subplots(
            1, len(sections), figsize=(4.5 * len(sections), 4), layout="constrained", squeeze=False
        )
        for axes, section in zip(panels[0], sections, strict=True):
            for (setting, _), members in rows_of(section):
                accuracy = mean_of(members, _METRIC)
                if accuracy is None:
                    continue
                speed = sum(each["images_per_second"]["1"] for each in members) / len(members)
                ours = members[0]["method"] == "crad"
                marker = "o" if setting == "unified" else "s"
                axes.plot(1000 / speed, accuracy, marker, color="C3" if ours else "C0")
                label = title_of(members[0]) + (", separate" if setting == "separate" else "")
                axes.annotate(
                    label,
                    (1000 / speed, accuracy),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=7,
                )
            axes.set(
                xscale="log",
                xlabel="milliseconds an image, one at a time",
                ylabel=f"{COLUMNS[_METRIC]}, %, by protocol {protocol}",
                title=f"{section[0]['data']}, {section[0]['backbone']}",
            )
            axes.margins(x=0.3)
            axes.grid(alpha=0.3)
        figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)
