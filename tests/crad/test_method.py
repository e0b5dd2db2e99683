"""That no part of the method can be broken unseen.

The parts are compared with the equations of the paper, written out in plain PyTorch and double
precision; and each of them is broken on purpose, in a copy of the model's source, to see that the
comparison names it.
"""

import copy
import importlib
import itertools
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crad.model
from crad.model.crad import CRAD

CHANNELS, HEIGHT, WIDTH = 6, 4, 5


def small(model_class: type[CRAD] = CRAD) -> CRAD:
    """A model far enough from the start that every part of it matters."""
    torch.manual_seed(0)
    model = model_class(
        *(CHANNELS, HEIGHT, WIDTH),
        depth=2,
        expansion=8,
        local_resolution=(3, 4),
        global_resolution=(2, 3),
        jitter_prob=0,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return model


def features() -> Tensor:
    """Large enough that some errors are above the threshold of the refinement."""
    generator = torch.Generator().manual_seed(1)
    return 2.5 * torch.randn(3, CHANNELS, HEIGHT, WIDTH, generator=generator)


def interpolate(grid: Tensor, coords: Tensor) -> Tensor:
    """Linear interpolation of a grid ``(R, R', V)`` at ``(..., 2)``, zero outside: section 3.1.

    The last coordinate is that of the first axis; -1 and 1 are the outer edges of the entries.
    """
    sizes = torch.tensor(grid.shape[:-1])
    places = (coords.flip(-1) + 1) / 2 * sizes - 0.5
    found = torch.zeros(*coords.shape[:-1], grid.shape[-1], dtype=grid.dtype)
    for index in itertools.product(*map(range, grid.shape[:-1])):
        near = (1 - (places - torch.tensor(index)).abs()).clamp(min=0)
        found = found + near.prod(dim=-1, keepdim=True) * grid[index]
    return found


def look_up(memory: nn.Module, feature: Tensor) -> Tensor:
    """Equations 2 and 3."""
    state = dict(memory.named_parameters())
    for layer in ("coordinates.0", "coordinates.2"):
        feature = torch.tanh(feature @ state[f"{layer}.weight"].T + state[f"{layer}.bias"])
    return interpolate(state["memory.weight"], feature)


def fuse(fusion: nn.Module, whole: Tensor, local: Tensor) -> Tensor:
    """Equation 4, with the bottlenecks of MobileNetV3."""
    state = {**dict(fusion.named_parameters()), **dict(fusion.named_buffers())}
    y = torch.cat((whole, local), dim=1)

    def convolve(x: Tensor, name: str, **options: int) -> Tensor:
        x = F.conv2d(x, state[f"{name}.weight"], **options)
        mean, var = state[f"{name}_norm.running_mean"], state[f"{name}_norm.running_var"]
        if fusion.training:
            mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)
        weight, bias = state[f"{name}_norm.weight"], state[f"{name}_norm.bias"]
        scale = weight / (var + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]

    for block in ("0", "1"):
        z = F.hardswish(convolve(y, f"{block}.expand"))
        z = convolve(z, f"{block}.depthwise", padding=1, groups=z.shape[1])
        squeezed = F.relu(z.mean(dim=(2, 3)) @ state[f"{block}.excitation.squeeze.weight"].T)
        weights = F.hardsigmoid(squeezed @ state[f"{block}.excitation.excite.weight"].T)
        y = y + convolve(F.hardswish(z * weights[:, :, None, None]), f"{block}.project")
    return F.conv2d(y, state["2.weight"])


def refine(x: Tensor, normal: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Similarity, reconstruction, loss and map: equations 6, 5, 7 and 8."""
    mse = (x - normal).square().mean(dim=1, keepdim=True)
    cosine = (x * normal).sum(dim=1, keepdim=True) / (
        x.norm(dim=1, keepdim=True) * normal.norm(dim=1, keepdim=True)
    )
    similarity = 0.3 * (mse < 10) + 0.7 * cosine
    refined = similarity * x + (1 - similarity) * normal
    return similarity[:, 0], refined, (x - refined).square().mean(), (x - refined).norm(dim=1)


def agree(
    actual: Iterable[Tensor],
    expected: Iterable[Tensor],
    inputs: Iterable[Tensor],
    doubled: Iterable[Tensor],
) -> bool:
    """Whether tensors are equal to single precision, and their gradients by two sets of inputs."""
    actual, expected = [*actual], [*expected]
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(each.shape, generator=generator) for each in actual]
    gradients = [
        torch.autograd.grad(
            sum((each * weight).sum() for each, weight in zip(found, weights, strict=True)),
            [*by],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for found, by in ((actual, inputs), (expected, doubled))
    ]
    return all(
        torch.allclose(one.double(), other, rtol=1e-3, atol=1e-4)
        for one, other in zip((*actual, *gradients[0]), (*expected, *gradients[1]), strict=True)
    )


def wrong_parts(model: CRAD) -> list[str]:
    """The parts of a model that do not do as the paper says, each judged by what it was given."""
    x = features()
    recalled: dict[str, Tensor] = {}
    branches = {"local": model.local_representation, "global": model.global_representation}
    for name, memory in branches.items():
        memory.register_forward_hook(
            lambda _module, _inputs, found, name=name: recalled.update({name: found.entries})
        )
    ideal = copy.deepcopy(model).double()  # whose parameters, and nothing else, are used
    result = model(x)

    double = x.double()
    queries = {"local": double.movedim(1, -1), "global": double.mean(dim=(2, 3))}
    memories = {"local": ideal.local_representation, "global": ideal.global_representation}
    wrong = [
        f"{name} memory"
        for name, query in queries.items()
        if not agree(
            [recalled[name]],
            [look_up(memories[name], query)],
            branches[name].parameters(),
            memories[name].parameters(),
        )
    ]
    shape = (-1, HEIGHT, WIDTH, CHANNELS)
    given = [recalled["global"], recalled["local"]]
    doubled = [each.detach().double().requires_grad_() for each in given]
    whole, local = (each.view(shape).movedim(-1, 1) for each in doubled)
    if not agree(
        [result.normal_feature],
        [fuse(ideal.fusion, whole, local)],
        [*given, *model.fusion.parameters()],
        [*doubled, *ideal.fusion.parameters()],
    ):
        wrong.append("fusion")
    normal = result.normal_feature.detach().double().requires_grad_()
    refined = (result.similarity, result.reconstruction, result.loss, result.anomaly_map)
    if not agree(refined, refine(double, normal), [result.normal_feature], [normal]):
        wrong.append("refinement")
    return wrong


@pytest.mark.parametrize("training", [False, True])
def test_every_part_does_what_the_paper_says(training: bool) -> None:
    model = small().train(training)
    assert wrong_parts(model) == []
    errors = (model(features()).normal_feature - features()).square().mean(dim=1)
    assert (errors < 5).any()
    assert ((errors > 5) & (errors < 10)).any()
    assert (errors > 10).any()


@dataclass(frozen=True)
class Fault:
    """A text of the model's source, and one that breaks it."""

    text: str
    broken: str
    file: str = "crad.py"


COSINE = "self.cosine_weight * F.cosine_similarity(feature, normal_feature)"
FAULTS: Mapping[str, Mapping[str, Fault]] = {
    "refinement": {
        "there is none": Fault(COSINE, f"0 * {COSINE} - similarity"),
        "no cosine": Fault(COSINE, f"0 * {COSINE}"),
        "no indicator": Fault("self.mse_weight * (mse", "0 * (mse"),
        "indicator of large errors": Fault("mse < self.mse_threshold", "mse > self.mse_threshold"),
        "threshold": Fault("mse_threshold: float = 10.0", "mse_threshold: float = 5.0"),
        "weights exchanged": Fault(
            "self.mse_weight = mse_weight", "self.mse_weight = cosine_weight"
        ),
        "detached": Fault("= (1 - similarity).sq", "= (1 - similarity.detach()).sq"),
        "loss before it": Fault("loss=error.mean()", "loss=mse.mean()"),
        "output exchanged": Fault(
            "lerp(normal_feature, feature, sim", "lerp(feature, normal_feature, sim"
        ),
    },
    "local memory": {
        "one place for all": Fault(
            "self.local_representation(feature.permute(0, 2, 3, 1))",
            "self.local_representation(0 * feature.permute(0, 2, 3, 1))",
        ),
        "the mean in place of the feature": Fault(
            "self.local_representation(feature.permute(0, 2, 3, 1))",
            "self.local_representation(feature.mean((2, 3), True).expand_as(feature)"
            ".permute(0, 2, 3, 1))",
        ),
    },
    "global memory": {
        "one map for all": Fault(
            "self.global_representation(feature.mean(dim=(2, 3)))",
            "self.global_representation(0 * feature.mean(dim=(2, 3)))",
        ),
        "the first image's for all": Fault(
            "self.global_representation(feature.mean(dim=(2, 3)))",
            "self.global_representation(feature[:1].mean(dim=(2, 3)).expand(len(feature), -1))",
        ),
        "a corner in place of the mean": Fault(
            "self.global_representation(feature.mean(dim=(2, 3)))",
            "self.global_representation(feature[..., 0, 0])",
        ),
    },
    "local memory, global memory": {
        "coordinates are not trained": Fault(
            "coords = self.coordinates(feature)\n",
            "coords = self.coordinates(feature).detach()\n",
            "memories.py",
        ),
        "entries are not trained": Fault(
            "return Recalled(entries, feature.new_zeros(()))",
            "return Recalled(entries.detach() + 0 * coords.sum(), feature.new_zeros(()))",
            "memories.py",
        ),
        "nearest": Fault("mode=options.mode,", 'mode="nearest",', "memories.py"),
        "padding": Fault('mode: str = "zeros"', 'mode: str = "border"', "memories.py"),
        "corners": Fault("corners: bool = False", "corners: bool = True", "memories.py"),
    },
    "fusion": {
        "no local": Fault("cat(whole + local, dim=1)", "cat([*whole, 0 * local[0]], dim=1)"),
        "no global": Fault("cat(whole + local, dim=1)", "cat([0 * whole[0], *local], dim=1)"),
        "exchanged": Fault("cat(whole + local, dim=1)", "cat(local + whole, dim=1)"),
        "no bottleneck": Fault("return x + change", "return x"),
        "no residual": Fault("return x + change", "return change"),
        "no excitation": Fault("self.excitation(self.depthwise_norm", "(self.depthwise_norm"),
        "no depthwise": Fault("self.depthwise(inner)", "inner"),
    },
}


@pytest.fixture
def break_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], type[CRAD]]:
    """Makes a copy of the model with a fault."""

    def copy_with(fault: Fault) -> type[CRAD]:
        package = tmp_path / "broken"
        package.mkdir()
        for original in Path(crad.model.__file__).parent.glob("*.py"):
            path = Path(shutil.copy(original, package))
            source = path.read_text()
            if path.name == fault.file:
                assert source.count(fault.text) == 1, "the source has changed: break it anew"
                source = source.replace(fault.text, fault.broken)
            path.write_text(source.replace("crad.model.", "broken."))
        monkeypatch.syspath_prepend(tmp_path)
        module = importlib.import_module("broken.crad")
        for each in ("broken", "broken.crad", "broken.memories"):
            del sys.modules[each]
        broken: type[CRAD] = module.CRAD
        return broken

    return copy_with


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        pytest.param(part, fault, id=f"{part}: {name}")
        for part, faults in FAULTS.items()
        for name, fault in faults.items()
    ],
)
def test_a_part_that_is_broken_is_named(
    part: str, fault: Fault, break_model: Callable[[Fault], type[CRAD]]
) -> None:
    broken = small(break_model(fault))
    assert ", ".join(wrong_parts(broken.eval())) == part
