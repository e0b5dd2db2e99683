"""BatchNorm and padding, folded into convolutions: the same features up to rounding."""

from typing import Any

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from crad.backbones import Backbone, create_backbone
from crad.backbones.timm import _fold_padding
from crad.errors import BackboneError

SIDE = 96


def with_statistics(name: str) -> Backbone:
    """A backbone of random weights, with statistics as after training."""
    backbone = create_backbone(name, pretrained=False)
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            for tensor in (module.running_mean, module.bias):
                tensor.data.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            for tensor in (module.running_var, module.weight):
                assert tensor is not None
                tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return backbone


def n_norms(backbone: Backbone) -> int:
    """The number of BatchNorms in it."""
    return sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "test_resnet", "test_byobnet", "densenet121"]
)
def test_a_folded_backbone_computes_the_same(name: str) -> None:
    backbone = with_statistics(name)
    state = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    expected = backbone(images)
    folded = backbone.folded(SIDE, SIDE)
    assert n_norms(folded) < n_norms(backbone)
    got = folded(images)
    assert (got - expected).norm() <= 1e-5 * expected.norm()
    torch.testing.assert_close(dict(backbone.state_dict()), state, rtol=0, atol=0)
    torch.testing.assert_close(backbone(images), expected, rtol=0, atol=0)


def test_all_norms_of_the_published_architecture_are_folded() -> None:
    assert n_norms(with_statistics("test_efficientnet").folded(SIDE, SIDE)) == 0


@pytest.mark.parametrize("name", ["test_vit", "scattering"])
def test_a_backbone_without_batch_norm_stays_as_it_is(name: str) -> None:
    backbone = create_backbone(name, pretrained=False)
    assert backbone.folded(160, 160) is backbone


def test_a_model_that_computes_something_before_a_norm_is_not_folded() -> None:
    class Squared(nn.Conv2d):
        """A convolution that is followed by something else."""

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) ** 2

    backbone: Any = with_statistics("test_resnet")
    convolution = backbone.model.model.conv1[0]
    assert backbone.folded(SIDE, SIDE) is not backbone
    convolution.__class__ = Squared
    assert backbone.folded(SIDE, SIDE) is backbone


def test_images_of_a_wrong_size_are_refused_by_the_use() -> None:
    backbone = with_statistics("test_coatnet")
    assert n_norms(backbone)
    assert backbone.folded(SIDE, SIDE) is backbone
    with pytest.raises(BackboneError, match="--image-size"):
        backbone(torch.rand(1, 3, SIDE, SIDE))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(12, 16), (12, 15), (13, 13), (2, 2)])
def test_padding_is_folded_into_a_convolution(kernel: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = Conv2dSame(4, 8, kernel, stride=2, groups=2)
    network = nn.Sequential(plain, nn.Conv2d(8, 8, 1))
    images = torch.randn(2, 4, *size)
    expected = network(images)
    _fold_padding(network)
    assert network[0] is not plain
    torch.testing.assert_close(network(images), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{"stride": 1}, {"stride": 2, "dilation": 2}])
def test_other_convolutions_keep_their_padding(options: dict[str, int]) -> None:
    network = nn.Sequential(Conv2dSame(4, 8, 3, **options))
    _fold_padding(network)
    assert isinstance(network[0], Conv2dSame)
