"""The CUDA backend: CUDA C++ in `csrc/cuda`."""

import torch

from crad_kernels.backends.library import load


def _missing() -> str:
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA; install one that was built with it"
    return load("_cuda", "a CUDA toolkit (nvcc)")


# The kernels compiled for the processor, which tests build where there is no GPU.
EMULATED = load("_cuda_emulated", "nothing") == ""
DEVICES = ("cpu",) if EMULATED else ("cuda",)
MISSING = "" if EMULATED else _missing()
