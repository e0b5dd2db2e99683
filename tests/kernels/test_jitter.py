"""The jitter: its integers, its statistics, and what it depends on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from crad_kernels import _op, backends, reference, sample
from tests.cases import JUDGE, SIZES, Case, assert_same

WORD = 0xFFFFFFFF
SEEDS = (0, -1, 2**40 + 7, -(2**63), 2**63 - 1, 0x299F31D0A4093822, -0x299F31D0A4093822)


def normals(backend: str, seed: int, points: int, ndim: int) -> Tensor:
    return _op.normals(backend, torch.tensor(seed), points, ndim)


# ---- Philox4x32-10 ----

# From kat_vectors of Random123 (Salmon et al., SC 2011): counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def test_philox_of_the_reference_gives_the_published_answers() -> None:
    counter, key, expected = (
        torch.tensor([words(row[column]) for row in KNOWN_ANSWERS]) for column in range(3)
    )
    assert torch.equal(reference.philox(counter, key), expected)


# ---- normals ----


def box_muller(words: np.ndarray) -> np.ndarray:
    """The normals as they are specified, in float64, of rows of four words."""
    mantissa = words >> 8
    radius = np.sqrt(-2 * np.log((mantissa[:, 0::2] + 1) / 2**24))
    angle = 2 * np.pi * mantissa[:, 1::2] / 2**24
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1).reshape(-1, 4)


def specified(seed: int, points: int, ndim: int) -> np.ndarray:
    """The normals as they are specified, from the integers of the reference."""
    key = torch.tensor([seed & WORD, seed >> 32 & WORD]).expand(points, 2)
    blocks = []
    for block in range((ndim + 3) // 4):
        counter = torch.zeros(points, 4, dtype=torch.int64)
        counter[:, 0], counter[:, 2] = torch.arange(points), block
        blocks.append(box_muller(reference.philox(counter, key).cpu().numpy()))
    return np.concatenate(blocks, 1)[:, :ndim]


def test_normals_are_of_the_published_answer(backend: str) -> None:
    """The first: its key is seed 0, and its counter that of the first point."""
    expected = box_muller(np.array([words(KNOWN_ANSWERS[0][2])]))
    assert np.abs(normals(backend, 0, 1, 4).cpu().numpy() - expected).max() <= 1e-6


@pytest.mark.parametrize(
    ("seed", "ndim"),
    # Fewer components are the first of 8: see below.
    [*((seed, 8) for seed in SEEDS), *((7, d) for d in SIZES)],
)
def test_normals_are_as_specified(backend: str, seed: int, ndim: int) -> None:
    """To 1e-6, which is 2 units in the last place of the largest possible, 5.77."""
    ours = normals(backend, seed, 5000, ndim)
    assert ours.dtype == torch.float32
    assert ours.shape == (5000, ndim)
    expected = specified(seed, 5000, ndim)
    assert np.abs(ours.double().cpu().numpy() - expected).max() <= 1e-6


def test_normals_of_the_extreme_integers_are_right(backend: str) -> None:
    """A million radii come within a few steps of u = 2^-24 and u = 1."""
    ours = normals(backend, 5, 250_000, 8).double().cpu().numpy()
    assert np.isfinite(ours).all()
    assert np.abs(ours).max() <= np.sqrt(2 * 24 * np.log(2)) + 1e-6
    assert np.abs(ours - specified(5, 250_000, 8)).max() <= 1e-6


def test_normals_are_those_of_the_reference(compiled_backend: str) -> None:
    # Kernels for a GPU take seconds for a million numbers on the CPU.
    points = 12_500 if backends()[compiled_backend].by_name_only else 125_000
    ours, theirs = (normals(name, 11, points, 8) for name in (compiled_backend, JUDGE))
    assert (ours - theirs).abs().max() <= 1e-6


@pytest.fixture(scope="module")
def million() -> dict[tuple[str, torch.device], np.ndarray]:
    """10^6 normals of each backend and device, 8 components a point, made when first asked for."""
    return {}


@pytest.fixture
def draws(backend: str, million: dict[tuple[str, torch.device], np.ndarray]) -> np.ndarray:
    key = backend, torch.get_default_device()
    if key not in million:
        million[key] = normals(backend, 1, 125_000, 8).double().cpu().numpy()
    return million[key]


def test_normals_pass_kolmogorov_smirnov(draws: np.ndarray) -> None:
    assert stats.kstest(draws.ravel(), "norm").pvalue > 0.01
    for component in draws.T:
        assert stats.kstest(component, "norm").pvalue > 0.001


def test_normals_have_the_moments(draws: np.ndarray) -> None:
    """Each within 4 standard errors."""
    x = draws.ravel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = abs((x**power).mean() - moment)
        assert error <= 4 * np.sqrt(variance / x.size)


def assert_uncorrelated(a: np.ndarray, b: np.ndarray) -> None:
    """Neither the numbers nor their magnitudes, within 4.5 standard errors."""
    for x, y in ((a, b), (np.abs(a), np.abs(b))):
        assert abs(np.corrcoef(x, y)[0, 1]) <= 4.5 / np.sqrt(x.size)


def test_components_are_uncorrelated(draws: np.ndarray) -> None:
    for first in range(8):
        for second in range(first):
            assert_uncorrelated(draws[:, first], draws[:, second])


@pytest.mark.parametrize("distance", [1, 2, 16, 64])
def test_neighbouring_points_are_uncorrelated(draws: np.ndarray, distance: int) -> None:
    for component in draws.T:
        assert_uncorrelated(component[distance:], component[:-distance])


@pytest.mark.parametrize("other", [2, 1 + 2**32, -1])
def test_neighbouring_seeds_are_uncorrelated(backend: str, draws: np.ndarray, other: int) -> None:
    assert_uncorrelated(draws.ravel(), normals(backend, other, 125_000, 8).cpu().numpy().ravel())


@pytest.mark.parametrize("ndim", range(1, 8))
def test_a_component_does_not_depend_on_their_number(backend: str, ndim: int) -> None:
    assert torch.equal(normals(backend, 3, 100, ndim), normals(backend, 3, 100, 8)[:, :ndim])


# ---- in the sample ----


def jittered(backend: str, values: Tensor, coords: Tensor, **jitter: Any) -> Tensor:
    return sample(values, coords, **{"jitter_std": 0.2, "seed": 3, **jitter}, backend=backend)


@pytest.mark.parametrize("coords_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ndim", SIZES)
def test_moves_the_coordinates(backend: str, ndim: int, coords_dtype: torch.dtype) -> None:
    """The same bits as if the noise had been added before, in the dtype of the coordinates."""
    case = Case(SIZES[ndim], points=(50,), padding_mode="border", coords_dtype=coords_dtype)
    values, coords, grad_output = case.tensors()
    std = torch.linspace(0.0, 0.7, ndim, dtype=coords_dtype)
    noise = normals(backend, 3, 50, ndim).to(coords_dtype)
    results = []
    for jitter, moved in (
        ({"jitter_std": std.tolist(), "seed": 3}, coords),
        ({}, coords + std * noise),
    ):
        leaves = values.detach().requires_grad_(), moved.detach().requires_grad_()
        out = sample(*leaves, padding_mode="border", **jitter, backend=backend)
        results.append((out, *torch.autograd.grad(out, leaves, grad_output)))
    assert_same(*results)


def test_one_standard_deviation_is_that_of_every_component(backend: str) -> None:
    values, coords, _ = Case((4, 3)).tensors()
    expected = jittered(backend, values, coords, jitter_std=(0.2, 0.2))
    assert torch.equal(jittered(backend, values, coords), expected)
    assert torch.equal(jittered(backend, values, coords, jitter_std=[0.2, 0.2]), expected)
    assert not torch.equal(jittered(backend, values, coords, jitter_std=(0.2, 0.1)), expected)


def test_a_tensor_is_as_good_as_floats(backend: str) -> None:
    values, coords, _ = Case((4, 3)).tensors()
    for std in (0.2, (0.2, 0.0), 0.0):
        expected = jittered(backend, values, coords, jitter_std=std)
        for dtype in (torch.float32, torch.float64):
            exact = torch.tensor(std, dtype=dtype)
            floats = exact.tolist()
            given = jittered(backend, values, coords, jitter_std=exact)
            assert torch.equal(given, jittered(backend, values, coords, jitter_std=floats))
        assert torch.equal(given, expected)


def test_does_not_depend_on_how_the_points_are_arranged(backend: str) -> None:
    """Points count over batch and shape in row-major order, whatever their strides."""
    values, coords, _ = Case((4, 3), points=(24,)).tensors()
    expected = jittered(backend, values, coords)
    for shape in ((2, 3, 4), (24, 1), (4, 6)):
        out = jittered(backend, values, coords.reshape(*shape, 2))
        assert torch.equal(out.reshape(24, 3), expected)
    batched = jittered(backend, values.expand(2, 4, 3, 3), coords.reshape(2, 3, 4, 2))
    assert torch.equal(batched.reshape(24, 3), expected)
    transposed = coords.reshape(4, 6, 2).transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(jittered(backend, values, transposed).reshape(24, 3), expected)


def test_a_prefix_of_the_points_has_the_same_noise(backend: str) -> None:
    values, coords, _ = Case((4, 3), points=(40,)).tensors()
    expected = jittered(backend, values, coords)
    for count in (1, 15, 16, 17, 33):
        assert torch.equal(jittered(backend, values, coords[:count]), expected[:count])


def test_every_bit_of_the_seed_counts(backend: str) -> None:
    values, coords, _ = Case((4, 3)).tensors()
    seeds = [0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**63 - 1, -(2**63)] + [2**k for k in range(33, 63)]
    outs = [jittered(backend, values, coords, seed=seed) for seed in seeds]
    assert len({out.cpu().numpy().tobytes() for out in outs}) == len(seeds)


def test_a_seed_is_64_bits_however_it_is_given(backend: str) -> None:
    values, coords, _ = Case((4, 3)).tensors()
    seeds = ((3, torch.tensor(3)), (3, np.int64(3)), (-1, 2**64 - 1), (-(2**63), 2**63))
    for seed, same in seeds:
        expected = jittered(backend, values, coords, seed=seed)
        assert torch.equal(jittered(backend, values, coords, seed=seed), expected)
        assert torch.equal(jittered(backend, values, coords, seed=same), expected)


def test_without_a_seed_torch_draws_one(backend: str) -> None:
    values, coords, _ = Case((4, 3)).tensors()
    torch.manual_seed(0)
    first, second = (jittered(backend, values, coords, seed=None) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(jittered(backend, values, coords, seed=None), first)
    assert not torch.equal(first, second)


@contextmanager
def draws_nothing() -> Iterator[None]:
    """The next number of the device's generator is what it would have been."""
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    yield
    assert torch.equal(torch.rand(()), expected)


@pytest.mark.parametrize("jitter_std", [0, 0.0, (0.0, 0.0)])
def test_no_jitter_draws_nothing(backend: str, jitter_std: Any) -> None:
    values, coords, _ = Case((4, 3)).tensors()
    with draws_nothing():
        out = sample(values, coords, jitter_std=jitter_std, backend=backend)
    assert torch.equal(out, sample(values, coords, backend=backend))


def test_a_given_seed_draws_nothing(backend: str) -> None:
    values, coords, _ = Case((4, 3)).tensors()
    with draws_nothing():
        jittered(backend, values, coords)


def test_backward_repeats_the_noise_of_forward(backend: str) -> None:
    """Also when the generator has moved on."""
    values, coords, grad_output = Case((4, 3)).tensors()
    out = jittered(backend, values.requires_grad_(), coords, seed=None)
    torch.rand(10)
    out.backward(grad_output)
    # The sample is linear in the values: <grad_values, values> = <grad_output, out>.
    torch.testing.assert_close((values.grad * values).sum(), (grad_output * out).sum())
