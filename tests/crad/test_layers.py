"""Layers of timm models: which give the features, how they are combined, and at which sizes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

import crad
from crad.backbones import create_backbone
from crad.backbones.timm import TimmBackbone, _middle
from crad.config import Config, ModelConfig
from crad.detector import create_model
from crad.errors import BackboneError
from crad.idle_options import without_effect
from crad.train_options import parse_options
from crad.training.checkpoint import CHECKPOINT_NAME, Checkpoint
from tests.crad.test_checkpoint import rewrite, stored

needs_dinov3 = pytest.mark.skipif(
    not timm.is_model("vit_small_patch16_dinov3"), reason="this timm has no DINOv3"
)
TRANSFORMERS = [
    "test_vit",
    "vit_tiny_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    pytest.param("vit_small_patch16_dinov3", marks=needs_dinov3),
]


def images(height: int, width: int, count: int = 1) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def full_model(backbone: TimmBackbone, **arguments: Any) -> Any:
    """The whole model of timm, with the weights of a backbone in the layers that it has."""
    full = timm.create_model(backbone.name, **arguments).eval()
    found = full.load_state_dict(backbone.model.model.state_dict(), strict=False)
    assert not found.unexpected_keys
    return full


def normalised(backbone: TimmBackbone, pictures: Tensor) -> Tensor:
    return (pictures - backbone.image_mean) / backbone.image_std


def same(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layers", "combine", "channels", "stride"),
    [
        ("resnet10t", [2, 3], "concat", 128 + 256, 8),
        ("convnext_atto", [1, 2], "concat", 80 + 160, 8),
        ("swin_tiny_patch4_window7_224", [1, 2], "concat", 192 + 384, 8),
        ("test_vit", [1, 2, 3, 4], "mean", 64, 16),
        ("vit_tiny_patch16_224", [2, 3, 4, 5, 6, 7, 8, 9], "mean", 192, 16),
    ],
)
def test_the_default(
    name: str, layers: list[int], combine: str, channels: int, stride: int
) -> None:
    backbone = TimmBackbone(name, pretrained=False)
    assert (backbone.layers, backbone.combine) == (layers, combine)
    assert (backbone.channels, backbone.stride) == (channels, stride)
    assert backbone(images(64, 96, 2)).shape == (2, channels, 64 // stride, 96 // stride)


def test_the_middle_blocks_are_those_of_dinomaly() -> None:
    assert _middle(12) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert _middle(24) == [4, 6, 8, 10, 12, 14, 16, 18]
    assert _middle(1) == [0]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_features_are_the_patch_tokens_of_timm_at_any_size(name: str) -> None:
    """Also of images that are not square, from call to call, and without class and registers."""
    backbone = TimmBackbone(name, pretrained=False)
    full = full_model(backbone, dynamic_img_size=True)
    for rows, columns in ((3, 5), (4, 2), (3, 5)):
        pictures = images(rows * backbone.stride, columns * backbone.stride, 2)
        blocks = full.forward_intermediates(
            normalised(backbone, pictures), indices=backbone.layers, intermediates_only=True
        )
        expected = torch.stack(blocks).mean(0)
        assert expected.shape == (2, backbone.channels, rows, columns)
        same(backbone(pictures), expected)


def test_swin_at_any_size_is_that_of_timm() -> None:
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", pretrained=False)
    full = full_model(backbone, strict_img_size=False)
    for height, width in ((64, 96), (96, 64)):
        pictures = images(height, width)
        fine, _ = full.forward_intermediates(
            normalised(backbone, pictures), indices=[1, 2], intermediates_only=True
        )
        same(backbone(pictures)[:, :192], fine)


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch14_reg4_dinov2"])
def test_position_embeddings_are_resampled_as_timm_does(name: str) -> None:
    backbone = TimmBackbone(name, pretrained=False, layers=(0, 1))
    state = backbone.model.model.state_dict()
    fixed = timm.create_model(name, img_size=(5 * backbone.stride, 3 * backbone.stride)).eval()
    embedded = state["pos_embed"]
    side = int(embedded.shape[1] ** 0.5)
    prefix = embedded.shape[1] - side**2
    resampled = resample_abs_pos_embed(embedded, [5, 3], [side, side], num_prefix_tokens=prefix)
    fixed.load_state_dict(state | {"pos_embed": resampled}, strict=False)
    pictures = images(5 * backbone.stride, 3 * backbone.stride)
    blocks = fixed.forward_intermediates(
        normalised(backbone, pictures), indices=[0, 1], intermediates_only=True
    )
    same(backbone(pictures), torch.stack(blocks).mean(0))


def test_weights_of_another_image_size(tmp_path: Path) -> None:
    """Their position embeddings are resampled to those of the model, and then to the images."""
    state = timm.create_model("test_vit", img_size=96).state_dict()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    backbone = TimmBackbone("test_vit", weights=tmp_path / "w.safetensors")
    expected = resample_abs_pos_embed(state["pos_embed"], [10, 10], [6, 6])
    same(backbone.model.model.pos_embed, expected)
    assert backbone(images(64, 96)).isfinite().all()


def test_dinov2_weights_are_used_at_other_sizes_than_their_own(tmp_path: Path) -> None:
    name, file = "vit_small_patch14_dinov2", tmp_path / "dinov2.safetensors"
    full = timm.create_model(name, dynamic_img_size=True).eval()
    assert full.pos_embed.shape[1] == 1 + 37 * 37
    safetensors.torch.save_file(full.state_dict(), file)
    backbone = TimmBackbone(name, weights=file, layers=(0, 2))
    pictures = images(4 * 14, 6 * 14)
    blocks = full.get_intermediate_layers(normalised(backbone, pictures), n=[0, 2], reshape=True)
    same(backbone(pictures), torch.stack(blocks).mean(0))


@pytest.mark.parametrize("layers", [(1, 4), (4, 1), (-5, -2)])
def test_blocks_are_named_from_either_end_in_any_order(layers: tuple[int, ...]) -> None:
    backbone = TimmBackbone("test_vit", pretrained=False, layers=layers, combine="concat")
    assert (backbone.layers, backbone.channels) == ([1, 4], 2 * 64)
    assert len(backbone.model.model.blocks) == 5  # none after the last that is used
    pictures = images(32, 48)
    blocks = full_model(backbone, dynamic_img_size=True).forward_intermediates(
        normalised(backbone, pictures), indices=[1, 4], intermediates_only=True
    )
    same(backbone(pictures), torch.cat(blocks, dim=1))


def test_stages_of_any_stride_have_the_resolution_of_the_finest() -> None:
    backbone = TimmBackbone("resnet10t", pretrained=False, layers=(1, -1))
    assert (backbone.channels, backbone.stride) == (64 + 512, 4)
    pictures = images(64, 96)
    fine, coarse = full_model(backbone).forward_intermediates(
        normalised(backbone, pictures), indices=[1, 4], intermediates_only=True
    )
    result = backbone(pictures)
    assert result.shape == (1, 576, 16, 24)
    same(result[:, :64], fine)
    same(result[:, 64:, ::15, ::23], coarse[:, :, ::1, ::2])


def test_no_names_are_the_last_of_each_stride() -> None:
    """Of a transformer, this is the last block: what a checkpoint of former versions means."""
    backbone = TimmBackbone("test_vit", pretrained=False, layers=())
    assert backbone.layers == [5]
    assert TimmBackbone("resnet10t", pretrained=False, layers=()).layers == [2, 3]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet10t", {"layers": (2, 5)}, "--layers: 'resnet10t' has the layers 0 to 4.* got 5"),
        ("test_vit", {"layers": (-7,)}, r"--layers: .* -6 to -1 .* got -7"),
        ("test_vit", {"layers": (5, -1)}, r"--layers: .* twice in 5 -1"),
        (
            "resnet10t",
            {"layers": (2, 3), "combine": "mean"},
            r"--combine: .*'resnet10t'.* \(2 has 128 at 8, 3 has 256 at 16\).*--combine concat",
        ),
        ("vit_tiny_r_s16_p8_224", {}, r"has layers at strides \[32\], .* 0 to 11 with --layers"),
    ],
)
def test_layers_that_cannot_be_are_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackboneError, match=message):
        create_backbone(name, pretrained=False, **options)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("test_vit", (40, 64), "patch of 16 pixels.* 32 x 64 or 48 x 64$"),
        ("test_vit", (8, 64), "patch of 16 pixels.* 16 x 64$"),
        ("vit_small_patch14_dinov2", (128, 128), "patch of 14 pixels.* 126 x 126 or 140 x 140$"),
        ("swin_tiny_patch4_window7_224", (62, 64), "patch of 4 pixels.* 60 x 64 or 64 x 64$"),
        ("test_vit_relpos", (96, 96), "96 x 96 pixels .*it was trained at 160 x 160$"),
    ],
)
def test_a_size_that_does_not_fit_is_an_error_with_those_that_do(
    name: str, size: tuple[int, int], message: str
) -> None:
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    backbone = TimmBackbone(name, pretrained=False)
    with pytest.raises(BackboneError, match=message) as caught:
        backbone(images(*size))
    assert f"'{name}' cannot take images of {size[0]} x {size[1]}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "idle"),
    [
        (["--layers", "2", "3"], "--layers"),
        (["--combine", "mean"], "--combine"),
        (["--backbone", "resnet18", "--layers", "-1", "--combine", "concat"], "--combine"),
    ],
)
def test_what_has_no_effect_is_named(arguments: list[str], idle: str) -> None:
    found = without_effect(parse_options(arguments).config)
    assert found is not None
    assert found.startswith(f"no effect: {idle} (needs ")


def test_options_become_settings() -> None:
    arguments = ["--backbone", "resnet18", "--layers", "-3", "3", "--combine", "concat"]
    config = parse_options(arguments).config
    assert (config.model.layers, config.model.combine) == ((-3, 3), "concat")
    assert without_effect(config) is None
    usual = parse_options(["--backbone", "resnet18"]).config.model
    assert (usual.layers, usual.combine) == (None, None)


def write(folder: Path, **options: Any) -> TimmBackbone:
    """Write a checkpoint of an untrained model on `test_vit`, and give its backbone."""
    config = Config(model=ModelConfig(backbone="test_vit", image_size=64, depth=0, **options))
    backbone = TimmBackbone(
        "test_vit", pretrained=False, layers=config.model.layers, combine=config.model.combine
    )
    size = (backbone.channels, 4, 4)
    checkpoint = Checkpoint(
        config=config,
        epoch=1,
        feature_size=size,
        colour_scale=(0.0, 1.0),
        n_train={},
        seconds=0.0,
        model=create_model(config, size).state_dict(),
        backbone=backbone.state_dict(),
    )
    checkpoint.save(folder)
    return backbone


@pytest.mark.parametrize(
    "options", [{}, {"layers": (-3, 1), "combine": "concat"}, {"layers": (2, 4)}, {"layers": ()}]
)
def test_a_checkpoint_gives_the_same_features(tmp_path: Path, options: dict[str, Any]) -> None:
    backbone = write(tmp_path, **options)
    restored = crad.load(tmp_path, device="cpu").backbone
    assert isinstance(restored, TimmBackbone)
    assert (restored.layers, restored.combine) == (backbone.layers, backbone.combine)
    same(restored(images(64, 64)), backbone(images(64, 64)))


def test_a_checkpoint_without_layers_means_the_last_of_each_stride(tmp_path: Path) -> None:
    backbone = write(tmp_path, layers=())
    run = stored(tmp_path / CHECKPOINT_NAME)
    del run["settings"]["model"]["layers"], run["settings"]["model"]["combine"]
    rewrite(tmp_path / CHECKPOINT_NAME, run=json.dumps(run))
    restored = crad.load(tmp_path, device="cpu").backbone
    assert isinstance(restored, TimmBackbone)
    assert restored.layers == [5]
    same(restored(images(64, 64)), backbone(images(64, 64)))


@pytest.mark.slow
def test_a_run_on_a_transformer(
    train_command: Callable[..., int],
    demo_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = tmp_path / "w.pth"
    torch.save(timm.create_model("test_vit").state_dict(), weights)
    options = ["--backbone", "test_vit", "--weights", str(weights), "--image-size"]
    assert train_command(demo_root, tmp_path / "a", *options, "40") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "patch of 16 pixels" in error
    assert "32 x 32 or 48 x 48" in error
    chosen = ["--layers", "-1", "2", "--combine", "concat"]
    assert train_command(demo_root, tmp_path / "b", *options, "48", *chosen) == 0
    detector = crad.load(tmp_path / "b", device="cpu")
    assert detector.backbone.channels == 2 * 64
    assert (
        train_command(demo_root, tmp_path / "b", *options, "48", "--resume", "--layers", "1") == 2
    )
    assert "--layers" in capsys.readouterr().err
