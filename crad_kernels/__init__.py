"""Sampling of learnable N-dimensional grids, with Gaussian coordinate jitter, for PyTorch."""

from crad_kernels._backends import Backend, backends
from crad_kernels._backends.cpu import release_memory
from crad_kernels._patch import Patch, patch
from crad_kernels.functional import grid_sample, sample
from crad_kernels.levels import level_resolutions, sample_levels
from crad_kernels.memory import GridMemory, MultiLevelMemory

__version__ = "0.1.0"
__all__ = [
    "Backend",
    "GridMemory",
    "MultiLevelMemory",
    "Patch",
    "__version__",
    "backends",
    "grid_sample",
    "level_resolutions",
    "patch",
    "release_memory",
    "sample",
    "sample_levels",
]
