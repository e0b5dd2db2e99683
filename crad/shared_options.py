"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, TypeAlias

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from crad.data.frames import Frame, Size, show_size

SkipBad: TypeAlias = Annotated[
    bool, arg(help="Leave out images that cannot be read, and name them, instead of stopping.")
]
"""The option of all commands that read images."""

BitDepth: TypeAlias = Annotated[
    int | None,
    arg(help="Bits that the values of 16-bit images have, 8 to 16. Default: those of training."),
]
"""The option of the commands that read images for a trained detector."""

FeatureCacheOption: TypeAlias = Annotated[
    Path | None,
    arg(
        help="Folder in which later runs find the features of the same images: 4 bytes a number, "
        "such as 0.7 MB for an image of 28 x 28 x 216. Delete it to be rid of them. Default: none."
    ),
]
"""The option of the commands that compute features of a whole data set."""

MaxMegapixels: TypeAlias = Annotated[
    float, arg(help="Refuse images of more million pixels, which may be made to fill the memory.")
]
"""The option of all commands that read images."""

RoiOption: TypeAlias = Annotated[
    Path | None,
    arg(
        help="A mask for all classes, or a folder with CLASS.png for some: only where it is white "
        "does an image count, for scores, thresholds and regions."
    ),
]
"""The option of the region of interest."""

IgnoreOption: TypeAlias = Annotated[
    Path | None,
    arg(name="ignore", help="The same as --roi, but where the mask is white, nothing counts."),
]
"""The option of what does not count."""


def _parse_size(words: list[str]) -> Size:
    try:
        height, width = map(int, words if len(words) == 2 else 2 * words)
    except ValueError:
        got = " ".join(words) or "nothing"
        raise ValueError(
            f"expected one side, or a height and a width, in pixels, but got {got}"
        ) from None
    return Frame(height, width).size


ImageSizeOption: TypeAlias = Annotated[
    Size,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="SIDE|HEIGHT WIDTH",
        instance_from_str=_parse_size,
        is_instance=lambda value: isinstance(value, int | tuple),
        str_from_instance=lambda size: show_size(size).split(),
    ),
]
"""The option of a size: one number for a square, or two."""
