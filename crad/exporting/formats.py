"""Writing a program of tensors into the formats of runtimes."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import torch
from torch import Tensor
from torch.export import Dim

from crad.edge.description import KEY, Description
from crad.edge.runtimes import OUTPUTS
from crad.errors import ExportError, MissingPackageError, UsageError
from crad.exporting.pipeline import Pipeline

FormatName = Literal["onnx", "openvino", "torch"]
PrecisionName = Literal["float32", "float16", "int8"]

SUFFIXES: Mapping[FormatName, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
"""Of the files of each format."""

INPUT = "images"
"""The name of the input."""

OPSET = 20
"""The first with GridSample of any number of dimensions."""

_LEAST_SIDE = 2  # of images that the file resizes


def example(pipeline: Pipeline, n_images: int = 2) -> Tensor:
    """Images of the type and the layout that a pipeline takes."""
    height, width = pipeline.size
    if pipeline.resizes:  # another size, so that nothing takes it for fixed
        height, width = height + 3, width + 5
    if pipeline.float_input:
        return torch.zeros(n_images, 3, height, width)
    return torch.zeros(n_images, height, width, 3, dtype=torch.uint8)


def _dynamic(pipeline: Pipeline) -> dict[int, Any]:
    """The dimensions of the input that are not fixed."""
    dimensions: dict[int, Any] = {0: Dim("batch")}
    if pipeline.resizes:
        dimensions |= {1: Dim("height", min=_LEAST_SIDE), 2: Dim("width", min=_LEAST_SIDE)}
    return dimensions


def to_onnx(pipeline: Pipeline) -> Any:
    """Trace a pipeline into an ONNX model (a ``ModelProto``), in float32.

    Raises:
        ExportError: PyTorch cannot translate the backbone.
        MissingPackageError: a package that it needs is not installed.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _require(name, "onnx")
    with _translating("ONNX"):
        program = torch.onnx.export(
            pipeline,
            (example(pipeline),),
            dynamo=True,
            dynamic_shapes=(_dynamic(pipeline),),
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[*OUTPUTS],
        )
    assert program is not None
    return program.model_proto


def to_float16(model: Any) -> Any:
    """The same ONNX model with numbers of 16 bits, but for its inputs and outputs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)


def to_int8(model: Any, images: Sequence[npt.NDArray[Any]], folder: Path) -> Any:
    """The same ONNX model with convolutions of 8 bits, whose ranges are those of some images.

    The first convolution and depthwise ones, in which 8 bits lose most and which hold few weights,
    stay in float32: with them in 8 bits, the products of the demo set are not recognised any more.

    Args:
        model: a ``ModelProto``.
        images: batches that the model takes.
        folder: for temporary files.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            self._left = iter(images)

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            batch = next(self._left, None)
            return None if batch is None else {INPUT: batch}

    first, second, last = (folder / f"{name}.onnx" for name in ("float", "ready", "int8"))
    onnx.save(model, first)
    quant_pre_process(first, second, skip_symbolic_shape=True)
    quantize_static(
        second,
        last,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=_sensitive(model),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(last)


def _sensitive(model: Any) -> list[str]:
    """Names of the first convolution of an ONNX model, and of the depthwise ones."""
    found = [node for node in model.graph.node if node.op_type == "Conv"]
    depthwise = [
        node.name
        for node in found[1:]
        if any(each.name == "group" and each.i > 1 for each in node.attribute)
    ]
    return [*(node.name for node in found[:1]), *depthwise]


def write_onnx(model: Any, description: Description, path: Path) -> None:
    """Write an ONNX model with its description."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, description.to_json()
    model.producer_name, model.producer_version = "crad", description.crad
    path.write_bytes(model.SerializeToString())


def write_openvino(model: Any, description: Description, path: Path) -> None:
    """Write an ONNX model as one of OpenVINO, in ``path`` and the ``.bin`` file beside it.

    Raises:
        MissingPackageError: OpenVINO is not installed.
    """
    openvino = _require("openvino", "openvino")
    converted = openvino.convert_model(io.BytesIO(model.SerializeToString()))
    converted.set_rt_info(description.to_json(), [KEY])
    compress = description.precision == "float16"
    openvino.save_model(converted, path, compress_to_fp16=compress)


def to_torch(pipeline: Pipeline) -> torch.export.ExportedProgram:
    """Trace a pipeline into a program of ``torch.export``.

    Raises:
        ExportError: PyTorch cannot trace the backbone.
    """
    with _translating("a program of torch.export"):
        return torch.export.export(
            pipeline, (example(pipeline),), dynamic_shapes=(_dynamic(pipeline),)
        )


def write_torch(
    program: torch.export.ExportedProgram, description: Description, path: Path
) -> None:
    """Write a program of ``torch.export`` with its description."""
    torch.export.save(program, path, extra_files={KEY: description.to_json()})


def check_choice(name: FormatName, precision: PrecisionName) -> None:
    """Refuse a precision that a format does not have.

    Raises:
        UsageError: it does not.
    """
    if precision != "float32" and name == "torch":
        raise UsageError("--precision: a file for PyTorch is of float32; take --format onnx")
    if precision == "int8" and name == "openvino":
        raise UsageError("--precision: int8 is for --format onnx; OpenVINO reads that file as well")


def _require(name: str, extra: str) -> Any:
    try:
        return __import__(name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"export: it needs {name}, which is not installed; install it with "
            f"pip install 'crad[{extra}]'"
        ) from error


@contextlib.contextmanager
def _translating(target: str) -> Iterator[None]:
    """Keep a translation quiet, and say in one line why it fails."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            torch.inference_mode(False),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # the exporters raise nearly anything
        lines = [line for line in str(error).splitlines() if line.strip()]
        problem = " ".join((lines or [type(error).__name__])[-1].split())[:300]
        raise ExportError(
            f"export: PyTorch cannot translate the model into {target} ({problem}); choose another "
            "--format, or train with another --backbone"
        ) from error
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
