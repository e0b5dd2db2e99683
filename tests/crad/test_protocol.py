import numpy as np
import pytest
import torch
from scipy.ndimage import correlate, uniform_filter

from crad.scoring.protocols import PROTOCOLS, Protocol, choose_protocols

CRAD = PROTOCOLS["crad"]


def random_maps(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, size, size, generator=generator, dtype=torch.float64)


def window_means(anomaly_map: np.ndarray, window: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(anomaly_map, (window, window))
    return windows.mean(axis=(2, 3))


def test_every_protocol_goes_by_its_name():
    assert list(PROTOCOLS) == ["crad", "paper", "uniad", "ader", "dinomaly"]
    assert all(protocol.name == name for name, protocol in PROTOCOLS.items())


def test_choices():
    assert choose_protocols(["ader", "crad", "ader"]) == [PROTOCOLS["ader"], CRAD]
    assert choose_protocols(["uniad", "all"])[0] is PROTOCOLS["uniad"]
    assert len(choose_protocols(["uniad", "all"])) == len(PROTOCOLS)
    with pytest.raises(ValueError, match=r"--protocol.* all.* crad, paper"):
        choose_protocols([])


def test_at_224_pixels_it_is_the_definition():
    maps = random_maps(224)
    filtered, scores = CRAD(maps)
    for one, got, score in zip(maps.numpy(), filtered.numpy(), scores, strict=True):
        expected = uniform_filter(one, 21, mode="constant")  # zeros outside, and counted
        np.testing.assert_allclose(got, expected, atol=1e-12)
        assert score.item() == pytest.approx(window_means(expected, 32).max(), abs=1e-12)


@pytest.mark.parametrize(("name", "window"), [("paper", 32), ("uniad", 16)])
def test_pixels_as_they_are_and_images_by_the_largest_mean(name: str, window: int) -> None:
    maps = random_maps(224)
    same, scores = PROTOCOLS[name](maps)
    assert torch.equal(same, maps)
    for one, score in zip(maps.numpy(), scores, strict=True):
        assert score.item() == pytest.approx(window_means(one, window).max(), abs=1e-12)


@pytest.mark.parametrize("size", [64, 256, 700])
def test_ader_scores_by_the_largest_pixel(size: int) -> None:
    maps = random_maps(size)
    same, scores = PROTOCOLS["ader"](maps)
    assert torch.equal(same, maps)
    assert torch.equal(scores, maps.amax(dim=(1, 2)))


def test_dinomaly_smooths_by_a_gaussian_and_scores_by_the_largest_hundredth() -> None:
    maps = random_maps(256)
    filtered, scores = PROTOCOLS["dinomaly"](maps)
    y, x = np.mgrid[-2:3, -2:3]
    gaussian = np.exp(-(x**2 + y**2) / (2 * 4**2))
    for one, got, score in zip(maps.numpy(), filtered.numpy(), scores, strict=True):
        expected = correlate(one, gaussian / gaussian.sum(), mode="constant")  # zeros outside
        np.testing.assert_allclose(got, expected, atol=1e-12)
        largest = np.sort(expected.ravel())[-655:]  # 655 = floor(256 * 256 / 100)
        assert score.item() == pytest.approx(largest.mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("size", "mean_window", "score_window"),
    [(224, 21, 32), (128, 13, 18), (448, 43, 64), (8, 1, 1)],
)
def test_windows_scale_with_the_size(size, mean_window, score_window):
    maps = torch.zeros(1, size, size, dtype=torch.float64)
    maps[0, size // 2, size // 2] = mean_window**2 * score_window**2
    filtered, scores = CRAD(maps)
    assert (filtered > 0.5).sum() == mean_window**2
    torch.testing.assert_close(filtered.max().item(), float(score_window**2))
    assert scores.item() == pytest.approx(min(mean_window, score_window) ** 2)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("crad", (224, 128, 448)), ("ader", (256, 146, 512)), ("dinomaly", (256, 146, 512))],
)
def test_maps_are_measured_at_the_size_of_the_protocol(name: str, sizes: tuple[int, ...]) -> None:
    protocol = PROTOCOLS[name]
    for image_size, size in zip((224, 128, 448), sizes, strict=True):
        assert protocol.map_size(image_size) == size
        maps, scores = protocol.score(torch.rand(3, 28, 28), image_size)
        assert maps.shape == (3, size, size)
        assert scores.shape == (3,)


def test_model_maps_are_resized_corner_to_corner() -> None:
    maps, scores = PROTOCOLS["ader"].score(torch.tensor([[[0.0, 1.0], [2.0, 3.0]]]), 224)
    line = torch.linspace(0, 1, 256)
    torch.testing.assert_close(maps[0], 2 * line[:, None] + line)
    assert scores.item() == 3


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_images_do_not_affect_each_other_and_inputs_are_left_alone(protocol: Protocol) -> None:
    maps = torch.rand(3, 64, 64, requires_grad=True)
    before = maps.detach().clone()
    filtered, scores = protocol(maps)
    assert not scores.requires_grad
    assert filtered.shape == (3, 64, 64)
    assert scores.shape == (3,)
    torch.testing.assert_close(maps.detach(), before, rtol=0, atol=0)
    alone, score = protocol(maps[1:2])
    torch.testing.assert_close(alone[0], filtered[1])
    torch.testing.assert_close(score[0], scores[1])


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_an_empty_batch_gives_no_scores(protocol: Protocol) -> None:
    filtered, scores = protocol(torch.zeros(0, 32, 32))
    assert filtered.shape == (0, 32, 32)
    assert scores.shape == (0,)


@pytest.mark.parametrize("shape", [(32, 32), (1, 32, 48), (1, 1, 32, 32), (2, 0, 0)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected maps of shape"):
        CRAD(torch.zeros(shape))


def test_windows_of_one_pixel_score_the_largest_value():
    maps = torch.rand(2, 224, 224)
    filtered, scores = Protocol("largest", mean_window=1, score_window=1)(maps)
    torch.testing.assert_close(filtered, maps)
    torch.testing.assert_close(scores, maps.amax(dim=(1, 2)))
