"""Which detectors are planned, and with which settings."""

import math

from benchmarks.paper import dims, orderings, simplex, tables
from benchmarks.paper.published import published
from benchmarks.paper.targets import TARGETS
from benchmarks.paper.variants import CRAD, GLOBAL, LOCAL, NO_JITTER, NO_REFINEMENT
from crad.config import Config, TrainingConfig


def test_no_detector_is_planned_twice() -> None:
    planned = {variant for target in TARGETS.values() for variant in target.variants}
    assert len({variant.name for variant in planned}) == len(planned)
    configs = {(each.config(Config(), 0), each.separate) for each in planned}
    assert len(configs) == len(planned)
    assert len({*TARGETS["table1"].variants, *TARGETS["table5"].variants}) == 13
    assert {LOCAL, GLOBAL} == {*tables.TABLE1} & {*tables.TABLE5}
    assert CRAD in TARGETS["table2"].variants == TARGETS["table3"].variants
    assert all(each.jitter for each in dims.VARIANTS)  # without it, coordinates do not spread


def test_the_detectors_of_table_1_are_those_of_its_rows() -> None:
    names = {"CRAD": "grid", "VQ": "vq", "Attention": "attention"}
    rows = published()["table1_memories_unified_mvtec"]
    for row, variant in zip(rows, tables.TABLE1, strict=True):
        branches = {
            "Local": (variant.local, variant.local_resolution),
            "Global": (variant.global_, variant.global_resolution),
        }
        memory, resolution = branches.pop(row["perspective"])
        ((other, _),) = branches.values()
        assert (memory, other) == (names[row["method"]], "none")
        assert math.prod(resolution) == row["entries"]
        assert not variant.refinement
        assert not variant.jitter


def test_the_detectors_of_table_5_are_those_of_its_rows() -> None:
    rows = published()["table5_ablation_unified_mvtec"]
    for row, variant in zip(rows, tables.TABLE5, strict=True):
        parts = {
            "local": variant.local != "none",
            "global": variant.global_ != "none",
            "refine": variant.refinement,
            "jitter": variant.jitter,
        }
        assert parts == {name: row[name] for name in parts}


def test_the_settings_of_a_detector() -> None:
    base = Config(training=TrainingConfig(epochs=7))
    assert CRAD.config(base, 2) == Config(training=TrainingConfig(epochs=7, seed=2))
    config = orderings.MEMORIES[0][2].config(base, 0)  # VQ of 64
    assert (config.model.local_memory, config.model.local_resolution) == ("vq", (64,))
    assert (config.model.global_memory, config.training.jitter_prob) == ("none", 0.0)
    assert config.model.refinement_off
    assert simplex.VARIANTS[0] == dims.VARIANTS[1]
    assert simplex.VARIANTS[1].config(base, 0).model.interpolation == "simplex"
    assert config.training.epochs == 7
    names = [variant.name for variant in (CRAD, NO_JITTER, NO_REFINEMENT, LOCAL, GLOBAL)]
    assert names == [
        "crad", "crad-no-jitter", "crad-no-refinement-no-jitter", "local-grid-8x8",
        "global-grid-4x4",
    ]  # fmt: skip


def test_dimensions_are_compared_at_equal_numbers_of_entries() -> None:
    for entries, resolutions in dims.RESOLUTIONS.items():
        assert {math.prod(each) for each in resolutions} == {entries}
    assert {len(each) for group in dims.RESOLUTIONS.values() for each in group} == {1, 2, 3, 4, 6}
