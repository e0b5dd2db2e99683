"""``python -m benchmarks.paper cost``: what each memory costs in each preset, on this machine."""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from crad.command_line import InferenceOptions, run_command
from crad.config import PRESETS, PresetName
from crad.detector import create_model, multiply_adds
from crad.devices import select_device, select_precision
from crad.files import write_json
from crad.outputs import Output, check_outputs
from crad.report.environment import environment
from crad.report.tables import lay_out

MeasuredName = Literal["grid", "vq", "attention"]

BACKBONE = "tf_efficientnet_b4.aa_in1k"
# Of a feature (C, H, W): scattering at 128 pixels, the backbone above at 224.
FEATURE_SIZES = {"tiny": (16, 16, 16), "crad-s": (216, 28, 28), "crad": (216, 28, 28)}
_NOTE = (
    "A network goes from feature to anomaly map, with BatchNorm folded. Both memories are of one\n"
    "kind; look-up is the time in both for one image. Parameters are trainable ones, which the\n"
    "keys of vq are not."
)


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        network: a preset, or a backbone.
        memory: in both branches; None for a backbone.
        parameters: the trainable ones; all of a backbone.
        multiply_adds: of the forward pass of one image.
        look_up_ms: milliseconds for one image in both memories; None for a backbone.
        precision: of the fusion network, or of the backbone.
        images_per_second: of the forward pass.
    """

    network: str
    memory: str | None
    parameters: int
    multiply_adds: int
    look_up_ms: float | None
    precision: str
    images_per_second: float


@dataclass(frozen=True)
class CostOptions(InferenceOptions):
    """The options of the command."""

    compile: tyro.conf.Suppress[tyro.conf.Fixed[bool]] = False  # it would hide what is counted
    presets: tuple[PresetName, ...] = ("crad", "crad-s")
    """The networks."""
    memories: tuple[MeasuredName, ...] = ("grid", "vq", "attention")
    """Kinds of memory, each in both branches."""
    seconds: float = 1.0
    """Least time to measure each number for; the median of its calls counts."""
    json: Path | None = None
    """A file for the numbers."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    run_command(
        lambda: cost(
            tyro.cli(
                CostOptions,
                args=arguments,
                prog="python -m benchmarks.paper cost",
                description="Count parameters and multiply-adds, and time look-ups and images, for "
                "each memory and preset.",
            )
        )
    )


def cost(options: CostOptions) -> list[Cost]:
    """Measure each memory in each preset, and print the table.

    Raises:
        DeviceError: the device is not available.
        MissingPackageError: a memory needs a package that is not installed.
        OSError: the file cannot be written.
        UsageError: the batch size is not positive.
    """
    options.check()
    if options.json:
        check_outputs([Output("--json", options.json, _is_own)], inputs=())
    device = select_device(options.device)
    costs = [
        _cost_of_network(preset, memory, device, options)
        for preset in options.presets
        for memory in options.memories
    ]
    if any(preset != "tiny" for preset in options.presets):
        costs.append(_cost_of_backbone(device, options))
    where = environment(device)
    print(_table(costs))
    print(f"{where['cpu']}, {where['threads']} threads, {where['device']}; batch ", end="")
    print(f"{options.batch_size}\n{_NOTE}")
    if options.json:
        rows = [dataclasses.asdict(each) for each in costs]
        content = {"batch_size": options.batch_size, "costs": rows, "environment": where}
        write_json(options.json, content)
    return costs


def _is_own(path: Path) -> bool:
    """Whether a file holds costs."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"batch_size", "costs"} <= {*content}


def count_multiply_adds(module: nn.Module, tensor: Tensor) -> int:
    """Count the multiply-adds of matrix products, convolutions and look-ups in a forward pass."""
    custom = {torch.ops.crad_kernels.sample: _sample_flops}
    counter = FlopCounterMode(display=False, custom_mapping=custom)
    # The counter knows this implementation of attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module(tensor)
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def _cost_of_network(
    preset: PresetName, memory: MeasuredName, device: torch.device, options: CostOptions
) -> Cost:
    config, size = PRESETS[preset], FEATURE_SIZES[preset]
    config = replace(config, model=replace(config.model, local_memory=memory, global_memory=memory))
    batch = options.batch_size
    model = create_model(config, size).to(device)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    feature = torch.randn(batch, *size, device=device)
    feature = feature.contiguous(memory_format=torch.channels_last)
    model.fold_batch_norm()(feature)  # vq takes its keys from the first features that it sees
    work = batch * multiply_adds(config.model, size)
    precision = select_precision(options.precision, device, work)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        seconds = _seconds(lambda: model(feature), device, options.seconds)
    look_up = _seconds(lambda: model.represent(feature), device, options.seconds)
    return Cost(
        network=preset,
        memory=memory,
        parameters=parameters,
        multiply_adds=count_multiply_adds(model, feature[:1]),
        look_up_ms=1e3 * look_up / batch,
        precision=precision,
        images_per_second=batch / seconds,
    )


@torch.no_grad()
def _cost_of_backbone(device: torch.device, options: CostOptions) -> Cost:
    from crad.backbones.timm import TimmBackbone

    batch = options.batch_size
    backbone = TimmBackbone(BACKBONE, pretrained=False).to(device)
    images = torch.rand(batch, 3, 224, 224, device=device)
    return Cost(
        network=BACKBONE,
        memory=None,
        parameters=sum(p.numel() for p in backbone.parameters()),
        multiply_adds=count_multiply_adds(backbone, images[:1]),
        look_up_ms=None,
        precision="fp32",
        images_per_second=batch / _seconds(lambda: backbone(images), device, options.seconds),
    )


def _seconds(call: Callable[[], object], device: torch.device, least: float) -> float:
    """The median time of at least three calls that take ``least`` seconds together."""
    times: list[float] = []
    call()
    while len(times) < 3 or sum(times) < least:
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _sample_flops(values: Sequence[int], coords: Sequence[int], *_: object, **__: object) -> int:
    corners: int = 2 ** coords[-1]
    return 2 * math.prod(coords[:-1]) * corners * values[-1]


def _table(costs: Iterable[Cost]) -> str:
    rows = [("network", "memory", "parameters, M", "GMAC", "look-up, ms", "in", "images/s")]
    for each in costs:
        look_up = "-" if each.look_up_ms is None else f"{each.look_up_ms:.3f}"
        millions, giga = f"{each.parameters / 1e6:.4g}", f"{each.multiply_adds / 1e9:.3g}"
        speed = f"{each.images_per_second:.{1 if each.images_per_second < 100 else 0}f}"
        rows.append(
            (each.network, each.memory or "-", millions, giga, look_up, each.precision, speed)
        )
    return "\n".join(lay_out(rows, left=2))
