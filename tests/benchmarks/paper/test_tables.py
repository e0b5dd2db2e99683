"""The paper's numbers, and tables and orderings of made-up results."""

import csv
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from benchmarks.paper import orderings, tables
from benchmarks.paper.metrics import Measured
from benchmarks.paper.published import is_published_data, published, published_classes
from benchmarks.paper.runs import Runs
from benchmarks.paper.targets import TARGETS
from benchmarks.paper.variants import CRAD, GLOBAL, LOCAL, NO_JITTER, NO_REFINEMENT, Variant
from crad.config import Config
from crad.errors import DataError

AUROC = [(0.90, 0.80), (0.92, 0.84), (0.97, 0.82)]
"""Of images and of pixels, for each seed: 93.00 ± 3.61 and 82.00 ± 2.00 percent."""


@dataclass(frozen=True)
class MadeUp(Runs):
    """Runs with given image and pixel AUROC for each seed, the same in every class."""

    values: dict[Variant, list[tuple[float, float]]] = field(default_factory=dict)
    names: tuple[str, ...] = ("brick", "gauge")

    def classes(self) -> tuple[str, ...]:
        return self.names

    def results(self, variant: Variant) -> list:
        entries = [{"image_auroc": i, "pixel_auroc": p} for i, p in self.values[variant]]
        return [{"mean": each, "classes": dict.fromkeys(self.names, each)} for each in entries]


def made_up(
    values: dict[Variant, list[tuple[float, float]]], names: tuple[str, ...] = ("brick", "gauge")
) -> MadeUp:
    n_seeds = len(next(iter(values.values())))
    return MadeUp(Config(), tuple(range(n_seeds)), Path("made-up"), values=values, names=names)


# ---- the paper's numbers ----


def test_the_means_of_the_paper_are_those_of_its_classes() -> None:
    """But for four, which the paper itself has so."""
    others = set()
    detection, localization = (
        published()[name] for name in ("table2_mvtec_detection", "table3_mvtec_localization")
    )
    visa = published()["table4_visa"]
    for name, table in {
        "MVTec detection": detection,
        "MVTec localization": localization,
        "VisA detection": {name: row["detection"] for name, row in visa.items()},
        "VisA localization": {name: row["localization"] for name, row in visa.items()},
    }.items():
        rows = {key: row for key, row in table.items() if key != "Mean"}
        assert len(rows) == (12 if name.startswith("VisA") else 15)
        for method, settings in table["Mean"].items():
            for setting in {"unified", "separate"} & settings.keys():
                mean = statistics.fmean(row[method][setting] for row in rows.values())
                if abs(mean - settings[setting]) > 0.0501:
                    others.add((name, method, setting))
                    assert mean == pytest.approx(settings[setting], abs=0.13)
    assert others == {
        ("MVTec detection", "PaDiM", "separate"),
        ("MVTec detection", "PatchCore", "separate"),
        ("MVTec detection", "CRAD", "separate"),
        ("VisA localization", "PatchCore", "unified"),
    }


def test_what_the_tables_share_is_the_same() -> None:
    table1, table5 = (
        published()[name]
        for name in ("table1_memories_unified_mvtec", "table5_ablation_unified_mvtec")
    )
    for metric, table in (
        ("detection", "table2_mvtec_detection"),
        ("localization", "table3_mvtec_localization"),
    ):
        assert table5[-1][metric] == published()[table]["Mean"]["CRAD"]["unified"]
        assert table5[0][metric] == table1[-1][metric]["mean"]
        assert table5[1][metric] == table1[4][metric]["mean"]


def test_classes_are_known_by_their_folders() -> None:
    assert published_classes("MVTec AD")["metal_nut"] == "Metal Nut"
    assert published_classes("VisA")["pipe_fryum"] == "Pipe fryum"
    assert is_published_data("table1", "data", ("bottle", "tile"), "MVTec AD")
    assert not is_published_data("table4", "demo", ("brick",), "VisA")
    with pytest.raises(DataError, match=r"^table4: .*'data'.* MVTec AD.*table2"):
        is_published_data("table4", "data", ("bottle",), "VisA")
    with pytest.raises(DataError, match=r"^table1: .*'data'.* VisA.*table4"):
        is_published_data("table1", "data", ("candle",), "MVTec AD")


# ---- tables ----


def test_one_seed_has_no_spread() -> None:
    assert str(Measured.of([50])) == "50.00"
    assert str(Measured.of([50, 52])) == "51.00 ± 1.41"


def test_a_table_of_other_data_has_no_differences() -> None:
    (table,) = tables.table5(made_up(dict.fromkeys(tables.TABLE5, AUROC)))
    head, _, first, *_, last = table.markdown()
    assert head.count("paper (MVTec AD)") == 2
    assert "difference" not in head
    assert first == "| yes |  |  |  | 93.00 ± 3.61 | 92.3 | 82.00 ± 2.00 | 95.7 |"
    assert last == "| yes | yes | yes | yes | 93.00 ± 3.61 | 99.3 | 82.00 ± 2.00 | 97.8 |"
    record = next(table.records())
    assert record["ours_mean"] == pytest.approx(93.0)
    assert record["ours_std"] == pytest.approx(13**0.5, abs=1e-4)  # 9 + 1 + 16 over 2
    assert record["ours_seeds"] == [90.0, 92.0, 97.0]
    assert record["difference"] is None


def test_a_table_of_the_paper_s_data_has() -> None:
    classes = tuple(published_classes("MVTec AD"))
    runs = made_up(dict.fromkeys(tables.TABLE1, AUROC), classes)
    (table,) = tables.table1(runs)
    head, _, *lines = table.markdown()
    assert head.startswith(
        "| perspective | method | entries | detection: here | paper | difference"
    )
    assert lines[0] == (
        "| Local | VQ | 64 | 93.00 ± 3.61 | 96.9 ± 0.65 | -3.90 | 82.00 ± 2.00 | 96.1 ± 0.05 | "
        "-14.10 |"
    )
    # A mean over some of the classes is not compared with one over all.
    (table,) = tables.table1(replace(runs, names=classes[:3]))
    assert "difference" not in next(table.markdown())


def test_a_table_of_classes() -> None:
    both = tables.BOTH_SETTINGS.values()
    (table,) = tables.table2(made_up(dict.fromkeys(both, AUROC), ("bottle", "metal_nut")))
    head, _, bottle, nut, mean = table.markdown()
    assert head.endswith("UniAD, paper unified/separate | HVQ-T, paper unified/separate |")
    assert bottle.startswith(
        "| Bottle | 93.00 ± 3.61 | 100.0 ± 0.0 | -7.00 | 93.00 ± 3.61 | 100.0 | -7.00 | 84.0/99.0 |"
    )
    assert nut.endswith("99.9/- |")
    assert mean.startswith("| Mean | 93.00 ± 3.61 | - | - | 93.00 ± 3.61 | - | - | -/- |")


def test_the_classes_of_a_table_of_means() -> None:
    found = list(tables.class_records(made_up({GLOBAL: AUROC}), [GLOBAL]))
    assert [(each["class"], each["metric"]) for each in found] == [
        ("brick", "detection"), ("brick", "localization"), ("gauge", "detection"),
        ("gauge", "localization"),
    ]  # fmt: skip
    assert found[3] == {
        "detector": "global-grid-4x4", "class": "gauge", "metric": "localization",
        "mean": pytest.approx(82), "std": pytest.approx(2), "seeds": [80.0, 84.0, 82.0],
    }  # fmt: skip


def test_a_table_of_both_metrics(tmp_path: Path) -> None:
    both = tables.BOTH_SETTINGS.values()
    classes = published_classes("VisA")
    runs = made_up(dict.fromkeys(both, AUROC), tuple(classes))
    means = [
        line
        for line in TARGETS["table4"].make(runs, tmp_path).splitlines()
        if line.startswith("| Mean |")
    ]
    assert means[0].startswith("| Mean | 93.00 ± 3.61 | 95.2 | -2.20 | 93.00 ± 3.61 | 95.4 |")
    assert means[1].startswith("| Mean | 82.00 ± 2.00 | 98.6 | -16.60 |")
    with (tmp_path / "table4.csv").open(newline="") as file:
        ours = [row for row in csv.DictReader(file) if row["method"] == "CRAD"]
    assert len(ours) == (12 + 1) * 2 * 2  # classes and their mean; both settings and metrics
    assert {row["class"] for row in ours} == {*classes.values(), "Mean"}
    assert {(row["ours_mean"], row["ours_std"]) for row in ours} == {
        ("93.0", "3.6056"), ("82.0", "2.0"),
    }  # fmt: skip


# ---- orderings ----


def test_the_orderings() -> None:
    runs = made_up(
        {
            GLOBAL: [(0.70, 0.70), (0.71, 0.70), (0.72, 0.70)],
            LOCAL: [(0.80, 0.69), (0.82, 0.70), (0.84, 0.71)],
            NO_REFINEMENT: [(0.79, 0.6), (0.81, 0.6), (0.83, 0.6)],
            NO_JITTER: [(0.85, 0.9), (0.85, 0.9), (0.85, 0.9)],
            CRAD: [(0.86, 0.9), (0.87, 0.9), (0.88, 0.9)],
        }
    )
    found = list(orderings.orderings(runs, orderings.PARTS))
    assert [(each.claim, each.metric, each.paper, each.verdict) for each in found[:4]] == [
        ("local > global", "detection", 6.3, "holds"),
        ("local > global", "localization", 1.8, "open"),
        ("local + global > local", "detection", 0.2, "reversed"),
        ("local + global > local", "localization", 0.2, "reversed"),
    ]
    assert found[0].difference is not None
    assert found[0].difference.values == pytest.approx((10, 11, 12))
    assert found[0].difference.mean == pytest.approx(11)
    assert found[0].difference.std == pytest.approx(1)
    assert found[-1].verdict == "not claimed"  # the paper has no difference
    one_seed = replace(found[0], difference=Measured.of([11]))
    assert one_seed.verdict == "open"
    lines = list(orderings.markdown(found))
    assert "holds 4, open 1, reversed 2, not claimed 1." in lines[0]
    assert lines[4] == "| local > global | detection | +6.3 | +11.00 ± 1.00 | 3 of 3 | holds |"
