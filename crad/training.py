"""The training loop: epochs over features in memory, to be stopped and gone on with after any."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from crad.config import Config
from crad.features import Features
from crad.model import CRAD

_SCHEDULE = 0.8  # of the epochs; the rest learns at a tenth of the rate


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says what to change."""


class Training:
    """A model in training: AdamW with a learning rate for the networks and one for the memories.

    Lee et al., section 4.1 and supplement: joint clipping of the gradient, and a tenth of the
    learning rate for the last fifth of the epochs.

    Args:
        model: to be trained in place; it is moved to the accelerator's device.
        config: the settings of the run.
        accelerator: the device, and the precision of the fusion network.

    Attributes:
        epoch: epochs done.
    """

    def __init__(self, model: CRAD, config: Config, accelerator: Accelerator) -> None:
        self.model = model
        self.config = config
        self.accelerator = accelerator
        self.epoch = 0
        groups = [
            {"params": list(model.network_parameters()), "lr": config.learning_rate},
            {"params": list(model.memory_parameters()), "lr": config.memory_learning_rate},
        ]
        model.to(accelerator.device)
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
        self._learning_rates = [group["lr"] for group in optimizer.param_groups]
        names = {parameter: name for name, parameter in model.named_parameters()}
        self._names = [names[p] for group in optimizer.param_groups for p in group["params"]]
        self._forward, self._optimizer = accelerator.prepare(model, optimizer)

    def run_epoch(self, features: Features, bar: "tqdm[Any]") -> float:
        """Train for one epoch, in an order drawn from PyTorch's generator.

        Args:
            features: of the normal images, at least one.
            bar: advanced by 1 for every step.

        Returns:
            The mean loss.

        Raises:
            TrainingError: the loss is no longer finite; the model is then spoilt.
        """
        decay = 0.1 if self.epoch >= round(_SCHEDULE * self.config.epochs) else 1.0
        for group, rate in zip(self._optimizer.param_groups, self._learning_rates, strict=True):
            group["lr"] = rate * decay
        self._forward.train()
        total = torch.zeros((), device=self.accelerator.device)
        for indices in split_epoch(torch.randperm(len(features)), self.config.batch_size):
            feature = features.batch(indices, self.accelerator.device)
            loss = self._forward(feature).loss
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
            total += loss.detach() * len(indices)
            bar.update()
        mean = float(total) / len(features)
        if not math.isfinite(mean):
            kept = "the checkpoint is that of the epoch before; " if self.epoch else ""
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
        """Go on after ``epoch`` epochs as if there had been no interruption.

        Args:
            epoch: epochs done.
            optimizer: what `optimizer_state` gave.
            random: what `random_state` gave.

        Raises:
            ValueError: the optimizer's state is not that of this model.
        """
        state: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(self._names))}
        indices = {name: index for index, name in enumerate(self._names)}
        for key, value in optimizer.items():
            name, _, quantity = key.rpartition(".")
            if name not in indices:
                raise ValueError(f"the model has no parameter '{name}'")
            state[indices[name]][quantity] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.epoch = epoch
        torch.set_rng_state(random["cpu"])
        if self.accelerator.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], self.accelerator.device)


def split_epoch(order: Tensor, batch_size: int) -> list[Tensor]:
    """Split the images of an epoch into batches.

    The last batch may be smaller, but not a single image, whose own statistics BatchNorm would
    take for those of the data: that image joins the batch before it.
    """
    batches = list(order.split(batch_size))
    if len(batches) > 1 and batch_size > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
