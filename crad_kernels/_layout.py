"""How `grid_sample` lays out its results: as torch's function does."""

from torch import Tensor


def as_torch(result: Tensor, values: Tensor, input: Tensor) -> Tensor:
    """The sample of ``values``, a view of ``input`` with channels last, with channels first.

    It is contiguous, or in channels-last memory format if ``input`` is; what can be taken for
    either, of one channel or one place, is contiguous.
    """
    if not result.is_contiguous():
        return result.movedim(-1, 1).contiguous()
    batch, *places, channels = result.shape
    if channels == 1 or result.numel() in (0, batch * channels):
        # To `view` axes of length 1, and those of no elements at all, have PyTorch's strides.
        return result.view(batch, channels, *places)
    out = result.movedim(-1, 1)
    return out if values.is_contiguous() and not input.is_contiguous() else out.contiguous()
