"""The memories: each against its formula, in the model, through the training command."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import crad
from crad.errors import MissingPackageError, UsageError
from crad.model.crad import CRAD, AbsentName
from crad.model.memories import (
    AddressName,
    AttentionMemory,
    ContinuousMemory,
    MemoryName,
    MemoryOptions,
    QuantizedMemory,
    create_memory,
)
from crad.training.checkpoint import ALL_PARTS, read_checkpoint
from tests.fixtures import before_step, ctrl_c

Train = Callable[..., int]
CHANNELS, VALUES = 6, 20


def feature(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, CHANNELS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_a_grid_is_looked_up_as_it_is_told(
    mode: str, padding_mode: str, align_corners: bool
) -> None:
    torch.manual_seed(0)
    options = MemoryOptions(mode=mode, padding_mode=padding_mode, align_corners=align_corners)
    memory = ContinuousMemory(CHANNELS, VALUES, (3, 4), options)
    for layer in memory.coordinates.parameters():  # so that some coordinates are at the edge
        torch.nn.init.normal_(layer, std=2)
    x = feature(2, 5, 7)
    torch_mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    grid = memory.memory.weight.movedim(-1, 0).expand(2, -1, -1, -1)
    coords = memory.coordinates(x)
    expected = F.grid_sample(grid, coords, torch_mode, padding_mode, align_corners)
    found = memory(x)
    torch.testing.assert_close(found.entries, expected.movedim(1, -1))
    assert found.loss == 0


def quantized(entry_size: int = CHANNELS, address: AddressName = "feature") -> QuantizedMemory:
    torch.manual_seed(0)
    options = MemoryOptions(address=address, dead_below=0.1)
    return QuantizedMemory(CHANNELS, entry_size, (2, 4), options)


@pytest.mark.parametrize("address", ["feature", "hidden"])
def test_vq_gives_the_nearest_entry(address: AddressName) -> None:
    memory = quantized(address=address)
    memory(feature(50))
    memory.eval()
    x = feature(3, 4, 5, seed=1)
    found = memory(x)
    addressed = memory.address(x).view(-1, CHANNELS)
    nearest = torch.cdist(addressed, memory.codebook.codebook).argmin(dim=1)
    expected = memory.codebook.codebook[nearest].view(x.shape)
    torch.testing.assert_close(found.entries, expected)
    assert found.loss == 0


def test_vq_gives_the_values_of_the_nearest_key() -> None:
    memory = quantized(VALUES)
    x = feature(50)
    found = memory(x).entries
    memory.eval()
    x = feature(7, seed=1)
    found = memory(x).entries
    nearest = torch.cdist(x, memory.codebook.codebook).argmin(dim=1)
    assert memory.values is not None
    torch.testing.assert_close(found, memory.values[nearest])
    found.sum().backward()
    assert (memory.values.grad[nearest] > 0).all()


def test_vq_starts_at_k_means_follows_the_features_and_trains_no_entry() -> None:
    memory = quantized()
    assert not list(memory.parameters())
    centres = 10 * torch.eye(CHANNELS)  # fewer than entries, so that each gets one
    x = centres.repeat_interleave(20, dim=0) + 0.01 * feature(20 * CHANNELS)
    memory(x)
    distance = torch.cdist(centres, memory.codebook.codebook).min(dim=1).values
    assert (distance < 0.5).all()
    for _ in range(300):
        memory(x + 3)
    distance = torch.cdist(centres + 3, memory.codebook.codebook).min(dim=1).values
    assert (distance < 0.5).all()


def test_vq_replaces_entries_that_no_feature_chooses() -> None:
    memory = quantized()
    memory(feature(50))
    memory.codebook.codebook = 100 + feature(8)
    for _ in range(400):
        memory(feature(50))
    assert (memory.codebook.codebook.abs() < 10).all()


def test_vq_is_straight_through_and_commits_the_address() -> None:
    memory = quantized(address="hidden")
    memory(feature(50))
    x = feature(9, seed=2)
    address = memory.address(x)
    expected = 0.25 * F.mse_loss(address, memory.eval()(x).entries.detach())
    found = memory.train()(x)
    torch.testing.assert_close(found.loss, expected)
    weight = memory.address[0].weight
    through = torch.autograd.grad(found.entries.sum(), weight, retain_graph=True)
    torch.testing.assert_close(through, torch.autograd.grad(address.sum(), weight))
    assert torch.autograd.grad(found.loss, weight)[0].any()


@pytest.mark.parametrize("shrinkage", [0.0, 0.15])
@pytest.mark.parametrize("entry_size", [CHANNELS, VALUES])
def test_attention_is_its_formula(entry_size: int, shrinkage: float) -> None:
    torch.manual_seed(0)
    memory = AttentionMemory(CHANNELS, entry_size, (2, 4), MemoryOptions(shrinkage=shrinkage))
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter)
    x = feature(3, 4)
    weights = (x @ memory.keys.T / CHANNELS**0.5).softmax(dim=-1)
    if shrinkage:
        weights = torch.where(weights > shrinkage, weights, 0)
        assert (weights == 0).any()
        weights = weights / weights.sum(dim=-1, keepdim=True)
    expected = weights @ (memory.keys if memory.values is None else memory.values)
    torch.testing.assert_close(memory(x).entries, expected)


def test_attention_without_a_weight_that_is_large_enough_gives_zeros() -> None:
    memory = AttentionMemory(CHANNELS, CHANNELS, (8,), MemoryOptions(shrinkage=0.9))
    found = memory(feature(3)).entries
    found.sum().backward()
    assert not found.any()
    assert memory.keys.grad.isfinite().all()


BRANCHES: list[tuple[MemoryName, MemoryName]] = [
    ("vq", "vq"),
    ("attention", "attention"),
    ("grid", "vq"),
    ("attention", "grid"),
    ("grid", "none"),
    ("none", "grid"),
    ("vq", "none"),
    ("none", "attention"),
]


@pytest.mark.parametrize("address", ["feature", "hidden"])
@pytest.mark.parametrize(("local", "whole"), BRANCHES)
def test_every_memory_in_the_model(
    local: MemoryName, whole: MemoryName, address: AddressName
) -> None:
    torch.manual_seed(0)
    model = CRAD(
        CHANNELS, 5, 7, depth=2, expansion=8, local_memory=local, global_memory=whole,
        local_resolution=(2, 3), global_resolution=(2, 2), address=address, mse_weight=0,
    )  # fmt: skip
    x = feature(8, 5, 7).permute(0, 3, 1, 2)
    result = model(x)
    result.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    groups = [*model.network_parameters(), *model.memory_parameters()]
    assert {id(p) for p in groups} == {id(p) for p in model.parameters()}
    assert len(groups) == len(list(model.parameters()))
    assert result.reconstruction.is_contiguous(memory_format=torch.channels_last)

    model.eval()
    expected = model(x)
    assert expected.loss.item() == pytest.approx(
        expected.anomaly_map.square().mean().item() / CHANNELS
    )
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x)
    assert rounded.anomaly_map.dtype == torch.float32
    torch.testing.assert_close(rounded.anomaly_map, expected.anomaly_map, rtol=0.05, atol=0.05)
    again = CRAD(
        CHANNELS, 5, 7, depth=2, expansion=8, local_memory=local, global_memory=whole,
        local_resolution=(2, 3), global_resolution=(2, 2), address=address, mse_weight=0,
    ).eval()  # fmt: skip
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x).anomaly_map, expected.anomaly_map, rtol=0, atol=0)
    folded = model.fold_batch_norm()
    torch.testing.assert_close(folded(x).anomaly_map, expected.anomaly_map)


@pytest.mark.parametrize(("absent", "branches"), [("drop", 1), ("zeros", 2)])
def test_the_width_of_the_fusion_without_a_memory(absent: AbsentName, branches: int) -> None:
    for names in ({"local_memory": "none"}, {"global_memory": "none"}):
        model = CRAD(CHANNELS, 3, 3, depth=1, expansion=8, absent=absent, **names)
        assert model.fusion[-1].in_channels == branches * CHANNELS
        assert model(feature(2, 3, 3).permute(0, 3, 1, 2)).loss > 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("local_memory", "bank"),
        ("address", "key"),
        ("absent", "noise"),
        ("shrinkage", 1.0),
        ("shrinkage", float("nan")),
        ("local_resolution", (4, 0)),
        ("global_resolution", ()),
    ],
)
def test_unknown_choices_are_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        CRAD(CHANNELS, 3, 3, depth=1, expansion=8, **{option: value})


@pytest.mark.parametrize(
    ("name", "address", "message"),
    [
        ("bank", "feature", "grid, vq, attention, none.*'bank'"),
        ("attention", "key", "hidden.*'key'"),
    ],
)
def test_an_unknown_memory_or_address_is_refused(name: str, address: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_memory(name, CHANNELS, CHANNELS, (8,), MemoryOptions(address=address))  # type: ignore[arg-type]


def test_both_grids_are_interpolated_as_asked() -> None:
    model = CRAD(CHANNELS, 3, 3, interpolation="simplex")
    grids = [each.memory for each in model.modules() if isinstance(each, ContinuousMemory)]
    assert [grid.mode for grid in grids] == ["simplex", "simplex"]
    with pytest.raises(ValueError, match=r"expected interpolation to be one of linear, simplex"):
        CRAD(CHANNELS, 3, 3, interpolation="cubic")  # type: ignore[arg-type]


def test_both_memories_left_out_are_refused() -> None:
    with pytest.raises(ValueError, match="none"):
        CRAD(CHANNELS, 3, 3, local_memory="none", global_memory="none")


def test_a_missing_package_is_named_with_the_extra_that_has_it(
    demo_root: Path,
    tmp_path: Path,
    train_command: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'crad\[vq\]'"):
        quantized()
    assert train_command(demo_root, tmp_path / "run", "--local.memory", "vq") == 1
    assert "pip install 'crad[vq]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


RUNS = {
    "vq": ["--local.memory", "vq", "--global.memory", "vq"],
    "vq, hidden": ["--local.memory", "vq", "--discrete.address", "hidden"],
    "attention": ["--local.memory", "attention", "--global.memory", "attention"],
    "shrinkage": ["--local.memory", "attention", "--discrete.shrinkage", "0.0025"],
    "local only": ["--global.memory", "none"],
    "global only": ["--local.memory", "none", "--global.memory", "vq", "--absent", "zeros"],
    "grid in 3-D": ["--local.resolution", "4", "4", "4"],
    "simplex": ["--local.resolution", "3", "3", "3", "--grid.interpolation", "simplex"],
    "no refinement": ["--refinement.off", "--local.jitter-prob", "0"],
}


@pytest.mark.parametrize("name", RUNS)
def test_every_memory_trains_by_the_same_command(
    demo_root: Path, tmp_path: Path, train_command: Train, name: str
) -> None:
    small = ["--image-size", "32", "--classes", "brick", "--epochs", "1"]
    assert train_command(demo_root, tmp_path, *RUNS[name], *small) == 0
    (prediction,) = crad.load(tmp_path, "cpu").predict(next(demo_root.rglob("*.png")))
    assert prediction.score > 0


def in_one_of_two_processes(rank: int, store: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    for memory in ("grid", "vq", "attention"):
        train_in_parallel(memory, rank)
    gc.collect()  # cycles hold the group, whose threads must not outlive the interpreter
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def train_in_parallel(memory: MemoryName, rank: int) -> None:
    """Train a little on features of its own, and check that all of the model stays equal."""
    torch.manual_seed(0)
    model = CRAD(
        CHANNELS, 5, 7, depth=1, expansion=8, local_memory=memory, global_memory=memory,
        local_resolution=(2, 3), global_resolution=(2, 2), address="hidden",
    )  # fmt: skip
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        x = feature(8, 5, 7, seed=2 * step + rank).permute(0, 3, 1, 2)
        parallel(x).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in model.state_dict().items():
        if "_norm." not in name:  # BatchNorm has the statistics of its own process
            both = [torch.empty_like(tensor) for _ in range(2)]
            torch.distributed.all_gather(both, tensor.contiguous())
            assert torch.equal(*both), (memory, name)


@pytest.mark.slow
@pytest.mark.thorough
def test_two_processes_keep_one_memory(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(in_one_of_two_processes, (str(tmp_path / "store"),), nprocs=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vq", "attention"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(
    demo_root: Path,
    tmp_path: Path,
    train_command: Train,
    name: str,
) -> None:
    assert train_command(demo_root, tmp_path / "whole", *RUNS[name]) == 0
    with before_step(2 * 3, ctrl_c):  # an epoch is of 3 batches
        assert train_command(demo_root, tmp_path / "part", *RUNS[name]) == 130
    assert train_command(demo_root, tmp_path / "part", *RUNS[name], "--resume") == 0
    whole, part = (read_checkpoint(tmp_path / each, ALL_PARTS) for each in ("whole", "part"))
    for each in ALL_PARTS:
        torch.testing.assert_close(getattr(part, each), getattr(whole, each), rtol=0, atol=0)
