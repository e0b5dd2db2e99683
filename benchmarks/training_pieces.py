"""What is measured of training: ``python -m benchmarks.training_pieces PIECE OUTPUT SECONDS ...``.

`benchmarks.gpu_training` runs it, a process for each piece. OUTPUT is a JSON file, written after
each row; rows that it has are not measured again, but for those that hold an error or are
unfinished. None is begun when the seconds are over.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm

import crad
from benchmarks.gpu.report import Report, write_json
from benchmarks.standin import N_CLASSES, N_IMAGES, write_standin, write_weights
from benchmarks.training_step import FeatureSize, features, models, training_step
from crad.config import Config, ModelConfig, TrainingConfig
from crad.data import Sample
from crad.data.demo import write_demo
from crad.detector import create_model
from crad.memory import freed_memory_kept
from crad.model.crad import CRAD
from crad.report.results import Results
from crad.train import train_model
from crad.train_options import TrainOptions, parse_options
from crad.training.checkpoint import Checkpoint, read_checkpoint
from crad.training.features import Features
from crad.training.inputs import Inputs, prepare
from crad.training.loop import Training

BACKBONE = "tf_efficientnet_b4.aa_in1k"
# How float32 is multiplied, and whether autocast takes bf16 instead: (TF32, bf16). TF32 is what
# cuDNN takes for the convolutions of float32 unless it is told not to.
PRECISIONS = {"float32": (False, False), "TF32": (True, False), "bf16": (True, True)}
Row = tuple[str, Callable[[], Report]]


@dataclass(frozen=True)
class Setting:
    """What the pieces work on.

    Attributes:
        device: where to compute.
        work: a folder for images, weights and runs.
        small: whether all is so small that a CPU does it in seconds.
    """

    device: torch.device
    work: Path
    small: bool

    @property
    def feature_size(self) -> FeatureSize:
        """Of EfficientNet-B4; what is small has fewer channels."""
        return (24, 8, 8) if self.small else (216, 28, 28)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return 8 * self.feature_size[1]

    @property
    def depth(self) -> int:
        """Bottlenecks."""
        return 1 if self.small else 11

    @property
    def expansion(self) -> int:
        """Channels inside a bottleneck."""
        return 16 if self.small else 864

    @property
    def batch(self) -> int:
        """Images in a step."""
        return 4 if self.small else 64

    @property
    def images(self) -> Path:
        """Where the stand-in for MVTec AD is."""
        return self.work / f"images-{self.image_size}"

    @property
    def weights(self) -> Path:
        """The random weights of the backbone."""
        return self.work / "weights.safetensors"

    @property
    def run(self) -> Path:
        """The output of training on the stand-in."""
        return self.work / "run"

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def autocast(self, precision: str) -> torch.autocast:
        """For a precision of `PRECISIONS`."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=PRECISIONS[precision][1], cache_enabled=True
        )

    def options(self, data: Path | str, output: Path, *arguments: str) -> TrainOptions:
        """Those of the training command."""
        where = ["--data", str(data), "--output", str(output), "--device", self.device.type]
        return parse_options([*where, *arguments])


@contextmanager
def multiplied(precision: str) -> Iterator[None]:
    """Let the device multiply float32 as a precision of `PRECISIONS` says."""
    tf32 = PRECISIONS[precision][0]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def peak_bytes(setting: Setting, report: Report) -> Iterator[None]:
    """Note the most memory that tensors took in the block: on a CPU, that of the process so far."""
    cuda = setting.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
    try:
        yield
    finally:
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        on_device = torch.cuda.max_memory_allocated(setting.device) if cuda else 1024 * kibibytes
        report["peak_bytes"] = on_device


def milliseconds(setting: Setting, call: Callable[[], object]) -> float:
    """Of a call, when many follow each other: the median of five rounds, after three calls."""
    seconds = 0.0 if setting.small else 2.0
    for _ in range(3):
        call()
    setting.synchronize()
    started = time.perf_counter()
    call()
    setting.synchronize()
    calls = max(1, int(seconds / 5 / (time.perf_counter() - started)))
    rounds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        setting.synchronize()
        rounds.append((time.perf_counter() - started) / calls * 1e3)
    return statistics.median(rounds)


# ---- a step ----


def step(setting: Setting, precision: str, *, released: bool = False, mode: str = "") -> Report:
    """The time of a training step, and of an inference, on features on the device.

    Args:
        setting: what to work on.
        precision: of `PRECISIONS`.
        released: whether of the released model, which is slower.
        mode: of `torch.compile` for the fusion network; empty does not compile.
    """
    torch.compiler.reset()
    report: Report = {"batch": setting.batch}
    sizes = {"depth": setting.depth, "expansion": setting.expansion}
    ours, theirs = models(setting.feature_size, **sizes)
    model = (theirs if released else ours).to(setting.device)
    if mode:
        ours.fusion.compile(mode=mode)
    x = features(setting.batch, setting.feature_size, device=setting.device)
    autocast = setting.autocast(precision)
    with multiplied(precision), peak_bytes(setting, report):
        started = time.perf_counter()
        call = training_step(model, x, autocast)
        call()
        setting.synchronize()
        report["first_seconds"] = time.perf_counter() - started
        report["ms"] = milliseconds(setting, call)
    report["images_per_second"] = setting.batch / report["ms"] * 1e3
    if not mode:
        with multiplied(precision):
            report["inference_ms"] = milliseconds(setting, inference(model, x, autocast))
    return report


def inference(model: Any, x: Tensor, autocast: torch.autocast) -> Callable[[], Tensor]:
    """The anomaly maps of features, by ours with BatchNorm folded, or by the released model."""
    if isinstance(model, CRAD):
        model.fold_batch_norm()
        x = x.contiguous(memory_format=torch.channels_last)
    model.eval()

    @torch.inference_mode()
    def infer() -> Tensor:
        with autocast:
            maps: Tensor = model(x).anomaly_map if isinstance(model, CRAD) else model.anomaly_map(x)
        return maps

    return infer


def beside_released(setting: Setting, precision: str) -> Report:
    """Ours, what the released model takes for the same, and how many times as long that is."""
    ours, theirs = (step(setting, precision, released=released) for released in (False, True))
    return {
        **ours,
        "times_as_fast": theirs["ms"] / ours["ms"],
        "inference_times_as_fast": theirs["inference_ms"] / ours["inference_ms"],
        **{f"released_{quantity}": value for quantity, value in theirs.items()},
    }


def steps(setting: Setting) -> Iterator[Row]:
    """Ours beside the released model, in each precision."""
    for precision in reversed(PRECISIONS):
        yield f"a step, {precision}", partial(beside_released, setting, precision)


def compiled(setting: Setting) -> Iterator[Row]:
    """Ours, with the fusion network compiled, and replayed as CUDA graphs."""
    for precision in ("bf16",) if setting.small else reversed(PRECISIONS):
        yield f"a step, compiled, {precision}", partial(step, setting, precision, mode="default")
    if not setting.small:
        graphs = partial(step, setting, "bf16", mode="reduce-overhead")
        yield "a step, compiled, CUDA graphs, bf16", graphs


# ---- 50 epochs ----


def standin(setting: Setting) -> Iterator[Row]:
    """The images, made by many processes, and the weights."""

    def write() -> Report:
        n_images = 2 * N_CLASSES if setting.small else N_IMAGES
        processes = 1 if setting.small else min(16, os.cpu_count() or 1)
        made = not setting.images.exists()
        started = time.perf_counter()
        setting.work.mkdir(parents=True, exist_ok=True)
        write_standin(
            setting.images, n_images=n_images, size=setting.image_size, processes=processes
        )
        write_weights(setting.weights, BACKBONE)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "images": n_images, "made": made, "processes": processes}

    yield "images and weights", write


def training(setting: Setting) -> Iterator[Row]:
    """`python -m crad.train` on the stand-in: all images trained on, as published, in bf16."""
    yield "50 epochs, bf16", partial(train_standin, setting)


def train_standin(setting: Setting) -> Report:
    """Train, or go on training: time of the features, of the epochs, and memory."""
    report: Report = {}
    arguments = ["--backbone", BACKBONE, "--weights", str(setting.weights), "--preset", "crad"]
    arguments += ["--precision", "bf16", "--calibration-share", "0", "--resume"]
    if setting.small:
        arguments += ["--epochs", "1", "--batch-size", str(setting.batch)]
        arguments += ["--image-size", str(setting.image_size), "--depth", "1", "--expansion", "16"]
    options = setting.options(setting.images, setting.run, *arguments)

    def timed(config: Config, stored: Checkpoint | None, device: torch.device) -> Inputs:
        inputs = prepare(config, stored, device)
        count = len(inputs.train)
        report["images"] = count
        report["features_seconds"] = inputs.seconds
        report["features_images_per_second"] = count / inputs.seconds
        return inputs

    started = time.perf_counter()
    try:
        with peak_bytes(setting, report):
            train_model(options, show=False, prepare=timed)
    except KeyboardInterrupt:
        report["unfinished"] = True
    report["command_seconds"] = time.perf_counter() - started
    checkpoint = read_checkpoint(setting.run, parts=())
    report["epochs"] = checkpoint.epoch
    report["epochs_seconds"] = checkpoint.seconds
    report["seconds_of_50_epochs"] = 50 / checkpoint.epoch * checkpoint.seconds
    return report


# ---- where an epoch goes ----


class _RecordedFeatures(Features):
    """Features whose copies to the device have a name in a profile."""

    NAME = "features to the device"

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        with record_function(self.NAME):
            return super().batch(indices, device)


def account(setting: Setting) -> Iterator[Row]:
    """The profile of the training loop."""
    yield "16 steps of an epoch, bf16", partial(profile_epoch, setting)


def profile_epoch(setting: Setting) -> Report:
    """What of an epoch of the training loop the device is busy, and with what: shares of that time.

    The epoch has 16 steps, on features that are made up, and comes after another.
    """
    channels, height, width = setting.feature_size
    steps = 16
    count = steps * setting.batch
    config = Config(
        model=ModelConfig(depth=setting.depth, expansion=setting.expansion),
        training=TrainingConfig(batch_size=setting.batch),
    )
    torch.manual_seed(0)
    values = torch.rand(count, height, width, channels)
    inputs = _RecordedFeatures(values, [Sample()] * count)
    cuda = setting.device.type == "cuda"
    accelerator = Accelerator(cpu=not cuda, mixed_precision="bf16")
    clip = record_function("clipping")(accelerator.clip_grad_norm_)
    accelerator.clip_grad_norm_ = clip
    loop = Training(create_model(config, setting.feature_size), config.training, accelerator)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with tqdm(disable=True) as bar:
        loop.run_epoch(inputs, bar)
        setting.synchronize()
        started = time.perf_counter()
        loop.run_epoch(inputs, bar)
        setting.synchronize()
        seconds = time.perf_counter() - started
        with profile(activities=activities) as found:
            loop.run_epoch(inputs, bar)
            setting.synchronize()
    events = found.key_averages()

    def busy(event: Any) -> float:
        time_us = event.self_device_time_total if cuda else event.self_cpu_time_total
        return float(time_us) / 1e6

    named = [event for event in events if not event.is_user_annotation]
    operators = [event for event in named if event.device_type == DeviceType.CPU]
    kernels = [event for event in named if event.device_type == DeviceType.CUDA]
    total = sum(map(busy, kernels if cuda else operators))

    def shares(of: list[Any]) -> dict[str, float]:
        longest = sorted(of, key=busy, reverse=True)[:15]
        return {event.key[:80]: busy(event) / total for event in longest}

    def span(name: str) -> float:
        times = (
            event.device_time_total if cuda else event.cpu_time_total
            for event in events
            if event.key.startswith(name) and event.device_type == DeviceType.CPU
        )
        return float(sum(times)) / 1e6 / total

    outside = {
        name: span(key)
        for name, key in (
            ("features_share", _RecordedFeatures.NAME),
            ("clipping_share", "clipping"),
            ("optimizer_share", "Optimizer.step"),
        )
    }
    return {
        "ms_per_step": seconds / steps * 1e3,
        "busy_share": min(total / seconds, 1.0),
        "outside_model_share": sum(outside.values()),
        **outside,
        "operators": shares(operators),
        "kernels": shares(kernels),
    }


# ---- inference ----


def inferences(setting: Setting) -> Iterator[Row]:
    """Images a second from files on, by the detector that was trained."""
    for precision in ("bf16", "fp32"):
        yield f"from files, {precision}", partial(from_files, setting, precision)


def from_files(setting: Setting, precision: Any) -> Report:
    """All that `crad.predict` does of an image, but for writing."""
    detector = crad.load(setting.run, setting.device, precision)
    paths = sorted(setting.images.rglob("*.png"))[: 16 * setting.batch]
    report: Report = {"images": len(paths), "batch": setting.batch}
    detector.predict(paths[: setting.batch], batch_size=setting.batch)
    with peak_bytes(setting, report):
        started = time.perf_counter()
        detector.predict(paths, batch_size=setting.batch)
        setting.synchronize()
        report["images_per_second"] = len(paths) / (time.perf_counter() - started)
    return report


# ---- what a precision costs ----


def neutrality(setting: Setting) -> Iterator[Row]:
    """AUROC on the demo set, trained in each precision with each of three seeds."""
    kept: dict[int, Inputs] = {}
    networks = {"11 bottlenecks of 216": ("--depth", "11", "--expansion", "216"), "tiny": ()}
    data: Path | str = "demo"
    seeds = range(3)
    if setting.small:
        data, seeds = setting.work / "demo", range(1)
        networks = {"tiny": ("--backbone", "scattering", "--image-size", "64", "--epochs", "1")}

    def trained(network: str, precision: str, seed: int) -> Report:
        if setting.small and not Path(data).exists():
            write_demo(data, n_train=4, n_test=4, size=64, classes=("brick", "gauge"))
        chosen = "bf16" if PRECISIONS[precision][1] else "fp32"
        options = setting.options(
            data, setting.work / "neutrality", *networks[network], "--precision", chosen,
            "--seed", str(seed), "--overwrite",
        )  # fmt: skip

        def once(config: Config, stored: Checkpoint | None, device: torch.device) -> Inputs:
            if seed not in kept:
                kept[seed] = prepare(config, stored, device)
            return kept[seed]

        with multiplied(precision):
            results: Results = train_model(options, show=False, prepare=once)
        mean = results["mean"]
        return {
            "image_auroc": mean["image_auroc"],
            "pixel_auroc": mean["pixel_auroc"],
            "training_seconds": results["timing"]["training"],
        }

    for network, seed, precision in product(networks, seeds, PRECISIONS):
        name = f"{network}, {precision}, seed {seed}"
        yield name, partial(trained, network, precision, seed)


# ---- all ----

PIECES: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "steps": steps,
    "stand-in": standin,
    "training": training,
    "account": account,
    "inference": inferences,
    "compiled": compiled,
    "neutrality": neutrality,
}


def measure(piece: str, setting: Setting, output: Path, seconds: float) -> None:
    """Measure the rows of a piece that are not there yet, and write what there is after each."""
    end = time.monotonic() + seconds
    found = json.loads(output.read_text()).get("rows", []) if output.exists() else []
    rows = {row["name"]: row for row in found}
    if piece == "training" and not rows:  # a run of another report is not gone on with
        shutil.rmtree(setting.run, ignore_errors=True)
    finished = True
    for name, measured in PIECES[piece](setting):
        earlier = rows.get(name)
        if earlier and not ("error" in earlier or earlier.get("unfinished")):
            continue
        if time.monotonic() > end:
            finished = False
            break
        try:
            rows[name] = {"name": name, **measured()}
        except Exception as error:
            rows[name] = {"name": name, "error": f"{type(error).__name__}: {error}"[:500]}
        finished &= not rows[name].get("unfinished", False)
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
        write_json(output, {"rows": list(rows.values()), "finished": False})
    write_json(output, {"rows": list(rows.values()), "finished": finished})


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_pieces")
    parser.add_argument("piece", choices=list(PIECES))
    parser.add_argument("output", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    setting = Setting(options.device, options.work, options.small)
    with freed_memory_kept():
        measure(options.piece, setting, options.output, options.seconds)


if __name__ == "__main__":
    main()
