"""kornia's warps over `patch` are those over torch's `grid_sample`."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crad_kernels import backends, patch
from tests.cases import assert_near

kornia = pytest.importorskip("kornia")
transform = pytest.importorskip("kornia.geometry.transform")

pytestmark = pytest.mark.skipif(
    not backends()["cpu"].usable, reason="the CPU backend cannot be used here"
)

MATRIX = torch.tensor([[0.9, 0.2, 1.5], [-0.1, 1.1, -2.0], [0.001, -0.002, 1.0]])
VOLUME = torch.eye(4)[:3] + 0.05


def points(image: Tensor) -> tuple[Tensor, Tensor]:
    """The places ``(N, H, W)`` in pixels, x and y, of a smooth warp."""
    n, _, h, w = image.shape
    y, x = torch.meshgrid(torch.arange(float(h)), torch.arange(float(w)), indexing="ij")
    return (x + torch.sin(y)).expand(n, h, w), (y + torch.cos(x)).expand(n, h, w)


def noise(image: Tensor) -> Tensor:
    n, _, h, w = image.shape
    return torch.sin(torch.arange(2.0 * h * w)).reshape(1, 2, h, w).expand(n, 2, h, w)


def spline(image: Tensor) -> Tensor:
    source = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    target = source + 0.1 * torch.sin(7 * source)
    n = len(image)
    weights = transform.get_tps_transform(target.expand(n, 5, 2), source.expand(n, 5, 2))
    return transform.warp_image_tps(image, source.expand(n, 5, 2), *weights)


WARPS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        f"perspective, {mode}, {padding}": lambda image, mode=mode, padding=padding: (
            transform.warp_perspective(
                image, MATRIX.expand(len(image), 3, 3), (20, 30), mode=mode, padding_mode=padding
            )
        )
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection", "fill")
    },
    "affine": lambda image: transform.warp_affine(
        image, MATRIX[:2].expand(len(image), 2, 3), (20, 30)
    ),
    "affine, volume": lambda image: transform.warp_affine3d(
        torch.stack([image] * 5, 2), VOLUME.expand(len(image), 3, 4), (5, 20, 30)
    ),
    "rotate": lambda image: transform.rotate(image, torch.tensor(25.0)),
    "translate": lambda image: transform.translate(image, torch.tensor([[1.3, -2.6]])),
    "shear": lambda image: transform.shear(image, torch.tensor([[0.2, -0.1]])),
    "remap": lambda image: transform.remap(image, *points(image), align_corners=True),
    "elastic": lambda image: transform.elastic_transform2d(image, noise(image)),
    "crop and resize": lambda image: transform.crop_and_resize(
        image, torch.tensor([[[1.0, 1], [12, 1], [12, 9], [1, 9]]]).expand(len(image), 4, 2), (8, 8)
    ),
    "thin plate spline": spline,
    "undistort": lambda image: kornia.geometry.undistort_image(
        image,
        torch.tensor([[20.0, 0, 9], [0, 20, 8], [0, 0, 1]]).expand(len(image), 3, 3),
        torch.tensor([[0.1, 0.01, 0.001, -0.002]]).expand(len(image), 4),
    ),
}


@pytest.mark.parametrize("name", WARPS)
def test_warps_are_alike(name: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def results() -> tuple[Tensor, Tensor]:
        image = torch.rand(2, 3, 17, 19, generator=generator.manual_seed(0)).requires_grad_()
        warped = WARPS[name](image)
        (gradient,) = torch.autograd.grad(warped.square().sum(), image)
        return warped, gradient

    expected = results()
    with patch():
        actual = results()
    for got, wanted in zip(actual, expected, strict=True):
        assert got.shape == wanted.shape
        assert_near(got, wanted, 1e-4)
