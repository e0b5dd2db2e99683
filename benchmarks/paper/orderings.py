"""Whether the orderings of the paper's tables 1 and 5 hold, pair by pair and seed by seed."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.markdown import table
from benchmarks.paper.metrics import METRICS, Measured, measured
from benchmarks.paper.published import published
from benchmarks.paper.runs import Runs
from benchmarks.paper.tables import TABLE1, TABLE5
from benchmarks.paper.variants import (
    CRAD,
    GLOBAL,
    GLOBAL_ATTENTION_16,
    GLOBAL_ATTENTION_64,
    GLOBAL_VQ_16,
    GLOBAL_VQ_64,
    LOCAL,
    LOCAL_ATTENTION_64,
    LOCAL_ATTENTION_256,
    LOCAL_VQ_64,
    LOCAL_VQ_256,
    NO_JITTER,
    NO_REFINEMENT,
    Variant,
)

_FEWEST = 3  # seeds for a verdict

Claim = tuple[str, Variant, Variant]
"""A claim in words, the better detector, the worse one."""

MEMORIES: tuple[Claim, ...] = (
    ("local: grid of 64 > VQ of 64", LOCAL, LOCAL_VQ_64),
    ("local: VQ of 64 > attention of 64", LOCAL_VQ_64, LOCAL_ATTENTION_64),
    ("local: grid of 64 > VQ of 256", LOCAL, LOCAL_VQ_256),
    ("local: VQ of 256 > attention of 256", LOCAL_VQ_256, LOCAL_ATTENTION_256),
    ("global: grid of 16 > VQ of 16", GLOBAL, GLOBAL_VQ_16),
    ("global: VQ of 16 > attention of 16", GLOBAL_VQ_16, GLOBAL_ATTENTION_16),
    ("global: grid of 16 > VQ of 64", GLOBAL, GLOBAL_VQ_64),
    ("global: VQ of 64 > attention of 64", GLOBAL_VQ_64, GLOBAL_ATTENTION_64),
)
"""The claims of table 1."""

PARTS: tuple[Claim, ...] = (
    ("local > global", LOCAL, GLOBAL),
    ("local + global > local", NO_REFINEMENT, LOCAL),
    ("refinement helps", NO_JITTER, NO_REFINEMENT),
    ("jitter helps", CRAD, NO_JITTER),
)
"""The claims of table 5."""


@dataclass(frozen=True)
class Ordering:
    """A claim that one detector is better than another in one metric.

    Attributes:
        claim: in words.
        metric: a key of `benchmarks.paper.metrics.METRICS`.
        paper: the difference between the paper's means.
        difference: between our runs with the same seed; None if not measured.
    """

    claim: str
    metric: str
    paper: float
    difference: Measured | None

    @property
    def verdict(self) -> str:
        """``holds`` or ``reversed`` if all seeds agree, and are enough, else ``open``."""
        if self.difference is None:
            return "not measured"
        if self.paper <= 0:
            return "not claimed"
        positive = sum(each > 0 for each in self.difference.values)
        negative = sum(each < 0 for each in self.difference.values)
        n_seeds = len(self.difference.values)
        if n_seeds < _FEWEST:
            return "open"
        return "holds" if positive == n_seeds else "reversed" if negative == n_seeds else "open"


def orderings(runs: Runs, claims: Sequence[Claim]) -> Iterator[Ordering]:
    """Compare our differences with the paper's, claim by claim.

    Args:
        runs: finished.
        claims: such as `MEMORIES`.
    """
    paper = _published_means()
    for claim, better, worse in claims:
        for metric in METRICS:
            one, other = (measured(runs.results(each), metric) for each in (better, worse))
            difference = None
            if one and other:
                pairs = zip(one.values, other.values, strict=True)
                difference = Measured.of(first - second for first, second in pairs)
            stated = round(paper[better][metric] - paper[worse][metric], 2)
            yield Ordering(claim, metric, stated, difference)


def markdown(found: Sequence[Ordering]) -> Iterator[str]:
    """The lines of a table of claims, after a paragraph that explains the verdicts."""
    verdicts = Counter(each.verdict for each in found)
    counts = ", ".join(f"{verdict} {count}" for verdict, count in verdicts.items())
    yield (
        f"The paper's orderings: {counts}. A claim holds, or is reversed, if its difference has "
        "the same sign in all of at least three seeds; otherwise it is open. Without a true "
        "difference, three seeds agree by chance one time in four. A difference of 0 or less in "
        "the paper is not claimed. Differences are between runs with the same seed, in points of "
        "AUROC."
    )
    yield ""
    rows = []
    for each in found:
        here, agree = "-", "-"
        if each.difference:
            here = f"{each.difference.mean:+.2f}"
            if each.difference.std is not None:
                here += f" ± {each.difference.std:.2f}"
            values = each.difference.values
            agree = f"{sum(value > 0 for value in values)} of {len(values)}"
        rows.append((each.claim, each.metric, f"{each.paper:+.1f}", here, agree, each.verdict))
    head = ("claim", "metric", "paper", "here, over seeds", "seeds in which it holds", "verdict")
    yield from table(head, rows)


def records(found: Sequence[Ordering]) -> Iterator[dict[str, Any]]:
    """The claims as records."""
    for each in found:
        yield {
            "claim": each.claim,
            "metric": each.metric,
            "paper_difference": each.paper,
            "difference_mean": each.difference and round(each.difference.mean, 4),
            "difference_std": each.difference
            and each.difference.std
            and round(each.difference.std, 4),
            "difference_seeds": [round(value, 4) for value in each.difference.values]
            if each.difference
            else [],
            "verdict": each.verdict,
        }


def _published_means() -> dict[Variant, dict[str, float]]:
    """The paper's numbers of the detectors of tables 1 and 5, by metric."""
    table1, table5 = (
        published()[name]
        for name in ("table1_memories_unified_mvtec", "table5_ablation_unified_mvtec")
    )
    return {
        variant: {metric: row[metric]["mean"] for metric in METRICS}
        for variant, row in zip(TABLE1, table1, strict=True)
    } | {
        variant: {metric: row[metric] for metric in METRICS}
        for variant, row in zip(TABLE5, table5, strict=True)
    }
