"""What a reader of decisions must know of them: what they rest on, and what contradicts them."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from crad.predictor import Predictor
from crad.report.tables import printable
from crad.scoring.calibration import class_of, promise
from crad.scoring.prediction import Prediction
from crad.words import enumerate_some


def how_decided(
    done: Sequence[Prediction], detector: Predictor, class_name: str | None
) -> Iterator[str | None]:
    """Say what a reader of the decisions must know.

    Args:
        done: the predictions, at least one.
        detector: that made them.
        class_name: the class that all images were said to be of; None where none was.

    Yields:
        A note; None says nothing.
    """
    if not detector.thresholds:
        yield (
            "no decisions: the checkpoint has no thresholds; crad calibrate --good FOLDER sets "
            "some, and so does training with --calibration-share above 0"
        )
    elif not detector.pixel_thresholds:
        yield (
            "no regions: the checkpoint has no pixel thresholds, as an older crad wrote it; crad "
            "calibrate --good FOLDER sets some"
        )
    asked = [name for name in detector.thresholds if class_name in (None, name)]
    without = [name for name in asked if detector.calibration and name not in detector.calibration]
    numbers = [detector.thresholds[name].n_images for name in asked if name not in without]
    yield promise(numbers, detector.false_alarm_rate)
    if without:
        yield (
            f"{enumerate_some([*map(printable, without)])}: the threshold of training, whatever "
            "the rate, and no p-value, as there are no calibration scores; crad calibrate --good "
            "FOLDER gives some"
        )
    yield _empty_band(detector)
    if class_name is not None or len(detector.classes) < 2:
        return
    counts = Counter(each.class_name for each in done)
    unknown = counts.pop(None, 0)
    recognised = detector.recognises
    if counts:
        told = ", ".join(f"{printable(str(name))} {count}" for name, count in counts.items())
        how = "as recognised" if recognised else "from the names of their folders"
        yield f"images per class, {how}: {told}; --class NAME overrides"
    if unknown and recognised:
        yield (
            f"{unknown} of {len(done)} images: unknown product, so there is no decision; --class "
            "NAME sets the class"
        )
    elif unknown:
        yield (
            f"{unknown} of {len(done)} images: class unknown (no folder named like a class, and an "
            "older crad wrote the checkpoint, which cannot recognise classes); the highest "
            "threshold of all classes decides; --class NAME sets the class"
        )
    if recognised:
        yield _contradictions(done, detector.classes)


def _empty_band(detector: Predictor) -> str | None:
    """Say of which classes no image can be uncertain, as the two rates have one threshold."""
    empty, least = [], 0.0
    for name, scores in detector.calibration.items() if detector.uncertain else ():
        threshold = detector.thresholds[name].score
        if detector.uncertain[name].score < threshold:
            continue
        n_lower = sum(score < threshold for score in scores)
        if n_lower:
            least = max(least, 1 - n_lower / (len(scores) + 1))
        empty.append(printable(name))
    if not empty:
        return None
    way_out = f"take --uncertain {math.ceil(100 * least) / 100:.3g} or more, or " if least else ""
    return (
        f"no image of {enumerate_some(empty)} can be uncertain, as too few normal images set the "
        f"thresholds to tell the two rates apart: {way_out}give crad calibrate more good images"
    )


def _contradictions(done: Sequence[Prediction], classes: Collection[str]) -> str | None:
    """Say how many images lie in a folder named like another class than the recognised one."""
    named = [(each.path and class_of(each.path, classes), each.class_name) for each in done]
    pairs = Counter(pair for pair in named if pair[0] not in (None, pair[1]))
    if not pairs:
        return None
    told = [
        f"{n} in {printable(str(folder))} as {printable(found or 'unknown')}"
        for (folder, found), n in pairs.most_common()
    ]
    return (
        f"{pairs.total()} of {len(done)} images are recognised as another class than the name of "
        f"their folder says ({enumerate_some(told)}); --class NAME overrides"
    )
