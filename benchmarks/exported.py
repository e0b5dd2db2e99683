"""What exporting a detector gains and costs: time, size, and accuracy on its test images.

``python -m benchmarks.exported runs/NAME [--data PATH] [--json FILE] [--only NAME ...]``
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

import crad
from benchmarks.machine import machine
from crad.data import find_dataset
from crad.data.images import open_image
from crad.data.samples import Sample
from crad.errors import CradError
from crad.export import ExportOptions, export
from crad.predictor import Predictor
from crad.scoring.metrics import measure_ranking
from crad.training.checkpoint import read_checkpoint

_WARM_UP, _ROUNDS = 5, 60
_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ONNX Runtime": ("model.onnx", {}),
    "ONNX Runtime, resizing": ("resizes.onnx", {"with_preprocessing": True}),
    "ONNX Runtime, float16": ("half.onnx", {"precision": "float16"}),
    "ONNX Runtime, int8": ("eight.onnx", {"precision": "int8"}),
    "OpenVINO": ("model.xml", {}),
    "torch.export": ("model.pt2", {}),
}


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", help="default: the data of training")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=_SETTINGS, default=[*_SETTINGS])
    options = parser.parse_args()
    data = options.data or read_checkpoint(options.checkpoint).config.data.source
    samples = find_dataset(data).test
    rows = [_measure("PyTorch", crad.load(options.checkpoint, "cpu"), samples, None)]
    _print(rows[-1])
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            file, settings = _SETTINGS[name]
            path = Path(folder) / file
            started = time.perf_counter()
            try:
                with redirect_stdout(StringIO()):
                    export(ExportOptions(options.checkpoint, path, **settings))
            except CradError as error:
                print(f"{name}: {error}")
                continue
            row = _measure(name, crad.load_exported(path), samples, path)
            rows.append({**row, "export_seconds": time.perf_counter() - started})
            _print(rows[-1])
    if options.json:
        found = {"machine": machine(), "threads": torch.get_num_threads(), "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _measure(
    name: str, predictor: Predictor, samples: Sequence[Sample], path: Path | None
) -> dict[str, Any]:
    array = np.asarray(open_image(samples[0].path or "", predictor.decoding))
    times = []
    for _ in range(_WARM_UP + _ROUNDS):
        started = time.perf_counter()
        predictor.predict_one(array)
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    predictions = [each.without_maps() for each in predictor.iterate(samples)]
    rate = len(samples) / (time.perf_counter() - started)
    by_class = []
    for class_name in dict.fromkeys(sample.class_name for sample in samples):
        pairs = [
            (each.score, sample.is_anomaly)
            for each, sample in zip(predictions, samples, strict=True)
            if sample.class_name == class_name
        ]
        scores = [np.array([score for score, kind in pairs if kind == sought]) for sought in (1, 0)]
        if ranking := measure_ranking(*scores):
            by_class.append(ranking.auroc)
    files = [path, path.with_suffix(".bin")] if path else []
    return {
        "name": name,
        "megabytes": sum(file.stat().st_size for file in files if file.exists()) / 1e6,
        "p50_ms": 1e3 * float(np.percentile(times[_WARM_UP:], 50)),
        "p99_ms": 1e3 * float(np.percentile(times[_WARM_UP:], 99)),
        "images_per_second": rate,
        "image_auroc": float(np.mean(by_class)),
        "false_alarms": sum(
            each.decision == "defect" and not sample.is_anomaly
            for each, sample in zip(predictions, samples, strict=True)
        ),
        "misses": sum(
            each.decision != "defect" and sample.is_anomaly
            for each, sample in zip(predictions, samples, strict=True)
        ),
        "n_images": len(samples),
    }


def _print(row: dict[str, Any]) -> None:
    print(
        f"{row['name']:24}{row['megabytes']:7.1f} MB  p50 {row['p50_ms']:6.1f} ms  p99 "
        f"{row['p99_ms']:6.1f} ms  {row['images_per_second']:6.1f} images/s  AUROC "
        f"{row['image_auroc']:.4f}  {row['false_alarms']} false alarms, {row['misses']} misses of "
        f"{row['n_images']}",
        flush=True,
    )


if __name__ == "__main__":
    main()
