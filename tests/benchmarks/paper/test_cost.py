"""The cost command: its counts against the published ones and by hand, its table and file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.paper.__main__ import main
from benchmarks.paper.cost import BACKBONE, FEATURE_SIZES, count_multiply_adds
from crad.backbones import create_backbone
from crad.backbones.timm import TimmBackbone
from crad.config import PRESETS, PresetName
from crad.detector import create_model
from crad.model.memories import (
    AttentionMemory,
    ContinuousMemory,
    MemoryOptions,
    QuantizedMemory,
)

Command = Callable[..., int]


@pytest.mark.parametrize(("preset", "published"), [("crad", 6.62), ("crad-s", 1.74)])
def test_the_published_multiply_adds(preset: PresetName, published: float) -> None:
    model = create_model(PRESETS[preset], FEATURE_SIZES[preset]).eval()
    counted = count_multiply_adds(model, torch.zeros(1, *FEATURE_SIZES[preset]))
    assert round(counted / 1e9, 2) == published


def test_the_size_of_features() -> None:
    backbone = TimmBackbone(BACKBONE, pretrained=False)
    assert FEATURE_SIZES["crad"] == FEATURE_SIZES["crad-s"] == (backbone.channels, 28, 28)
    assert backbone.stride == 224 // 28
    tiny = PRESETS["tiny"].model
    scattering = create_backbone("scattering", components=tiny.components)
    side = tiny.image_size // scattering.stride
    assert FEATURE_SIZES["tiny"] == (scattering.channels, side, side)
    assert round(sum(p.numel() for p in backbone.parameters()) / 1e6, 2) == 3.64


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (ContinuousMemory(6, 20, (2, 3, 4), MemoryOptions()), 5 * (6 * 6 + 6 * 3 + 8 * 20)),
        (AttentionMemory(6, 20, (9,), MemoryOptions()), 5 * (6 * 9 + 9 * 20)),
        (
            AttentionMemory(6, 6, (9,), MemoryOptions(address="hidden", shrinkage=0.1)),
            5 * (6 * 6 + 6 * 9 + 9 * 6),
        ),
        (QuantizedMemory(6, 20, (4,), MemoryOptions(dead_below=0.1)), 5 * 6 * 4),
    ],
)
def test_counts_of_memories_by_hand(memory: nn.Module, expected: int) -> None:
    memory.eval()(torch.randn(5, 6))  # k-means of vq
    assert count_multiply_adds(memory, torch.randn(5, 6)) == expected


def test_the_table_and_the_file(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cost.json"
    options = ("--presets", "tiny", "--batch-size", "2", "--seconds", "0", "--device", "cpu")
    file.write_text('{"mine": 1}')
    assert command(main, "cost", *options, "--json", str(file)) == 1
    assert "was not written by crad" in capsys.readouterr().err
    assert file.read_text() == '{"mine": 1}'
    file.unlink()
    assert command(main, "cost", *options, "--json", str(file)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "network", "memory", "parameters,", "M", "GMAC", "look-up,", "ms", "in", "images/s",
    ]  # fmt: skip
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["tiny", memory] for memory in ("grid", "vq", "attention")
    ]
    content = json.loads(file.read_text())
    assert content["batch_size"] == 2
    assert content["environment"]["device"] == "cpu"
    for each in content["costs"]:
        assert min(each["parameters"], each["multiply_adds"]) > 0
        assert min(each["look_up_ms"], each["images_per_second"]) > 0
