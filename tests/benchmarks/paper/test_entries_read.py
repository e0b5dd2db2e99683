"""How many entries of a memory are read."""

import pytest
import torch
from torch import nn

from benchmarks.paper.entries_read import count_read
from crad.model.crad import CRAD
from crad.model.memories import ContinuousMemory


@pytest.mark.parametrize(
    ("coords", "entries"),
    [((0.1, -0.2), 4), ((0.9, -0.2), 2), ((0.9, 0.9), 1)],
    ids=["between four", "beyond the last column", "corner"],
)
def test_entries_with_a_weight_are_counted(coords: tuple[float, float], entries: int) -> None:
    model = CRAD(4, 2, 3, global_memory="none", local_resolution=(4, 4), depth=0)
    memory = model.local_representation
    assert isinstance(memory, ContinuousMemory)
    last = memory.coordinates[2]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor(coords).atanh())
    assert count_read(model, torch.randn(2, 4, 2, 3)) == entries


def test_a_global_memory_of_three_axes() -> None:
    model = CRAD(4, 2, 3, local_memory="none", global_resolution=(2, 3, 2), depth=0)
    assert count_read(model, torch.randn(1, 4, 2, 3)) == 8
