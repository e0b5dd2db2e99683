"""CRAD in anomalib: what its engine, command line, exporters and inferencers make of it."""

import functools
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

import crad
from crad.config import Config, ModelConfig, TrainingConfig
from crad.data.images import open_image
from crad.data.samples import Sample
from crad.data.tensors import to_tensor
from crad.errors import CheckpointError, MissingPackageError, UsageError
from crad.training.checkpoint import CHECKPOINT_NAME, read_checkpoint
from crad.training.features import Features
from crad.training.loop import Training
from crad.training.network import create_model
from tests.crad.conftest import Run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports itself
    pytest.importorskip("anomalib.models", reason="needs pip install 'crad[test]'")
    import anomalib.data
    from anomalib.deploy import OpenVINOInferencer, TorchInferencer
    from anomalib.engine import Engine

    from crad.integrations.anomalib import Crad

ROOT = Path(__file__).parents[2]
CHECKPOINTS = Path(__file__).parent / "checkpoints"
CLASSES = ("brick", "gauge")
SMALL: dict[str, Any] = {"preset": "tiny", "backbone": "scattering", "image_size": 32}

pytestmark = [
    # Lightning's hints, some of which depend on the time that a batch takes.
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
]
pytestmark += [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        # Lightning: so few images need no workers, and no log of each step.
        "The '.*_dataloader' does not have many workers",
        "The number of training batches",
        "Found . module.s. in eval mode at the start of training",  # the backbone
        "`isinstance.treespec, LeafSpec.` is deprecated",
        "'pin_memory' argument is set as true but no accelerator",
        "The dirpath has changed from",
        # The exporter of PyTorch, which anomalib calls.
        "# 'dynamic_axes' is not recommended",
    )
]


@pytest.fixture(scope="module")
def data_root(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo set of two classes, in a folder that may be written to."""
    return shutil.copytree(demo_root, tmp_path_factory.mktemp("anomalib") / "data")


def folders(root: Path) -> dict[str, Any]:
    """The folders of both classes, for a data module."""
    defects = [
        f"{name}/test/{path.name}"
        for name in CLASSES
        for path in sorted((root / name / "test").iterdir())
        if path.name != "good"
    ]
    return {
        "name": "small",
        "root": str(root),
        "normal_dir": [f"{name}/train/good" for name in CLASSES],
        "normal_test_dir": [f"{name}/test/good" for name in CLASSES],
        "abnormal_dir": defects,
        "mask_dir": [each.replace("/test/", "/ground_truth/") for each in defects],
        "num_workers": 0,
    }


def read_folders(root: Path, batch_size: int = 4) -> anomalib.data.Folder:
    return anomalib.data.Folder(
        **folders(root), train_batch_size=batch_size, val_split_mode="same_as_test"
    )


def make_engine(folder: Path, **options: Any) -> Engine:
    return Engine(
        default_root_dir=folder / "results",
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.fixture(scope="module")
def fitted(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Crad]:
    """A model that the engine has trained for a few epochs."""
    torch.manual_seed(0)
    model = Crad(**SMALL, visualizer=False)
    engine = make_engine(tmp_path_factory.mktemp("fitted"), max_epochs=10)
    engine.fit(model, datamodule=read_folders(data_root))
    return engine, model


@pytest.fixture
def images(data_root: Path, tmp_path: Path) -> Path:
    """Images of both classes and of odd sizes, in one folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in CLASSES:
        for path in (data_root / name / "test").rglob("*.png"):
            shutil.copy(path, folder / f"{name}-{path.parent.name}-{path.name}")
    for name, size in (("wide", (90, 41)), ("small", (20, 25))):
        Image.effect_noise(size, 60).convert("RGB").save(folder / f"{name}.png")
    return folder


def predict(model: Crad, images: Path, folder: Path, **options: Any) -> Iterator[Any]:
    """What the engine says of each image."""
    batches = make_engine(folder).predict(model, data_path=images, **options)
    assert batches
    for batch in batches:
        yield from batch


def test_it_learns_and_is_measured(fitted: tuple[Engine, Crad], data_root: Path) -> None:
    engine, model = fitted
    (metrics,) = engine.test(model, datamodule=read_folders(data_root), verbose=False)
    assert {*metrics} == {"image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"}
    assert all(0 <= value <= 1 for value in metrics.values())


def test_scores_are_normalised_as_anomalib_does(
    fitted: tuple[Engine, Crad], images: Path, tmp_path: Path
) -> None:
    _, model = fitted
    items = [*predict(model, images, tmp_path)]
    assert all(0 <= item.pred_score <= 1 for item in items)
    assert all(bool(item.pred_label) == bool(item.pred_score > 0.5) for item in items)
    assert all(item.pred_mask.shape == item.anomaly_map.shape == (32, 32) for item in items)


def test_a_checkpoint_of_lightning_is_the_same_model(
    fitted: tuple[Engine, Crad], images: Path, tmp_path: Path
) -> None:
    engine, model = fitted
    path = engine.best_model_path
    assert path
    again = Crad.load_from_checkpoint(path, visualizer=False)
    fresh = Crad(**SMALL, visualizer=False)
    expected = [item.pred_score for item in predict(model, images, tmp_path)]
    assert [item.pred_score for item in predict(again, images, tmp_path)] == expected
    found = predict(fresh, images, tmp_path, ckpt_path=path)
    assert [item.pred_score for item in found] == expected


def test_training_goes_on_from_a_checkpoint(
    fitted: tuple[Engine, Crad], data_root: Path, tmp_path: Path
) -> None:
    """Neither the backbone nor the optimizer starts anew."""
    former, model = fitted
    again = Crad(**SMALL, visualizer=False)
    engine = make_engine(tmp_path, max_epochs=11)
    engine.fit(again, datamodule=read_folders(data_root), ckpt_path=former.best_model_path)
    assert torch.equal(again.model.backbone.projection, model.model.backbone.projection)
    steps = {int(each["step"]) for each in engine.trainer.optimizers[0].state.values()}
    assert steps == {11 * 3}


@pytest.mark.parametrize("name", ["trained", "version-2"])
def test_maps_and_scores_are_those_of_crad(
    trained: Run, images: Path, tmp_path: Path, name: str
) -> None:
    path = trained.output if name == "trained" else CHECKPOINTS / f"{name}.safetensors"
    thresholds = read_checkpoint(path).thresholds
    detector = crad.load(path, device="cpu", precision="fp32")
    model = Crad.from_checkpoint(path, visualizer=False)
    n_found = 0
    for item in predict(model, images, tmp_path):
        expected = detector.predict_one(item.image_path)
        np.testing.assert_allclose(item.pred_score, expected.score, rtol=1e-5)
        np.testing.assert_allclose(item.anomaly_map, expected.scored_map, rtol=1e-4)
        if thresholds:  # of a class that is not known, the highest
            assert bool(item.pred_label) == (expected.score > thresholds.score_of(None))
        n_found += 1
    assert n_found == len([*images.iterdir()])


def test_a_checkpoint_of_crad_can_be_measured_and_trained_on(
    trained: Run, data_root: Path, tmp_path: Path
) -> None:
    model = Crad.from_checkpoint(trained.output, visualizer=False)
    (metrics,) = make_engine(tmp_path).test(model, datamodule=read_folders(data_root))
    assert all(0 <= value <= 1 for value in metrics.values())
    projection = model.model.backbone.projection.clone()
    weights = model.model.crad.fusion[0].expand.weight.clone()
    make_engine(tmp_path, max_epochs=1).fit(model, datamodule=read_folders(data_root))
    assert torch.equal(model.model.backbone.projection, projection)
    assert not torch.equal(model.model.crad.fusion[0].expand.weight, weights)


def test_images_are_resized_as_crad_does(data_root: Path) -> None:
    data = read_folders(data_root)
    model = Crad(**SMALL)
    data.trainer = SimpleNamespace(model=model)  # as Lightning does; then data resize images
    data.setup()
    for item in (data.train_data[0], data.test_data[-1]):
        assert torch.equal(item.image, to_tensor(open_image(item.image_path), 32))
    batch = data.test_data.collate_fn([data.test_data[0], data.test_data[-1]])
    image, mask = model.pre_processor.transform(batch.image, batch.gt_mask)
    assert torch.equal(image, batch.image)
    assert mask.shape == (2, 32, 32)
    assert model.input_size == (32, 32)


def test_training_is_that_of_crad(trained: Run, data_root: Path, tmp_path: Path) -> None:
    """Optimizer, learning rates and clipping, by what both make of the same batch."""
    settings = {"jitter_prob": 0.0, "clip_norm": 0.05}
    config = Config(training=TrainingConfig(epochs=5, batch_size=12, **settings))
    model = Crad(**SMALL, settings=settings, visualizer=False)
    model.model.backbone.load_state_dict(read_checkpoint(trained.output).backbone)
    model.model.trained.fill_(True)
    files = sorted(path for name in CLASSES for path in (data_root / name / "train").rglob("*.png"))
    batch = model.model.backbone(torch.stack([to_tensor(open_image(each), 32) for each in files]))
    features = Features(batch.permute(0, 2, 3, 1).contiguous(), [Sample(each) for each in files])
    network = create_model(config, (16, 4, 4))
    network.load_state_dict(model.model.crad.state_dict())

    training = Training(network, config.training, Accelerator(cpu=True))
    losses = [training.run_epoch(features, tqdm(disable=True)) for _ in range(5)]

    engine = make_engine(tmp_path, max_epochs=5, limit_val_batches=0)
    engine.fit(model, datamodule=read_folders(data_root, batch_size=12))
    assert float(engine.trainer.callback_metrics["train_loss"]) == pytest.approx(losses[-1], 1e-4)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        found, expected = (each.eval()(batch) for each in (model.model.crad, network))
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-4)


def test_the_torch_inferencer_runs_what_is_exported(
    fitted: tuple[Engine, Crad],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, model = fitted
    path = engine.export(model, "torch", export_root=tmp_path)
    assert path
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    inferencer = TorchInferencer(path, device="cpu")
    with torch.no_grad():
        for item in predict(model, images, tmp_path):
            found = inferencer.predict(item.image_path)
            torch.testing.assert_close(found.pred_score[0], item.pred_score)
            torch.testing.assert_close(found.anomaly_map[0], item.anomaly_map)


def untrained(backbone: str) -> Crad:
    """A model with random weights, for images of 64 pixels, that can be exported."""
    torch.manual_seed(0)
    model = Crad("tiny", backbone, 64, {"depth": 1}, post_processor=False)
    model.model.backbone.fit([torch.rand(8, 3, 64, 64)])  # nothing, but for scattering
    model.model.trained.fill_(True)
    return model


def noise(n_images: int, size: tuple[int, int]) -> torch.Tensor:
    """Images of whole grey levels, uneven at some pixels."""
    batch = torch.nn.functional.avg_pool2d(torch.rand(n_images, 3, *size), 5, 1, 2)
    return (batch * 255).round() / 255


@pytest.mark.slow
@pytest.mark.thorough
def test_onnx_gives_the_same(tmp_path: Path) -> None:
    """For images of the size of the model; others are resized with less rounding."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install 'crad[test]'")
    pytest.importorskip("onnxscript", reason="needs pip install 'crad[test]'")
    model = untrained("test_efficientnet")
    session = onnxruntime.InferenceSession(model.to_onnx(tmp_path))
    names = [each.name for each in session.get_outputs()]
    for size, rtol in (((64, 64), 1e-3), ((150, 97), 2e-2), ((40, 50), 2e-2)):
        batch = noise(3, size)
        with torch.no_grad():
            expected = model(batch)
        found = dict(zip(names, session.run(None, {"input": batch.numpy()}), strict=True))
        for name in ("pred_score", "anomaly_map"):
            np.testing.assert_allclose(found[name], getattr(expected, name), rtol=rtol)


@pytest.mark.slow
@pytest.mark.thorough
def test_openvino_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("openvino", "onnxscript"):
        pytest.importorskip(package, reason="needs pip install 'crad[openvino]'")
    monkeypatch.chdir(tmp_path)  # where the inferencer keeps what it compiles
    model = untrained("scattering")
    inferencer = OpenVINOInferencer(model.to_openvino(tmp_path, input_size=(64, 64)), device="CPU")
    batch = noise(1, (64, 64))
    with torch.no_grad():
        expected = model(batch)
    found = inferencer.predict(batch[0].permute(1, 2, 0).numpy())
    for name in ("pred_score", "anomaly_map"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.thorough
def test_the_command_line_takes_it_by_its_path(data_root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "model": "crad.integrations.anomalib.Crad",
        **{f"model.{name}": value for name, value in SMALL.items()},
        "model.settings.depth": 1,
        "model.visualizer": "false",
        "data": "anomalib.data.Folder",
        **{f"data.{name}": value for name, value in folders(data_root).items()},
        "trainer.max_epochs": 2,
        "trainer.accelerator": "cpu",
        "default_root_dir": tmp_path,
    }
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "anomalib.cli.cli", "train"),
            *(f"--{name}={value}" for name, value in options.items()),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "pixel_AUROC" in ended.stdout
    (path,) = tmp_path.rglob("*.ckpt")
    assert Crad.load_from_checkpoint(path).config.model.depth == 1


def test_the_example_of_the_documentation(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = re.findall(r"```python\n(.*?)```", (ROOT / "docs/anomalib.md").read_text(), re.S)[0]
    (tmp_path / "data").symlink_to(data_root)
    monkeypatch.chdir(tmp_path)
    without_workers = functools.partial(anomalib.data.Folder, num_workers=0)
    monkeypatch.setattr(anomalib.data, "Folder", without_workers)
    exec(example.replace("max_epochs=20", "max_epochs=2"), {})
    assert [*tmp_path.rglob("model.pt")]


def test_what_is_not_trained_is_refused(images: Path, tmp_path: Path) -> None:
    model = Crad(**SMALL, visualizer=False)
    with pytest.raises(UsageError, match="not trained; fit it"):
        [*predict(model, images, tmp_path)]
    with pytest.raises(UsageError, match="not trained; fit it"):
        model.to_onnx(tmp_path)


def test_the_number_of_steps_may_end_the_training(data_root: Path, tmp_path: Path) -> None:
    """14 steps are five epochs of 3; the last has a tenth of the learning rate."""
    model = Crad(**SMALL, visualizer=False)
    engine = make_engine(tmp_path, max_epochs=-1, max_steps=14)
    engine.fit(model, datamodule=read_folders(data_root))
    rates = [group["lr"] for group in engine.trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([1e-4, 1e-2])
    assert engine.trainer.global_step == 14


def test_training_without_an_end_is_refused(data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_epochs"):
        make_engine(tmp_path, max_epochs=-1).fit(
            Crad(**SMALL, visualizer=False), datamodule=read_folders(data_root)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": {"batch_size": 4}}, "none called 'batch_size'.*data module"),
        ({"settings": {"depht": 4}}, "none called 'depht'.*depth"),
        ({"settings": {"depth": -1}}, "--depth"),
        ({"settings": {"decision_protocol": "none"}}, "decision_protocol: expected one of crad"),
        ({"preset": "auto"}, "preset: expected one of cpu, tiny"),
        ({"image_size": 8}, "--image-size"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Crad(**{**SMALL, **arguments})


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        ({"tile": 64}, "--tile"),
        ({"fit": True, "fitted": (32, 24, 8)}, "--fit"),
    ],
)
def test_checkpoints_that_need_more_are_refused(
    trained: Run, tmp_path: Path, changed: dict[str, Any], option: str
) -> None:
    checkpoint = read_checkpoint(trained.output)
    model = replace(checkpoint.config.model, **changed)
    replace(checkpoint, config=replace(checkpoint.config, model=model)).save(tmp_path)
    with pytest.raises(CheckpointError, match=f"trained with {option}"):
        Crad.from_checkpoint(tmp_path)


def test_every_setting_of_a_checkpoint_is_taken(trained: Run, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(trained.output)
    model = replace(checkpoint.config.model, mse_weight=0.2, cosine_weight=0.6, mse_threshold=7.0)
    training = replace(checkpoint.config.training, jitter_std=0.1, norm_batch=3)
    replace(checkpoint, config=replace(checkpoint.config, model=model, training=training)).save(
        tmp_path
    )
    found = Crad.from_checkpoint(tmp_path / CHECKPOINT_NAME).config
    assert found.model == replace(model, preset="crad", bit_depth=None)
    assert (found.training.jitter_std, found.training.norm_batch) == (0.1, 3)
    assert ModelConfig() != model


def test_without_anomalib_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "crad.integrations.anomalib")
    monkeypatch.setitem(sys.modules, "anomalib", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'crad\[anomalib\]'"):
        import crad.integrations.anomalib  # noqa: F401
