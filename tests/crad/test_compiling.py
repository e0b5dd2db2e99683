"""``--compile``: the same numbers to rounding, from every command that has a network."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import crad
import crad.evaluate
from crad.command_line import InferenceOptions
from crad.devices import compile_network
from crad.errors import DeviceError
from crad.predict import PredictOptions, predict

# Of the compiler, which looks at the gradients of its own copies.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("more", [(), ("--norm-batch", "2")])
def test_training_and_evaluation(
    demo_root: Path,
    tmp_path: Path,
    train_command: Callable[..., int],
    command: Callable[..., int],
    more: tuple[str, ...],
) -> None:
    small = ("--depth", "1", "--epochs", "1", *more)
    assert train_command(demo_root, tmp_path / "eager", *small) == 0
    assert train_command(demo_root, tmp_path / "compiled", *small, "--compile") == 0
    states = [crad.load(tmp_path / name).model.state_dict() for name in ("eager", "compiled")]
    assert states[0].keys() == states[1].keys()
    eager, compiled = (torch.cat([*map(torch.flatten, state.values())]) for state in states)
    assert torch.norm(compiled - eager) < 1e-2 * torch.norm(eager)
    evaluate = ("--checkpoint", str(tmp_path / "compiled"), "--output", str(tmp_path / "again"))
    assert command(crad.evaluate.main, *evaluate, "--compile") == 0


@pytest.mark.slow
@pytest.mark.thorough
def test_prediction(trained) -> None:
    images = (trained.data / "brick" / "test" / "good",)
    eager = predict(PredictOptions(trained.output, images))
    compute = InferenceOptions(compile=True)
    compiled = predict(PredictOptions(trained.output, images, compute=compute))
    for one, other in zip(eager, compiled, strict=True):
        assert other.score == pytest.approx(one.score, rel=1e-4)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match=r"'no-such-compiler'.*CXX.*--compile"):
        compile_network(nn.Identity(), torch.device("cpu"))
