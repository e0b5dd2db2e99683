"""The list of normal images that may not be normal."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from crad.report.tables import lay_out, printable
from crad.scoring.suspects import Suspect
from crad.words import count

_SHOWN_SUSPECTS = 20


def list_suspects(suspects: Sequence[Suspect], n_images: int, page: Path) -> Iterator[str]:
    """Lay out the normal images that may not be normal, and name the page that shows them."""
    if not suspects:
        return
    score = "scores" if len(suspects) == 1 else "score"
    yield (
        f"suspicious: {len(suspects)} of {count(n_images, 'normal image')} {score} far above the "
        "others of the class; look at them, remove those that are defective and train again, or "
        f"give the share that may be defective with --contamination; open {page} in a browser"
    )
    rows = [["image", "score", "times the median"]]
    for each in suspects[:_SHOWN_SUSPECTS]:
        image = printable(str(each.sample.path))
        rows.append([image, f"{each.score:.4g}", f"{each.times:.2f}"])
    yield from lay_out(rows)
    if len(suspects) > _SHOWN_SUSPECTS:
        yield f"and {len(suspects) - _SHOWN_SUSPECTS} more"
