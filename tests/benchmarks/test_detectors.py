"""The comparison of detectors: the rivals against plain renditions, and the command."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.detectors import nearest_neighbour, runs
from benchmarks.detectors.__main__ import main
from benchmarks.detectors.inputs import inputs_of, prepare_all, select
from benchmarks.detectors.nearest_neighbour import NearestNeighbour, averaged, k_center
from benchmarks.detectors.options import DetectorOptions
from benchmarks.detectors.ours import Crad
from benchmarks.detectors.padim import Padim
from benchmarks.detectors.page import page
from crad.command_line import ComputeOptions
from crad.config import Config, TrainingConfig
from crad.data.samples import Sample
from crad.errors import OutputError
from crad.report.environment import environment
from crad.scoring.evaluation import Evaluation
from crad.scoring.protocols import PROTOCOLS
from crad.train import train_model
from crad.train_options import OutputOptions, TrainOptions
from crad.training.features import Features
from crad.training.inputs import Inputs, prepare
from tests.fixtures import command, demo_root, one_thread

__all__ = ["command", "demo_root", "one_thread"]

CPU = torch.device("cpu")
RIVALS = ("nearest_neighbour", "padim")
METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_aupro")


def features_of(values: Tensor) -> Features:
    return Features(values, [Sample(Path(str(row))) for row in range(len(values))])


@pytest.fixture
def train() -> Features:
    """30 features of 8 channels that depend on each other, at 3 x 4 positions."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(8, 8, generator=generator)
    return features_of(5 + torch.randn(30, 3, 4, 8, generator=generator) @ mixed)


@pytest.fixture
def of_model(train: Features) -> Inputs:
    """Inputs of which rivals only see the training features."""
    inputs = object.__new__(Inputs)
    object.__setattr__(inputs, "train", train)
    return inputs


def seeded(seed: int) -> Config:
    return Config(training=TrainingConfig(seed=seed))


# ---- the coreset ----


def brute_force(points: Tensor, count: int, first: int) -> list[int]:
    """The greedy choice in float64, all distances each time."""
    apart = torch.cdist(points.double(), points.double())
    chosen = [first]
    while len(chosen) < count:
        chosen.append(int(apart[:, chosen].amin(1).argmax()))
    return chosen


def radius(points: Tensor, chosen: Tensor) -> float:
    """The largest distance of a point from the nearest one chosen."""
    return float(torch.cdist(points, points[chosen]).amin(1).max())


@pytest.mark.parametrize("candidates", [1, 16, 4096])
def test_the_coreset_is_the_greedy_k_center(
    candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest_neighbour, "_CANDIDATES", candidates)
    points = 100 + torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    assert k_center(points, 60, 7).tolist() == brute_force(points, 60, 7)


def test_the_coreset_covers_better_than_a_random_subset() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2000, 4, generator=generator) ** 3
    chosen = k_center(points, 50, 0)
    by_chance = [torch.randperm(2000, generator=generator)[:50] for _ in range(20)]
    assert radius(points, chosen) < 0.5 * min(radius(points, each) for each in by_chance)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_no_point_is_chosen_twice_where_points_repeat(count: int) -> None:
    points = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).repeat(10, 1)
    chosen = k_center(points, count, 3)
    assert chosen[0] == 3
    assert len({*chosen.tolist()}) == count
    assert len(points[chosen[:4]].unique(dim=0)) == min(count, 4)


def test_neighbourhoods_are_averaged_over_what_is_inside(train: Features) -> None:
    (batch,) = [*averaged(features_of(train.values[:2]), 3, CPU)]
    values = train.values[1]
    torch.testing.assert_close(batch[1, :, 1, 1], values[0:3, 0:3].mean((0, 1)))
    torch.testing.assert_close(batch[1, :, 0, 0], values[0:2, 0:2].mean((0, 1)))


def test_an_image_of_the_memory_bank_has_no_distance(train: Features, of_model: Inputs) -> None:
    everything = NearestNeighbour(share=1.0).fit(of_model, seeded(0), CPU)
    assert everything.entries.shape == (30 * 12, 8)
    assert everything.maps(train).max() < 0.02
    tenth = NearestNeighbour(share=0.1).fit(of_model, seeded(0), CPU)
    assert tenth.entries.shape == (36, 8)
    assert tenth.n_bytes == 36 * 8 * 4
    assert tenth.maps(train).shape == (30, 3, 4)


@pytest.mark.parametrize("method", [NearestNeighbour(share=0.1, projected=4), Padim(channels=4)])
def test_a_seed_sets_all_that_is_random(
    method: NearestNeighbour | Padim, train: Features, of_model: Inputs
) -> None:
    first, again, other = (
        method.fit(of_model, seeded(seed), CPU).maps(train) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


# ---- PaDiM ----


def test_padim_equals_its_definition_in_float64(train: Features, of_model: Inputs) -> None:
    noise = torch.randn(5, 3, 4, 8, generator=torch.Generator().manual_seed(2))
    test = features_of(train.values[:5] + noise)
    fitted = Padim(channels=6).fit(of_model, seeded(0), CPU)
    maps, channels = fitted.maps(test), fitted.channels
    assert len({*channels.tolist()}) == 6
    for row in range(3):
        for column in range(4):
            normal = train.values[:, row, column, channels].double()
            covariance = torch.cov(normal.T) + 0.01 * torch.eye(6)
            away = test.values[:, row, column, channels].double() - normal.mean(0)
            expected = ((away @ covariance.inverse()) * away).sum(1).sqrt()
            torch.testing.assert_close(maps[:, row, column].double(), expected, rtol=1e-4, atol=0)


def test_padim_takes_all_channels_of_few_and_needs_few_images(
    train: Features, of_model: Inputs
) -> None:
    object.__setattr__(of_model, "train", features_of(train.values[:1]))
    fitted = Padim().fit(of_model, seeded(0), CPU)
    assert fitted.channels.tolist() == [*range(8)]
    apart = (train.values - train.values[:1]).norm(dim=3)
    torch.testing.assert_close(fitted.maps(train), 10 * apart)  # the deviation is 0.1


# ---- the command ----


@pytest.fixture
def compare(command: Callable[..., int], demo_root: Path, tmp_path: Path) -> Callable[..., int]:
    """The command on two small classes: (*arguments) -> exit code."""
    always = ("--data", str(demo_root), "--backbone", "scattering", "--image-size", "64")
    return lambda *more: command(main, *always, "--output", str(tmp_path / "out"), *more)


def records(folder: Path) -> dict[str, dict[str, object]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*/*.json"))}


def test_json_and_page(
    compare: Callable[..., int], tmp_path: Path, command: Callable[..., int]
) -> None:
    report = tmp_path / "rivals.md"
    assert compare("--seeds", "0", "1", "--protocol", "crad", "paper", "--methods", *RIVALS) == 0
    trained = ("--seeds", "0", "--methods", "crad", "--settings", "unified", "--protocol", "crad")
    assert compare(*trained, "--report", str(report)) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small-scattering-64"]
    found = records(tmp_path / "out")
    assert [*found] == sorted(
        [
            "crad-unified-seed0",
            *(
                f"{method}-{setting}-seed{seed}"
                for method in RIVALS
                for setting in ("unified", "separate")
                for seed in (0, 1)
            ),
        ]
    )
    for name, record in found.items():
        assert [*record["protocols"]] == ["crad"] + ["paper"] * (not name.startswith("crad"))
        assert {*record["images_per_second"]} == {"1", "32"}
        assert min(record["images_per_second"].values()) > 0
        assert record["peak_bytes"] is None or record["peak_bytes"] >= 0
        for metrics in record["protocols"].values():
            assert [*metrics["classes"]] == ["brick", "gauge"]
            assert all(0 <= metrics["mean"][metric] <= 1 for metric in METRICS)
            counts = [(each["n_train"], each["n_test"]) for each in metrics["classes"].values()]
            assert counts == [(5, 6), (5, 6)]  # one of six is held back
        assert (record["epochs"] is not None) == name.startswith("crad")
        assert record["n_bytes"] > 0
        assert min(record["seconds"].values()) > 0
        assert record["clock"] in ("cpu", "wall")
        assert record["environment"]["cpu"]
        assert record["environment"]["torch"]
    text = report.read_text()
    assert str(tmp_path.parent) not in text + json.dumps(found)
    first, second = (
        100 * found[f"padim-separate-seed{seed}"]["protocols"]["crad"]["mean"]["pixel_auroc"]
        for seed in (0, 1)
    )
    deviation = abs(first - second) / math.sqrt(2)
    row = next(line for line in text.splitlines() if line.startswith("| separate | PaDiM |"))
    assert f"{(first + second) / 2:.2f} ± {deviation:.2f}" in row
    assert "| small | scattering, 64 | unified |" in text
    assert "--data PATH/small" in text
    again = ("--protocol", "crad", "paper", "--report", str(report))
    assert compare("--seeds", "0", "1", "--methods", *RIVALS, *again) == 0
    assert report.read_text() == text  # nothing was measured again
    assert command(main, "--output", str(tmp_path / "out"), "--report", str(report)) == 0
    assert report.read_text() == text


@pytest.mark.parametrize(
    "names", [RIVALS, pytest.param(("crad_without_refinement",), marks=pytest.mark.slow)]
)
def test_the_same_seed_gives_the_same_numbers(
    names: tuple[str, ...], compare: Callable[..., int], tmp_path: Path
) -> None:
    options = ("--methods", *names, "--settings", "unified", "--seeds", "3")
    assert compare(*options) == 0
    first = records(tmp_path / "out")
    assert compare(*options, "--overwrite") == 0
    again = records(tmp_path / "out")
    assert len(first) == len(names)
    for name, record in first.items():
        assert record["protocols"] == again[name]["protocols"]
        assert record["seconds"] != again[name]["seconds"]


def test_an_interrupted_run_continues(
    compare: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit, fitted = Padim.fit, 0

    def stop_at_third(*arguments: object) -> object:
        nonlocal fitted
        fitted += 1
        if fitted == 3:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(Padim, "fit", stop_at_third)
    options = ("--methods", "padim", "--settings", "unified")
    assert compare(*options) == 130
    assert "2 of 3 runs are measured; the same command" in capsys.readouterr().err
    before = records(tmp_path / "out")
    assert [*before] == ["padim-unified-seed0", "padim-unified-seed1"]
    assert compare(*options) == 0
    assert fitted == 4
    assert "2 of 3 runs are there already" in capsys.readouterr().out
    after = records(tmp_path / "out")
    assert len(after) == 3
    assert before.items() <= after.items()
    monkeypatch.setattr(runs, "prepare_all", None)  # no features are needed any more
    assert compare(*options) == 0
    assert fitted == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "patchcore"), "--methods: no 'patchcore'; choose from crad, "),
        (("--settings", "both"), "--settings: no 'both'; choose from unified, separate"),
        (("--seeds", "1", "1"), "--seeds: expected one or more, each once"),
        (("--seeds", "-1"), "--seed: expected 0 to"),
        (("--data", "no/such"), "there is no such folder"),
        (("--data", "demo", "x/demo"), "two sets are named 'demo'"),
        (("--backbone", "auto"), "--backbone: the page names one"),
        (("--backbone", "scatering"), "similar names: scattering"),
        (("--image-size", "8"), "--image-size: expected"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: tuple[str, ...],
    words: str,
    compare: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert compare(*arguments) in (1, 2)
    error = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error
    assert not (tmp_path / "out").exists()


def test_files_of_others_and_other_settings_are_not_replaced(
    compare: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*more: str) -> str:
        assert compare("--methods", "padim", "--settings", "unified", "--seeds", "0", *more) == 1
        return capsys.readouterr().err

    report = tmp_path / "page.md"
    report.write_text("# Mine\n")
    assert "was not written by" in refused("--report", str(report))
    report.unlink()
    assert compare("--methods", "padim", "--settings", "unified", "--seeds", "0") == 0
    assert "without --protocol paper" in refused("--protocol", "paper")
    monkeypatch.setattr(Padim, "settings", lambda *_: {"channels": 3})
    assert "with another method_settings; measure it again with --overwrite" in refused()
    (path,) = (tmp_path / "out").glob("*/*.json")
    path.write_text("{}")
    assert "was not written by" in refused()
    assert path.read_text() == "{}"


def test_a_page_mixes_no_settings_and_tells_missing_seeds() -> None:
    numbers = dict.fromkeys(METRICS, 0.5)
    record = {
        "data": "bolts", "backbone": "scattering", "image_size": "64", "method": "padim",
        "setting": "unified", "seed": 0, "method_settings": {"channels": 4}, "n_test": 2,
        "n_bytes": 8, "seconds": {"features": 1.0, "fit": 1.0, "maps": 1.0}, "notes": [],
        "environment": environment("cpu"),
        "protocols": {
            name: {"mean": numbers, "classes": {"m4": {**numbers, "n_train": 3, "n_test": 2}}}
            for name in ("paper", "crad")
        },
    }  # fmt: skip
    other = {**record, "method": "nearest_neighbour", "seed": 1}
    text = page([record, {**record, "seed": 1}, other])
    assert "by protocol paper" in text
    assert "| unified | PatchCore (1 seed) | 50.00 |" in text
    assert "| unified | PaDiM | 50.00 ± 0.00 |" in text
    with pytest.raises(OutputError, match="padim on bolts, unified, was measured with different"):
        page([record, {**record, "seed": 1, "method_settings": {"channels": 5}}])
    one, two = ({name: record["protocols"][name]} for name in ("paper", "crad"))
    both = page([{**record, "protocols": one}, {**other, "protocols": two}])
    short = {
        part.partition("\n")[0]: part.partition("## bolts")[0]
        for part in both.split("## In short, by protocol ")[1:]
    }
    assert {name: ("PaDiM |" in part, "PatchCore |" in part) for name, part in short.items()} == {
        "crad": (False, True),
        "paper": (True, False),
    }


def test_a_page_needs_results(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "page.md"
    assert command(main, "--output", str(tmp_path / "out"), "--report", str(report)) == 1
    assert "holds no results; measure some with --data" in capsys.readouterr().err
    assert command(main) == 2
    assert "--data: expected a data set" in capsys.readouterr().err


def test_methods_train_on_the_images_of_crad_train(demo_root: Path) -> None:
    options = DetectorOptions(backbone="scattering", image_size=64)
    config = options.config(str(demo_root))
    everything = prepare_all(config, CPU)
    config = replace(config, training=replace(config.training, seed=5))
    theirs = prepare(config, None, CPU)
    data = replace(config.data, classes=("brick", "gauge"))
    ours = inputs_of(everything, replace(config, data=data))
    assert ours.train.samples == theirs.train.samples
    assert ours.held_back.samples == theirs.held_back.samples
    assert ours.n_train == theirs.n_train
    assert torch.equal(ours.digests, theirs.digests)
    assert ours.feature_size == theirs.feature_size
    assert len(ours.test) == 0
    alone = inputs_of(everything, replace(config, data=replace(data, classes=("gauge",))))
    assert alone.n_train == {"gauge": 5}
    assert alone.train.samples == ours.train.samples[5:]
    assert torch.equal(alone.train.values, ours.train.values[5:])
    assert torch.equal(alone.digests, ours.digests[[*range(5, 10), 11]])


@pytest.mark.slow
def test_crad_is_what_crad_train_gives(demo_root: Path, tmp_path: Path) -> None:
    config = DetectorOptions(backbone="scattering", image_size=64).config(str(demo_root))
    inputs = prepare(config, None, CPU)
    results = train_model(
        TrainOptions(config, OutputOptions(tmp_path / "run"), ComputeOptions(device="cpu")),
        prepare=lambda *_: inputs,
    )
    maps = Crad().fit(replace(inputs, test=select(inputs.test, [])), config, CPU).maps(inputs.test)
    evaluation = Evaluation(inputs.test.samples, inputs.n_train, inputs.truths)
    for name in config.decisions.protocol:
        expected = results if name == results["protocol"] else results["other_protocols"][name]
        assert evaluation.measure(maps, PROTOCOLS[name])["classes"] == expected["classes"]
