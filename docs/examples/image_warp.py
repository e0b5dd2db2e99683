"""
Warp an image, and learn the warp
=================================

A warp says for every pixel of the result where in the image to look.
:func:`crad_kernels.grid_sample` takes these places as coordinates: -1 and 1 are the left and right,
or upper and lower, borders of the image, and x comes before y. The call is that of
`torch.nn.functional.grid_sample`.
"""

import math

import matplotlib.pyplot as plt
import torch
from skimage import data
from torch import Tensor
from torch.nn.functional import affine_grid

from crad_kernels import grid_sample

STEPS = 150

photograph = torch.tensor(data.astronaut()) / 255
image = photograph.permute(2, 0, 1)[None, :, ::2, ::2]  # (1, 3, 256, 256): batch, channels, y, x


def places(angle: Tensor, zoom: Tensor) -> Tensor:
    """Return where each pixel of the turned and enlarged picture looks, ``(1, H, W, 2)``."""
    cos, sin, nothing = angle.cos() / zoom, angle.sin() / zoom, torch.zeros(())
    rows = torch.stack([cos, -sin, nothing]), torch.stack([sin, cos, nothing])
    return affine_grid(torch.stack(rows)[None], list(image.shape), align_corners=False)


def show(pictures: dict[str, Tensor]) -> None:
    """Show pictures ``(1, 3, H, W)`` in a row."""
    _, axes = plt.subplots(1, len(pictures), figsize=(10, 10 / len(pictures) + 0.4))
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        axis.imshow(picture[0].detach().permute(1, 2, 0).clip(0, 1).numpy())
        axis.set_title(title)
        axis.axis("off")
    plt.tight_layout()
    plt.show()


# %%
# Outside of the image
# --------------------
#
# The padding mode says what a picture shows where it looks beyond the borders.

smaller = places(torch.tensor(math.radians(20)), torch.tensor(0.6))
modes = ["zeros", "border", "reflection", "circular"]
show({mode: grid_sample(image, smaller, padding_mode=mode) for mode in modes})

# %%
# Any smooth movement
# -------------------
#
# Coordinates are a tensor, and anything may be computed with them. Here the turn grows towards the
# centre. Cubic interpolation is sharper than linear.

x, y = places(torch.zeros(()), torch.ones(())).unbind(-1)
turn = 3 * torch.exp(-4 * (x**2 + y**2))
swirl = torch.stack([turn.cos() * x - turn.sin() * y, turn.sin() * x + turn.cos() * y], -1)
show({"image": image, "swirl": grid_sample(image, swirl, "bicubic", "border")})

# %%
# Learn a warp
# ------------
#
# The result has derivatives with respect to the coordinates, so a warp can be found by gradient
# descent. Given a picture that was turned by 20 degrees and enlarged 1.25 times, find both numbers.

target = grid_sample(image, places(torch.tensor(math.radians(20)), torch.tensor(1.25)))
angle, zoom = torch.zeros((), requires_grad=True), torch.ones((), requires_grad=True)
optimizer = torch.optim.Adam([angle, zoom], lr=0.02)
for step in range(STEPS + 1):
    loss = (grid_sample(image, places(angle, zoom)) - target).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        turned = math.degrees(angle.item())
        print(f"step {step:3}: error {loss.item():.6f}, {turned:5.2f} degrees, {zoom.item():.3f}")

show({"target": target, "found": grid_sample(image, places(angle, zoom))})
