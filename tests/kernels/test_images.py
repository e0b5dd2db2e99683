"""Images, volumes and few points: what points as lanes of vectors give, whatever the way they take.

The judge is the reference, which computes the same indices: sums may differ by what float32 rounds.
"""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crad_kernels import backends, grid_sample

pytestmark = pytest.mark.skipif(not backends()["cpu"].usable, reason="needs the CPU backend")

MODES = ("nearest", "bilinear", "bicubic")
PADDINGS = ("zeros", "border", "reflection", "circular")
FLOWS = ("identity", "smooth", "rotated", "flipped", "random", "outside")


def flow(kind: str, batch: int, *out: int) -> Tensor:
    """The places that an image is read at, ``(batch, *out, D)``."""
    axes = [(torch.arange(length) * 2 + 1) / length - 1 for length in out]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
    # Not on the border between two entries, where rounding decides.
    places = places * 0.9987 + 1.3e-4
    if kind == "smooth":
        places = places + 0.03 * torch.sin(7 * places.roll(1, -1))
    elif kind == "rotated":
        places = 1.1 * (
            places + 0.4 * places.roll(1, -1) * torch.tensor([1.0, -1.0, 1.0])[: len(out)]
        )
    elif kind == "flipped":
        places = places.roll(1, -1).flip(1)
    elif kind == "random":
        places = torch.rand(*out, len(out), generator=torch.Generator().manual_seed(1)) * 2.4 - 1.2
    elif kind == "outside":
        places = 3 * places
    return places.expand(batch, *places.shape).contiguous()


def image(batch: int, channels: int, *size: int, last: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(batch, channels, *size, generator=generator)
    return made.movedim(1, -1).contiguous().movedim(-1, 1) if last else made


def results(backend: str, input: Tensor, grid: Tensor, **options: Any) -> list[Tensor]:
    """Sample, and the gradients of image and places."""
    leaves = input.detach().requires_grad_(), grid.detach().requires_grad_()
    out = grid_sample(*leaves, backend=backend, **options)
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(out.shape, generator=generator).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_same(got: list[Tensor], wanted: list[Tensor], rtol: float = 2e-5) -> None:
    for one, other in zip(got, wanted, strict=True):
        scale = float(other.abs().max()) + 1e-3
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=rtol * scale)


def assert_right(input: Tensor, grid: Tensor, **options: Any) -> None:
    wanted = results("reference", input, grid, **options)
    assert_same(results("cpu", input, grid, **options), wanted)


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("mode", MODES)
def test_image_is_that_of_the_reference(mode: str, kind: str) -> None:
    shapes = ((1, 1, 24, 40), (2, 3, 17, 33), (1, 8, 31, 9), (3, 2, 1, 7), (1, 4, 6, 1))
    choices = itertools.product(shapes, PADDINGS[:3], (False, True), (False, True))
    for (batch, channels, *size), padding, align, last in choices:
        if padding == "reflection" and align == last:
            padding = "circular"
        input = image(batch, channels, *size, last=last)
        grid = flow(kind, batch, 23, 37)
        assert_right(input, grid, mode=mode, padding_mode=padding, align_corners=align)


@pytest.mark.parametrize("kind", ["identity", "smooth", "random", "outside"])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_volume_is_that_of_the_reference(mode: str, kind: str) -> None:
    for padding, channels, last in itertools.product(PADDINGS[:3], (1, 3), (False, True)):
        if padding == "reflection" and (channels == 1) == last:
            padding = "circular"
        input = image(2, channels, 5, 9, 12, last=last)
        assert_right(input, flow(kind, 2, 7, 8, 11), mode=mode, padding_mode=padding)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("mode", MODES)
def test_image_in_strips_is_that_of_the_reference(mode: str, kind: str, last: bool) -> None:
    """So many points that the gradient is added in strips, or, of random places, in bands."""
    input = image(1, 2, 160, 130, last=last)
    for padding in PADDINGS:
        assert_right(input, flow(kind, 1, 190, 170), mode=mode, padding_mode=padding)


@pytest.mark.parametrize("kind", FLOWS)
def test_threads_and_other_images_change_no_bit(kind: str) -> None:
    one = image(1, 3, 200, 120)
    grid = flow(kind, 1, 180, 210)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results("cpu", one, grid)
        torch.set_num_threads(3)
        shared = results("cpu", one, grid)
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, alone, shared))
    beside = grid_sample(torch.cat([one, one]), torch.cat([flow("random", 1, 180, 210), grid]))
    assert torch.equal(beside[1:], alone[0])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [(160, 130), (24, 30, 26)])
def test_threads_change_no_bit_of_random_places(size: tuple[int, ...], last: bool) -> None:
    """Where each thread adds to its own rows of the gradient: of a part of an image, or of some."""
    input = image(2, 4, *size, last=last)
    grid = flow("random", 2, *size)
    wanted = results("reference", input, grid)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            found.append(results("cpu", input, grid))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    assert_same(found[0], wanted)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_points_change_no_bit_of_their_neighbours(mode: str, padding: str) -> None:
    """Where one point of a vector leaves the image, the others are read as if it had not."""
    grid = flow("identity", 1, 16, 64) * 0.8
    with torch.no_grad():
        for place in (5.0, float("nan"), float("inf"), 1e30, -1.001, 0.9999):
            other = grid.clone()
            other[:, :, ::7] = place
            for last in (False, True):
                laid_out = image(1, 3, 40, 40, last=last)
                near = grid_sample(laid_out, grid, mode, padding, backend="cpu")
                got = grid_sample(laid_out, other, mode, padding, backend="cpu")
                kept = torch.arange(64) % 7 != 0
                assert torch.equal(got[..., kept], near[..., kept])


@pytest.mark.parametrize("mode", MODES)
def test_layouts_have_the_same_bits(mode: str) -> None:
    for channels, kind in itertools.product((1, 2, 3, 4, 8), ("smooth", "outside")):
        grid = flow(kind, 2, 50, 70)
        first, last = (image(2, channels, 48, 60, last=last) for last in (False, True))
        with torch.no_grad():
            samples = [grid_sample(input, grid, mode, backend="cpu") for input in (first, last)]
        assert torch.equal(*samples)


def test_jitter_in_strips_is_that_of_the_reference() -> None:
    input, grid = image(1, 2, 200, 160), flow("smooth", 1, 170, 190)
    for padding in PADDINGS:
        options = {"padding_mode": padding, "jitter_std": 0.02, "seed": 5}
        wanted = results("reference", input, grid, **options)
        assert_same(results("cpu", input, grid, **options), wanted, 2e-4)


@pytest.mark.parametrize("mode", MODES)
def test_few_points_of_many_channels(mode: str) -> None:
    input = image(2, 40, 96, 80)
    for points in (1, 5, 33, 400):
        assert_right(input, flow("random", 2, 1, points), mode=mode)


def test_gradients_alone_are_those_of_both() -> None:
    input, grid = image(1, 3, 120, 140), flow("smooth", 1, 130, 150)
    _, of_image, of_grid = results("cpu", input, grid)
    grad = torch.randn(1, 3, 130, 150, generator=torch.Generator().manual_seed(2))
    for tensor, wanted in ((input, of_image), (grid, of_grid)):
        leaf = tensor.clone().requires_grad_()
        out = grid_sample(*((leaf, grid) if tensor is input else (input, leaf)), backend="cpu")
        assert torch.equal(torch.autograd.grad(out, leaf, grad)[0], wanted)


def test_gradient_that_is_no_number_stays_inside() -> None:
    """It reaches the entries that were read, and not those beside them."""
    input, grid = image(1, 2, 30, 30), flow("identity", 1, 40, 40) * 1.4
    leaf = input.requires_grad_()
    out = grid_sample(leaf, grid, backend="cpu")
    grad = torch.ones_like(out)
    grad[..., 0, 0] = float("nan")  # out of bounds, it reads nothing
    (got,) = torch.autograd.grad(out, leaf, grad)
    assert got.isfinite().all()


@pytest.mark.parametrize("size", [(70, 50), (9, 20, 30)])
def test_views_are_read_where_they_lie(size: tuple[int, ...]) -> None:
    """Every other entry, rows that are apart, axes in another order, one image for all."""
    whole = image(2, 3, *(2 * length for length in size))
    views = [
        whole[..., ::2][..., : size[-1]][(slice(None),) * 2 + tuple(slice(n) for n in size)],
        whole[:, 1:2][(slice(None),) * 2 + tuple(slice(1, n + 1) for n in size)],
        whole.transpose(-1, -2),
        whole[:1].expand(2, *whole.shape[1:]),
    ]
    grid = flow("smooth", 2, *size)
    for view in views:
        plain = results("cpu", view.contiguous(), grid)
        assert_same(results("cpu", view, grid), plain, 1e-5)


@pytest.mark.parametrize("padding", ["reflection", "circular"])
def test_places_far_away_are_those_of_the_reference(padding: str) -> None:
    input = image(1, 1, 12, 18)
    for far in (3.0, 1e3, 1e5, 3e7, 1e12):
        grid = flow("random", 1, 20, 30).double() * far
        for mode in MODES[:2]:
            # In float64, for the places of float32 are far apart out there.
            got = grid_sample(input.double(), grid, mode, padding, backend="cpu")
            wanted = grid_sample(input.double(), grid, mode, padding, backend="reference")
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_floats_far_away_repeat_themselves(mode: str) -> None:
    """At whole indices, which float32 holds there, too: of one point of a vector, and of all."""
    input = image(1, 2, 6, 9)
    # Aligned, a coordinate of 1 is at the last entry.
    index = torch.stack(torch.meshgrid(torch.arange(9.0), torch.arange(6.0), indexing="xy"), -1)[
        None
    ]
    half = torch.tensor([8.0, 5.0]) / 2
    options = {"mode": mode, "padding_mode": "circular", "align_corners": True}
    near = index.double() / half - 1
    for periods in (1 << 20, 1 << 24, 1 << 26, -(1 << 24)):
        for one in (False, True):
            far = near + periods * torch.tensor([9.0, 6.0]) / half
            if one:
                far = torch.where(torch.arange(9)[:, None] % 7 == 3, far, near)
            grid = far.float()
            got = grid_sample(input, grid, **options, backend="cpu")
            wanted = grid_sample(input, grid, **options, backend="reference")
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS[:3])
def test_image_is_that_of_torch(mode: str, padding: str) -> None:
    input, grid = image(2, 3, 50, 60), flow("smooth", 2, 64, 72)
    got = grid_sample(input, grid, mode, padding, backend="cpu")
    wanted = F.grid_sample(input, grid, mode, padding, align_corners=False)
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_float32_rounded_once(dtype: torch.dtype) -> None:
    choices = itertools.product((1, 3, 8), (False, True), MODES, ("smooth", "outside"))
    for channels, last, mode, kind in choices:
        input = image(2, channels, 40, 52, last=last).to(dtype)
        grid = flow(kind, 2, 45, 61)
        got = grid_sample(input, grid, mode, backend="cpu")
        assert torch.equal(got, grid_sample(input.float(), grid, mode, backend="cpu").to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gradients_are_rounded_once(dtype: torch.dtype) -> None:
    for channels, last, mode in itertools.product((1, 3), (False, True), MODES):
        input = image(2, channels, 40, 52, last=last).to(dtype)
        grid = flow("smooth", 2, 45, 61)
        leaves = input.requires_grad_(), grid.requires_grad_()
        wide = input.detach().float().requires_grad_(), grid.detach().requires_grad_()
        out, wide_out = (grid_sample(*pair, mode, backend="cpu") for pair in (leaves, wide))
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        of_input, of_grid = torch.autograd.grad(out, leaves, grad)
        wide_of_input, wide_of_grid = torch.autograd.grad(wide_out, wide, grad.float())
        assert torch.equal(of_input, wide_of_input.to(dtype))
        assert torch.equal(of_grid, wide_of_grid)
        assert channels == 1 or of_input.stride() == input.stride()
