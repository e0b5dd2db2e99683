"""The programs that run an exported file."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crad.edge.description import KEY
from crad.errors import CheckpointError, MissingPackageError, UsageError

_THREADS = range(1, 1025)  # a runtime would start more than that, and hang


class Outputs(NamedTuple):
    """What a file computes of B images.

    Attributes:
        score: float32 (B,), the anomaly scores.
        decision: int64 (B,), indices of `crad.edge.description.DECISIONS`, or -1.
        map: float32 (B, H, W), the maps that the scores are taken from.
        class_: int64 (B,), indices of the classes, or -1.
    """

    score: npt.NDArray[np.float32]
    decision: npt.NDArray[np.int64]
    map: npt.NDArray[np.float32]
    class_: npt.NDArray[np.int64]


OUTPUTS = ("score", "decision", "map", "class")
"""Their names in a file."""


class Runtime(ABC):
    """A file that has been loaded.

    Args:
        path: the file.
        threads: at most; None leaves it to the runtime.
    """

    description: str

    @abstractmethod
    def __init__(self, path: Path, threads: int | None = None) -> None:
        self._opened = path.absolute(), threads

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the name of the file, which another process opens anew."""
        return open_runtime, self._opened

    @abstractmethod
    def run(self, images: npt.NDArray[Any]) -> Outputs:
        """Compute a batch of images, of the type and the layout that the file takes.

        Several threads may call it.
        """


class OnnxRuntime(Runtime):
    """An ``.onnx`` file in ONNX Runtime, on the CPU."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__(path, threads)
        onnxruntime = _import("onnxruntime", "onnx")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
        self.description = self._session.get_modelmeta().custom_metadata_map.get(KEY, "")
        self._input = self._session.get_inputs()[0].name

    def run(self, images: npt.NDArray[Any]) -> Outputs:
        """As `Runtime.run`."""
        return Outputs(*self._session.run(OUTPUTS, {self._input: images}))


class OpenVino(Runtime):
    """An ``.xml`` file, and the ``.bin`` file beside it, in OpenVINO."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__(path, threads)
        openvino = _import("openvino", "openvino")
        core = openvino.Core()
        model = core.read_model(os.fspath(path))
        self.description = str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else ""
        properties = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = str(threads)
        self._compiled = core.compile_model(model, "CPU", properties)
        self._free = threading.Lock()  # it computes one batch at a time

    def run(self, images: npt.NDArray[Any]) -> Outputs:
        """As `Runtime.run`."""
        with self._free:
            found = self._compiled(images)
            return Outputs(*(np.array(found[name]) for name in OUTPUTS))


class TorchProgram(Runtime):
    """A ``.pt2`` file in PyTorch, whose number of threads is `torch.set_num_threads`'s."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__(path, threads)
        self._torch = _import("torch", "")
        files = {KEY: ""}
        program = self._torch.export.load(os.fspath(path), extra_files=files)
        self.description = files[KEY]
        self._module = program.module()

    def run(self, images: npt.NDArray[Any]) -> Outputs:
        """As `Runtime.run`."""
        with self._torch.inference_mode():
            found = self._module(self._torch.from_numpy(images))
        return Outputs(*(each.numpy() for each in found))


RUNTIMES: Mapping[str, type[Runtime]] = {
    ".onnx": OnnxRuntime,
    ".xml": OpenVino,
    ".pt2": TorchProgram,
}
"""By the suffix of the files that they run."""


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the name of an exported one."""
    return Path(path).suffix.lower() in RUNTIMES


def open_runtime(path: Path, threads: int | None = None) -> Runtime:
    """Load an exported file, into the runtime that its suffix names.

    Raises:
        CheckpointError: there is no such file, or it cannot be loaded.
        MissingPackageError: its runtime is not installed.
        UsageError: ``threads`` is no number from 1 to 1024.
    """
    if threads is not None and (not isinstance(threads, Integral) or threads not in _THREADS):
        raise UsageError(f"threads: expected a whole number from 1 to 1024, but got {threads!r}")
    if not is_exported(path):
        raise CheckpointError(
            f"exported: '{path}' is none of {', '.join(RUNTIMES)}; crad export writes them"
        )
    if not path.is_file():
        raise CheckpointError(f"exported: there is no file '{path}'; crad export writes one")
    try:
        return RUNTIMES[path.suffix.lower()](path, threads)
    except MissingPackageError:
        raise
    except Exception as error:  # runtimes raise nearly anything
        problem = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"exported: '{path}' cannot be loaded ({problem}); export the checkpoint again"
        ) from error


def _import(name: str, extra: str) -> Any:
    try:
        return __import__(name)
    except ModuleNotFoundError as error:
        where = f"pip install {name}" + (f", or pip install 'crad[{extra}]'" if extra else "")
        raise MissingPackageError(
            f"exported: it needs {name}, which is not installed; install it with {where}"
        ) from error
