"""The scale of features: a run does not depend on it."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

import crad
from crad.config import TrainingConfig
from crad.data.samples import Sample
from crad.model.crad import CRAD, PUBLISHED_VARIANCE
from crad.training.features import Features
from crad.training.loop import Training


def features(values: Tensor) -> Features:
    return Features(values, [Sample(path=Path(f"{i}.png")) for i in range(len(values))])


def vectors() -> Tensor:
    torch.manual_seed(5)
    return torch.randn(6, 4, 4, 8) * torch.arange(1, 9) + torch.arange(8)


def trained(values: Tensor) -> CRAD:
    torch.manual_seed(0)
    model = CRAD(8, 4, 4, depth=1, expansion=8, scaled=True)
    train = features(values)
    model.fit_scale(train.variance())
    training = Training(model, TrainingConfig(epochs=6, batch_size=3), Accelerator(cpu=True))
    with tqdm(disable=True) as bar:
        for _ in range(6):
            training.run_epoch(train, bar)
    return model.eval()


@pytest.mark.parametrize("factor", [1e-3, 0.25, 512.0])
def test_training_is_the_same_at_any_scale(factor: float) -> None:
    values = vectors()
    maps = [
        trained(each)(each.permute(0, 3, 1, 2)).anomaly_map for each in (values, factor * values)
    ]
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-3, atol=1e-4)


def test_the_variance_is_that_of_all_positions() -> None:
    values = vectors() + 1000  # and its sums do not cancel
    assert features(values).variance() == pytest.approx(
        float(values.double().flatten(0, 2).var(0, correction=0).mean()), rel=1e-6
    )


def test_the_scaled_features_have_the_published_variance() -> None:
    values = vectors()
    model = CRAD(8, 4, 4, depth=0, scaled=True)
    model.fit_scale(features(values).variance())
    assert model.feature_scale is not None
    scaled = values * model.feature_scale
    assert features(scaled).variance() == pytest.approx(PUBLISHED_VARIANCE, rel=1e-5)


def test_features_that_do_not_vary_stay_as_they_are() -> None:
    model = CRAD(8, 4, 4, depth=0, scaled=True)
    model.fit_scale(0.0)
    assert model.feature_scale == 1


def test_as_published_there_is_none() -> None:
    model = CRAD(8, 4, 4, depth=0)
    model.fit_scale(4.0)
    assert model.feature_scale is None
    assert "feature_scale" not in model.state_dict()


def test_a_run_stores_it(trained) -> None:
    model = crad.load(trained.output).model
    assert model.feature_scale is not None
    assert model.feature_scale != 1
