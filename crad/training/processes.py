"""The processes of a run: one, or in `joined` those that torchrun starts to share its work.

Each takes some batches of the images, and all get all results. Only the main process writes files
and prints.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor

from crad.errors import DeviceError, LaunchError, PeerError

T = TypeVar("T")

_TIMEOUT = timedelta(days=7)  # one may measure while the others wait; if it fails, all are ended

# What torchrun sets for the processes to find each other: numbers, but for the last.
_ENVIRONMENT = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes of this run for the block, in which only the main one prints.

    A model that exchanges anything in training is to be made in the block.

    Args:
        device: where each computes; of several GPUs on a machine each process gets its own.

    Raises:
        DeviceError: there are fewer GPUs than processes.
        LaunchError: some of what torchrun sets is not set, or not to a number.
    """
    AcceleratorState._reset_state(reset_partial_state=True)  # of a former run in this process
    if "LOCAL_RANK" not in os.environ:
        yield
        return
    on_cpu = device.type == "cpu"
    if not on_cpu and local_count() > torch.cuda.device_count():
        raise DeviceError(
            f"device: {local_count()} processes for {torch.cuda.device_count()} GPUs; lower "
            "--nproc_per_node of torchrun, or use --device cpu"
        )
    values = {name: os.environ.get(name, "") for name in _ENVIRONMENT}
    wrong = [n for n, v in values.items() if not (v.isdecimal() or (v and n == "MASTER_ADDR"))]
    if wrong:
        raise LaunchError(
            f"processes: LOCAL_RANK is set, but {', '.join(wrong)} is missing or invalid; start "
            "several processes with torchrun --nproc_per_node N -m crad train, or unset LOCAL_RANK "
            "for one"
        )
    state = PartialState(cpu=on_cpu, timeout=_TIMEOUT)
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if is_main() else nowhere):
        yield
    state.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    # accelerate's `PartialState` would start a process group outside of `joined`.
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def local_rank() -> int:
    """Number of this process on its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def local_count() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def share(items: Sequence[T], batch_size: int, rank: int, count: int) -> list[T]:
    """Give the part of a process: every ``count``-th batch, starting with batch number ``rank``.

    Batches, and what is computed of them, are those of one process; accelerate's
    `split_between_processes` would cut them apart.
    """
    starts = range(rank * batch_size, len(items), count * batch_size)
    return [item for start in starts for item in items[start : start + batch_size]]


def gather(value: T) -> list[T]:
    """Give all processes what each of them has, in order of their number."""
    if count() == 1:
        return [value]
    with _exchange():
        return cast(list[T], gather_object([value]))


def gather_rows(rows: Sequence[int], values: Tensor) -> tuple[list[int], Tensor]:
    """Put together the rows that each process has.

    Args:
        rows: the numbers of the rows; no other process has them.
        values: ``(R, ...)``.

    Returns:
        All numbers, ascending, and the rows, on the device of ``values``.
    """
    if count() == 1:
        return list(rows), values
    # accelerate's `gather` needs as many rows of each process.
    parts = gather((list(rows), values.cpu()))
    numbers = [row for found, _ in parts for row in found]
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    return sorted(numbers), torch.cat([part for _, part in parts])[order].to(values.device)


def copy_main(tensors: Iterable[Tensor]) -> None:
    """Give tensors, in place, the values that those of the main process have."""
    if count() > 1:
        with _exchange():
            broadcast(list(tensors))


def on_main(function: Callable[[], T]) -> T:
    """Call a function in the main process, and give what it returns to all."""
    if count() == 1:
        return function()
    values = [function() if is_main() else None]
    with _exchange():
        return cast(T, broadcast_object_list(values)[0])


@contextmanager
def _exchange() -> Iterator[None]:
    """Tell the loss of another process from errors in what this one computes."""
    try:
        yield
    except RuntimeError as error:
        raise PeerError(f"another process failed ({error})") from error
