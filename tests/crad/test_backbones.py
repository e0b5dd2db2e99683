"""Backbones from timm and from the hub: stages, weights, and errors that say what to do."""

import argparse
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from crad.backbones import BACKBONES, create_backbone
from crad.backbones import weights as weight_files
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
    with pytest.raises(BackboneError, match=r"resnet18\.safetensors' .*'resnet34d'"):
        create_backbone("resnet34d", weights=weights)


def drop(*endings: str) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        for key in [key for key in state if key.endswith(endings)]:
            del state[key]

    return change


def other_shape(state: dict[str, Tensor]) -> None:
    state["layer2.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)


def bias_that_the_model_has_not(state: dict[str, Tensor]) -> None:
    state["layer2.0.conv1.bias"] = torch.zeros(128)


@pytest.mark.parametrize(
    ("classes", "change", "message"),
    [
        (0, drop("running_mean", "running_var"), r"Missing .*bn1\.running_mean"),
        (1000, drop("layer3.1.bn2.running_var"), r"Missing .*layer3\.1\.bn2\.running_var"),
        (0, drop("layer2.0.conv1.weight"), r"Missing .*layer2\.0\.conv1\.weight"),
        (1000, drop("bn1.weight", "bn2.bias"), r"Missing .*bn1\.weight"),
        (0, drop(""), "dictionary of tensors"),
        (0, other_shape, r"mismatch .*layer2\.0\.conv1\.weight.*\[128, 64, 1, 1\]"),
        (1000, other_shape, r"mismatch .*layer2\.0\.conv1\.weight.*\[128, 64, 1, 1\]"),
        (0, bias_that_the_model_has_not, r"Unexpected .*layer2\.0\.conv1\.bias"),
    ],
)
def test_incomplete_weights_are_refused(
    tmp_path: Path,
    weights: Path,
    classes: int,
    change: Callable[[dict[str, Tensor]], None],
    message: str,
) -> None:
    state = safetensors.torch.load_file(weights)
    if not classes:
        drop("fc.weight", "fc.bias")(state)
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=rf"w\.pth' .*{message}"):
        create_backbone("resnet18", weights=tmp_path / "w.pth")


@pytest.mark.slow
def test_incomplete_weights_that_timm_takes_are_refused(tmp_path: Path) -> None:
    """Of some models, as of DLA, timm itself lets weights be missing."""
    torch.manual_seed(1)
    state = timm.create_model("dla34").state_dict()
    file = tmp_path / "dla34.pth"
    torch.save(state, file)
    TimmBackbone("dla34", weights=file)
    del state["level2.tree1.conv2.weight"]
    torch.save(state, file)
    with pytest.raises(BackboneError, match=r"dla34\.pth.*level2\.tree1\.conv2\.weight"):
        TimmBackbone("dla34", weights=file)


def test_weights_of_a_deeper_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet34.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet34").state_dict(), path)
    with pytest.raises(BackboneError, match=r"Unexpected .*layer1\.2\."):
        create_backbone("resnet18", weights=path)


@pytest.mark.parametrize("classes", [0, 7])
def test_the_classifier_does_not_matter(tmp_path: Path, weights: Path, classes: int) -> None:
    state = safetensors.torch.load_file(weights)
    drop("num_batches_tracked", "fc.weight", "fc.bias")(state)
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
    with pytest.raises(BackboneError, match=r"Missing .*blocks\.1\.attn\.proj\.bias"):
        create_backbone("test_vit", weights=path)


def test_weights_in_the_names_of_the_model_s_authors_are_renamed(tmp_path: Path) -> None:
    name = "convnext_atto"
    state = timm.create_model(name).state_dict()
    renamed = {}
    for key, value in state.items():  # as in https://github.com/facebookresearch/ConvNeXt
        for new, old in (
            ("stem.", "downsample_layers.0."),
            ("downsample.", "down."),
            (".blocks.", "."),
            ("conv_dw", "dwconv"),
            ("mlp.fc", "pwconv"),
            ("head.norm", "norm"),
            ("head.fc", "head"),
        ):
            key = key.replace(new, old)
        if ".down." in key:
            stage, _, rest = key.removeprefix("stages.").partition(".down.")
            key = f"downsample_layers.{stage}.{rest}"
        renamed[key] = value
    torch.save({"model": renamed}, tmp_path / "w.pth")
    loaded = TimmBackbone(name, weights=tmp_path / "w.pth").model.model.state_dict()
    assert loaded
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


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
    with pytest.raises(BackboneError, match=f"'.*{name}'") as caught:
        create_backbone("resnet18", weights=tmp_path / name)
    assert str(caught.value).isprintable()  # no terminal codes


@pytest.mark.parametrize(
    ("name", "similar"), [("resnet81", "resnet18"), ("scatering", "scattering")]
)
def test_unknown_names_get_suggestions(name: str, similar: str) -> None:
    with pytest.raises(BackboneError, match=f"'{name}' .*: .*{similar}") as caught:
        create_backbone(name)
    assert all(f"'{each}'" in str(caught.value) for each in BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_of_our_own(name: str) -> None:
    backbone = create_backbone(name, pretrained=False)
    assert isinstance(backbone, torch.nn.Module)
    assert not backbone.training
    assert backbone.channels > 0
    assert 8 <= backbone.stride <= 16


@pytest.mark.slow
def test_timm_is_imported_when_a_model_of_it_is_asked_for() -> None:
    script = (
        "import sys; from crad.backbones import create_backbone; create_backbone('scattering'); "
        "sys.exit('timm' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_scattering_has_no_weights_to_load(weights: Path) -> None:
    with pytest.raises(BackboneError, match="--weights"):
        create_backbone("scattering", weights=weights)


class Hub(BaseHTTPRequestHandler):
    """The Hugging Face hub, with one repository of one file."""

    file = b""
    silence = threading.Event()

    def do_HEAD(self) -> None:
        if "silent" in self.path:
            self.silence.wait()
            return
        there = self.path == "/timm/resnet18.a1_in1k/resolve/main/pytorch_model.bin"
        self.send_response(200 if there else 404)
        if there:
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(self.file)))
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.file)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path
) -> Iterator[ThreadingHTTPServer]:
    """A hub on this machine, and an empty cache."""
    torch.save(safetensors.torch.load_file(weights), tmp_path / "w.pth")
    Hub.file = (tmp_path / "w.pth").read_bytes()
    Hub.silence.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    # The client reads its environment variables when it is imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    Hub.silence.set()
    server.shutdown()
    thread.join()
    server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_weights_are_downloaded_once(
    hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    expected = create_backbone("resnet18", weights=weights)(IMAGES)
    torch.testing.assert_close(create_backbone("resnet18")(IMAGES), expected)
    use_hub(monkeypatch, "http://127.0.0.1:1")
    torch.testing.assert_close(create_backbone("resnet18")(IMAGES), expected)


@pytest.mark.parametrize(
    ("suffix", "reason"),
    [
        (":1", "refused"),  # nobody listens
        (":{port}/silent", "timed out|Timeout"),
        (":{port}/other", "no model.safetensors or pytorch_model.bin"),
    ],
)
def test_no_hub_is_an_error_with_three_ways_out(
    hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, suffix: str, reason: str
) -> None:
    use_hub(monkeypatch, "http://127.0.0.1" + suffix.format(port=hub.server_port))
    monkeypatch.setattr(weight_files, "_HUB_TIMEOUT", 0.2)
    ways = r"--weights.*--backbone tf_efficientnet_lite0.*crad\[lite\].*--backbone scattering"
    with pytest.raises(BackboneError, match=f"({reason}).*{ways}"):
        create_backbone("resnet18")
