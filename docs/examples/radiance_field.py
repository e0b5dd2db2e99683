"""
Learn a radiance field from views
=================================

A radiance field (NeRF) says for each point of space how dense it is and what colour it has. A view
is computed by sampling it along the ray of each pixel. Here the field is a grid of 32 x 32 x 32
entries, a :class:`crad_kernels.GridMemory`, which is fitted to views of a scene of a few balls.
"""

import math
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from crad_kernels import GridMemory

STEPS = 300
PIXELS = 64  # along each side of a view
SAMPLES = 48  # along a ray

Field = Callable[[Tensor], tuple[Tensor, Tensor]]  # points (..., 3) to densities and colours


def scene(points: Tensor) -> tuple[Tensor, Tensor]:
    """Give the densities ``(...,)`` and colours ``(..., 3)`` of the true scene."""
    centres = torch.tensor([[-0.4, 0.0, -0.3], [0.4, 0.1, 0.2], [-0.1, -0.4, 0.5], [0.0, 0.5, 0.0]])
    radii = torch.tensor([0.35, 0.3, 0.2, 0.15])
    colours = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.5, 0.9], [0.95, 0.8, 0.2], [0.3, 0.75, 0.3]])
    inside = radii - (points[..., None, :] - centres).norm(dim=-1)  # (..., 4), positive in a ball
    nearest = inside.argmax(-1)
    stripes = 0.75 + 0.25 * torch.sign(torch.sin(16 * points[..., 1:2]))
    return 30 * torch.sigmoid(60 * inside.amax(-1)), colours[nearest] * stripes


def rays(turn: float, height: float) -> tuple[Tensor, Tensor]:
    """Give the origins and directions ``(PIXELS ** 2, 3)`` of the rays of a camera."""
    origin = 3 * normalize(torch.tensor([math.sin(turn), height, math.cos(turn)]), dim=0)
    forward = -origin / 3
    right = normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), forward), dim=0)
    up = torch.linalg.cross(forward, right)
    along = torch.linspace(-0.4, 0.4, PIXELS)
    y, x = torch.meshgrid(-along, along, indexing="ij")
    directions = normalize(forward + x[..., None] * right + y[..., None] * up, dim=-1)
    return origin.expand(PIXELS**2, 3), directions.reshape(-1, 3)


def render(field: Field, origins: Tensor, directions: Tensor) -> Tensor:
    """Compute the colours ``(N, 3)`` of rays, over a white background."""
    distances = torch.linspace(2.0, 4.0, SAMPLES)
    density, colours = field(origins[:, None] + distances[:, None] * directions[:, None])
    opacity = 1 - torch.exp(-density * 2 / SAMPLES)
    passed = torch.cumprod(1 - opacity, 1)  # the share of light that passes each sample
    weights = opacity * torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], 1)
    return (weights[..., None] * colours).sum(1) + passed[:, -1:]


# %%
# Views of the scene
# ------------------
#
# Twenty-four cameras stand around the scene, at three heights. Another one, which training does not
# see, is what the result is compared with.

cameras = [rays(2 * math.pi * n / 24, (-0.5, 0.2, 0.9)[n % 3]) for n in range(24)]
origins, directions = (torch.cat(parts) for parts in zip(*cameras, strict=True))
colours = render(scene, origins, directions)
unseen = rays(0.4, 0.4)
truth = render(scene, *unseen)

# %%
# Fit the grid
# ------------
#
# The four channels of an entry become density and colour after interpolation. Outside of the grid
# they are zero, which is nearly empty space.

torch.manual_seed(0)
memory = GridMemory(4, 32, ndim=3)
torch.nn.init.zeros_(memory.weight)


def learned(points: Tensor) -> tuple[Tensor, Tensor]:
    """Give the densities and colours that the grid holds."""
    entries = memory(points)
    return softplus(10 * entries[..., 0] - 3), torch.sigmoid(10 * entries[..., 1:])


optimizer = torch.optim.Adam(memory.parameters(), lr=0.05)
shown, start = {}, time.perf_counter()
for step in range(STEPS + 1):
    if step in (0, STEPS // 10, STEPS):
        with torch.no_grad():
            shown[f"step {step}"] = render(learned, *unseen)
        noise = (shown[f"step {step}"] - truth).square().mean()
        print(f"step {step:3}: {-10 * noise.log10():.1f} dB, {time.perf_counter() - start:.0f} s")
    chosen = torch.randint(len(origins), (2048,))
    loss = (render(learned, origins[chosen], directions[chosen]) - colours[chosen]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

fig, axes = plt.subplots(1, 4, figsize=(10, 2.9))
for axis, (title, view) in zip(axes, (shown | {"the scene": truth}).items(), strict=True):
    axis.imshow(view.reshape(PIXELS, PIXELS, 3).clip(0, 1).numpy())
    axis.set_title(title)
    axis.axis("off")
plt.tight_layout()
plt.show()
