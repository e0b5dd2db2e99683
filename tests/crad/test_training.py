"""The training loop: what it says when the loss is lost."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tqdm import tqdm

from crad.config import TrainingConfig
from crad.errors import TrainingError
from crad.model.crad import CRAD
from crad.training.features import Features
from crad.training.loop import Training


@pytest.mark.parametrize("finite_epochs", [0, 1])
def test_a_lost_loss_names_the_checkpoint_only_if_there_is_one(finite_epochs: int) -> None:
    model = CRAD(4, 3, 3, depth=1, expansion=4)
    training = Training(model, TrainingConfig(batch_size=2), Accelerator(cpu=True))
    values = torch.rand(4, 3, 3, 4)
    paths = [Path(f"{index}.png") for index in range(4)]
    with tqdm(disable=True) as bar:
        for _ in range(finite_epochs):
            training.run_epoch(Features(values, paths), bar)
        with pytest.raises(TrainingError, match="lower --learning-rate") as caught:
            training.run_epoch(Features(values * float("nan"), paths), bar)
    assert f"loss of epoch {finite_epochs + 1} is nan" in str(caught.value)
    assert ("the checkpoint of the epoch before" in str(caught.value)) == finite_epochs
