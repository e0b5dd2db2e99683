"""The CUDA backend: CUDA C++ in `csrc/cuda`."""

import ctypes

import torch

from crad_kernels._backends.library import load, path_of


def _missing() -> str:
    if torch.version.hip is not None:
        return "this PyTorch is for AMD GPUs (ROCm), on which the backend 'triton' runs"
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA; install one that was built with it"
    return load("_cuda", "a CUDA toolkit (nvcc)")


def unfit_gpu(index: int) -> str:
    """Why the library has no code for a GPU and how to get it; empty if it has."""
    oldest = ctypes.CDLL(path_of("_cuda")).crad_kernels_oldest_architecture() // 10
    major, minor = torch.cuda.get_device_capability(index)
    if 10 * major + minor >= oldest:
        return ""
    return (
        f"its library was built for compute capability {oldest / 10} and later, but "
        f"{torch.cuda.get_device_name(index)} has {major}.{minor}; run "
        f"`TORCH_CUDA_ARCH_LIST={major}.{minor}+PTX pip install -e .` again, or use "
        "backend='triton'"
    )


# The kernels compiled for the processor, which tests build where there is no GPU.
EMULATED = load("_cuda_emulated", "nothing") == ""
DEVICES = ("cpu",) if EMULATED else ("cuda",)
MISSING = "" if EMULATED else _missing()
