"""The scattering transform against its mathematical properties, the PCA against scikit-learn."""

import math

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from crad.backbones.scattering import (
    ANGLES,
    CHANNELS,
    SCALES,
    Scattering,
    ScatteringBackbone,
    filter_bank,
    wavelet_energy,
)

FIRST = slice(1, 1 + SCALES * ANGLES)  # first moduli of the first colour, lightness
CPU = torch.device("cpu")


def texture(*shape: int, seed: int = 0) -> Tensor:
    """Images in [0, 1] with detail on several scales."""
    generator = torch.Generator().manual_seed(seed)
    fine = torch.rand(*shape, generator=generator)
    coarse = torch.rand(*shape[:-2], shape[-2] // 8, shape[-1] // 8, generator=generator)
    return (fine + torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic")).clamp(
        0, 2
    ) / 2


def wave(angle: float, frequency: float, size: int = 64) -> Tensor:
    """A grey sinusoid (1, 3, size, size) whose brightness changes along `angle`."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    phase = frequency * (math.cos(angle) * x + math.sin(angle) * y)
    return (0.5 + 0.4 * torch.cos(phase)).expand(1, 3, size, size)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (64, 64), (96, 64), (120, 136)])
def test_output_has_a_feature_for_every_8_pixels(height: int, width: int) -> None:
    features = Scattering()(torch.rand(2, 3, height, width))
    assert features.shape == (2, CHANNELS, height // 8, width // 8)
    assert features.dtype == torch.float32
    assert CHANNELS == 651


def test_empty_batch_gives_empty_features() -> None:
    assert Scattering()(torch.zeros(0, 3, 64, 64)).shape == (0, CHANNELS, 8, 8)


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (1, 3, 64, 68), (1, 3, 16, 16)])
def test_sizes_off_the_stride_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"multiples of 8.*but got \d+ x \d+"):
        Scattering()(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64)])
def test_other_shapes_than_rgb_batches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        Scattering()(torch.zeros(shape))


def test_constant_image_has_its_colour_and_no_moduli() -> None:
    image = torch.tensor([0.2, 0.5, 0.9])[:, None, None].expand(1, 3, 64, 64)
    features = Scattering()(image).unflatten(1, (3, -1))
    assert features[:, :, 1:].abs().max() < 1e-6
    # The opponent colours are orthonormal, so that the averages keep the length of the colour.
    expected = torch.tensor([0.2, 0.5, 0.9]).norm().expand(1, 8, 8)
    torch.testing.assert_close(features[:, :, 0].norm(dim=1), expected)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_filters_cover_the_spectrum_and_do_not_amplify(size: tuple[int, int]) -> None:
    height, width = size
    wavelets = filter_bank(height, width, CPU)
    omega_y = 2 * math.pi * torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    omega_x = 2 * math.pi * torch.fft.fftfreq(width, dtype=torch.float64)
    radius = torch.hypot(omega_y, omega_x)
    low_pass = torch.exp(-((radius * 0.8 * 4) ** 2))  # of standard deviation 0.8 * 2^(J - 1) pixels
    energy = wavelet_energy(wavelets, height, width) + low_pass
    assert energy.max() <= 1 + 1e-6
    covered = energy[radius <= 3 * math.pi / 4]
    assert covered.min() > 0.5
    assert covered.mean() > 0.75


def test_distances_between_images_do_not_grow() -> None:
    one = texture(4, 3, 64, 64)
    other = one.clone()
    other[..., 16:48, 16:48] = texture(
        4, 3, 32, 32, seed=1
    )  # off the padding, which repeats pixels
    features = Scattering()(torch.cat([one, other]))
    # A feature stands for the 64 pixels of its cell.
    distance = 8 * (features[:4] - features[4:]).flatten(1).norm(dim=1)
    assert (distance <= (one - other).flatten(1).norm(dim=1)).all()


def test_small_shift_changes_features_much_less_than_pixels() -> None:
    image = texture(1, 3, 128, 128)
    one, other = image[..., :96, :96], image[..., 2:98, 2:98]

    def change(a: Tensor, b: Tensor) -> float:
        a, b = a[..., 1:-1, 1:-1], b[..., 1:-1, 1:-1]
        return float((a - b).norm() / (a - a.mean((-2, -1), keepdim=True)).norm())

    pixels = change(one, other)
    scattering = Scattering()
    features = change(scattering(one)[:, FIRST], scattering(other)[:, FIRST])
    assert pixels > 1
    assert features < 0.5 * pixels


@pytest.mark.parametrize("k", range(ANGLES))
@pytest.mark.parametrize("scale", range(SCALES))
def test_wave_lights_the_channel_of_its_angle_and_scale(k: int, scale: int) -> None:
    features = Scattering()(wave(k * math.pi / ANGLES, 3 * math.pi / 4 / 2**scale))
    moduli = features[0, FIRST, 2:-2, 2:-2].mean((-2, -1)).unflatten(0, (SCALES, ANGLES))
    assert moduli[scale].argmax() == k
    assert moduli[:, k].argmax() == scale


def test_grey_images_light_no_colour_channel() -> None:
    grey = texture(1, 1, 64, 64).expand(1, 3, 64, 64)
    features = Scattering()(grey).unflatten(1, (3, -1))
    assert features[:, 1:].abs().max() < 1e-5


def test_turned_image_gives_turned_features() -> None:
    image = texture(1, 3, 64, 64)
    features = Scattering()(image)[:, FIRST].unflatten(1, (SCALES, ANGLES))
    turned = Scattering()(torch.rot90(image, 1, (-2, -1)))[:, FIRST].unflatten(1, (SCALES, ANGLES))
    expected = torch.rot90(features.roll(ANGLES // 2, dims=2), 1, (-2, -1))
    # A window of frequencies reaches one further on one side than on the other.
    assert (turned - expected).norm() < 0.02 * expected.norm()


def test_features_do_not_depend_on_the_rest_of_the_batch() -> None:
    images = texture(3, 3, 64, 64)
    together = Scattering()(images)
    assert torch.equal(together[1:2], Scattering()(images[1:2]))
    assert torch.equal(together, Scattering()(images))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return texture(12, 3, 64, 64)


@pytest.fixture(scope="module")
def fitted(images: Tensor) -> ScatteringBackbone:
    backbone = ScatteringBackbone(16)
    backbone.fit(images.split(5))
    return backbone


def test_backbone_says_what_it_is(fitted: ScatteringBackbone) -> None:
    assert (fitted.channels, fitted.stride) == (16, 8)
    assert not list(fitted.parameters())
    assert not fitted.train().training


def test_features_are_white_over_the_fitted_images(
    fitted: ScatteringBackbone, images: Tensor
) -> None:
    vectors = fitted(images).movedim(1, -1).flatten(0, -2)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.mean(0), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(vectors.T), torch.eye(16), atol=1e-3, rtol=0)


def test_components_are_those_of_scikit_learn(fitted: ScatteringBackbone, images: Tensor) -> None:
    logarithms = torch.log(Scattering()(images).abs() + 1e-3)
    vectors = logarithms.movedim(1, -1).flatten(0, -2).double().numpy()
    pca = PCA(16, whiten=True, svd_solver="full").fit(vectors)
    theirs = torch.from_numpy(pca.transform(vectors)).float()
    ours = fitted(images).movedim(1, -1).flatten(0, -2)
    signs = (ours * theirs).sum(0).sign()
    torch.testing.assert_close(ours, theirs * signs, atol=5e-3, rtol=0)


def test_fit_does_not_depend_on_the_batches(fitted: ScatteringBackbone, images: Tensor) -> None:
    other = ScatteringBackbone(16)
    other.fit(iter(images.split(1)))
    torch.testing.assert_close(other(images), fitted(images), atol=1e-3, rtol=0)


def test_state_restores_the_features_exactly(fitted: ScatteringBackbone, images: Tensor) -> None:
    other = ScatteringBackbone(16)
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other(images), fitted(images))


def test_grey_training_images_give_finite_features() -> None:
    backbone = ScatteringBackbone(300)
    backbone.fit([texture(8, 1, 64, 64).expand(8, 3, 64, 64)])
    assert backbone(torch.rand(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("level", [0.0, 0.3])
@pytest.mark.parametrize("size", [(64, 64), (120, 136)])
def test_flat_training_images_are_refused(level: float, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="flat"):
        ScatteringBackbone().fit([torch.full((2, 3, *size), level)] * 2)


def test_one_grey_level_of_difference_is_enough() -> None:
    images = torch.full((20, 3, 64, 64), 0.5)
    images[7] += 1 / 255
    backbone = ScatteringBackbone()
    backbone.fit([images])
    assert backbone(images).isfinite().all()


def test_unfitted_backbone_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"fit\(\)"):
        ScatteringBackbone()(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("images", [[], [torch.rand(1, 3, 24, 24)]])
def test_too_few_training_features_are_refused(images: list[Tensor]) -> None:
    with pytest.raises(ValueError, match=r"for 32 components.*--components"):
        ScatteringBackbone(32).fit(images)


@pytest.mark.parametrize("channels", [0, 652])
def test_impossible_numbers_of_channels_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match="1 to 651"):
        ScatteringBackbone(channels)
