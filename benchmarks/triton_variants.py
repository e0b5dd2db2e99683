"""Compiles the Triton kernels that matter, without a GPU, and says which registers they take.

    python -m benchmarks.triton_variants             # for all of TARGETS
    python -m benchmarks.triton_variants sm_90 gfx942
    python -m benchmarks.triton_variants --once sm_90   # one variant of each kernel

Calls are made on tensors without memory, and what they launch is compiled to machine code of
NVIDIA's Ampere, Hopper and Blackwell, and of AMD's MI300: where a GPU would time several
configurations, the first. Ends with status 1 if one spills registers to memory, but for what is
tolerated.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from multiprocessing import Pool
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton import compile as triton_compile
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.cases import TARGETS as CASES
from crad_kernels._backends.triton import INTERPRETED, launch, levels
from crad_kernels._schema import pack

TARGETS = {
    **{f"sm_{number}": GPUTarget("cuda", number, 32) for number in (80, 90, 100)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MOST = 68

# Bytes of shared memory that a block may have on the GPUs with the least: of compute capability 8.6
# and 8.9.
SHARED = 99 * 1024
LDS = 64 * 1024  # of gfx942

# Bytes that a thread may spill, and why: which variants do differs from one Triton to the next.
TOLERATED = 16
REASON = (
    "to fit one block more on a multiprocessor, the assembler parks numbers in memory; where it "
    "was looked at, before all loops, to be read after them, or twice a turn of the outer loop; on "
    "sm_100 up to 16 bytes, with 4 warps, which take a third of the instructions of 8"
)

_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


@dataclass(frozen=True)
class Call:
    """A call of the operators, forward and backward, whose kernels are compiled.

    Attributes:
        size: entries per axis of the grid.
        channels: channels of an entry.
        points: number of points.
        mode: as `crad_kernels.sample` takes it, and so are the two that follow.
        padding_mode: see ``mode``.
        deterministic: see ``mode``.
        jittered: whether the coordinates are jittered.
        dtype: of the values.
        coords_dtype: of the coordinates.
        derivative: as the operators take it.
    """

    size: tuple[int, ...]
    channels: int
    points: int = 50_176
    mode: str = "linear"
    padding_mode: str = "zeros"
    deterministic: bool = False
    jittered: bool = False
    dtype: torch.dtype = torch.float32
    coords_dtype: torch.dtype = torch.float32
    derivative: int = 0

    def __call__(self) -> None:
        """Launch, on tensors without memory."""
        empty = partial(torch.empty, device="meta")
        ndim = len(self.size)
        arguments: tuple[Any, ...] = (
            empty(*self.size, self.channels, dtype=self.dtype),
            empty(self.points, ndim, dtype=self.coords_dtype),
            empty((), dtype=torch.int64) if self.jittered else None,
            empty(ndim, dtype=self.coords_dtype) if self.jittered else None,
            pack(self.mode, self.padding_mode, False, self.deterministic, self.derivative),
        )
        launch.sample(*arguments)
        grad_output = empty(self.points, self.channels, dtype=self.dtype)
        launch.sample_backward(*(grad_output, *arguments, True, True))


@dataclass(frozen=True)
class LevelsCall:
    """A call of the operators of several levels.

    Attributes:
        ndim: axes of each level.
        channels: channels of an entry.
        levels: how many, of growing sizes.
        points: number of points.
        padding_mode: as `crad_kernels.sample_levels` takes it.
        jittered: whether the coordinates are jittered.
    """

    ndim: int
    channels: int
    levels: int = 16
    points: int = 1 << 17
    padding_mode: str = "zeros"
    jittered: bool = False

    def __call__(self) -> None:
        """Launch, on tensors without memory."""
        empty = partial(torch.empty, device="meta")
        sizes = [(16 + level,) * self.ndim for level in range(self.levels)]
        arguments: tuple[Any, ...] = (
            empty(sum(map(prod, sizes)), self.channels),
            empty(self.points, self.ndim),
            empty((), dtype=torch.int64) if self.jittered else None,
            empty(self.ndim) if self.jittered else None,
            [number for size in sizes for number in size],
            pack("linear", self.padding_mode, False, False),
        )
        grad_output = empty(self.points, self.levels * self.channels)
        levels.sample_levels(*arguments)
        levels.sample_levels_backward(*(grad_output, *arguments, True, True))


OPTIONS: tuple[dict[str, Any], ...] = (
    {"dtype": torch.bfloat16},
    {"dtype": torch.float64, "coords_dtype": torch.float64},
    {"mode": "cubic"},
)

CALLS: tuple[Any, ...] = (
    # The shapes with targets in benchmarks/cases.py; the first two with jitter, as CRAD calls them.
    *(
        Call(case.size, case.channels, prod(case.points), jittered=i < 2)
        for i, case in enumerate(CASES)
    ),
    *(Call(size, 216, **options) for size, options in product(((8, 8), (60, 60)), OPTIONS)),
    Call((8, 8), 216, mode="cubic", padding_mode="reflection", jittered=True),
    Call((8, 8), 216, mode="nearest", padding_mode="border"),
    Call((8, 8), 3, padding_mode="reflection"),
    Call((60, 60), 216, deterministic=True),
    Call((60, 60), 216, mode="cubic", derivative=0x11),
    Call((4,) * 4, 64, mode="cubic"),
    Call((2,) * 8, 64, jittered=True),
    Call((4,) * 6, 64, mode="simplex", padding_mode="border"),
    LevelsCall(4, 8, padding_mode="reflection", jittered=True),
    LevelsCall(3, 2),
    lambda: launch.normals(torch.empty((), dtype=torch.int64, device="meta"), 1000, 8),
)


@dataclass(frozen=True)
class Variant:
    """A kernel, and what its compiler is told: as Triton does where it compiles for a call.

    Attributes:
        kernel: the function.
        warps: that a program runs on.
        types: by parameter.
        constants: by position of the parameter, and within it.
        attributes: of numbers and addresses, in the same way.
    """

    kernel: Any
    warps: int
    types: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]

    def __str__(self) -> str:
        """The kernel's name, the dtypes of its tensors, and the constants that are named."""
        dtypes = [t[1:] for t in self.types.values() if t[0] == "*"]
        names = self.kernel.arg_names
        named = [str(v) for (i, *_), v in self.constants.items() if names[i].isupper()]
        return f"{self.kernel.__name__}[{' '.join(dtypes)}; {' '.join(named)}]"


def variant_of(kernel: Any, warps: int, arguments: dict[str, Any]) -> Variant:
    """What Triton would compile for these arguments."""
    types: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def type_of(place: tuple[int, ...], argument: Any, specialised: bool) -> str:
        if argument is None or (specialised and type(argument) is int and argument == 1):
            constants[place] = argument
            return "constexpr"
        if isinstance(argument, Tensor) or (specialised and argument % 16 == 0):
            attributes[place] = [["tt.divisibility", 16]]
        if isinstance(argument, Tensor):
            return _TYPES[argument.dtype]
        return "i32" if argument < 2**31 else "i64"

    for i, parameter in enumerate(kernel.params):
        argument = arguments[parameter.name]
        if parameter.is_constexpr:
            types[parameter.name] = "constexpr"
            constants[i,] = argument
        elif isinstance(argument, tuple):
            types[parameter.name] = tuple(
                type_of((i, j), each, True) for j, each in enumerate(argument)
            )
        else:
            types[parameter.name] = type_of((i,), argument, not parameter.do_not_specialize)
    return Variant(kernel, warps, types, constants, attributes)


def variants() -> list[Variant]:
    """What the calls launch, each once."""
    found: dict[str, Variant] = {}

    def record(kernel: Any, programs: int, device: Any, warps: int = 4, **arguments: Any) -> None:
        variant = variant_of(kernel, warps, arguments)
        found.setdefault(repr(variant), variant)

    with mock.patch.object(launch, "run", record):
        for call in CALLS:
            call()
    return list(found.values())


def compiled(number: int, name: str) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills, of a variant for a target."""
    variant, target = variants()[number], TARGETS[name]
    source = ASTSource(variant.kernel, variant.types, variant.constants, variant.attributes)
    options = {"num_warps": variant.warps, "enable_fp_fusion": False}
    binary = triton_compile(source, target=target, options=options)
    if target.backend == "hip":
        assert binary.metadata.shared <= LDS, f"{variant} takes {binary.metadata.shared} bytes"
        return _usage_of_amd(binary.asm["amdgcn"])
    assert "tf32" not in binary.asm["ptx"], f"{variant} multiplies in less than float32"
    assert binary.metadata.shared <= SHARED, f"{variant} takes {binary.metadata.shared} bytes"
    return _usage_of_nvidia(binary.asm["cubin"])


def _usage_of_nvidia(code: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        report = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert usage
    return int(usage[1]), int(usage[2])


def _usage_of_amd(assembly: str) -> tuple[int, int]:
    """Vector registers, and the bytes of memory that a thread has for itself."""
    fields = dict(re.findall(r"^\s*\.(\w+):\s*(\d+)$", assembly, re.MULTILINE))
    return int(fields["vgpr_count"]), int(fields["private_segment_fixed_size"])


def main(arguments: Sequence[str]) -> int:
    """Print a row for each variant; 1 if one of them spills more than is tolerated.

    Args:
        arguments: the names of targets, none for all; and ``--once``, for one variant of each
            kernel.
    """
    names = [name for name in arguments if name != "--once"]
    if unknown := [name for name in names if name not in TARGETS]:
        sys.exit(f"there is no target '{unknown[0]}'; choose from {', '.join(TARGETS)}")
    names = names or [*TARGETS]
    if INTERPRETED:
        sys.exit("TRITON_INTERPRET is set, so there is nothing to compile: unset it")
    every = variants()
    assert len(every) <= MOST
    chosen: Sequence[int] = range(len(every))
    if "--once" in arguments:
        chosen = sorted({variant.kernel: i for i, variant in enumerate(every)}.values())
    print(f"{len(chosen)} variants: registers and bytes spilled by a thread, for each of")
    print(" ".join(f"{name:>8}" for name in names))
    few = many = 0
    with Pool() as pool:
        jobs = product(chosen, names)
        results = iter(pool.starmap(compiled, jobs, chunksize=len(names)))
    for variant in (every[i] for i in chosen):
        row = [next(results) for _ in names]
        cells = (f"{registers:>4} {spills:>3}" for registers, spills in row)
        print(*cells, variant)
        few += sum(0 < spills <= TOLERATED for _, spills in row)
        many += sum(spills > TOLERATED for _, spills in row)
    print(f"{few} spill at most {TOLERATED} bytes: {REASON}\n{many} spill more")
    return int(many > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
