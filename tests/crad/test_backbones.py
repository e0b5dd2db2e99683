"""Backbones from timm and from the hub: stages, weights, and errors that say what to do."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from crad.backbones import create_backbone
from crad.backbones import weights as hub
from crad.backbones.timm import TimmBackbone
from crad.errors import BackboneError

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ResNet-18, no better than random, in a file."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("name", "channels", "stride", "millions"),
    [
        ("tf_efficientnet_b4.aa_in1k", 56 + 160, 8, 3.64),
        ("resnet18", 128 + 256, 8, 2.78),
    ],
)
def test_stages(name: str, channels: int, stride: int, millions: float) -> None:
    backbone = TimmBackbone(name, pretrained=False)
    assert (backbone.channels, backbone.stride) == (channels, stride)
    assert backbone(IMAGES).shape == (2, channels, 8, 8)
    # No stage after the last one used is there.
    assert round(sum(p.numel() for p in backbone.parameters()) / 1e6, 2) == millions


def test_a_transformer_has_one_stride() -> None:
    backbone = TimmBackbone("vit_tiny_patch16_224", pretrained=False)
    assert backbone.stride == 16
    assert backbone(torch.rand(1, 3, 224, 224)).shape == (1, 192, 14, 14)


def test_features_are_those_of_the_full_model(weights: Path) -> None:
    backbone = create_backbone("resnet18", weights=weights)
    full = timm.create_model("resnet18").eval()
    full.load_state_dict(safetensors.torch.load_file(weights))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    _, stages = full.forward_intermediates((IMAGES - mean) / std, indices=(2, 3))
    fine, coarse = stages
    result = backbone(IMAGES)
    torch.testing.assert_close(result[:, :128], fine)
    # Corners aligned: the corner positions are copied, not averaged.
    torch.testing.assert_close(result[:, 128:, ::7, ::7], coarse[:, :, ::3, ::3])


def test_it_is_frozen() -> None:
    backbone = TimmBackbone("resnet18", pretrained=False)
    backbone.train()
    assert not backbone.training
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone(IMAGES).requires_grad


def test_making_one_leaves_the_random_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    TimmBackbone("resnet18", pretrained=False)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        (None, "module."),
        ("state_dict", ""),
        ("model", "module."),
        ("state_dict_ema", ""),
        ("model_state_dict", "_orig_mod."),
    ],
)
def test_pth_weights_also_wrapped(
    tmp_path: Path, weights: Path, wrapper: str | None, prefix: str
) -> None:
    state = {prefix + key: value for key, value in safetensors.torch.load_file(weights).items()}
    wrapped = {wrapper: state, "epoch": 3, "args": argparse.Namespace(lr=0.1)} if wrapper else state
    torch.save(wrapped, tmp_path / "w.pth")
    torch.testing.assert_close(
        create_backbone("resnet18", weights=tmp_path / "w.pth")(IMAGES),
        create_backbone("resnet18", weights=weights)(IMAGES),
    )


def test_weights_of_another_model_are_refused(weights: Path) -> None:
    with pytest.raises(BackboneError, match=r"resnet18\.safetensors' does not fit|holds no"):
        create_backbone("resnet34d", weights=weights)


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path, weights: Path) -> None:
    state = safetensors.torch.load_file(weights)
    del state["layer2.0.conv1.weight"]
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match="layer2"):
        create_backbone("resnet18", weights=tmp_path / "w.safetensors")


def drop(*endings: str) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        for key in [key for key in state if key.endswith(endings)]:
            del state[key]

    return change


def statistics_of_one_layer(state: dict[str, Tensor]) -> None:
    del state["layer3.1.bn2.running_var"]


def other_shape(state: dict[str, Tensor]) -> None:
    state["layer2.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)


def bias_that_the_model_has_not(state: dict[str, Tensor]) -> None:
    state["layer2.0.conv1.bias"] = torch.zeros(128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("running_mean", "running_var"), r"file lacks 'bn1\.running_mean' and 29 more"),
        (statistics_of_one_layer, r"file lacks 'layer3\.1\.bn2\.running_var'\)"),
        (drop("bn1.weight", "bn2.bias"), r"file lacks 'bn1\.weight'"),
        (drop(""), "is not a dictionary of tensors"),
        (other_shape, r"size mismatch for layer2\.0\.conv1\.weight"),
        (bias_that_the_model_has_not, r"model lacks 'layer2\.0\.conv1\.bias'"),
    ],
)
def test_incomplete_weights_are_refused(
    tmp_path: Path, weights: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    state = safetensors.torch.load_file(weights)
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=rf"w\.pth' .*{message}"):
        create_backbone("resnet18", weights=tmp_path / "w.pth")


def test_weights_of_a_deeper_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet34.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet34").state_dict(), path)
    with pytest.raises(BackboneError, match=r"the model lacks 'layer1\.2\.\S+' and"):
        create_backbone("resnet18", weights=path)


@pytest.mark.parametrize("classes", [0, 7])
def test_what_lies_behind_the_stages_does_not_matter(
    tmp_path: Path, weights: Path, classes: int
) -> None:
    state = safetensors.torch.load_file(weights)
    drop("num_batches_tracked")(state)
    drop("fc.weight", "fc.bias", "layer4.1.bn2.running_var")(state)
    state["projector.weight"] = torch.zeros(3)
    if classes:
        state |= {"fc.weight": torch.zeros(classes, 512), "fc.bias": torch.zeros(classes)}
    torch.save(state, tmp_path / "w.pth")
    torch.testing.assert_close(
        create_backbone("resnet18", weights=tmp_path / "w.pth")(IMAGES),
        create_backbone("resnet18", weights=weights)(IMAGES),
    )


def test_transformer_weights_of_another_image_size_are_resized(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    state = timm.create_model("test_vit", img_size=96).state_dict()
    torch.save(state, path)
    assert create_backbone("test_vit", weights=path)(torch.rand(1, 3, 160, 160)).isfinite().all()
    del state["blocks.1.attn.proj.bias"]
    torch.save(state, path)
    with pytest.raises(BackboneError, match=r"lacks 'blocks\.1\.attn\.proj\.bias'"):
        create_backbone("test_vit", weights=path)


def test_efficientnet_weights_load_completely(tmp_path: Path) -> None:
    name = "test_efficientnet"
    torch.manual_seed(5)
    state = timm.create_model(name).state_dict()
    torch.save(state, tmp_path / "w.pth")
    backbone = TimmBackbone(name, weights=tmp_path / "w.pth")
    loaded = backbone.model.model.state_dict()
    assert loaded.keys() < state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


class Runs:
    """Something that executes code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 / 0",)


@pytest.mark.parametrize(
    "name", ["missing.safetensors", "cut.safetensors", "cut.pth", "text.pth", "code.pth"]
)
def test_weights_that_cannot_be_read(tmp_path: Path, weights: Path, name: str) -> None:
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "cut.pth").write_bytes(b"\x80\x02")
    (tmp_path / "text.pth").write_text("hello world\n")
    torch.save({"weight": Runs()}, tmp_path / "code.pth")
    with pytest.raises(BackboneError, match=f"cannot read '.*{name}'") as caught:
        create_backbone("resnet18", weights=tmp_path / name)
    assert str(caught.value).isprintable()  # no terminal codes


def test_unknown_names_get_suggestions() -> None:
    with pytest.raises(BackboneError, match=r"'resnet81' is neither .* resnet18"):
        create_backbone("resnet81")


def test_scattering_has_no_weights_to_load(weights: Path) -> None:
    with pytest.raises(BackboneError, match="--weights"):
        create_backbone("scattering", weights=weights)


def unreachable(*_: object, **__: object) -> None:
    raise ConnectionError("no route to host")


def silent(*_: object, **__: object) -> None:
    time.sleep(60)


@pytest.mark.parametrize("answer", [unreachable, silent])
def test_no_hub_is_an_error_with_two_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: object
) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    monkeypatch.setattr(hub, "_PROBE_SECONDS", 0.2)
    with pytest.raises(BackboneError, match=r"--weights FILE .* or --backbone scattering"):
        create_backbone("resnet18")


def test_weights_in_the_hub_cache_need_no_hub(
    monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(weights))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    torch.testing.assert_close(
        create_backbone("resnet18")(IMAGES),
        create_backbone("resnet18", weights=weights)(IMAGES),
    )
