"""Scattering features by products of matrices, for runtimes that have no fast Fourier transform."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crad.backbones.scattering import (
    LOG_FLOOR,
    OPPONENT,
    PADDING,
    SCALES,
    ScatteringBackbone,
    average_matrix,
    filter_bank,
)


class MatrixScattering(nn.Module):
    """The features of a `ScatteringBackbone`, up to rounding, for batches of any size.

    A Fourier transform of an axis is a product with a matrix, of which a complex one is a real one
    of twice as many rows and columns.

    Args:
        backbone: fitted.
        height: of the images, in pixels.
        width: the same.
    """

    def __init__(self, backbone: ScatteringBackbone, height: int, width: int) -> None:
        super().__init__()
        self.size = height + 2 * PADDING, width + 2 * PADDING
        cpu = torch.device("cpu")
        self.register_buffer("opponent", torch.tensor(OPPONENT))
        self.register_buffer("mean", backbone.mean.detach().clone().view(1, -1, 1, 1))
        self.register_buffer("projection", backbone.projection.detach().clone()[:, :, None, None])
        wavelets = filter_bank(*self.size, cpu)
        for scale in range(SCALES):
            height, width = (side >> scale for side in self.size)
            self._constant(f"forward_rows_{scale}", _fourier(height, -1) / height)
            self._constant(f"forward_columns_{scale}", _fourier(width, -1).T / width)
            self._constant(f"inverse_rows_{scale}", _fourier(height, 1))
            self._constant(f"inverse_columns_{scale}", _fourier(width, 1).T)
            self._constant(f"filters_{scale}", wavelets[scale].values.real)
            for axis, side in enumerate(self.size):
                self._constant(f"average_{axis}_{scale}", average_matrix(side, scale, cpu))
            for source in range(scale + 1):
                rows, columns = (side >> source for side in self.size)
                index = (wavelets[scale].rows % rows)[:, :, None] * columns
                index = index + (wavelets[scale].columns % columns)[:, None, :]
                self.register_buffer(f"window_{source}_{scale}", index.flatten())

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.float().contiguous())

    def forward(self, images: Tensor) -> Tensor:
        """Transform images ``(B, 3, H, W)``, float32 RGB in [0, 1]."""
        padded = F.pad(images, (PADDING,) * 4, mode="reflect")
        signal = torch.einsum("oc,bchw->bohw", self.get_buffer("opponent"), padded)[:, :, None]
        outputs = [self._average(signal, 0)]
        second: list[Tensor] = []
        for scale in range(SCALES):
            first = self._moduli(signal, 0, scale)
            outputs.append(self._average(first, scale))
            for coarser in range(scale + 1, SCALES):
                moduli = self._moduli(first[:, :, :, None], scale, coarser)
                second.append(self._average(moduli, coarser).flatten(2, 3))
        coefficients = torch.cat(outputs + second, dim=2).flatten(1, 2)
        logarithms = torch.log(coefficients.abs() + LOG_FLOOR) - self.get_buffer("mean")
        return F.conv2d(logarithms, self.get_buffer("projection"))

    def _moduli(self, signal: Tensor, source: int, scale: int) -> Tensor:
        """As `crad.backbones.scattering.Wavelets.moduli`, ``(..., 1, H, W)`` to ``(..., L, h, w)``.

        Args:
            signal: real, subsampled to the scale ``source``.
            source: the same.
            scale: of the wavelets.
        """
        get = self.get_buffer
        rows, columns = signal.shape[-2:]
        # Real times complex: the halves of the rows are its real and its imaginary part.
        spectrum = get(f"forward_rows_{source}")[:, :rows] @ signal
        spectrum = _by_columns(spectrum) @ get(f"forward_columns_{source}")
        index = get(f"window_{source}_{scale}")
        filters = get(f"filters_{scale}")
        parts = [
            part.flatten(-3).index_select(-1, index).unflatten(-1, filters.shape) * filters
            for part in spectrum.split(columns, dim=-1)
        ]
        waves = get(f"inverse_rows_{scale}") @ torch.cat(parts, dim=-2)
        waves = _by_columns(waves) @ get(f"inverse_columns_{scale}")
        real, imaginary = waves.split(filters.shape[-1], dim=-1)
        moduli: Tensor = (real.square() + imaginary.square()).sqrt()
        return moduli

    def _average(self, signal: Tensor, scale: int) -> Tensor:
        rows, columns = (self.get_buffer(f"average_{axis}_{scale}") for axis in (0, 1))
        averaged: Tensor = rows @ signal @ columns.mT
        return averaged


def _fourier(length: int, sign: int) -> Tensor:
    """The matrix of a Fourier transform, without its factor, as a real one ``(2 n, 2 n)``."""
    at = torch.arange(length)
    angles = (at[:, None] * at % length).double() * (sign * 2 * torch.pi / length)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([torch.cat([cosine, -sine], dim=1), torch.cat([sine, cosine], dim=1)])


def _by_columns(stacked: Tensor) -> Tensor:
    """Real and imaginary part side by side, of one above the other."""
    return torch.cat(stacked.split(stacked.shape[-2] // 2, dim=-2), dim=-1)
