"""Figures: what is drawn, the data beside it, and the decoder of features."""

import csv
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.paper import decoder, figure3, figure4, figure5
from benchmarks.paper.__main__ import main
from benchmarks.paper.coordinates import global_coords, local_coords, plane
from benchmarks.paper.decoder import Decoder, Decoders, representations, train_decoder
from benchmarks.paper.figure2b import entry_gradients
from benchmarks.paper.plotting import COLOURS, class_style, drawing, save, show_image
from benchmarks.paper.runs import Runs
from benchmarks.paper.targets import TARGETS
from benchmarks.paper.trained_run import load_run
from benchmarks.paper.variants import CRAD as FULL
from benchmarks.paper.variants import GLOBAL
from crad.command_line import ComputeOptions
from crad.config import Config, DataConfig
from crad.data import Sample
from crad.errors import CheckpointError, OutputError, UsageError
from crad.loading import load
from crad.model.crad import CRAD
from crad.training.checkpoint import ALL_PARTS, read_checkpoint

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def runs(made: Path, demo_root: Path) -> Runs:
    """The runs that the figures were made of."""
    return Runs(Config(data=DataConfig(str(demo_root))), (0,), made, ComputeOptions("cpu"))


@pytest.fixture
def model() -> CRAD:
    """Untrained, with coordinates that are no tie between entries."""
    torch.manual_seed(0)
    made = CRAD(4, 2, 3, depth=1, expansion=8, jitter_std=0.2)
    with torch.no_grad():
        for memory in made.memories():
            memory.coordinates[2].bias.copy_(torch.tensor([0.3, -0.4]))
    return made


def records(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def check_png(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 10  # something is drawn


# ---- the trained run ----


def test_a_trained_run_is_the_detector_with_batch_norm_unfolded(made: Path, runs: Runs) -> None:
    run, detector = load_run(runs, FULL), load(runs.folder(FULL, 0), "cpu")
    feature = run.features(run.dataset.test).channels_first()
    with torch.no_grad():
        found, expected = run.model(feature), detector.model(feature)
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map)
    kinds = {type(module) for module in run.model.modules()}
    assert torch.nn.BatchNorm2d in kinds
    assert torch.nn.BatchNorm2d not in {type(module) for module in detector.model.modules()}


def test_a_run_whose_parts_do_not_fit_is_refused(runs: Runs, tmp_path: Path) -> None:
    damaged = replace(runs, output=tmp_path)
    checkpoint = read_checkpoint(runs.folder(FULL, 0), ALL_PARTS)
    replace(checkpoint, model={}).save(damaged.folder(FULL, 0))
    with pytest.raises(CheckpointError, match="crad-seed0"):
        load_run(damaged, FULL)


# ---- figure 2b ----


def test_the_gradient_of_one_position_is_that_of_its_four_entries(model: CRAD) -> None:
    feature = torch.randn(2, 4, 2, 3)
    position = (1, 0, 2)
    found = entry_gradients(model, feature, position, jitter=False).position

    # By hand: the loss as a function of what is recalled, and bilinear weights of 8 x 8 entries.
    memory = plane(model, "local")
    model.train()
    memory.jitter_prob = 0.0
    kept: list[torch.Tensor] = []
    memory.register_forward_hook(lambda _, __, output: kept.append(output.entries))
    loss = model(feature).loss
    (upstream,) = torch.autograd.grad(loss, kept)
    x, y = (((c + 1) * 8 - 1) / 2 for c in local_coords(model, feature)[position].tolist())
    column, row = int(x), int(y)
    expected = torch.zeros(8, 8)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (1 - abs(y - row - i)) * (1 - abs(x - column - j))
        expected[row + i, column + j] = weight * float(upstream[position].norm())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
    assert int((found > 0).sum()) == 4


def test_the_gradient_of_a_batch_is_that_of_a_step(model: CRAD) -> None:
    feature = torch.randn(2, 4, 2, 3)
    found = entry_gradients(model, feature, (0, 0, 0), jitter=False).batch
    assert model.local_representation.memory.weight.grad is None  # the model is left as it is
    model.train()
    model.local_representation.jitter_prob = 0.0
    model(feature).loss.backward()
    expected = model.local_representation.memory.weight.grad.norm(dim=-1)
    torch.testing.assert_close(found, expected)


def test_jitter_reaches_more_entries(model: CRAD) -> None:
    torch.manual_seed(1)
    feature = torch.randn(1, 4, 2, 3)
    plain = entry_gradients(model, feature, (0, 1, 1), jitter=False)
    jittered = [entry_gradients(model, feature, (0, 1, 1), jitter=True) for _ in range(8)]
    assert all(int((each.position > 0).sum()) <= 4 for each in jittered)  # a step has one noise
    over_steps = sum(each.position for each in jittered)
    assert int((over_steps > 0).sum()) > int((plain.position > 0).sum()) == 4
    assert int((sum(each.batch for each in jittered) > 0).sum()) > int((plain.batch > 0).sum())


def test_figure_2b_is_of_the_run(made: Path, runs: Runs) -> None:
    check_png(made / "figure2b.png")
    run = load_run(runs, FULL)
    with np.load(made / "figure2b.npz") as data:
        gradients, batch = data["gradients"], data["batch_coords"]
    assert gradients.shape == (3, 3, 8, 8)
    assert (gradients[0, 0] > 0).sum() <= 4
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(run.train), generator=generator)[:4].tolist()
    feature = run.features([run.train[index] for index in chosen]).channels_first()
    expected = local_coords(run.model, feature).flatten(0, 2)
    torch.testing.assert_close(torch.from_numpy(batch), expected)
    text = (made / "figure2b.md").read_text()
    assert f"all {len(batch)} positions reaches {(gradients[1, 0] > 0).sum()} entries" in text


# ---- figure 3 ----


def test_figure_3_has_the_coordinates_of_the_model(made: Path, runs: Runs) -> None:
    check_png(made / "figure3.png")
    run = load_run(runs, FULL)
    features = run.features(run.dataset.test)
    feature = features.channels_first()
    found = records(made / "figure3-global.csv")
    names = [str(sample.path.relative_to(run.dataset.root)) for sample in features.samples]
    assert [each["image"] for each in found] == names
    coords = [[float(each["dim1"]), float(each["dim2"])] for each in found]
    torch.testing.assert_close(torch.tensor(coords), global_coords(run.model, feature))
    local = local_coords(run.model, feature)
    patches = records(made / "figure3-local.csv")
    assert [each["patch"] for each in patches] == [*"123456"] * 2
    for each in patches:
        expected = local[names.index(each["image"]), int(each["row"]), int(each["column"])]
        assert (float(each["dim1"]), float(each["dim2"])) == pytest.approx(expected.tolist())
    assert {each["defect"] for each in patches[:6]} == {"good"} != {patches[6]["defect"]}


def test_patches_lie_in_the_defect_and_off_it() -> None:
    covered = torch.zeros(8, 8)
    covered[2:4, 2:6] = 0.8
    patches = figure3.choose_patches(covered)
    assert len({*patches}) == 6
    assert [bool(covered[patch] > 0) for patch in patches] == [True] * 3 + [False] * 3
    assert len({*figure3.choose_patches(torch.zeros(8, 8))}) == 6  # of an image without a mask
    assert figure3.choose_patches(torch.full((8, 8), 0.01))  # of a defect smaller than a patch
    assert figure3.choose_patches(torch.zeros(1, 1)) == []


def test_representations_are_those_of_the_model(model: CRAD) -> None:
    feature = torch.randn(2, 4, 2, 3)
    model.eval()
    found = representations(model, feature)
    assert [*found] == ["feature", "global", "local", "normal"]
    torch.testing.assert_close(found["normal"], model(feature).normal_feature)
    local = plane(model, "local")(feature.permute(0, 2, 3, 1)).entries.permute(0, 3, 1, 2)
    torch.testing.assert_close(found["local"], local)


# ---- figure 4 ----


def test_neighbours_join_all_points_by_the_shortest_lines() -> None:
    centres = np.array([[0, 0], [5, 0], [1, 0], [5.5, 0]], dtype=np.float32)
    assert figure4.neighbours(centres) == [(1, 3), (0, 2), (1, 2)]


@pytest.mark.parametrize("absent", ["drop", "zeros"])
def test_normal_features_at_an_image_are_those_of_the_image(absent: Any) -> None:
    torch.manual_seed(0)
    model = CRAD(4, 2, 3, local_memory="none", depth=1, expansion=8, absent=absent).eval()
    feature = torch.randn(2, 4, 2, 3)
    with torch.no_grad():
        expected = model(feature).normal_feature
    found = figure4.normal_features(model, global_coords(model, feature))
    torch.testing.assert_close(found, expected)


def test_figure_4_is_of_the_run(made: Path, runs: Runs) -> None:
    check_png(made / "figure4.png")
    run = load_run(runs, GLOBAL)
    feature = run.features(run.dataset.test).channels_first()
    found = records(made / "figure4.csv")
    coords = torch.tensor([[float(each["dim1"]), float(each["dim2"])] for each in found])
    torch.testing.assert_close(coords, global_coords(run.model, feature))
    with np.load(made / "figure4.npz") as data:
        line, decoded = data["A_coords"], data["A_decoded"]
    good = {
        name: coords[[each["class"] == name and each["defect"] == "good" for each in found]]
        for name in run.dataset.classes
    }
    medians = [np.median(each.numpy(), axis=0) for each in good.values()]
    np.testing.assert_allclose(line[[0, -1]], medians, rtol=1e-5)
    again = Decoders(run, made / "decoders").decode(
        "normal", figure4.normal_features(run.model, torch.from_numpy(line))
    )
    np.testing.assert_array_equal(decoded, again)


# ---- figure 5 ----


def test_figure_5_shows_the_first_defect_of_each_class(made: Path, runs: Runs) -> None:
    check_png(made / "figure5.png")
    found = records(made / "figure5.csv")
    run = load_run(runs, FULL)
    chosen = figure5.choose_images(run.dataset.test)
    assert [sample.class_name for sample in chosen] == ["brick", "gauge"]
    assert all(sample.is_anomaly for sample in chosen)
    names = [str(sample.path.relative_to(run.dataset.root)) for sample in chosen]
    assert [*dict.fromkeys(each["image"] for each in found)] == names
    assert len(found) == 2 * 5
    feature = run.features(chosen).channels_first()
    with np.load(made / "figure5.npz") as data, torch.no_grad():
        assert len(data) == 5
        torch.testing.assert_close(torch.from_numpy(data["CRAD"]), run.model(feature).anomaly_map)


def test_images_of_figure_5_are_of_eight_classes_at_most() -> None:
    samples = [
        Sample(Path(f"{name}{defect}"), f"{name:02}", defect)
        for name in range(15)
        for defect in ("good", "hole")
    ]
    assert len({sample.class_name for sample in figure5.choose_images(samples)}) == 8
    normal = [sample for sample in samples if not sample.is_anomaly]
    assert len(figure5.choose_images(normal)) == 8


# ---- the decoder ----


def test_training_a_decoder_is_deterministic_and_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_STEPS", 60)
    feature = torch.randn(8, 3, 4, 4)
    images = feature.repeat_interleave(4, 2).repeat_interleave(4, 3).mul(0.2).add(0.5).clamp(0, 1)
    decoders = [Decoder(3), Decoder(3)]
    for each in decoders:
        train_decoder(each, feature, images, seed=0)
    states = [each.state_dict() for each in decoders]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with torch.no_grad():
        error = (decoders[0](feature) - images).abs().mean()
    assert error < 0.5 * (images - 0.5).abs().mean()


def test_a_decoder_is_used_again(made: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = sorted((made / "decoders").iterdir())
    kinds = [path.name.partition("-")[0] for path in kept]
    assert kinds == ["feature", "global", "local", "normal", "normal"]  # figure 4: the last

    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(decoder, "train_decoder", fail)
    run = load_run(runs, FULL)
    feature = run.features(run.dataset.test[:1]).channels_first()
    decoders = Decoders(run, made / "decoders")
    for kind, each in representations(run.model, feature).items():
        height, width = each.shape[2:]
        assert decoders.decode(kind, each).shape == (1, 4 * height, 4 * width, 3)


def test_a_damaged_decoder_is_named(made: Path, runs: Runs, tmp_path: Path) -> None:
    run = load_run(runs, FULL)
    feature = run.features(run.dataset.test[:1]).channels_first()
    path = next((made / "decoders").glob("feature-*"))
    (tmp_path / path.name).write_bytes(b"cut short")
    with pytest.raises(OutputError, match=r"feature-.*damaged"):
        Decoders(run, tmp_path).decode("feature", feature)


# ---- all of them ----


def test_the_page_has_every_figure_and_its_caption(made: Path) -> None:
    for name in ("figure2b", "figure3", "figure4", "figure5"):
        text = (made / f"{name}.md").read_text()
        assert f"]({name}.png)" in text
        assert "Data: `" in text
        assert (made / f"{name}.png").stat().st_size < 400_000
        assert (made / "print" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("missing", "classes", "names"),
    [
        ("ground_truth", ("gauge",), ("figure3", "figure4", "figure5")),
        ("test", ("brick", "gauge"), ("figure3", "figure5")),
    ],
    ids=["one class, no masks", "no test images"],
)
@pytest.mark.slow
@pytest.mark.thorough
def test_less_data_will_do(
    missing: str,
    classes: tuple[str, ...],
    names: tuple[str, ...],
    demo_root: Path,
    runs: Runs,
    tmp_path: Path,
) -> None:
    for name in classes:
        ignored = shutil.ignore_patterns("ground_truth", missing)
        shutil.copytree(demo_root / name, tmp_path / "data" / name, ignore=ignored)
    runs = replace(runs, base=Config(data=DataConfig(str(tmp_path / "data"))))
    for name in names:
        assert f"]({name}.png)" in TARGETS[name].make(runs, tmp_path)
        check_png(tmp_path / f"{name}.png")


@pytest.mark.parametrize("memory", ["vq", "attention", "none", "grid"])
def test_coordinates_need_a_plane(memory: Any) -> None:
    model = CRAD(4, 2, 2, local_memory=memory, local_resolution=(2, 2, 2), depth=0)
    with pytest.raises(UsageError, match="local memory that is a grid"):
        local_coords(model, torch.zeros(1, 4, 2, 2))


def test_classes_are_told_apart_by_colour_and_filling() -> None:
    styles = [class_style(number, anomalous=False) for number in range(15)]
    assert len({(style["color"], style["fillstyle"]) for style in styles}) == 15
    assert class_style(3, anomalous=True)["color"] == styles[3]["color"]


def test_a_figure_is_reproducible_and_keeps_its_colours(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    with drawing() as pyplot:
        figure, (left, right) = pyplot.subplots(1, 2)
        show_image(left, noise)
        for number, colour in enumerate(COLOURS):
            right.plot(number, number, "o", color=colour)
        for name in ("figure.png", "figure.pdf", "figure.svg"):
            save(figure, tmp_path / name)
            first = (tmp_path / name).read_bytes()
            save(figure, tmp_path / name)
            assert (tmp_path / name).read_bytes() == first
    with Image.open(tmp_path / "figure.png") as image:
        pixels = np.asarray(image.convert("RGB"))[:, image.width // 2 :].reshape(-1, 3).astype(int)
    for colour in COLOURS:
        expected = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        assert np.abs(pixels - expected).max(axis=1).min() <= 2


def test_matplotlib_is_asked_for_before_anything_is_trained(
    demo_root: Path,
    tmp_path: Path,
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    given = ("figure3", "--data", str(demo_root), "--output", str(tmp_path / "out"))
    assert command(main, *given) == 1
    assert "matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
