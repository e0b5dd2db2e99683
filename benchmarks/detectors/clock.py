"""What times are measured with."""

import time

import torch


def now() -> float:
    """Seconds: of the processor where one thread computes, else of the wall.

    Other work on the machine hardly changes the time that the processor takes.
    """
    return time.process_time() if kind() == "cpu" else time.perf_counter()


def kind() -> str:
    """``"cpu"`` or ``"wall"``, for records."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return "cpu" if alone else "wall"
