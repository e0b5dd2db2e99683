"""Rivals with a frozen teacher: reverse distillation and MKD."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.detectors.budget import Epochs
from benchmarks.detectors.inputs import SetInputs, inputs_of
from benchmarks.detectors.mkd import MKD, Distilled, differences, opened
from benchmarks.detectors.mkd import Student as Cloner
from benchmarks.detectors.reverse_distillation import ReverseDistillation, Student, distances
from benchmarks.detectors.teaching import smoothed
from tests.benchmarks.rivals import CPU, SIZE, config_of, inputs, needs_weights
from tests.fixtures import demo_root, one_thread

__all__ = ["demo_root", "inputs", "one_thread"]

# ---- reverse distillation ----


@pytest.mark.parametrize(("height", "width"), [(64, 64), (80, 48)])
def test_the_student_makes_maps_of_the_size_of_the_teacher(height: int, width: int) -> None:
    maps = [
        torch.randn(2, channels, height // stride, width // stride)
        for channels, stride in ((6, 4), (8, 8), (10, 16))
    ]
    decoded = Student([6, 8, 10], 12)(maps)
    assert [each.shape for each in decoded] == [each.shape for each in maps]
    apart = distances(maps, [2 * each for each in maps])
    assert max(float(each.abs().max()) for each in apart) < 1e-6
    assert float(distances(maps, [-each for each in maps])[0].min()) > 2 - 1e-6


def test_maps_are_smoothed_by_a_gaussian() -> None:
    peak = torch.zeros(1, 1, 65, 65)
    peak[0, 0, 32, 32] = 1
    smooth = smoothed(peak)[0, 0]
    assert smooth.sum() == pytest.approx(1, abs=1e-5)
    assert smooth[32, 32] == pytest.approx(1 / (2 * np.pi * 16), rel=0.01)
    assert smooth[36, 32] / smooth[32, 32] == pytest.approx(np.exp(-0.5), rel=0.01)
    torch.testing.assert_close(smoothed(torch.ones(1, 1, 20, 20)), torch.ones(1, 1, 20, 20))


@needs_weights
def test_training_brings_the_student_to_the_teacher(inputs: SetInputs, demo_root: Path) -> None:
    config = replace(
        config_of(demo_root), training=replace(config_of(demo_root).training, minutes=None)
    )
    normal = inputs.pixels.images(inputs_of(inputs, config).train.samples)
    short, longer, again = (
        ReverseDistillation(epochs=epochs, embedding=16).fit(inputs_of(inputs, config), config, CPU)
        for epochs in (1, 12, 12)
    )
    assert longer.epochs == Epochs(12, 12)
    assert longer.predict(normal)[0].mean() < short.predict(normal)[0].mean()
    assert torch.equal(longer.predict(normal)[0], again.predict(normal)[0])


# ---- MKD ----


@pytest.mark.parametrize(("height", "width"), [(64, 64), (80, 48)])
def test_the_cloner_makes_maps_of_the_size_of_the_teacher(height: int, width: int) -> None:
    maps = Cloner([6, 8, 10])(torch.randn(2, 3, height, width))
    assert [tuple(each.shape) for each in maps] == [
        (2, channels, height // stride, width // stride)
        for channels, stride in ((6, 4), (8, 8), (10, 16))
    ]


def test_values_and_directions_of_maps_are_compared() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)]
    values, directions = differences(maps, [2 * each for each in maps])
    expected = sum(each.square().mean(dim=(1, 2, 3)) for each in maps)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(directions, torch.zeros(2), rtol=0, atol=1e-6)
    _, opposite = differences(maps, [-each for each in maps])
    torch.testing.assert_close(opposite, torch.full((2,), 4.0))


def test_an_opening_takes_small_peaks_away() -> None:
    maps = torch.zeros(1, 1, 12, 12)
    maps[..., 2, 2] = 9
    maps[..., 5:9, 5:9] = 1
    result = opened(maps)
    assert result.sum() == 16
    assert (result[..., 5:9, 5:9] == 1).all()


@needs_weights
def test_the_cloner_learns_normal_images_and_a_seed_sets_all(
    inputs: SetInputs, demo_root: Path
) -> None:
    config = config_of(demo_root)
    config = replace(config, training=replace(config.training, minutes=None))
    of_model = inputs_of(inputs, config)
    images = inputs.pixels.images(of_model.train.samples)
    short, longer, again = (MKD(epochs=epochs).fit(of_model, config, CPU) for epochs in (1, 25, 25))
    assert longer.epochs == Epochs(25, 25)
    assert longer.weight == short.weight > 0
    maps, scores = longer.predict(images)
    assert maps.shape == (len(images), SIZE, SIZE)
    assert scores.mean() < 0.8 * short.predict(images)[1].mean()
    with torch.inference_mode():
        repeated = again.predict(inputs.pixels.images(of_model.train.samples))
    assert torch.equal(repeated[0], maps)
    assert torch.equal(repeated[1], scores)


def test_the_map_of_a_cloner_shows_where_it_is_not_the_teacher() -> None:
    seen = torch.ones(64, 64)
    seen[20:32, 40:52] = 0
    teacher: Any = SimpleNamespace(
        normalised=lambda images: images, maps_of=lambda images: [images]
    )
    student: Any = lambda images: [seen * images]  # noqa: E731
    detector = Distilled(teacher, student, 0.0, CPU, Epochs(1))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) + 0.1
    with torch.inference_mode():  # in which its speed is measured
        maps, scores = detector.predict(images)
    assert (scores > 0).all()
    assert (maps[:, 22:30, 42:50] > 0).all()
    assert not maps[:, :, :20].any()
    assert not maps[:, 52:].any()
