"""The tables of what thresholds did."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from benchmarks.decisions.measured import CONTAMINATION, RATES, WAYS
from benchmarks.markdown import table

BEGIN = "<!-- decisions: written by python -m benchmarks.decisions --report docs/decisions.md -->"
END = "<!-- end of decisions -->"

_ALIKE = ("data", "backbone", "image_size", "n_images", "minutes")
_WAYS = {"tenth": "a tenth held back", "third": "a third held back", "folds": "5 folds"}


def tables(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """All tables, a line each; none of what was not measured."""
    clean = [each for each in records if not each["contamination"]]
    if not clean:
        yield "Nothing is measured yet."
        return
    yield from _promises(clean)
    if any(each["contamination"] for each in records):
        yield ""
        yield from _contaminated(records)


def _promises(clean: Sequence[dict[str, Any]]) -> Iterator[str]:
    """False alarms and misses where all images are normal."""
    asked = [f"{rate:.0%}" for rate in RATES]
    head = ["images", "thresholds from", "images a class", f"promise at {asked[0]}"]
    head += [f"false alarms at {rate}" for rate in asked] + [
        f"misses at {asked[0]}",
        f"at {asked[-1]}",
        "seeds",
    ]

    def rows() -> Iterator[list[str]]:
        for name, of_set in _sets(clean):
            for way in WAYS:
                chosen = [each for each in of_set if each["way"] == way]
                if not chosen:
                    continue
                numbers = {c["n_calibration"] for each in chosen for c in each["classes"].values()}
                alarms = [
                    _spread([_share(each, rate, "false_alarms") for each in chosen])
                    for rate in RATES
                ]
                misses = [
                    _spread([_share(each, rate, "misses") for each in chosen])
                    for rate in (RATES[0], RATES[-1])
                ]
                least = max(RATES[0], 1 / (min(numbers) + 1))
                shown = "/".join(map(str, sorted(numbers)))
                yield [name, _WAYS[way], shown, _percent(least), *alarms, *misses, str(len(chosen))]

    yield from table(head, rows())


def _contaminated(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What defective images among the normal ones do."""
    share = f"{CONTAMINATION:.0%}"
    head = ["images", "thresholds from", f"image AUROC, clean -> {share} defective"]
    head += ["misses, clean", f"misses, {share}", f"misses, {share} and stated"]
    head += ["false alarms, clean", f"false alarms, {share} and stated"]
    head += ["false alarms, stated but clean", "listed: defects, normal images"]

    def rows() -> Iterator[list[str]]:
        for name, of_set in _sets(records):
            for way in WAYS:
                chosen = [each for each in of_set if each["way"] == way]
                by_seed = [
                    {each["seed"]: each for each in chosen if bool(each["contamination"]) == some}
                    for some in (False, True)
                ]
                seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
                if not seeds:
                    continue
                clean, wrong = ([each[seed] for seed in seeds] for each in by_seed)
                pairs = zip(clean, wrong, strict=True)
                yield [
                    name,
                    _WAYS[way],
                    ", ".join(f"{_auroc(one):.3f} -> {_auroc(other):.3f}" for one, other in pairs),
                    _mean(clean, "misses"),
                    _mean(wrong, "misses"),
                    _mean(wrong, "misses", CONTAMINATION),
                    _mean(clean, "false_alarms"),
                    _mean(wrong, "false_alarms", CONTAMINATION),
                    _mean(clean, "false_alarms", CONTAMINATION),
                    _listed(wrong),
                ]

    yield from table(head, rows())


def _sets(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The records of each set that were measured alike, and its name."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for each in records:
        found[tuple(each[part] for part in _ALIKE)].append(each)
    for key, members in found.items():
        one_of_the_name = sum(other[0] == key[0] for other in found) == 1
        yield key[0] if one_of_the_name else ", ".join(map(str, key)), members


def _auroc(record: dict[str, Any]) -> float:
    return fmean(each["image_auroc"] for each in record["classes"].values())


def _share(record: dict[str, Any], rate: float, kind: str, stated: float = 0.0) -> float:
    """The share of false alarms or misses, the mean over classes."""
    total = {"false_alarms": "n_good", "misses": "n_defective"}[kind]
    return fmean(
        decided[kind] / each[total]
        for each in record["classes"].values()
        for decided in each["decisions"]
        if (decided["false_alarm_rate"], decided["stated_contamination"]) == (rate, stated)
    )


def _mean(records: Sequence[dict[str, Any]], kind: str, stated: float = 0.0) -> str:
    """Of the shares of several seeds, at the lowest rate."""
    return _percent(fmean(_share(each, RATES[0], kind, stated) for each in records))


def _listed(records: Sequence[dict[str, Any]]) -> str:
    found = [each["suspects"] for each in records]
    right, listed, defective, normal = (
        sum(each[name] for each in found)
        for name in ("listed_defective", "listed", "n_defective", "n_normal")
    )
    return f"{right} of {defective}, {listed - right} of {normal - defective}"


def _spread(shares: Sequence[float]) -> str:
    """The mean, with the smallest and the largest if there are several."""
    if len(shares) == 1:
        return _percent(shares[0])
    return f"{_percent(fmean(shares))} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
