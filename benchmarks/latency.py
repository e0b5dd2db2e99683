"""How long a detector takes for one image, and how many it does in a second.

``python -m benchmarks.latency runs/NAME IMAGE_OR_FOLDER... [--threads N]``
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import crad
from benchmarks.machine import machine
from crad.data.images import open_image
from crad.data.inputs import find_inputs
from crad.data.tensors import to_tensor
from crad.detector import Detector

_WARM_UP, _ROUNDS = 10, 200


def main() -> None:
    """Measure what the command line names, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    detector = crad.load(options.checkpoint, "cpu")
    images = [*find_inputs(options.images)[0]]
    about = machine()
    print(f"{about['cpu']}, torch {about['torch']}, {options.threads} threads, {detector.frame}")
    print(f"{'':24}{'p50':>9}{'p99':>9}  ms")
    for name, step in _stages(detector, images[0]).items():
        print(f"{name:24}{_percentiles(step)}")
    for batch_size in (1, 16):
        started = time.perf_counter()
        predicted = detector.predict(images, batch_size=batch_size)
        seconds = time.perf_counter() - started
        print(f"batches of {batch_size:2}: {len(predicted) / seconds:.1f} images a second")


def _stages(detector: Detector, path: Path) -> dict[str, Callable[[], object]]:
    """What one image goes through, one by one and together."""
    picture = open_image(path, detector.decoding)
    images = to_tensor(picture, detector.frame)[None]
    backbone = detector.backbone.folded(detector.frame.height, detector.frame.width)
    with torch.inference_mode():
        features = backbone(images)
    maps = detector.map_features(features)
    array, size = np.asarray(picture), (picture.height, picture.width)
    return {
        "decoding a file": lambda: open_image(path, detector.decoding),
        "resizing": lambda: to_tensor(Image.fromarray(array), detector.frame),
        "backbone": torch.inference_mode()(lambda: backbone(images)),
        "model": lambda: detector.map_features(features),
        "score": lambda: detector.protocol.score_each(maps, detector.frame, [size]),
        "predict_one, an array": lambda: detector.predict_one(array),
        "predict_one, a file": lambda: detector.predict_one(path),
        "the same with regions": lambda: detector.predict_one(path).regions,
    }


def _percentiles(step: Callable[[], object]) -> str:
    """The median and the 99th percentile of the time of a step."""
    times = []
    for _ in range(_WARM_UP + _ROUNDS):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return "".join(f"{1e3 * each:9.2f}" for each in np.percentile(times[_WARM_UP:], [50, 99]))


if __name__ == "__main__":
    main()
