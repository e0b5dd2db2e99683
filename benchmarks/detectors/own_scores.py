"""How well a method does by its own maps and image scores, without any protocol of crad."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from crad.data.samples import Sample
from crad.scoring.evaluation import Truths
from crad.scoring.metrics import Metrics, measure_class, summarise
from crad.scoring.prediction import Prediction
from crad.scoring.protocols import PublishedProtocol

OWN = "own"
"""What records call this protocol."""

_MASKS = PublishedProtocol(OWN)  # masks as by the protocols of papers


def measure_own(
    maps: Tensor,
    scores: Tensor,
    samples: Sequence[Sample],
    n_train: Mapping[str, int],
    truths: Truths,
) -> Metrics:
    """Measure each class, and the mean over classes.

    Args:
        maps: ``(N, h, w)`` as the method makes them; brought to the size of the images (bilinear).
        scores: ``(N,)`` as the method makes them.
        samples: the test images.
        n_train: all classes, in order, with their numbers of training images.
        truths: where the defects are.

    Raises:
        ImageError: a mask cannot be read.
        ValueError: a map or score is not finite.
    """
    size = truths.frame.height, truths.frame.width
    classes = {}
    for name, count in n_train.items():
        rows = [row for row, sample in enumerate(samples) if sample.class_name == name]
        predictions = (
            Prediction(
                **vars(samples[row]),
                score=float(scores[row]),
                scored_map=_resized(maps[row], size).numpy(),
                truth=truths(samples[row], _MASKS),
            )
            for row in rows
        )
        classes[name] = measure_class(predictions, n_train=count, n_test=len(rows))
    return summarise(classes)


def _resized(anomaly_map: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(anomaly_map.shape) == size:
        return anomaly_map
    return F.interpolate(anomaly_map[None, None], size, mode="bilinear", align_corners=True)[0, 0]
