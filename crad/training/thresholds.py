"""The thresholds of a checkpoint, for the rate of false alarms that is asked for."""

from crad.errors import CheckpointError
from crad.scoring.calibration import Thresholds, thresholds_at
from crad.training.checkpoint import Checkpoint


def thresholds_for(
    checkpoint: Checkpoint, rate: float | None, uncertain_rate: float | None
) -> tuple[Thresholds, Thresholds | None]:
    """Give the thresholds of a checkpoint, as `crad.scoring.calibration.thresholds_at` does.

    Raises:
        CheckpointError: it has no calibration scores for another rate.
        UsageError: a rate is out of range.
    """
    found = thresholds_at(
        checkpoint.thresholds,
        checkpoint.calibration,
        checkpoint.config.decisions.false_alarm_rate,
        rate,
        uncertain_rate,
    )
    if (rate is not None or uncertain_rate is not None) and not checkpoint.calibration:
        why = "an older crad wrote it" if checkpoint.thresholds else "no images were held back"
        raise CheckpointError(
            f"checkpoint: '{checkpoint.file}' has no calibration scores ({why}), so it cannot "
            "decide for another rate; give it some with crad calibrate --good FOLDER"
        )
    return found
