"""Whether the scores of new normal images are still those that a model was calibrated with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SIGNIFICANT = 0.01
_SLIGHT, _FAR = 0.65, 0.9  # share of pairs, in the direction of the drift


@dataclass(frozen=True)
class Drift:
    """How new scores of normal images lie to former ones.

    Attributes:
        higher: the share of pairs, of a new and a former score, whose new one is higher; ties
            count half. Without drift it is about a half.
        p_value: of the rank test of Mann and Whitney, two-sided: small if chance hardly explains
            the difference.
        can_tell: whether so few scores can be told from chance at all.
    """

    higher: float
    p_value: float
    can_tell: bool

    @classmethod
    def measure(cls, former: Sequence[float], new: Sequence[float]) -> "Drift":
        """Compare two samples, of at least one score each.

        The p-value is that of the normal approximation, with corrections for ties and continuity.
        """
        n_pairs = len(former) * len(new)
        lower, equal = (
            np.searchsorted(np.sort(former), new, side).sum() for side in ("left", "right")
        )
        rank_sum = (lower + equal) / 2
        _, ties = np.unique(np.concatenate([former, new]), return_counts=True)
        total = len(former) + len(new)
        tied = (ties**3 - ties).sum() / (total * (total - 1))
        deviation = math.sqrt(max(n_pairs / 12 * (total + 1 - tied), 0.0))

        def p_value(distance: float) -> float:
            if not deviation:
                return 1.0
            return math.erfc(max(distance - 0.5, 0.0) / deviation / math.sqrt(2))

        return cls(
            higher=float(rank_sum / n_pairs),
            p_value=p_value(abs(rank_sum - n_pairs / 2)),
            can_tell=p_value(n_pairs / 2) < _SIGNIFICANT,
        )

    @property
    def verdict(self) -> str:
        """What it means, in words."""
        if self.p_value >= _SIGNIFICANT:
            return "no drift seen" if self.can_tell else "too few images to tell"
        direction, share = (
            ("higher", self.higher) if self.higher > 0.5 else ("lower", 1 - self.higher)
        )
        how = "slightly " if share < _SLIGHT else "far " if share >= _FAR else ""
        return f"drifted: new images score {how}{direction}"
