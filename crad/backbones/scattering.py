"""Wavelet scattering features: a frozen backbone that needs no weights and no download.

Two layers of Morlet wavelets and moduli, then a Gaussian average (Mallat, "Group Invariant
Scattering", 2012; Bruna and Mallat, "Invariant Scattering Convolution Networks", 2013).
Convolutions are products in the Fourier domain. A wavelet of scale `2**j` is stored on the
`size / 2**j` frequencies around its centre only: multiplying this window of a spectrum and
transforming it back is the convolution and its subsampling in one step, without aliasing.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crad.backbones.base import Backbone, CombineName
from crad.errors import BackboneError

SCALES = 3  # J: wavelets of scale 1, 2 and 4 pixels, averages over 8
ANGLES = 8  # L: at k * pi / 8
STRIDE = 2**SCALES
CHANNELS = 3 * (1 + SCALES * ANGLES + SCALES * (SCALES - 1) // 2 * ANGLES**2)

_CENTRE = 3 * math.pi / 4  # frequency of the finest wavelet, in radians per pixel
_SIGMA = 0.8  # spatial standard deviation of the finest wavelet's envelope, in pixels
_SLANT = 4 / ANGLES  # the envelope is this much narrower along the wave than along its crests
_LOW_PASS_SIGMA = _SIGMA * 2 ** (SCALES - 1)
PADDING = 2 * STRIDE  # five standard deviations of the low-pass filter
LOG_FLOOR = 1e-3  # pixels are in [0, 1]
_NO_VARIANCE = 1e-9  # above the rounding errors of flat images, below one grey level

# Lightness, red-green, yellow-blue: orthonormal, so that distances do not grow.
OPPONENT = (
    (3**-0.5, 3**-0.5, 3**-0.5),
    (2**-0.5, -(2**-0.5), 0.0),
    (6**-0.5, 6**-0.5, -2 * 6**-0.5),
)


@dataclass(frozen=True)
class Wavelets:
    """The wavelets of one scale, each on the window of frequencies around its centre.

    Attributes:
        rows: (L, h) frequencies of the full image, in the order of an FFT of size (h, w).
        columns: (L, w), the same.
        values: (L, h, w) complex64 without imaginary part, the filters.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor

    def moduli(self, signal: Tensor) -> Tensor:
        """Moduli (N, L, h, w) of the convolutions with a real `signal` (N, H >= h, W >= w)."""
        height, width = signal.shape[-2:]
        spectrum = torch.fft.fft2(signal, norm="forward").flatten(1)
        index = (self.rows % height)[:, :, None] * width + (self.columns % width)[:, None, :]
        windows = spectrum.index_select(1, index.flatten()).view(-1, *index.shape)
        waves = torch.fft.ifft2(windows.mul_(self.values), norm="forward")
        # Five times as fast as abs() on a CPU.
        return torch.addcmul(waves.real.square(), waves.imag, waves.imag).sqrt_()


def _frequencies(size: int) -> Tensor:
    frequencies: Tensor = 2 * math.pi * torch.fft.fftfreq(size, dtype=torch.float64)
    return frequencies


def _low_pass(omega: Tensor) -> Tensor:
    return torch.exp(-0.5 * (omega * _LOW_PASS_SIGMA) ** 2)


def _window(size: int, length: int, centre: float) -> Tensor:
    """The `length` frequencies nearest to `centre`, the k-th congruent to k modulo `length`."""
    start = math.floor(centre * size / (2 * math.pi) - length / 2) + 1
    frequencies = torch.arange(start, start + length)
    return frequencies[torch.argsort(frequencies % length)]


def _morlet(omega_y: Tensor, omega_x: Tensor, scale: int, angle: float) -> Tensor:
    """A Morlet wavelet in the Fourier domain: a Gaussian, less another so that its mean is zero."""
    along = math.cos(angle) * omega_x + math.sin(angle) * omega_y
    across = math.cos(angle) * omega_y - math.sin(angle) * omega_x
    sigma, centre = _SIGMA * 2**scale, _CENTRE / 2**scale

    def envelope(shift: float) -> Tensor:
        return torch.exp(-0.5 * sigma**2 * ((along - shift) ** 2 + (across / _SLANT) ** 2))

    return envelope(centre) - math.exp(-0.5 * (sigma * centre) ** 2) * envelope(0.0)


@functools.lru_cache(maxsize=8)
def filter_bank(height: int, width: int, device: torch.device) -> tuple[Wavelets, ...]:
    """The wavelets, finest first, for padded images of `height` x `width`, multiples of 8."""
    wavelets = [_wavelets(height, width, scale) for scale in range(SCALES)]
    # One gain makes the sum of all squared filters at most 1: the transform expands no distance.
    low_pass = (_low_pass(_frequencies(height))[:, None] * _low_pass(_frequencies(width))) ** 2
    room, energy = 1 - low_pass, wavelet_energy(wavelets, height, width)
    gain = float((room / energy.clamp_min(1e-12))[energy > 1e-6].min().sqrt())
    return tuple(
        Wavelets(w.rows.to(device), w.columns.to(device), (gain * w.values).to(device))
        for w in wavelets
    )


def _wavelets(height: int, width: int, scale: int) -> Wavelets:
    rows, columns, values = [], [], []
    for k in range(ANGLES):
        angle, centre = k * math.pi / ANGLES, _CENTRE / 2**scale
        rows.append(_window(height, height >> scale, math.sin(angle) * centre))
        columns.append(_window(width, width >> scale, math.cos(angle) * centre))
        omega_y = 2 * math.pi * rows[-1].double() / height
        omega_x = 2 * math.pi * columns[-1].double() / width
        values.append(_morlet(omega_y[:, None], omega_x, scale, angle))
    stacked = torch.stack(values).to(torch.complex64)
    return Wavelets(torch.stack(rows), torch.stack(columns), stacked)


def wavelet_energy(wavelets: Iterable[Wavelets], height: int, width: int) -> Tensor:
    """The Littlewood-Paley sum (H, W): half the squared wavelets, at both signs of frequency."""
    energy = torch.zeros(height, width, dtype=torch.float64)
    for bank in wavelets:
        for rows, columns, values in zip(bank.rows, bank.columns, bank.values, strict=True):
            square = values.real.double() ** 2 / 2
            for sign in (1, -1):
                where = (sign * rows % height)[:, None], sign * columns % width
                energy.index_put_(where, square, accumulate=True)
    return energy


def _average(signal: Tensor, scale: int) -> Tensor:
    """Low-pass filter `signal` (..., H / 2**scale, W / 2**scale) to the stride of the output."""
    height, width = (size << scale for size in signal.shape[-2:])
    rows = average_matrix(height, scale, signal.device)
    columns = average_matrix(width, scale, signal.device)
    return rows @ signal @ columns.mT


@functools.lru_cache(maxsize=32)
def average_matrix(size: int, scale: int, device: torch.device) -> Tensor:
    """The low-pass matrix for an axis of `size` padded pixels that is subsampled by `2**scale`.

    It samples the result at every 8th pixel of the image without padding.
    """
    length, step = size >> scale, STRIDE >> scale
    omega = _frequencies(length) / 2**scale
    # A feature describes a cell of 8 pixels, so it is sampled at the middle of the cell.
    kernel = torch.fft.ifft(_low_pass(omega) * torch.exp(-0.5j * (STRIDE - 1) * omega)).real
    first, last = PADDING >> scale, (size - PADDING) >> scale
    return torch.stack([kernel.roll(i) for i in range(first, last, step)]).float().to(device)


class Scattering(nn.Module):
    """First and second order scattering coefficients of an image, in opponent colours, at stride 8.

    For each of 3 colours, the channels are the average, 3 x 8 first moduli (scale, angle) and
    3 x 64 second moduli (scales (0, 1), (0, 2), (1, 2); angle, angle): 651 in all. Source: Bruna
    and Mallat, "Invariant Scattering Convolution Networks", IEEE TPAMI 2013, with J = 3, L = 8.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Transform images.

        Args:
            images: (B, 3, H, W) float32 RGB in [0, 1]; H and W multiples of 8, at least 24.

        Returns:
            (B, 651, H / 8, W / 8) float32; all but the averages are non-negative.

        Raises:
            ValueError: the shape is wrong.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"Scattering: expected images of shape (B, 3, H, W), but got {tuple(images.shape)}"
            )
        height, width = images.shape[-2:]
        if height % STRIDE or width % STRIDE or min(height, width) <= PADDING:
            raise ValueError(
                f"Scattering: expected a height and width that are multiples of {STRIDE} and at "
                f"least {PADDING + STRIDE}, but got {height} x {width}; choose another image size"
            )
        wavelets = filter_bank(height + 2 * PADDING, width + 2 * PADDING, images.device)
        if not len(images):
            return images.new_zeros(0, CHANNELS, height // STRIDE, width // STRIDE)
        # One by one: the maps of an image fit in the cache, and no result depends on the batch.
        return torch.stack([self._transform(image, wavelets) for image in images])

    def _transform(self, image: Tensor, wavelets: Sequence[Wavelets]) -> Tensor:
        padded = F.pad(image, (PADDING,) * 4, mode="reflect")
        signal = torch.einsum("oc,chw->ohw", image.new_tensor(OPPONENT), padded)
        outputs = [_average(signal, 0)[:, None]]
        second: list[Tensor] = []
        for i in range(SCALES):
            first = wavelets[i].moduli(signal)
            outputs.append(_average(first, i))
            for j in range(i + 1, SCALES):
                moduli = _average(wavelets[j].moduli(first.flatten(0, 1)), j)
                second.append(moduli.reshape(3, ANGLES**2, *moduli.shape[2:]))
        return torch.cat(outputs + second, dim=1).flatten(0, 1)


class ScatteringBackbone(Backbone):
    """Logarithms of scattering coefficients, reduced to whitened principal components.

    Args:
        channels: number of principal components kept, 1 to 651. Whitening gives all of them the
            same variance; those after the first few dozen are mostly noise.

    Raises:
        ValueError: `channels` is out of range.
    """

    stride = STRIDE
    is_separate = True
    mean: Tensor
    projection: Tensor
    fitted: Tensor

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        if not 1 <= channels <= CHANNELS:
            raise ValueError(
                f"ScatteringBackbone: expected 1 to {CHANNELS} channels, but got {channels}"
            )
        self.channels = channels
        self.scattering = Scattering()
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("projection", torch.zeros(channels, CHANNELS))
        self.register_buffer("fitted", torch.tensor(False))
        self.eval()

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit the principal components on training images, one batch in memory at a time.

        Raises:
            ValueError: there are too few feature vectors, or they do not differ.
        """
        count = 0
        origin: Tensor | None = None  # close to the mean, against cancellation in the sums
        for images in batches:
            vectors = self._logarithms(images).movedim(1, -1).flatten(0, -2).double()
            if origin is None:
                origin = vectors.mean(0)
                total = torch.zeros_like(origin)
                products = torch.zeros_like(torch.outer(origin, origin))
            vectors -= origin
            count += len(vectors)
            total += vectors.sum(0)
            products += vectors.T @ vectors
        if origin is None or count <= self.channels:
            raise ValueError(
                f"there are {count} feature vectors for {self.channels} components; add training "
                "images, or lower --components"
            )
        covariance = (products - torch.outer(total, total) / count) / (count - 1)
        variances, components = torch.linalg.eigh(covariance.cpu())
        variances = variances.flip(0)[: self.channels]
        if variances[0] < _NO_VARIANCE:
            raise ValueError(
                "all training images are flat and of one colour, so there is nothing to learn; "
                "give other images"
            )
        components = components.T.flip(0)[: self.channels]
        # The sign of an eigenvector is arbitrary: make its largest entry positive.
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        # Directions without variance are not amplified (greyscale images have no colour).
        scale = variances.clamp_min(1e-6 * float(variances[0])).rsqrt()
        self.projection.copy_(components * largest.sign() * scale[:, None])
        self.mean.copy_(origin + total / count)
        self.fitted.fill_(True)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Compute features; over the images of `fit` each channel has mean 0 and variance 1.

        Raises:
            RuntimeError: the components are neither fitted nor loaded.
            ValueError: the shape is wrong, as for `Scattering`.
        """
        if not self.fitted:
            raise RuntimeError(
                "ScatteringBackbone: call fit() with training images, or load a fitted state, first"
            )
        logarithms = self._logarithms(images) - self.mean[:, None, None]
        return torch.einsum("kc,bchw->bkhw", self.projection, logarithms)

    def _logarithms(self, images: Tensor) -> Tensor:
        coefficients: Tensor = self.scattering(images)
        return torch.log(coefficients.abs() + LOG_FLOOR)


def create(
    name: str,
    weights: Path | None,
    pretrained: bool,
    *,
    components: int,
    layers: Sequence[int] | None,
    combine: CombineName | None,
) -> ScatteringBackbone:
    """Make the backbone, not yet fitted, for `crad.backbones.create_backbone`."""
    if weights is not None:
        raise BackboneError(
            f"weights: the backbone '{name}' has none to load; leave --weights {weights} out, or "
            "name the timm model that they belong to with --backbone"
        )
    try:
        return ScatteringBackbone(components)
    except ValueError as error:
        raise BackboneError(f"--components: {error}") from error
