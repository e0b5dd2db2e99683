"""A training step and an inference of CRAD's network, ours beside the released model.

Ours keeps freed memory, as the commands do, and infers with BatchNorm folded, as `crad.load` does.
The released model is timed as it is, and once more with freed memory kept.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from benchmarks.training_step import features, models, training_step
from crad.memory import freed_memory_kept
from crad.model.memories import ContinuousMemory

FEATURE_SIZE = (216, 28, 28)
BATCH_SIZE = 16


@dataclass(frozen=True)
class Way:
    """A way to compute the same."""

    name: str
    released: bool = False
    keeps_memory: bool = True
    bf16: bool = False
    compiled: bool = False

    def skip_if_not_possible(self) -> None:
        if self.bf16 and not torch.cpu.get_capabilities().get("avx512_bf16", False):
            pytest.skip("this CPU has no bf16 arithmetic")

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)


WAYS = (
    Way("released model", released=True, keeps_memory=False),
    Way("released model, freed memory kept", released=True),
    Way("crad"),
    Way("crad, bf16", bf16=True),
    Way("crad, compiled", compiled=True),
    Way("crad, compiled, bf16", compiled=True, bf16=True),
)
each_way = pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.long] * way.compiled, id=way.name) for way in WAYS]
)


def measure(
    benchmark: BenchmarkFixture, way: Way, call: Callable[[], object], batch: int, rounds: int
) -> None:
    benchmark.name = way.name
    with freed_memory_kept() if way.keeps_memory else nullcontext():
        benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)  # type: ignore[no-untyped-call]
    if benchmark.stats:
        images_per_second = batch / benchmark.stats.stats.median
        benchmark.extra_info["images_per_second"] = round(images_per_second, 2)


@pytest.fixture(scope="module", autouse=True)
def _both_compute_the_same() -> None:
    ours, released = models(FEATURE_SIZE)
    assert isinstance(ours.local_representation, ContinuousMemory)
    ours.local_representation.memory.jitter_std = released.jitter_std = 0.0
    x = features(2, FEATURE_SIZE)
    result, (reconstruction, loss) = ours(x), released(x)
    torch.testing.assert_close(reconstruction, result.reconstruction, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(loss, result.loss, rtol=1e-4, atol=0)
    result.loss.backward()
    loss.backward()
    fusion = nn.Sequential(released.layer, released.recover)
    for own, other in zip(fusion.parameters(), ours.fusion.parameters(), strict=True):
        assert own.grad is not None
        assert other.grad is not None
        # In float64 they differ by 3e-8 of their norm. In float32 a unit at a bend of an activation
        # may fall on its other side: by 0.6 % of the norm, where the released model rounds more.
        assert torch.norm(own.grad - other.grad) < 1e-2 * torch.norm(other.grad)
    with torch.inference_mode():
        anomaly_map = ours.fold_batch_norm()(x).anomaly_map
        torch.testing.assert_close(released.eval().anomaly_map(x), anomaly_map, rtol=1e-3, atol=0)


@each_way
# Of the compiler, which looks at the gradients of its own copies.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_training_step(benchmark: BenchmarkFixture, way: Way) -> None:
    way.skip_if_not_possible()
    ours, released = models(FEATURE_SIZE)
    model = released if way.released else ours
    if way.compiled:
        ours.fusion.compile()
    x = features(BATCH_SIZE, FEATURE_SIZE)
    step = training_step(model, x, way.autocast())
    benchmark.group = f"training step of CRAD, batch {BATCH_SIZE}"
    measure(benchmark, way, step, BATCH_SIZE, rounds=3)


@each_way
@pytest.mark.parametrize("batch", [1, BATCH_SIZE, 64])
def test_inference(benchmark: BenchmarkFixture, batch: int, way: Way) -> None:
    way.skip_if_not_possible()
    if way.released and way.keeps_memory and batch != BATCH_SIZE:
        pytest.skip(f"timed at batch {BATCH_SIZE}")
    ours, released = models(FEATURE_SIZE)
    ours.fold_batch_norm()
    released.eval()
    x = features(batch, FEATURE_SIZE)
    if not way.released:
        x = x.contiguous(memory_format=torch.channels_last)
    if way.compiled:
        ours.fusion.compile()

    @torch.inference_mode()
    def infer() -> Tensor:
        with way.autocast():
            return released.anomaly_map(x) if way.released else ours(x).anomaly_map

    benchmark.group = f"inference of CRAD, batch {batch}"
    measure(benchmark, way, infer, batch, rounds=20 if batch == 1 else 3)
