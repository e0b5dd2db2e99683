"""Where features are kept: in memory as long as they fit, else in a temporary file."""

import math
import os
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from crad.errors import LaunchError, StorageError
from crad.memory import available_memory
from crad.training import processes

_SHARE = 0.5  # of the memory that is available


class FeatureMemory:
    """Make the tensors that features are kept in, within a budget of memory.

    What is beyond the budget, or shared by several processes, lies in a file that is mapped into
    memory, in the folder TMPDIR of the environment, else in ``/var/tmp``, which unlike ``/tmp`` is
    on a disk. Its name is removed once it is open, so that it is gone however the process ends.

    Args:
        gigabytes: the budget, in 1e9 bytes; None takes half of the memory that is available.
    """

    def __init__(self, gigabytes: float | None = None) -> None:
        self._left = _SHARE * available_memory() if gigabytes is None else 1e9 * gigabytes

    def allocate(self, *size: int) -> Tensor:
        """Make a float32 tensor on the CPU, one for all processes, which call this together."""
        n_bytes = 4 * math.prod(size)
        if not n_bytes or (processes.count() == 1 and n_bytes <= self._left):
            self._left -= n_bytes
            return torch.empty(size)
        path = _reserve(n_bytes) if processes.local_rank() == 0 else None
        try:
            everywhere = processes.gather((processes.machine(), path))
            own = [file for machine, file in everywhere if file and machine == processes.machine()]
            if len(own) != 1:
                raise LaunchError(
                    f"processes: {len(own)} of those on machine '{processes.machine()}' say that "
                    "they are its first one; start them with torchrun, mpirun or srun"
                )
            tensor = torch.from_file(str(own[0]), shared=True, size=math.prod(size))
            processes.gather(None)  # all have opened it
        finally:
            if path and processes.local_rank() == 0:
                path.unlink()
        return tensor.view(size)


def _reserve(n_bytes: int) -> Path:
    """Make a file of a size, with its space on the disk: a full one must not end the process."""
    default = "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()
    folder = Path(os.environ.get("TMPDIR") or default)
    problem = None
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        problem = "is not a writable folder"
    elif (free := shutil.disk_usage(folder).free) < n_bytes:
        problem = f"has {free / 1e9:.1f} GB free"
    if problem:
        raise StorageError(
            f"features: a temporary file of {n_bytes / 1e9:.1f} GB is needed, but '{folder}' "
            f"{problem}; set TMPDIR to another folder, or raise --feature-memory"
        )
    with tempfile.NamedTemporaryFile(prefix="crad-features-", dir=folder, delete=False) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        except BaseException as error:
            os.unlink(file.name)
            if isinstance(error, OSError):
                raise StorageError(error.errno, error.strerror, str(folder)) from error
            raise
    return Path(file.name)
