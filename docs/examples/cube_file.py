"""
Colour tables from files, and their speed
=========================================

Editors of photographs and films keep colour tables in ``.cube`` files. A few lines write one or
read one of colours in [0, 1], and :func:`crad_kernels.sample` applies it. At the end are times for
four megapixels, beside other ways, one of which needs ``pip install colour-science``.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import colour
import matplotlib.pyplot as plt
import torch
from skimage import data
from torch import Tensor

from crad_kernels import sample

REPEAT = 4  # copies of the photograph along each side of the picture that is timed

photograph = torch.tensor(data.coffee()) / 255  # (400, 600, 3), red first


def apply(table: Tensor, colours: Tensor) -> Tensor:
    """Look up colours ``(..., D)`` in [0, 1]; the first component is red."""
    return sample(table, 2 * colours - 1, padding_mode="border", align_corners=True)


def read_cube(path: Path) -> Tensor:
    """Read a table ``(blue, green, red, 3)`` of colours in [0, 1]; red runs fastest in files."""
    lines = [line.split() for line in path.read_text().splitlines()]
    assert not any(words[:1] == ["DOMAIN_MIN"] for words in lines), "colours beyond [0, 1]"
    (size,) = (int(words[1]) for words in lines if words[:1] == ["LUT_3D_SIZE"])
    rows = [words for words in lines if words and words[0][0] in "-.0123456789"]
    return torch.tensor([[*map(float, words)] for words in rows]).reshape(size, size, size, 3)


# %%
# A file, and the picture before and after
# ----------------------------------------
#
# The file of this example is written here: teal shadows, orange highlights.

blue, green, red = torch.meshgrid(*(torch.linspace(0, 1, 33),) * 3, indexing="ij")
light = (0.3 * red + 0.6 * green + 0.1 * blue)[..., None]
table = torch.stack([red, green, blue], -1)
table = (table + (light - 0.4) * torch.tensor([0.35, 0.05, -0.35])).clamp(0, 1)

file = Path(tempfile.mkdtemp()) / "teal-and-orange.cube"
rows = (" ".join(f"{part:.6f}" for part in row) for row in table.reshape(-1, 3).tolist())
file.write_text("LUT_3D_SIZE 33\n" + "\n".join(rows) + "\n")

after = apply(read_cube(file), photograph).clip(0, 1)
fig, axes = plt.subplots(1, 2, figsize=(10, 3.8))
for axis, picture, title in zip(axes, [photograph, after], ["before", "after"], strict=True):
    axis.imshow(picture.numpy())
    axis.set_title(title)
    axis.axis("off")
plt.tight_layout()
plt.show()

# %%
# colour-science reads the same file, and gets the same picture.

theirs = torch.tensor(colour.read_LUT(str(file)).apply(photograph.numpy()))
print(f"largest difference: {(after - theirs).abs().max():.1e} of 1")

# %%
# Four megapixels
# ---------------
#
# `torch.nn.functional.grid_sample` takes at most three axes. A table of four can be put together
# from functions of PyTorch that gather and weigh the corners.


def composed(table: Tensor, colours: Tensor) -> Tensor:
    """Do what `apply` does, with tensors for each of the corners."""
    size = torch.tensor(table.shape[-2::-1])
    places = colours * (size - 1)
    low = places.floor().minimum(size - 2)
    total = torch.zeros(())
    for corner in itertools.product((0, 1), repeat=len(size)):
        entry = low + torch.tensor(corner)
        weight = (1 - (entry - places).abs()).prod(-1, keepdim=True)
        total = total + weight * table[entry.long().flip(-1).unbind(-1)]
    return total


def clock(name: str, function: Callable[[], object]) -> None:
    """Print the shortest time of a call, repeated for a second."""
    times: list[float] = []
    while sum(times) < 1:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    print(f"{name:45}{1000 * min(times):7,.0f} ms")


large = photograph.repeat(REPEAT, REPEAT, 1)
with_dial = torch.cat([large, large.mean(-1, keepdim=True)], -1)
four = torch.stack([table * level for level in torch.linspace(0.8, 1.2, 17)])[:, ::2, ::2, ::2]
assert (composed(four, with_dial[:9]) - apply(four, with_dial[:9])).abs().max() < 1e-5

print(f"{large.shape[1]} x {large.shape[0]} pixels, {torch.get_num_threads()} threads")
first, grid = table.movedim(-1, 0)[None], (2 * large - 1)[None, None]
in_torch = torch.nn.functional.grid_sample
clock("33 x 33 x 33, crad_kernels", lambda: apply(table, large))
clock("33 x 33 x 33, F.grid_sample", lambda: in_torch(first, grid, "bilinear", "border", True))
in_colour = colour.read_LUT(str(file))
clock("33 x 33 x 33, colour-science", lambda: in_colour.apply(large.numpy()))
clock("17 x 17 x 17 x 17, crad_kernels", lambda: apply(four, with_dial))
clock("17 x 17 x 17 x 17, composed in PyTorch", lambda: composed(four, with_dial))
