"""The thresholds of a checkpoint, for the rate of false alarms that is asked for."""

from crad.errors import CheckpointError, UsageError
from crad.scoring.calibration import Thresholds
from crad.training.checkpoint import Checkpoint


def thresholds_for(
    checkpoint: Checkpoint, rate: float | None, uncertain_rate: float | None
) -> tuple[Thresholds, Thresholds | None]:
    """Give the thresholds for a rate, and for the one from which on decisions are uncertain.

    Args:
        checkpoint: that of the detector.
        rate: of false alarms; None takes that of training.
        uncertain_rate: as for `crad.load`; None gives no thresholds for it.

    Raises:
        CheckpointError: it has no calibration scores for another rate.
        UsageError: a rate is out of range.
    """
    lower = checkpoint.config.decisions.false_alarm_rate if rate is None else rate
    if not 0 < lower < 1:
        raise UsageError(f"false-alarm-rate: expected more than 0 and less than 1, but got {rate}")
    if uncertain_rate is not None and not lower < uncertain_rate < 1:
        raise UsageError(
            f"uncertain: expected more than the false alarm rate, {lower:.3g}, and less than 1, "
            f"but got {uncertain_rate}"
        )
    if rate is None and uncertain_rate is None:
        return checkpoint.thresholds, None
    if not checkpoint.calibration:
        why = "an older crad wrote it" if checkpoint.thresholds else "no images were held back"
        raise CheckpointError(
            f"checkpoint: '{checkpoint.file}' has no calibration scores ({why}), so it cannot "
            "decide for another rate; give it some with crad calibrate --good FOLDER"
        )
    scores = checkpoint.calibration
    kept = {name: each for name, each in checkpoint.thresholds.items() if name not in scores}
    thresholds = checkpoint.thresholds if rate is None else scores.thresholds(rate)
    uncertain = Thresholds(kept | scores.thresholds(uncertain_rate)) if uncertain_rate else None
    return Thresholds(kept | thresholds), uncertain
