"""The training loop: epochs over features; it can be stopped and resumed after any of them."""

import math
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from crad.config import TrainingConfig
from crad.errors import TrainingError
from crad.model.crad import CRAD
from crad.training import processes
from crad.training.features import Features
from crad.training.schedule import learning_rate_factor


class Training:
    """A model in training: AdamW with a learning rate for the networks and one for the memories.

    Lee et al., section 4.1 and supplement: joint clipping of the gradient, and a tenth of the
    learning rate for the last fifth of the epochs. ``epoch`` counts those done.

    Args:
        model: to be trained in place; it is moved to the accelerator's device.
        config: the settings of the optimisation.
        accelerator: the device, and the precision of the fusion network.
    """

    def __init__(self, model: CRAD, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.model = model
        self.config = config
        self.accelerator = accelerator
        self.epoch = 0
        model.to(accelerator.device)
        optimizer = create_optimizer(model, config, fused=True)
        self._learning_rates = [group["lr"] for group in optimizer.param_groups]
        names = {parameter: name for name, parameter in model.named_parameters()}
        self._names = [names[p] for group in optimizer.param_groups for p in group["params"]]
        self._forward, self._optimizer = accelerator.prepare(model, optimizer)

    @property
    def precision(self) -> str:
        """Of the fusion network."""
        mixed: str = self.accelerator.mixed_precision
        return "fp32" if mixed == "no" else mixed

    def run_epoch(self, features: Features, bar: "tqdm[Any]", rows: Tensor | None = None) -> float:
        """Train for an epoch, in an order drawn from PyTorch's generator; return the mean loss.

        Each process takes its share of every batch. BatchNorm then has the statistics of that
        share, as in the paper's published code.

        Args:
            features: of the normal images, at least one for each process.
            bar: advanced by 1 for every step.
            rows: the images to train on; None takes all.

        Raises:
            TrainingError: the loss is no longer finite.
        """
        factor = learning_rate_factor(self.epoch, self.config.epochs)
        for group, rate in zip(self._optimizer.param_groups, self._learning_rates, strict=True):
            group["lr"] = rate * factor
        self._forward.train()
        total = torch.zeros((), device=self.accelerator.device)
        rows = torch.arange(len(features)) if rows is None else rows
        order = rows[processes.on_main(lambda: torch.randperm(len(rows)))]
        rank, count = processes.rank(), processes.count()
        if rank:  # its own noise; that of the main process is what a checkpoint restores
            seed = np.random.SeedSequence((self.config.seed, self.epoch, rank))
            torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        for batch in split_epoch(order, self.config.batch_size, count):
            indices = batch[rank::count]
            feature = features.batch(indices, self.accelerator.device)
            loss = self._forward(feature).loss
            # Gradients are averaged over processes, one of which may have an image less.
            self.accelerator.backward(loss * (count * len(indices) / len(batch)))
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
            total += loss.detach() * len(indices)
            bar.update()
        processes.copy_main(self.model.buffers())  # statistics of BatchNorm are each process's own
        mean = float(self.accelerator.reduce(total, "sum")) / len(rows)
        if not math.isfinite(mean):
            kept = "the checkpoint of the epoch before is kept; " if self.epoch else ""
            raise TrainingError(
                f"training: the loss of epoch {self.epoch + 1} is {mean}; {kept}"
                "lower --learning-rate and --memory-learning-rate"
            )
        self.epoch += 1
        return mean

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's state, by parameter name and quantity."""
        state = self._optimizer.state_dict()["state"]
        return {
            f"{self._names[index]}.{quantity}": value
            for index, values in state.items()
            for quantity, value in values.items()
        }

    def random_state(self) -> dict[str, Tensor]:
        """The states of the random generators that training draws from, by device."""
        states = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        return states

    def restore(self, epoch: int, optimizer: dict[str, Tensor], random: dict[str, Tensor]) -> None:
        """Continue after ``epoch`` epochs, from `optimizer_state` and `random_state`.

        Raises:
            ValueError: the optimizer's state belongs to another model.
        """
        state: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(self._names))}
        for key, value in optimizer.items():
            name, _, quantity = key.rpartition(".")
            if name not in self._names:
                raise ValueError(f"the model has no parameter '{name}'")
            state[self._names.index(name)][quantity] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.epoch = epoch
        torch.set_rng_state(random["cpu"])
        if self.accelerator.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], self.accelerator.device)


def create_optimizer(
    model: CRAD, config: TrainingConfig, *, fused: bool = False
) -> torch.optim.AdamW:
    """Make the optimizer: a learning rate for the networks, and one for the memories.

    Args:
        model: on the device that it is trained on.
        config: learning rates and weight decay.
        fused: whether a step is one kernel.
    """
    groups = [
        {"params": list(model.network_parameters()), "lr": config.learning_rate},
        {"params": list(model.memory_parameters()), "lr": config.memory_learning_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)


def split_epoch(order: Tensor, batch_size: int, n_processes: int = 1) -> list[Tensor]:
    """Split the images of an epoch into batches, of which the last may be smaller.

    It joins the batch before it where a process would get a single image, whose own statistics
    BatchNorm would take for those of the data.
    """
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) < min(batch_size, 2 * n_processes):
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
