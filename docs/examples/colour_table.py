"""
Learn a colour table
====================

A colour table, or look-up table (LUT), says for colours on a lattice what they become; between them
it is interpolated. It is a grid with an axis each for blue, green and red, and three channels. Its
coordinates are the colours of a picture: :func:`crad_kernels.sample` applies it, and its gradient
trains it.
"""

import time

import matplotlib.pyplot as plt
import torch
from skimage import data
from torch import Tensor

from crad_kernels import sample

STEPS = 300

photograph = torch.tensor(data.astronaut()) / 255  # (512, 512, 3), red first


def apply(table: Tensor, colours: Tensor) -> Tensor:
    """Look up colours ``(..., D)`` in [0, 1]; the first component is red."""
    return sample(table, 2 * colours - 1, padding_mode="border", align_corners=True)


def identity(*size: int) -> Tensor:
    """Return a table that changes no colour; its last three axes are blue, green, red."""
    axes = torch.meshgrid(*(torch.linspace(0, 1, n) for n in size), indexing="ij")
    return torch.stack([axes[-1], axes[-2], axes[-3]], -1)


def grade(colours: Tensor, exposure: Tensor | float) -> Tensor:
    """Stand in for a look whose formula nobody knows: exposure, contrast, and warm highlights."""
    bright = 1 - (1 - colours) ** (2**exposure)
    grey = bright.mean(-1, keepdim=True)
    contrast = torch.sigmoid(7 * (bright - 0.5))
    warm = torch.tensor([0.10, 0.02, -0.12]) * (grey - 0.4)
    return (grey + 1.3 * (contrast - grey) + warm).clamp(0, 1)


def show(pictures: dict[str, Tensor]) -> None:
    """Show pictures ``(H, W, 3)`` in a row."""
    _, axes = plt.subplots(1, len(pictures), figsize=(10, 10 / len(pictures) + 0.4))
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        axis.imshow(picture.clip(0, 1).numpy())
        axis.set_title(title)
        axis.axis("off")
    plt.tight_layout()
    plt.show()


# %%
# Three axes: one look
# --------------------
#
# The table has 33 entries an axis. It learns from pairs of pixels, before and after. Colours that
# no pixel is near stay as they are: learn from more pictures, or from a chart of all colours, if
# the table is for others too.

torch.manual_seed(0)
pixels = photograph.reshape(-1, 3)
look = identity(33, 33, 33).requires_grad_()
optimizer = torch.optim.Adam([look], lr=0.01)
start = time.perf_counter()
for step in range(STEPS + 1):
    before = pixels[torch.randint(len(pixels), (50_000,))]
    loss = (apply(look, before) - grade(before, 0.0)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step:3}: off by {255 * loss.item() ** 0.5:5.2f} of 255")
print(f"{time.perf_counter() - start:.1f} s")

with torch.no_grad():
    after = apply(look, photograph)
show({"before": photograph, "after, by the table": after, "the goal": grade(photograph, 0.0)})

# %%
# Four axes: a look with a dial
# -----------------------------
#
# A fourth component of each colour, the exposure, moves along the first axis of the table. It
# learns from pixels at any exposure between 0 and 1.

dial = identity(5, 17, 17, 17).requires_grad_()
optimizer = torch.optim.Adam([dial], lr=0.01)
for step in range(STEPS + 1):
    before = pixels[torch.randint(len(pixels), (50_000,))]
    exposure = torch.rand(len(before), 1)
    loss = (apply(dial, torch.cat([before, exposure], 1)) - grade(before, exposure)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step:3}: off by {255 * loss.item() ** 0.5:5.2f} of 255")

pictures = {}
for value in (0.0, 0.4, 0.8):
    exposure = torch.full((512, 512, 1), value)
    with torch.no_grad():
        pictures[f"exposure {value}"] = apply(dial, torch.cat([photograph, exposure], -1))
show(pictures)
