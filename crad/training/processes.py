"""The processes of a run: one, or in `joined` those that a launcher starts to share its work.

Each takes some batches of the images, and all get all results. Only the main process writes files
and prints.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import TypeVar, cast

import psutil
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from crad.errors import CradError, DeviceError, LaunchError, PeerError, TrainingError
from crad.launch import Launch, find_launch
from crad.memory import available_memory
from crad.training.peers import Peers

T = TypeVar("T")

_TIMEOUT = timedelta(days=7)  # one may measure while the others wait; if it fails, `Peers` ends all
_JOINING = timedelta(minutes=5)  # from the first process to the last
_NOTICE = 2.0  # seconds until the end of a process is noticed

_has_joined = False  # others, at any time
_launch: Launch | None = None  # of the processes that are joined
_peers: Peers | None = None  # kept when a run fails, until this process ends


@contextmanager
def joined(device: torch.device, *, grace: float = 15.0) -> Iterator[None]:
    """Join the processes of this run for the block, in which only the main one prints.

    A model that exchanges anything in training is to be made in the block. When one process fails,
    the others end within half a minute.

    Args:
        device: where each computes; of several GPUs on a machine each process gets its own.
        grace: seconds in which a process may end by itself, after a signal or when another one has
            failed; then it is ended.

    Raises:
        DeviceError: there are fewer GPUs than processes.
        LaunchError: what the launcher sets is incomplete, or the processes do not find each other.
        PeerError: another process has failed.
    """
    global _has_joined, _launch, _peers
    AcceleratorState._reset_state(reset_partial_state=True)  # of a former run in this process
    launch = find_launch()
    if launch is None:
        yield
        return
    if device.type != "cpu" and launch.local_count > torch.cuda.device_count():
        raise DeviceError(
            f"device: {launch.local_count} processes for {torch.cuda.device_count()} GPUs; lower "
            "--nproc_per_node of torchrun or -n of mpirun and srun, let every process see all GPUs "
            "of its machine (srun --gpu-bind=none), or use --device cpu"
        )
    os.environ.update(launch.environment())  # that is where accelerate looks
    _share_threads(launch)
    _has_joined = True
    _launch, _peers = launch, _meet(launch, device, grace)
    try:
        state = PartialState(cpu=device.type == "cpu")
        with _silence() if launch.rank else nullcontext():
            yield
    except BaseException as error:
        failure = _peers.failure(_NOTICE) if _is_of_exchange(error) else None
        _peers.fail()
        if failure:
            raise PeerError(f"another process failed ({failure})") from error
        raise
    _peers.done()
    state.destroy_process_group()
    _launch = _peers = None


def _share_threads(launch: Launch) -> None:
    """Share the cores of this machine between its processes, unless OMP_NUM_THREADS does."""
    if "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it, mpirun and srun do not
        cores = (psutil.cpu_count(logical=False) or 1) // launch.local_count
        threads = max(1, min(cores, torch.get_num_threads()))
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


@contextmanager
def _silence() -> Iterator[None]:
    """Print nothing in the block."""
    with (
        open(os.devnull, "w", encoding="utf-8", errors="backslashreplace") as nowhere,
        redirect_stdout(nowhere),
    ):
        yield


def _meet(launch: Launch, device: torch.device, grace: float) -> Peers:
    """Start the group of all processes."""
    try:
        store, _, _ = next(rendezvous("env://", timeout=_JOINING))
    except (OSError, RuntimeError, ValueError) as error:
        raise LaunchError(
            f"processes: rank {launch.rank} of {launch.count} did not find the others at "
            f"{launch.address}:{launch.port} ({error}); start all of them again, with another "
            "MASTER_PORT if that port is taken"
        ) from error
    peers = Peers(store, launch, grace)
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "nccl",
        store=PrefixStore("crad-group", store),
        rank=launch.rank,
        world_size=launch.count,
        timeout=_TIMEOUT,
    )
    return peers


def _is_of_exchange(error: BaseException) -> bool:
    """Whether an error may come from an exchange with another process."""
    is_foreign = isinstance(error, RuntimeError) and not isinstance(error, CradError)
    return is_foreign or isinstance(error, PeerError)


def has_joined() -> bool:
    """Whether this process has joined others, at any time."""
    return _has_joined


def may_print_error() -> bool:
    """Whether this process is to print its error, or another one does."""
    return _peers is None or _peers.may_print_error()


def rank() -> int:
    """Rank of this process, from 0."""
    # accelerate's `PartialState` would start a process group outside of `joined`.
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def local_rank() -> int:
    """Rank of this process on its machine, from 0."""
    return _launch.local_rank if _launch else 0


def local_count() -> int:
    """Number of processes on this machine."""
    return _launch.local_count if _launch else 1


def machine() -> str:
    """Name of this machine among those of the run."""
    return _launch.machine if _launch else ""


def check_memory(needs: Iterable[tuple[str, float, str]]) -> None:
    """Refuse what memory cannot hold in all processes, before the system ends one.

    All processes call this together, so that none takes memory before all have seen what is left,
    and all come to the same result.

    Args:
        needs: what takes memory, with its verb; its bytes in each process; the option to lower.

    Raises:
        TrainingError: it needs more than there is.
    """
    available = min(gather(available_memory() / local_count()))
    for what, needed, option in needs:
        if needed > available:
            each = " to each process" if local_count() > 1 else ""
            fewer = ", or start fewer processes" if each else ""
            raise TrainingError(
                f"memory: {what} {needed / 1e9:.3g} GB, but {available / 1e9:.3g} GB are "
                f"available{each}; lower {option}{fewer}"
            )


def start_command() -> tuple[str, ...]:
    """What to type before ``crad`` to start as many processes as there are."""
    if _launch is None:
        return ()
    module = ("-m",) if _launch.start[0] == "torchrun" else ()
    return (*_launch.start, str(_launch.count), *module)


def share(items: Sequence[T], batch_size: int, rank: int, count: int) -> list[T]:
    """Give the part of a process: every ``count``-th batch, starting with batch number ``rank``.

    Batches, and what is computed of them, are those of one process; accelerate's
    `split_between_processes` would cut them apart.
    """
    starts = range(rank * batch_size, len(items), count * batch_size)
    return [item for start in starts for item in items[start : start + batch_size]]


def gather(value: T) -> list[T]:
    """Give all processes what each of them has, in order of rank."""
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


def gather_items(rows: Sequence[int], items: Sequence[T]) -> tuple[list[int], list[T]]:
    """Put together the items that each process has, as `gather_rows` does with rows of one size."""
    together = {
        row: item for part in gather([*zip(rows, items, strict=True)]) for row, item in part
    }
    return sorted(together), [together[row] for row in sorted(together)]


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
