"""How a training starts: the model, new or as it was after an epoch, and what trains it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tqdm import tqdm

from crad.config import Config
from crad.detector import create_model, multiply_adds
from crad.devices import compile_network, select_precision
from crad.errors import TrainingError
from crad.train_options import TrainOptions
from crad.training import processes
from crad.training.checkpoint import Checkpoint
from crad.training.inputs import Inputs
from crad.training.loop import Training, split_epoch

_LARGE_PARTS = {  # and the option that each is lowered with
    "the fusion network": "--depth or --expansion",
    "the local memory": "--local.resolution",
    "the global memory": "--global.resolution",
}


def begin(
    options: TrainOptions,
    inputs: Inputs,
    stored: Checkpoint | None,
    device: torch.device,
    base: Checkpoint | None = None,
) -> Training:
    """Make the model and what trains it, as new or as they were after an epoch.

    Args:
        options: of the run.
        inputs: of the run.
        stored: the run after that epoch, with all its parts; None makes a new model.
        device: where to train.
        base: a trained model that a new one starts from; None starts from random weights.

    Raises:
        CheckpointError: the stored states do not fit.
        TrainingError: memory cannot hold the model, or a batch has too few images for the
            processes.
    """
    config = options.config
    least = min(config.training.batch_size, len(inputs.train))
    if least < processes.count():
        raise TrainingError(
            f"train: a batch of {least} images is too small for {processes.count()} processes; "
            "start fewer processes, raise --batch-size, or add training images"
        )
    known = stored or base
    precision = (
        known.precision
        if known
        else select_precision(options.compute.precision, device, step_size(config, inputs))
    )
    _check_memory(config, inputs, device)
    torch.manual_seed(config.training.seed)
    model = create_model(config, inputs.feature_size)
    if options.compute.compile:
        compile_network(model.fusion, device)
    AcceleratorState._reset_state()  # of a model before, which may have another precision
    mixed = "no" if precision == "fp32" else precision
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed)
    training = Training(model, config.training, accelerator)
    if base and not stored:
        with base.fitting():
            model.load_state_dict(base.model)
    if stored:
        with stored.fitting():
            model.load_state_dict(stored.latest or stored.model)
            training.restore(stored.epoch, stored.optimizer, stored.random)
    return training


def _check_memory(config: Config, inputs: Inputs, device: torch.device) -> None:
    """Refuse a model that memory cannot hold, before the system ends the process."""
    model, (channels, height, width) = config.model, inputs.feature_size
    local = math.prod(model.local_resolution) * channels * (model.local_memory != "none")
    global_ = math.prod(model.global_resolution) * channels * height * width
    kept = config.training.keep == "best"  # a copy of the best epoch
    copies = 4 + kept if device.type == "cpu" else 1  # with the gradient and the optimizer's two
    numbers = (
        multiply_adds(model, inputs.feature_size) / (height * width),
        local,
        global_ * (model.global_memory != "none"),
    )
    processes.check_memory(
        (f"{name} takes", 4 * copies * number, option)
        for number, (name, option) in zip(numbers, _LARGE_PARTS.items(), strict=True)
    )


def step_size(config: Config, inputs: Inputs) -> float:
    """Multiply-adds of the fusion network in a training step, about three times those forward."""
    return 3 * config.training.batch_size * multiply_adds(config.model, inputs.feature_size)


@contextmanager
def progress(training: Training, n_images: int, what: str = "") -> Iterator["tqdm[None]"]:
    """Progress bar over all steps of a training, starting at the current one."""
    config = training.config
    order = torch.arange(n_images)
    steps = len(split_epoch(order, config.batch_size, processes.count()))
    done, total = training.epoch * steps, config.epochs * steps
    hidden = not processes.is_main()
    with tqdm(
        desc=what or None,
        total=total,
        initial=done,
        unit="step",
        mininterval=0.5,
        disable=hidden,
    ) as bar:
        yield bar
