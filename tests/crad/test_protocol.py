import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate, uniform_filter

from crad.scoring.protocols import (
    PROTOCOLS,
    InsideProtocol,
    Protocol,
    PublishedProtocol,
    choose_protocols,
)

CRAD, INSIDE, PEAK = (PROTOCOLS[name] for name in ("crad", "inside", "peak"))


def random_maps(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, size, size, generator=generator, dtype=torch.float64)


def window_means(anomaly_map: np.ndarray, window: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(anomaly_map, (window, window))
    return windows.mean(axis=(2, 3))


def test_every_protocol_goes_by_its_name():
    assert list(PROTOCOLS) == ["crad", "paper", "uniad", "ader", "dinomaly", "inside", "peak"]
    assert all(protocol.name == name for name, protocol in PROTOCOLS.items())


def test_choices():
    assert choose_protocols(["ader", "crad", "ader"]) == [PROTOCOLS["ader"], CRAD]
    assert choose_protocols(["uniad", "all"])[0] is PROTOCOLS["uniad"]
    assert len(choose_protocols(["uniad", "all"])) == len(PROTOCOLS)
    with pytest.raises(ValueError, match=r"--protocol.* all.* crad, paper"):
        choose_protocols([])
    with pytest.raises(ValueError, match=r"--protocol.* crad, paper.* 'mvtec'"):
        choose_protocols(["crad", "mvtec"])


def test_at_224_pixels_it_is_the_definition():
    maps = random_maps(224)
    filtered, scores = CRAD.score(maps, 224)
    for one, got, score in zip(maps.numpy(), filtered.numpy(), scores, strict=True):
        expected = uniform_filter(one, 21, mode="constant")  # zeros outside, and counted
        np.testing.assert_allclose(got, expected, atol=1e-12)
        assert score.item() == pytest.approx(window_means(expected, 32).max(), abs=1e-12)


@pytest.mark.parametrize(("name", "window"), [("paper", 32), ("uniad", 16)])
def test_pixels_as_they_are_and_images_by_the_largest_mean(name: str, window: int) -> None:
    maps = random_maps(224)
    same, scores = PROTOCOLS[name].score(maps, 224)
    assert torch.equal(same, maps)
    for one, score in zip(maps.numpy(), scores, strict=True):
        assert score.item() == pytest.approx(window_means(one, window).max(), abs=1e-12)


def test_ader_scores_by_the_largest_pixel() -> None:
    maps = random_maps(256)
    same, scores = PROTOCOLS["ader"].score(maps, 128)
    assert torch.equal(same, maps)
    assert torch.equal(scores, maps.amax(dim=(1, 2)))


def test_dinomaly_smooths_by_a_gaussian_and_scores_by_the_largest_hundredth() -> None:
    maps = random_maps(256)
    filtered, scores = PROTOCOLS["dinomaly"].score(maps, 224)
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
    filtered, scores = CRAD.score(maps, size)
    assert (filtered > 0.5).sum() == mean_window**2
    torch.testing.assert_close(filtered.max().item(), float(score_window**2))
    assert scores.item() == pytest.approx(min(mean_window, score_window) ** 2)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, (224, 128, 448)) for name in ("crad", "paper", "uniad", "inside", "peak")),
        *((name, (256, 256, 256)) for name in ("ader", "dinomaly")),
    ],
)
def test_maps_are_measured_at_the_size_of_the_protocol(name: str, sizes: tuple[int, ...]) -> None:
    protocol = PROTOCOLS[name]
    for image_size, size in zip((224, 128, 448), sizes, strict=True):
        assert protocol.map_size(image_size) == size
        maps, scores = protocol.score(torch.rand(3, 28, 28), image_size)
        assert maps.shape == (3, size, size)
        assert scores.shape == (3,)


@pytest.mark.parametrize("name", ["ader", "dinomaly"])
def test_what_is_measured_at_256_pixels_is_not_scaled_with_the_images(name: str) -> None:
    maps = random_maps(28)
    expected = PROTOCOLS[name].score(maps, 256)
    for image_size in (128, 224, 448):
        found = PROTOCOLS[name].score(maps, image_size)
        assert all(map(torch.equal, found, expected))


def marks(size: int, side: int, background: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps with a mark in the middle, at each edge and in each corner, and where the mark is."""
    found = torch.zeros(9, size, size, dtype=torch.bool)
    places = (0, (size - side) // 2, size - side)
    for each, (y, x) in zip(found, itertools.product(places, places), strict=True):
        each[y : y + side, x : x + side] = True
    return background + found.double(), found


@pytest.mark.parametrize("share", [0.0, 0.2, 0.45])  # of the side; 0.45 is a fifth of the image
@pytest.mark.parametrize("image_size", [32, 128, 224, 256])
@pytest.mark.parametrize("size", [4, 8, 14, 16, 28])
@pytest.mark.parametrize("protocol", [INSIDE, PEAK], ids=["inside", "peak"])
def test_a_mark_scores_the_same_inside_at_an_edge_and_in_a_corner(
    protocol: InsideProtocol, size: int, image_size: int, share: float
) -> None:
    for background in (0.0, 3.0):
        maps, where = marks(size, max(1, round(share * size)), background)
        scored, scores = protocol.score(maps, image_size)
        peaks = scored.amax(dim=(1, 2))
        for found in (scores - background, peaks - background):
            np.testing.assert_allclose(found / found[4], 1, atol=0.15)  # 4 is in the middle
        cells = (torch.arange(image_size) + 0.5) * size / image_size  # nearest to each pixel
        near = where[:, cells.int()][:, :, cells.int()]
        assert torch.equal(torch.where(near, scored, 0).amax(dim=(1, 2)), peaks)


def test_the_peak_of_a_map_is_its_score() -> None:
    maps = random_maps(28)
    scored, scores = PEAK.score(maps, 224)
    torch.testing.assert_close(scores, scored.amax(dim=(1, 2)))


def test_the_published_protocol_scores_a_mark_in_a_corner_far_less() -> None:
    """What `inside` and `peak` are for."""
    scores = CRAD.score(marks(28, 1)[0], 224)[1]
    assert scores[0] < 0.25 * scores[4]


@pytest.mark.parametrize("image_size", [32, 224])
def test_a_map_without_marks_keeps_its_level_up_to_the_edge(image_size: int) -> None:
    maps, scores = INSIDE.score(torch.full((1, 14, 14), 2.5), image_size)
    torch.testing.assert_close(maps, torch.full((1, image_size, image_size), 2.5))
    assert scores.item() == pytest.approx(2.5)


def test_outside_counts_as_the_median_and_windows_reach_there() -> None:
    maps = random_maps(225)[:, :224, :224]
    filtered, scores = INSIDE.score(maps, 224)
    for one, got, score in zip(maps.numpy(), filtered.numpy(), scores, strict=True):
        level = np.sort(one.ravel())[(one.size - 1) // 2]
        smooth = uniform_filter(np.pad(one, 26, constant_values=level), 21, mode="constant")
        smooth = smooth[10:-10, 10:-10]
        np.testing.assert_allclose(got, smooth[16:-16, 16:-16], atol=1e-12)
        assert score.item() == pytest.approx(window_means(smooth, 32).max(), abs=1e-12)


def test_the_rows_and_columns_of_a_model_map_may_differ_in_number() -> None:
    maps = torch.rand(2, 5, 7)
    scored, scores = INSIDE.score(maps, 64)
    turned, same = INSIDE.score(maps.transpose(1, 2), 64)
    torch.testing.assert_close(turned, scored.transpose(1, 2))
    torch.testing.assert_close(same, scores)


def test_model_maps_are_resized_corner_to_corner() -> None:
    maps, scores = PROTOCOLS["ader"].score(torch.tensor([[[0.0, 1.0], [2.0, 3.0]]]), 224)
    line = torch.linspace(0, 1, 256)
    torch.testing.assert_close(maps[0], 2 * line[:, None] + line)
    assert scores.item() == 3


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_images_do_not_affect_each_other_and_inputs_are_left_alone(protocol: Protocol) -> None:
    maps = torch.rand(3, 64, 64, requires_grad=True)
    before = maps.detach().clone()
    filtered, scores = protocol.score(maps, 64)
    assert not scores.requires_grad
    assert filtered.shape == (3, *2 * [protocol.map_size(64)])
    assert scores.shape == (3,)
    torch.testing.assert_close(maps.detach(), before, rtol=0, atol=0)
    alone, score = protocol.score(maps[1:2], 64)
    torch.testing.assert_close(alone[0], filtered[1])
    torch.testing.assert_close(score[0], scores[1])


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_an_empty_batch_gives_no_scores(protocol: Protocol) -> None:
    filtered, scores = protocol.score(torch.zeros(0, 32, 32), 64)
    assert filtered.shape == (0, *2 * [protocol.map_size(64)])
    assert scores.shape == (0,)


def test_windows_of_one_pixel_score_the_largest_value():
    maps = torch.rand(2, 224, 224)
    filtered, scores = PublishedProtocol("largest").score(maps, 224)
    torch.testing.assert_close(filtered, maps)
    torch.testing.assert_close(scores, maps.amax(dim=(1, 2)))
