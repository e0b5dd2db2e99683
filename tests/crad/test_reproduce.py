"""Reproductions: what is planned, trained, used again, computed and written."""

import csv
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import benchmarks.paper.report
import benchmarks.paper.runs
import crad
import crad.report.results
from benchmarks.paper import decoder, dims, figure2b, orderings, tables
from benchmarks.paper.__main__ import main
from benchmarks.paper.measured import Measured
from benchmarks.paper.options import parse_options
from benchmarks.paper.published import is_published_data, published, published_classes
from benchmarks.paper.reading import count_read
from benchmarks.paper.report import check_page, put_into
from benchmarks.paper.runs import Runs
from benchmarks.paper.targets import TARGETS
from benchmarks.paper.variants import CRAD, GLOBAL, LOCAL, NO_JITTER, NO_REFINEMENT, Variant
from crad.command_line import CommandError
from crad.config import Config
from crad.data.demo import write_demo
from crad.model.memories import ContinuousMemory
from crad.training.loop import Training

Command = Callable[..., int]
SMALL = (
    "--backbone", "scattering", "--components", "4", "--image-size", "64", "--batch-size", "4",
    "--epochs", "2", "--depth", "1", "--expansion", "8", "--device", "cpu",
)  # fmt: skip
EPOCH = Training.run_epoch


@pytest.fixture(scope="module")
def mvtec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes named and laid out as those of MVTec AD."""
    root = tmp_path_factory.mktemp("data") / "mvtec"
    write_demo(root, n_train=4, n_test=4, size=64, classes=("gauge", "brick"))
    (root / "gauge").rename(root / "bottle")
    (root / "brick").rename(root / "metal_nut")
    return root


@pytest.fixture(scope="module")
def visa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes named and laid out as those of VisA."""
    source = tmp_path_factory.mktemp("data") / "source"
    write_demo(source, n_train=4, n_test=4, size=64, classes=("gauge", "brick"))
    root = source.with_name("VisA")
    lines = ["object,split,label,image,mask"]
    for old, new in (("gauge", "candle"), ("brick", "pipe_fryum")):
        for path in sorted((source / old).glob("t*/*/*.png")):
            split, defect = path.parts[-3:-1]
            label = "normal" if defect == "good" else "anomaly"
            stem = f"{split}{defect}{path.stem}"
            image = f"{new}/Data/Images/{label.title()}/{stem}.JPG"
            mask = f"{new}/Data/Masks/Anomaly/{stem}.png" if label == "anomaly" else ""
            for name in filter(None, (image, mask)):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).save(root / image)
            if mask:
                truth = source / old / "ground_truth" / defect / f"{path.stem}_mask.png"
                Image.open(truth).point(lambda value: min(value, 3)).save(root / mask)
            lines.append(f"{new},{split},{label},{image},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def trained_epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that are trained, as they are."""
    epochs: list[int] = []

    def run_epoch(self: Training, *arguments: object) -> float:
        epochs.append(self.epoch)
        return EPOCH(self, *arguments)

    monkeypatch.setattr(Training, "run_epoch", run_epoch)
    return epochs


def made_up(
    output: Path,
    values: dict[Variant, list[tuple[float, float]]],
    monkeypatch: pytest.MonkeyPatch,
    classes: tuple[str, ...] = ("brick", "gauge"),
) -> Runs:
    """Finished runs with image and pixel AUROC by seed; that of every class is the mean."""
    n_seeds = len(next(iter(values.values())))
    runs = Runs(Config(), tuple(range(n_seeds)), output)
    for variant, pairs in values.items():
        for seed, (image, pixel) in enumerate(pairs):
            entry = {"image_auroc": image, "pixel_auroc": pixel}
            folder = runs.folder(variant, seed)
            folder.mkdir(parents=True)
            text = json.dumps({"mean": entry, "classes": dict.fromkeys(classes, entry)})
            (folder / "results.json").write_text(text)
    monkeypatch.setattr(Runs, "classes", lambda _: classes)
    return runs


# ---- the plan ----


def test_no_detector_is_planned_twice() -> None:
    planned = {variant for target in TARGETS.values() for variant in target.variants}
    assert len({variant.name for variant in planned}) == len(planned)
    configs = [(each.config(Config(), 0), each.separate) for each in planned]
    assert len(set(configs)) == len(planned)
    assert len({*TARGETS["table1"].variants, *TARGETS["table5"].variants}) == 13
    assert {LOCAL, GLOBAL} == {*tables.TABLE1} & {*tables.TABLE5}
    assert CRAD in TARGETS["table2"].variants == TARGETS["table3"].variants
    assert all(each.jitter for each in dims.VARIANTS)  # without it, coordinates do not spread


def test_the_detectors_are_those_of_the_rows() -> None:
    names = {"CRAD": "grid", "VQ": "vq", "Attention": "attention"}
    for row, variant in zip(
        published()["table1_memories_unified_mvtec"], tables.TABLE1, strict=True
    ):
        memory = {"Local": variant.local, "Global": variant.global_}
        assert memory[row["perspective"]] == names[row["method"]]
        assert "none" in memory.values()
        resolution = (
            variant.local_resolution if row["perspective"] == "Local" else variant.global_resolution
        )
        entries = 1
        for size in resolution:
            entries *= size
        assert entries == row["entries"]
        assert not variant.refinement
        assert not variant.jitter
    for row, variant in zip(
        published()["table5_ablation_unified_mvtec"], tables.TABLE5, strict=True
    ):
        parts = {
            "local": variant.local != "none",
            "global": variant.global_ != "none",
            "refine": variant.refinement,
            "jitter": variant.jitter,
        }
        assert parts == {name: row[name] for name in parts}


def test_the_settings_of_a_detector() -> None:
    base = Config(epochs=7)
    assert CRAD.config(base, 2) == Config(epochs=7, seed=2)
    config = orderings.MEMORIES[0][2].config(base, 0)  # VQ of 64
    assert (config.local.memory, config.local.resolution) == ("vq", (64,))
    assert (config.global_.memory, config.local.jitter_prob) == ("none", 0.0)
    assert config.refinement.off
    assert config.epochs == 7
    names = [variant.name for variant in (CRAD, NO_JITTER, NO_REFINEMENT, LOCAL, GLOBAL)]
    assert names == [
        "crad", "crad-no-jitter", "crad-no-refinement-no-jitter", "local-grid-8x8",
        "global-grid-4x4",
    ]  # fmt: skip


def test_as_many_entries_in_every_dimension() -> None:
    for entries, resolutions in dims.RESOLUTIONS.items():
        for resolution in resolutions:
            product = 1
            for size in resolution:
                product *= size
            assert product == entries
    assert {len(each) for group in dims.RESOLUTIONS.values() for each in group} == {1, 2, 3, 4, 6}


def test_the_demo_set_has_settings_of_its_own(tmp_path: Path) -> None:
    def config(*arguments: str) -> Config:
        return parse_options(["table1", *arguments]).config

    for name in ("demo", "demo-hard"):
        demo = config("--data", name)
        assert (demo.preset, demo.epochs, demo.learning_rate) == ("tiny", 40, 0.003)
    assert demo.calibration_share == 0
    given = config("--epochs", "7", "--learning-rate", "0.5")
    assert (given.epochs, given.learning_rate) == (7, 0.5)
    published = [("--data", str(tmp_path)), ("--preset", "crad")]
    assert all(
        (config(*each).epochs, config(*each).learning_rate) == (50, 1e-3) for each in published
    )


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
    with pytest.raises(CommandError, match=r"table4: the paper's is of VisA, .* make table2"):
        is_published_data("table4", "data", ("bottle",), "VisA")


# ---- tables of made-up results ----

AUROC = [(0.90, 0.80), (0.92, 0.84), (0.97, 0.82)]


def test_a_table_of_other_data_has_no_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = made_up(tmp_path, dict.fromkeys(tables.TABLE5, AUROC), monkeypatch)
    (table,) = tables.table5(runs)
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


def test_a_table_of_the_paper_s_data_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = tuple(published_classes("MVTec AD"))
    runs = made_up(tmp_path, dict.fromkeys(tables.TABLE1, AUROC), monkeypatch, classes)
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
    monkeypatch.setattr(Runs, "classes", lambda _: classes[:3])
    assert "difference" not in next(tables.table1(runs)[0].markdown())


def test_a_table_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = tables.BOTH_SETTINGS.values()
    runs = made_up(tmp_path, dict.fromkeys(both, AUROC), monkeypatch, ("bottle", "metal_nut"))
    (table,) = tables.table2(runs)
    head, _, bottle, nut, mean = table.markdown()
    assert head.endswith("UniAD, paper unified/separate | HVQ-T, paper unified/separate |")
    assert bottle.startswith(
        "| Bottle | 93.00 ± 3.61 | 100.0 ± 0.0 | -7.00 | 93.00 ± 3.61 | 100.0 | -7.00 | 84.0/99.0 |"
    )
    assert nut.endswith("99.9/- |")
    assert mean.startswith("| Mean | 93.00 ± 3.61 | - | - | 93.00 ± 3.61 | - | - | -/- |")


def test_the_classes_of_a_table_of_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = made_up(tmp_path, {GLOBAL: AUROC}, monkeypatch)
    found = list(tables.class_records(runs, [GLOBAL]))
    assert [(each["class"], each["metric"]) for each in found] == [
        ("brick", "detection"), ("brick", "localization"), ("gauge", "detection"),
        ("gauge", "localization"),
    ]  # fmt: skip
    assert found[3] == {
        "detector": "global-grid-4x4", "class": "gauge", "metric": "localization",
        "mean": pytest.approx(82), "std": pytest.approx(2), "seeds": [80.0, 84.0, 82.0],
    }  # fmt: skip


def test_the_classes_of_a_table_of_classes_have_means_and_deviations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = tables.BOTH_SETTINGS.values()
    classes = tuple(published_classes("VisA"))
    runs = made_up(tmp_path, dict.fromkeys(both, AUROC), monkeypatch, classes)
    TARGETS["table4"].make(runs, tmp_path)
    with (tmp_path / "table4.csv").open(newline="") as file:
        ours = [row for row in csv.DictReader(file) if row["method"] == "CRAD"]
    assert len(ours) == (12 + 1) * 2 * 2  # and the mean; both settings and metrics
    assert {row["class"] for row in ours} == {*published_classes("VisA").values(), "Mean"}
    assert {(row["ours_mean"], row["ours_std"]) for row in ours} == {
        ("93.0", "3.6056"), ("82.0", "2.0"),
    }  # fmt: skip


def test_a_table_of_both_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = tables.BOTH_SETTINGS.values()
    classes = tuple(published_classes("VisA"))
    runs = made_up(tmp_path, dict.fromkeys(both, AUROC), monkeypatch, classes)
    detection, localization = ([*table.markdown()] for table in tables.table4(runs))
    assert detection[-1].startswith("| Mean | 93.00 ± 3.61 | 95.2 | -2.20 | 93.00 ± 3.61 | 95.4 |")
    assert localization[-1].startswith("| Mean | 82.00 ± 2.00 | 98.6 | -16.60 |")


def test_the_orderings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        GLOBAL: [(0.70, 0.70), (0.71, 0.70), (0.72, 0.70)],
        LOCAL: [(0.80, 0.69), (0.82, 0.70), (0.84, 0.71)],
        NO_REFINEMENT: [(0.79, 0.6), (0.81, 0.6), (0.83, 0.6)],
        NO_JITTER: [(0.85, 0.9), (0.85, 0.9), (0.85, 0.9)],
        CRAD: [(0.86, 0.9), (0.87, 0.9), (0.88, 0.9)],
    }
    runs = made_up(tmp_path, values, monkeypatch)
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
    assert lines[0].startswith(
        "The paper's orderings: holds: 4, open: 1, reversed: 2, not claimed: 1."
    )
    assert lines[4] == "| local > global | detection | +6.3 | +11.00 ± 1.00 | 3 of 3 | holds |"


def test_one_seed_has_no_spread() -> None:
    assert str(Measured.of([50])) == "50.00"
    assert str(Measured.of([50, 52])) == "51.00 ± 1.41"


def test_the_dimensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    runs = made_up(tmp_path, dict.fromkeys(dims.VARIANTS, AUROC), monkeypatch)
    read = Measured.of([200, 202])
    monkeypatch.setattr(dims, "entries_read", lambda _, variants: dict.fromkeys(variants, read))
    text = dims.make(runs, tmp_path)
    assert "| 256 | 4 | 4 x 4 x 4 x 4 | 93.00 ± 3.61 | 82.00 ± 2.00 | 201.00 ± 1.41 |" in text
    with (tmp_path / "dims.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 21
    assert rows[0] == {
        "entries": "64", "dimensions": "1", "metric": "detection", "mean": "93.0",
        "std": "3.6056", "seeds": "90.0 92.0 97.0",
    }  # fmt: skip
    assert b"</svg>" in (tmp_path / "dims.svg").read_bytes()


# ---- how much of a memory is read ----


def test_entries_that_have_a_share_are_counted() -> None:
    local = crad.CRAD(4, 2, 3, global_memory="none", local_resolution=(4, 4), depth=0)
    memory = local.local_representation
    assert isinstance(memory, ContinuousMemory)
    last = memory.coordinates[2]
    assert isinstance(last, torch.nn.Linear)
    feature = torch.randn(2, 4, 2, 3)
    counts = []
    for place in ((0.1, -0.2), (0.9, -0.2), (0.9, 0.9)):
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(torch.tensor(place).atanh())
        counts.append(count_read(local, feature))
    assert counts == [4, 2, 1]  # all positions between four entries; beyond the last column; corner
    cube = crad.CRAD(4, 2, 3, local_memory="none", global_resolution=(2, 3, 2), depth=0)
    assert count_read(cube, feature[:1]) == 8


# ---- the page ----


def test_a_section_of_the_page_is_replaced(tmp_path: Path) -> None:
    folder, page = tmp_path / "made", tmp_path / "docs" / "page.md"
    folder.mkdir()
    for name in ("dims.svg", "dims-more.csv", "dims.md", "dimsum.csv"):
        (folder / name).write_text(name)
    put_into(page, "dims", "## Dims\n\n![plot](dims.svg)\n", folder)
    put_into(page, "table1", "one\n", folder)
    assert {path.name for path in page.with_suffix("").iterdir()} == {"dims.svg", "dims-more.csv"}
    assert "![plot](page/dims.svg)" in page.read_text()
    page.write_text(page.read_text() + "By hand.\n")
    before = page.read_text()
    put_into(page, "table1", "two\n", folder)
    assert page.read_text() == before.replace("\none\n", "\ntwo\n")
    page.write_text(before.replace("<!-- end of table1 -->", ""))
    with pytest.raises(CommandError, match=r"'<!-- end of table1 -->' once and in this order"):
        put_into(page, "table1", "three\n", folder)


def test_the_page_names_the_commits(
    demo_root: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "made"
    given = ("table5", "--data", str(demo_root), "--output", str(output), "--seeds", "0", *SMALL)

    def about(trained: str | None, written: str | None) -> str:
        path = output / f"{CRAD.name}-seed0" / "results.json"
        results = json.loads(path.read_text())
        results["environment"] |= {"commit": trained}
        path.write_text(json.dumps(results))
        monkeypatch.setattr(benchmarks.paper.report, "commit", lambda: written)
        assert command(main, *given) == 0
        return (output / "table5.md").read_text().rpartition(", crad ")[2]

    with monkeypatch.context() as patch:
        patch.setattr(crad.report.results, "commit", lambda: "aaaa")
        assert command(main, *given) == 0
    date = f". Written on {datetime.now(UTC):%Y-%m-%d}"
    assert about("aaaa", "aaaa").endswith(f", commit aaaa{date}.\n")
    assert about("aaaa", "bbbb").endswith(f", commit aaaa{date} by commit bbbb.\n")
    assert about("bbbb", "bbbb").endswith(f", commit aaaa and bbbb{date} by commit bbbb.\n")
    assert about("aaaa", None).endswith(f", commit aaaa{date}.\n")


def test_a_page_that_cannot_be_used_is_refused_before_training(
    demo_root: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    page, output = tmp_path / "page.md", tmp_path / "made"
    page.write_text("<!-- table5: written by python -m benchmarks.paper -->\n")
    given = ("--data", str(demo_root), "--output", str(output), "--report", str(page), *SMALL)
    assert command(main, "table1", "table5", *given) == 1
    assert "'<!-- end of table5 -->' once and in this order" in capsys.readouterr().err
    page.write_bytes(b"\xff")
    assert command(main, "table1", *given) == 1
    assert f"'{page}' is no UTF-8 text" in capsys.readouterr().err
    assert not output.exists()
    check_page(tmp_path / "new.md", ["table1"])
    with pytest.raises(IsADirectoryError):
        check_page(tmp_path, ["table1"])


# ---- the command ----


def test_runs_are_used_again_and_gone_on_with(
    demo_root: Path,
    tmp_path: Path,
    command: Command,
    trained_epochs: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loads: list[object] = []
    load = benchmarks.paper.runs.load
    monkeypatch.setattr(
        benchmarks.paper.runs, "load", lambda *given: loads.append(given) or load(*given)
    )
    arguments = ("table5", "--data", str(demo_root), "--seeds", "1", *SMALL)
    output, page = tmp_path / "made", tmp_path / "page.md"
    whole = (*arguments, "--output", str(output), "--report", str(page))
    assert command(main, *whole) == 0
    assert trained_epochs == [0, 1] * 5
    assert len(loads) == 1  # the features of all five
    assert {path.name for path in output.iterdir()} == {
        *(f"{each.name}-seed1" for each in tables.TABLE5),
        "table5.md", "table5.csv", "table5.json", "table5-orderings.csv", "table5-orderings.json",
        "table5-classes.csv", "table5-classes.json",
    }  # fmt: skip
    first = json.loads((output / "table5.json").read_text())
    text = page.read_text()
    assert "seed 1. " in text
    assert "5 runs, in all features" in text

    capsys.readouterr()
    assert command(main, *whole) == 0
    assert len(trained_epochs) == 10
    assert "run 5 of 5: crad, seed 1 (finished)" in capsys.readouterr().out
    assert json.loads((output / "table5.json").read_text()) == first

    assert command(main, *whole, "--depth", "2") == 1
    assert "--depth: the run in" in capsys.readouterr().err

    # Interrupted in the second epoch of the third run.
    trained_epochs.clear()

    def interrupted(self: Training, *given: object) -> float:
        if len(trained_epochs) == 5:
            raise KeyboardInterrupt
        trained_epochs.append(self.epoch)
        return EPOCH(self, *given)

    again = (*arguments, "--output", str(tmp_path / "again"))
    with monkeypatch.context() as patch:
        patch.setattr(Training, "run_epoch", interrupted)
        assert command(main, *again) == 130
    assert "2 of 5 runs are finished, and nothing is lost; go on with the same command" in (
        capsys.readouterr().err
    )
    assert command(main, *again) == 0
    assert trained_epochs == [0, 1] * 5
    assert json.loads((tmp_path / "again" / "table5.json").read_text()) == first


def test_tables_start_on_the_layout_of_mvtec(
    mvtec: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str],
    trained_epochs: list[int],
) -> None:  # fmt: skip
    given = ("--data", str(mvtec), "--seeds", "0", "--output", str(tmp_path / "made"), *SMALL)
    assert command(main, "table2", "table3", *given) == 0
    assert trained_epochs == [0, 1] * 3  # one model for all, and one for each of two classes
    out = capsys.readouterr().out
    assert "| Metal Nut |" in out
    assert "## Table 3: localization, MVTec AD" in out
    record = json.loads((tmp_path / "made" / "table2.json").read_text())[0]
    assert record["difference"] == pytest.approx(record["ours_mean"] - 100)
    assert command(main, "table4", *given) == 1
    assert "table4: the paper's is of VisA" in capsys.readouterr().err
    assert command(main, "table1", "table5", *given) == 0
    assert "| Global | Attention | 64 |" in capsys.readouterr().out
    with (tmp_path / "made" / "table1-read.csv").open(newline="") as file:
        read = {row["detector"]: float(row["mean"]) for row in csv.DictReader(file)}
    assert read.keys() == {LOCAL.name, GLOBAL.name}
    assert 4 <= read[LOCAL.name] <= 64
    assert len(json.loads((tmp_path / "made" / "table5-classes.json").read_text())) == 5 * 2 * 2


def test_all_starts_on_the_layout_of_visa(
    visa: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given = ("--data", str(visa), "--seeds", "0", "--output", str(tmp_path / "made"), *SMALL)
    assert command(main, "table4", *given) == 0
    assert capsys.readouterr().out.count("| Pipe fryum |") == 2
    assert command(main, "table1", *given) == 1
    assert "has classes of VisA; make table4 of it" in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(decoder, "_STEPS", 4)
    monkeypatch.setattr(figure2b, "STEPS", 2)
    assert command(main, "dims", "figure2b", "figure3", "figure4", "figure5", *given) == 0
    made = {path.name for path in (tmp_path / "made").iterdir()}
    assert made >= {"dims.svg", "figure2b.png", "figure3.png", "figure4.png", "figure5.png"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "expected what to make"),
        (("table1", "--seed", "3"), 2, "--seed: got 3; give --seeds"),
        (("table1", "--local.memory", "vq"), 2, "each target sets it itself"),
        (("table1", "--seeds", "1", "1"), 2, "--seeds: expected one or more, each once"),
        (("table1", "--epochs", "0"), 2, "--epochs: expected at least 1"),
        (("table1", "--data", "nowhere"), 1, "nowhere"),
        (("table9",), 2, "table9"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: Any = (*arguments, "--output", str(tmp_path / "made"))
    assert command(main, *given) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
