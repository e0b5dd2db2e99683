"""Rivals on the images: anomalib's own code gives the harness's numbers, and what is measured."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.comparison import Record
from benchmarks.detectors import budget, clock, costs
from benchmarks.detectors.__main__ import main
from benchmarks.detectors.budget import Epochs
from benchmarks.detectors.in_paper import paper_table
from benchmarks.detectors.inputs import SetInputs, inputs_of, prepare_all
from benchmarks.detectors.methods import methods
from benchmarks.detectors.options import DetectorOptions
from benchmarks.detectors.own_scores import measure_own
from benchmarks.detectors.page import page
from benchmarks.detectors.picture import draw
from benchmarks.detectors.pixels import Pixels
from benchmarks.detectors.pyramid import stages
from benchmarks.detectors.through_anomalib import RECIPES, ThroughAnomalib
from benchmarks.detectors.words import METHODS
from crad.backbones import LITE
from crad.config import Config
from crad.data.batches import load_batches
from crad.errors import UsageError
from tests.benchmarks.rivals import CPU, SIZE, config_of, inputs, needs_weights
from tests.fixtures import command, demo_root, one_thread

__all__ = ["command", "demo_root", "inputs", "one_thread"]

# ---- images ----


def test_pixels_are_those_of_a_backbone(demo_root: Path) -> None:
    config = DetectorOptions(image_size=SIZE, backbone="scattering").config(str(demo_root))
    inputs = prepare_all(config, CPU)
    samples = inputs.test.samples[:5]
    pixels = Pixels(inputs.frame, inputs.decoding)
    (batch,) = load_batches(samples, size=inputs.frame, batch_size=5, decoding=inputs.decoding)
    assert torch.equal(pixels.images(samples), batch.images)
    assert torch.equal(pixels.images(samples[::-1]), batch.images.flip(0))


# ---- budget and costs ----


def test_a_time_chooses_epochs_up_to_the_published_number() -> None:
    def unknown() -> float:
        raise AssertionError("no pace is needed")

    assert budget.choose(100, None, unknown) == Epochs(100, 100)
    assert budget.choose(100, 2.0, lambda: 10.0) == Epochs(12, 100)
    assert budget.choose(100, 0.001, lambda: 10.0) == Epochs(1, 100)
    assert budget.choose(5, 60.0, lambda: 0.1) == Epochs(5, 5)


def test_peak_memory_is_what_came_on_top() -> None:
    memory = costs.PeakMemory()
    if memory.n_bytes() is None:
        pytest.skip("the system does not tell")
    held = np.ones(60_000_000, np.uint8)
    del held
    assert 55e6 < (memory.n_bytes() or 0) < 200e6


# ---- through anomalib ----


def harness(
    method: Any, inputs: SetInputs, config: Config
) -> tuple[Any, Tensor, Tensor, list[Any]]:
    """A fitted detector, and its maps and scores of the test images of its class."""
    of_model = inputs_of(inputs, config)
    detector = method.fit(of_model, config, CPU)
    samples = [each for each in inputs.test.samples if each.class_name == "gauge"]
    maps, scores = detector.predict(inputs.pixels.images(samples))
    return detector, maps, scores, samples


@needs_weights
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["dfm", "patchcore"])
def test_the_engine_of_anomalib_gives_the_scores_of_the_harness(
    name: str, inputs: SetInputs, demo_root: Path, tmp_path: Path
) -> None:
    pytest.importorskip("anomalib", reason="needs pip install 'crad[test]'")
    from anomalib.data import ImageBatch
    from anomalib.engine import Engine
    from sklearn.metrics import roc_auc_score
    from torch.utils.data import DataLoader

    detector, maps, scores, samples = harness(ThroughAnomalib(name), inputs, config_of(demo_root))

    def batch(rows: list[int]) -> Any:
        return ImageBatch(image=inputs.pixels.images([samples[row] for row in rows]))

    engine = Engine(
        default_root_dir=tmp_path,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
    )
    rows: Any = range(len(samples))
    found = engine.predict(detector.model, dataloaders=DataLoader(rows, 4, collate_fn=batch))
    their_scores = torch.cat([each.pred_score.flatten() for each in found])
    their_maps = torch.cat([each.anomaly_map.squeeze(1) for each in found])
    torch.testing.assert_close(scores, their_scores, rtol=1e-6, atol=0)
    torch.testing.assert_close(maps, their_maps, rtol=1e-6, atol=1e-6)
    ours = measure_own(maps, scores, samples, {"gauge": 5}, inputs.truths)["mean"]
    truths = np.stack([each.read_truth(SIZE, decoding=inputs.decoding) for each in samples])
    image_auroc = roc_auc_score([each.is_anomaly for each in samples], their_scores)
    assert ours["image_auroc"] == pytest.approx(image_auroc, abs=1e-6)
    pixel_auroc = roc_auc_score(truths.ravel(), their_maps.numpy().ravel())
    assert ours["pixel_auroc"] == pytest.approx(pixel_auroc, abs=1e-6)


@needs_weights
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["padim", pytest.param("stfpm", marks=pytest.mark.slow)])
def test_a_rival_is_what_its_seed_makes_it(name: str, inputs: SetInputs, demo_root: Path) -> None:
    pytest.importorskip("anomalib", reason="needs pip install 'crad[test]'")
    first, again, other = (
        harness(ThroughAnomalib(name), inputs, config_of(demo_root, seed))[1] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@needs_weights
@pytest.mark.filterwarnings("ignore")
def test_its_backbone_computes_the_features_of_crad(inputs: SetInputs, demo_root: Path) -> None:
    pytest.importorskip("anomalib", reason="needs pip install 'crad[test]'")
    detector, *_ = harness(ThroughAnomalib("patchcore"), inputs, config_of(demo_root))
    images = inputs.pixels.images(inputs.test.samples[:2])
    extractor = detector.model.model.feature_extractor
    fine = extractor(detector.model.pre_processor.transform(images))["blocks.2"]
    torch.testing.assert_close(fine, inputs.backbone(images)[:, :40], rtol=1e-4, atol=1e-4)
    frozen = sum(value.nbytes for value in extractor.state_dict().values())
    state = detector.model.model.state_dict()
    assert detector.n_bytes + frozen == sum(value.nbytes for value in state.values())
    assert detector.n_bytes >= state["memory_bank"].nbytes > 0


def test_every_method_has_words() -> None:
    assert [*METHODS] == [*methods()]
    assert {f"anomalib_{name}" for name in RECIPES} <= METHODS.keys()


# ---- CRAD ----


@needs_weights
def test_the_time_of_crad_is_by_the_clock_of_its_rivals(
    inputs: SetInputs, demo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(demo_root)
    of_model = inputs_of(inputs, config)
    steps = -(-len(of_model.train) // config.training.batch_size)
    ticks = itertools.count()
    monkeypatch.setattr(clock, "now", lambda: float(next(ticks)))
    # A second for the measured steps, and one for thresholds.
    pace = steps / min(steps, 3) + 1
    longer = replace(config, training=replace(config.training, minutes=2.5 * pace / 60))
    assert methods()["crad"].fit(of_model, longer, CPU).epochs == Epochs(2)


# ---- backbones ----


def test_a_backbone_without_stages_is_refused() -> None:
    assert stages(LITE)[8] == "blocks.2"
    for name in ("scattering", "vit_tiny_patch16_224"):
        with pytest.raises(UsageError, match=f"strides 4, 8 and 16, but got {name}"):
            stages(name)


# ---- the command ----


@needs_weights
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_records_of_rivals_and_their_page(
    command: Callable[..., int], demo_root: Path, tmp_path: Path
) -> None:
    pytest.importorskip("anomalib", reason="needs pip install 'crad[test]'")
    pytest.importorskip("matplotlib")
    output, report = tmp_path / "out", tmp_path / "rivals.md"
    arguments = (
        *("--data", str(demo_root), "--image-size", str(SIZE), "--settings", "unified"),
        *("--seeds", "0", "--minutes", "0.001", "--output", str(output), "--report", str(report)),
        *("--methods", "padim", "reverse_distillation", "anomalib_dfm"),
    )
    assert command(main, *arguments) == 0
    found: dict[str, Record] = {
        path.stem: json.loads(path.read_text()) for path in output.glob("*/*.json")
    }
    assert sorted(found) == [
        "anomalib_dfm-unified-seed0",
        "padim-unified-seed0",
        "reverse_distillation-0.001min-unified-seed0",
    ]
    trained = found["reverse_distillation-0.001min-unified-seed0"]
    assert trained["epochs"] == {"run": 1, "published": 200}
    for name, record in found.items():
        assert [*record["protocols"]] == ["peak", "crad"] + ["own"] * (not name.startswith("padim"))
    text = report.read_text()
    assert "| unified | reverse distillation (ours) (0.001 min) | 1 of 200 |" in text
    assert "![accuracy against cost](rivals.svg)" in text
    assert "By their own smoothing and image scores" in text
    first = (tmp_path / "rivals.svg").read_bytes()
    draw([*found.values()], tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == first
    longer = {**trained, "method_settings": {**trained["method_settings"], "minutes": 2.0}}
    assert "reverse distillation (ours) (2 min)" in page([trained, longer])


@needs_weights
@pytest.mark.slow
def test_records_of_our_rivals_in_both_settings(
    command: Callable[..., int], demo_root: Path, tmp_path: Path
) -> None:
    # No epoch of any takes so little: one is trained.
    arguments = (
        *("--data", str(demo_root), "--image-size", str(SIZE), "--minutes", "0.0001"),
        *("--seeds", "0", "--output", str(tmp_path), "--methods", "hvq_trans", "mkd"),
    )
    assert command(main, *arguments) == 0
    found: dict[str, Record] = {
        path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*/*.json")
    }
    assert sorted(found) == [
        f"{name}-0.0001min-{setting}-seed0"
        for name in ("hvq_trans", "mkd")
        for setting in ("separate", "unified")
    ]
    for name, record in found.items():
        assert record["epochs"] == {"run": 1, "published": 200 if "mkd" in name else 1000}
        assert ("own" in record["protocols"]) == ("mkd" in name)
    # One transformer and the codebooks of two classes are less than two of both.
    unified, separate = (
        found[f"hvq_trans-0.0001min-{setting}-seed0"]["n_bytes"]
        for setting in ("unified", "separate")
    )
    assert unified < 0.8 * separate


def test_images_need_a_convolutional_backbone(
    command: Callable[..., int], demo_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--methods", "reverse_distillation", "--backbone", "scattering")
    assert command(main, "--data", str(demo_root), *arguments) == 2
    assert "stages at strides 4, 8 and 16, but got scattering" in capsys.readouterr().err


def record_of(method: str, image: float, pixel: float, class_name: str = "m4") -> Record:
    numbers = {
        "image_auroc": image, "image_ap": None, "image_f1_max": None, "pixel_auroc": pixel,
        "pixel_ap": None, "pixel_aupro": None,
    }  # fmt: skip
    of_class = {**numbers, "n_train": 3, "n_test": 2}
    return {
        "data": "bolts", "backbone": "scattering", "image_size": "64", "method": method,
        "setting": "unified", "seed": 0, "method_settings": {}, "n_train": {class_name: 3},
        "n_test": 2, "n_bytes": 8, "seconds": {"features": 1.0, "fit": 1.0, "maps": 1.0},
        "notes": [], "environment": {
            "cpu": "", "cpu_count": 1, "threads": 1, "device": "cpu", "torch": "", "numpy": "",
            "python": "", "crad": "",
        },
        "protocols": {"peak": {"mean": numbers, "classes": {class_name: of_class}}},
    }  # fmt: skip


def test_the_page_says_where_crad_loses() -> None:
    text = page([record_of("crad", 0.9, 0.8), record_of("padim", 0.95, 0.7)])
    assert "* bolts, scattering, unified: image AUROC (CRAD 90.00): PaDiM (95.00).\n" in text
    rival = record_of("padim", 0.9, 0.7)
    assert "* bolts, scattering, unified: nowhere.\n" in page([record_of("crad", 0.9, 0.8), rival])
    own = record_of("padim", 0.7, 0.85)["protocols"]["peak"]
    rival["protocols"]["own"] = own
    text = page([record_of("crad", 0.9, 0.8), rival])
    assert "unified: pixel AUROC (CRAD 80.00): PaDiM (85.00, own).\n" in text


def test_the_page_says_which_set_was_altered() -> None:
    copy = {**record_of("crad", 0.9, 0.8), "data": "demo-hard-jpeg50"}
    assert "A copy of `demo-hard` by `benchmarks.detectors.altered`" in page([copy])
    assert "Generated by crad" in page([{**copy, "data": "demo"}])
    assert "As `demo`" in page([{**copy, "data": "demo-hard"}])
    assert "A folder of that name." in page([record_of("crad", 0.9, 0.8)])


def test_the_first_result_needs_the_features_of_the_training_images() -> None:
    speed = {"images_per_second": {"1": 4.0, "32": 8.0}}
    padim = {**record_of("padim", 0.9, 0.7), **speed}
    # 3 of 5 images in 1 s, the fit, and one image.
    assert "| unified | PaDiM | - | 1.00 | 1.85 | 4.00 | 8.00 |" in page([padim])
    on_images = {**record_of("anomalib_padim", 0.9, 0.7), **speed}
    assert "| unified | PaDiM (anomalib) | - | 1.00 | 1.25 | 4.00 | 8.00 |" in page([on_images])
    assert "| unified | PaDiM | - | 1.00 | - | - | - |" in page([record_of("padim", 0.9, 0.7)])


@pytest.mark.parametrize(
    ("class_name", "row"),
    [
        ("bottle", "| RD4AD | 98.7 | 100.0 | 97.7 | 98.7 |"),
        ("pcb1", "| OmniAL | 77.7 | 96.6 | 97.6 | 98.7 |"),
    ],
)
def test_the_numbers_of_the_paper_stand_beside_its_classes(class_name: str, row: str) -> None:
    assert row in page([record_of("crad", 0.9, 0.8, class_name)])
    assert "The paper of CRAD has" not in page([record_of("crad", 0.9, 0.8)])
    # Another set, of which a class has the same name.
    tile = {**record_of("crad", 0.9, 0.8, "tile"), "data": "magnetic_tile"}
    assert "The paper of CRAD has" not in page([tile])
    assert "The paper of CRAD has" not in page([{**tile, "data": "magnetic_tile-jpeg50"}])


def test_a_number_that_the_paper_lacks_is_a_dash() -> None:
    table = paper_table(["bottle", "cable"])
    assert table is not None
    row = next(line for line in table.splitlines() if line.startswith("| HVQ-T "))
    assert [cell.strip() for cell in row.split("|")][3] == "-"
