import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from crad.protocol import PROTOCOLS, Protocol

CRAD = PROTOCOLS["crad"]


def test_every_protocol_goes_by_its_name():
    assert {name: protocol.name for name, protocol in PROTOCOLS.items()} == {"crad": "crad"}


def test_at_224_pixels_it_is_the_definition():
    maps = torch.rand(2, 224, 224, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    filtered, scores = CRAD(maps)
    for one, got, score in zip(maps.numpy(), filtered.numpy(), scores, strict=True):
        expected = uniform_filter(one, 21, mode="constant")  # zeros outside, and counted
        np.testing.assert_allclose(got, expected, atol=1e-12)
        windows = np.lib.stride_tricks.sliding_window_view(expected, (32, 32))
        assert score.item() == pytest.approx(windows.mean(axis=(2, 3)).max(), abs=1e-12)


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


def test_images_do_not_affect_each_other_and_inputs_are_left_alone():
    maps = torch.rand(3, 64, 64, requires_grad=True)
    before = maps.detach().clone()
    filtered, scores = CRAD(maps)
    assert not filtered.requires_grad
    assert filtered.shape == (3, 64, 64)
    assert scores.shape == (3,)
    torch.testing.assert_close(maps.detach(), before, rtol=0, atol=0)
    alone, score = CRAD(maps[1:2])
    torch.testing.assert_close(alone[0], filtered[1])
    torch.testing.assert_close(score[0], scores[1])


def test_an_empty_batch_gives_no_scores():
    filtered, scores = CRAD(torch.zeros(0, 32, 32))
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
