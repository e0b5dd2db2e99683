"""
Warp by a flow, and find the flow
=================================

A flow says how far each pixel has moved from one picture to the next. To compare the two, the
second one is sampled where the pixels of the first have gone. The pictures are the two views of a
stereo camera, for which scikit-image has the true movement.
"""

import matplotlib.pyplot as plt
import torch
from skimage import data
from torch import Tensor

from crad_kernels import GridMemory, grid_sample

STEPS = 120

left, right, disparity = data.stereo_motorcycle()
first = torch.tensor(left).permute(2, 0, 1)[None] / 255  # (1, 3, 500, 741)
second = torch.tensor(right).permute(2, 0, 1)[None] / 255
height, width = first.shape[2:]
truth = torch.tensor(disparity)
known = truth.isfinite()

# %%
# From pixels to coordinates
# --------------------------
#
# With ``align_corners=False``, pixel i of n is at (2 i + 1) / n - 1, so a pixel is 2 / n wide. A
# point of the scene is ``disparity`` pixels further to the left in the right picture.

y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
here = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)  # (H, W, 2)


def warp(picture: Tensor, flow: Tensor) -> Tensor:
    """Sample a picture ``(1, C, H, W)`` where the flow ``(H, W, 2)``, in pixels, leads."""
    pixel = torch.tensor([2 / width, 2 / height])
    return grid_sample(picture, (here + flow * pixel)[None], padding_mode="border")


def error(picture: Tensor) -> float:
    """Return the mean difference from the first picture, in grey levels, where flow is known."""
    return float(255 * (picture - first).abs().mean(1)[0][known].mean())


true_flow = torch.stack([-truth.nan_to_num(posinf=0), torch.zeros_like(truth)], -1)
warped = warp(second, true_flow)
print(f"mean difference before: {error(second):.1f} grey levels, after: {error(warped):.1f}")

fig, axes = plt.subplots(1, 3, figsize=(12, 3.2))
titles = ["first", "second", "second, warped by the true flow"]
for axis, picture, title in zip(axes, [first, second, warped], titles, strict=True):
    axis.imshow(picture[0].permute(1, 2, 0).numpy())
    axis.set_title(title)
    axis.axis("off")
plt.tight_layout()
plt.show()

# %%
# The ghosts beside the edges are what only one of the cameras sees.
#
# Find a flow
# -----------
#
# A flow is a picture of two channels, and a smooth one is a coarse grid that is sampled at every
# pixel: a :class:`crad_kernels.GridMemory`, cubic. The pictures are the first view, and the same
# view moved by a wave. Their difference reaches the grid through both samples.

wave = torch.stack([6 * torch.sin(3 * here[..., 1]), 4 * torch.cos(4 * here[..., 0])], -1)
moved = warp(first, wave)

flow = GridMemory(2, (8, 12), mode="cubic", padding_mode="border")
torch.nn.init.zeros_(flow.weight)
optimizer = torch.optim.Adam(flow.parameters(), lr=0.3)
for step in range(STEPS + 1):
    found = flow(here)
    loss = (warp(first, found) - moved).abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 40 == 0:
        off = (found.detach() - wave).norm(dim=-1).mean()
        print(f"step {step:3}: {255 * loss.item():4.1f} grey levels, flow off by {off:.2f} pixels")

fig, axes = plt.subplots(1, 2, figsize=(10, 3.6))
for axis, picture, title in zip(axes, [wave, found.detach()], ["true", "found"], strict=True):
    shown = axis.imshow(picture[..., 0].numpy(), vmin=-7, vmax=7, cmap="RdBu")
    axis.set_title(f"horizontal flow in pixels, {title}")
    axis.axis("off")
fig.colorbar(shown, ax=axes)
plt.show()
