"""Coordinates that are indices of entries: ``coords_unit="index"``."""

from typing import Any

import pytest
import torch
from torch import Tensor

from crad_kernels import GridMemory, grid_sample, sample
from crad_kernels._op import normals
from crad_kernels._schema import MODES, PADDING_MODES
from tests.cases import JUDGE, SIZES, Case, assert_near


def indices(*size: int) -> Tensor:
    """Of every entry, with the components of coordinates: ``(*size, D)``."""
    axes = [torch.arange(length) for length in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
def test_an_index_reads_its_entry_to_the_last_bit(
    backend: str, mode: str, padding_mode: str
) -> None:
    """Which normalized coordinates, being rounded, do not."""
    for size in ((5,), (7, 6), (3, 1, 5)):
        values, _, _ = Case(size, dtype=torch.float32).tensors()
        coords = indices(*size).to(values)
        for align_corners in (False, True):
            options: dict[str, Any] = {"padding_mode": padding_mode, "coords_unit": "index"}
            options |= {"mode": mode, "align_corners": align_corners, "backend": backend}
            assert torch.equal(sample(values, coords, **options), values)
            if mode == "linear":
                between = sample(values, coords[1:] - 0.25, **options) if len(size) == 1 else None
                if between is not None:
                    assert_near(between, values[1:] * 0.75 + values[:-1] * 0.25, 1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
def test_alignment_says_where_reflection_mirrors(backend: str, align_corners: bool) -> None:
    values = torch.arange(4.0)[:, None]
    coords = torch.arange(-4.0, 8)[:, None]
    options: dict[str, Any] = {"align_corners": align_corners, "backend": backend}
    for padding_mode, expected in (
        ("reflection", [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1] if align_corners else
                       [3, 2, 1, 0, 0, 1, 2, 3, 3, 2, 1, 0]),
        ("circular", [0, 1, 2, 3] * 3),
        ("border", [0, 0, 0, 0, 0, 1, 2, 3, 3, 3, 3, 3]),
        ("zeros", [0, 0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0]),
    ):  # fmt: skip
        out = sample(values, coords, padding_mode=padding_mode, coords_unit="index", **options)
        assert out[:, 0].tolist() == expected


@pytest.mark.parametrize("ndim", SIZES)
def test_jitter_is_of_the_same_unit(backend: str, ndim: int) -> None:
    case = Case(SIZES[ndim], padding_mode="border", coords_unit="index")
    values, coords, _ = case.tensors()
    std = torch.arange(1, ndim + 1, dtype=coords.dtype) / 8
    noise = normals(backend, torch.tensor(3), len(coords), ndim).to(coords)
    moved = sample(values, coords + std * noise, **case.options, backend=backend)
    jittered = sample(
        values, coords, **case.options, jitter_std=std.tolist(), seed=3, backend=backend
    )
    assert_near(jittered, moved, 1e-14)


def test_takes_what_scipy_takes(backend: str) -> None:
    """But for the order of components, which is that of torch."""
    from scipy import ndimage

    image = torch.rand(5, 6, generator=torch.Generator(device="cpu").manual_seed(0), device="cpu")
    rows, columns = torch.tensor([0.5, 2.25, 4.0, -1.0]), torch.tensor([1.5, 0.0, 4.75, 2.0])
    there = ndimage.map_coordinates(image.numpy(), torch.stack((rows, columns)).cpu(), order=1)
    image = image.to(rows.device)
    coords = torch.stack((columns, rows), -1)
    out = sample(image[..., None], coords, coords_unit="index", backend=backend)[:, 0]
    assert_near(out, torch.as_tensor(there).to(out), 1e-6)


def test_the_drop_in_takes_it(backend: str) -> None:
    input = torch.randn(2, 3, 5, 4)
    grid = indices(5, 4).to(input).expand(2, 5, 4, 2)
    assert torch.equal(grid_sample(input, grid, coords_unit="index", backend=backend), input)


def test_a_memory_takes_it() -> None:
    memory = GridMemory(3, (5, 4), coords_unit="index", jitter_std=0.5)
    coords = indices(5, 4).float()
    assert torch.equal(memory.eval()(coords), memory.weight)
    assert not torch.equal(memory.train()(coords), memory.weight)
    assert "coords_unit='index'" in repr(memory)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_images_match_the_reference(cpu_backend: str, mode: str, padding_mode: str) -> None:
    """So many points that their gradient is added in strips."""
    values = torch.randn(160, 130, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    entries = indices(160, 130)
    index = (entries * 1.1 - 7.3 + torch.sin(entries.flip(-1) / 9)).requires_grad_()
    results = []
    for name in (cpu_backend, JUDGE):
        options = {"mode": mode, "padding_mode": padding_mode, "coords_unit": "index"}
        out = sample(values, index, **options, backend=name)
        weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape).cos()
        results.append([out, *torch.autograd.grad(out, (values, index), weights)])
    for got, wanted in zip(*results, strict=True):
        # Mirrored at 129.5 or so, an index loses what float32 rounds of it.
        assert_near(got, wanted, 190 * torch.finfo(torch.float32).eps)


# Of torch-interpol: the padding, and whether reflection mirrors at the centres of entries.
INTERPOL = {
    "zero": ("zeros", False),
    "replicate": ("border", False),
    "dct2": ("reflection", False),
    "dct1": ("reflection", True),
    "dft": ("circular", False),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script.* is deprecated")
@pytest.mark.parametrize("bound", INTERPOL)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_takes_what_torch_interpol_takes(backend: str, mode: str, bound: str) -> None:
    """With the components in the other order."""
    interpol = pytest.importorskip("interpol")
    padding_mode, align_corners = INTERPOL[bound]
    values, _, _ = Case((5, 4, 6), channels=2).tensors()
    generator = torch.Generator().manual_seed(0)
    grid = torch.rand(50, 3, generator=generator, dtype=values.dtype) * 12 - 4
    expected = interpol.grid_pull(
        values.movedim(-1, 0), grid[:, None, None], mode, bound, extrapolate=True
    )[:, :, 0, 0].T
    options: dict[str, Any] = {"padding_mode": padding_mode, "align_corners": align_corners}
    found = sample(
        values, grid.flip(-1), mode=mode, coords_unit="index", backend=backend, **options
    )
    assert_near(found, expected, 1e-6)
