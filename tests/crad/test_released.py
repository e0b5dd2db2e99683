"""The released state read into ours: against a plain rendition, under other names, refused."""

import re

import pytest
import torch
from torch import Tensor, nn

from benchmarks.released_model import ReleasedCRAD
from crad.convert import from_released
from crad.model.crad import CRAD
from crad.model.released import ReleasedStateError, translate

CHANNELS, SIDE, EXPANSION = 8, 5, 12


@pytest.fixture
def released() -> ReleasedCRAD:
    """A model with weights far enough from the start that every part matters."""
    torch.manual_seed(0)
    model = ReleasedCRAD(CHANNELS, SIDE, SIDE, depth=2, expansion=EXPANSION, jitter_std=0.0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.6)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def feature() -> Tensor:
    return torch.randn(3, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def without_jitter(model: CRAD) -> CRAD:
    model.local_representation.memory.jitter_std = 0.0
    return model


def test_equal_in_evaluation(released: ReleasedCRAD) -> None:
    ours = from_released(released.state_dict()).eval()
    assert ours.feature_size == (CHANNELS, SIDE, SIDE)
    result = ours(feature())
    reconstruction, _ = released.eval()(feature())
    torch.testing.assert_close(result.reconstruction, reconstruction)
    torch.testing.assert_close(result.anomaly_map, released.anomaly_map(feature()))


def test_equal_loss_and_gradients_in_training(released: ReleasedCRAD) -> None:
    ours = without_jitter(from_released(released.state_dict())).train()
    loss = ours(feature()).loss
    _, expected = released.train()(feature())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    gradients = translate({name: p.grad for name, p in released.named_parameters()})
    own = dict(ours.named_parameters())
    assert gradients.keys() == own.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name].grad, gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_both_sides_of_the_indicator_occur_in_these_comparisons(released: ReleasedCRAD) -> None:
    for mode in (True, False):
        result = from_released(released.state_dict()).train(mode)(feature())
        mse = (result.normal_feature - feature()).square().mean(dim=1)
        assert (mse < 10).any()
        assert (mse >= 10).any()


def test_the_published_size() -> None:
    released = ReleasedCRAD(216, 28, 28)
    for parameter in released.parameters():
        nn.init.normal_(parameter, std=0.02)
    ours = from_released(released.state_dict()).eval()
    x = torch.randn(1, 216, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(x).anomaly_map, released.eval().anomaly_map(x), rtol=1e-4, atol=1e-4
        )


RENAMINGS = {
    "distributed": [(r"^", "module.")],
    "inside another module": [(r"^", "model.")],
    "bottlenecks inside": [(r"\.change\.", ".conv."), (r"\.weights\.", ".fc.")],
    "grids as queries": [
        (r"^query\.0\.", "local."),
        (r"^query\.1\.", "whole."),
        (r"^coord$", "query.0"),
        (r"^coord_$", "query.1"),
        (r"^local\.", "coord."),
        (r"^whole\.", "coord_."),
    ],
}


@pytest.mark.parametrize("renaming", RENAMINGS)
def test_names_below_the_parts_do_not_matter(released: ReleasedCRAD, renaming: str) -> None:
    state = dict(released.state_dict())
    expected = from_released(state).state_dict()
    for old, new in RENAMINGS[renaming]:
        state = {re.sub(old, new, name): tensor for name, tensor in state.items()}
    assert state.keys() != released.state_dict().keys()
    torch.testing.assert_close(from_released(state).state_dict(), expected, rtol=0, atol=0)


def test_squeeze_and_excitation_may_be_of_convolutions(released: ReleasedCRAD) -> None:
    expected = from_released(released.state_dict()).state_dict()
    state = {
        name: tensor[:, :, None, None] if ".weights." in name else tensor
        for name, tensor in released.state_dict().items()
    }
    torch.testing.assert_close(from_released(state).state_dict(), expected, rtol=0, atol=0)


def test_bottlenecks_come_in_the_order_of_their_numbers() -> None:
    torch.manual_seed(0)
    released = ReleasedCRAD(4, 2, 2, depth=11, expansion=12)
    state = released.state_dict()
    ours = from_released(dict(sorted(state.items(), key=lambda item: "layer" in item[0])))
    for index in range(11):
        weight = state[f"layer.{index}.change.0.weight"]
        assert torch.equal(ours.fusion[index].expand.weight, weight)


@pytest.mark.parametrize("missing", [r"layer\.0\.", r"layer\."])
def test_no_bottleneck_may_be_missing(released: ReleasedCRAD, missing: str) -> None:
    state = {n: t for n, t in released.state_dict().items() if not re.match(missing, n)}
    with pytest.raises(ReleasedStateError, match=r"no bottleneck 'layer\.0'"):
        from_released(state)


def test_a_backbone_in_the_file_is_left_out_only_if_told(released: ReleasedCRAD) -> None:
    count = {"net.count": torch.tensor(3)}
    state = {"net.blocks.0.weight": torch.zeros(3), **count, **released.state_dict()}
    with pytest.raises(ReleasedStateError, match=r"'net\.blocks\.0\.weight'.*--ignore"):
        from_released(state)
    for ignore in (["net."], "net."):
        assert from_released(state, ignore).feature_size == (CHANNELS, SIDE, SIDE)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("layer.1.change.9.weight", torch.zeros(3, 3), r"no place .*'layer\.1\.change\.9\.weight'"),
        ("layer.1.change.0.bias", torch.zeros(EXPANSION), r"no place .*change\.0\.bias"),
        ("layer.extra", torch.zeros(3), "'layer.extra' names no bottleneck"),
        ("query.2.weight", torch.zeros(3, 3), r"no place .*'query\.2\.weight'"),
        ("query.2.weight", torch.zeros(2, CHANNELS), r"no place .*'query\.2\.weight'"),
        ("recover.bias", torch.zeros(CHANNELS), "one tensor 'recover'"),
        ("recover.weight", torch.zeros(CHANNELS, CHANNELS, 1, 1), "one tensor 'recover' of"),
        ("coord", None, "looks like 'local_representation.memory.weight'"),
        ("query.0.2.bias", None, r"Missing .*local_representation\.coordinates\.2\.bias"),
        ("layer.0.change.3.weight", None, "no depthwise convolution among"),
        ("layer.0.change.1.running_var", None, "running_var"),
        ("layer.0.change.7.weight", torch.zeros(16, EXPANSION, 1), r"looks like 'project\.weight'"),
        ("module.recover.weight", torch.zeros(1), r"'recover\.weight' is there twice"),
        ("layer.0.weight", torch.zeros(3), r"no place .*'layer\.0\.weight'"),
        ("coord", torch.full((1, CHANNELS, 8, 8), torch.nan), "'coord' holds NaN"),
    ],
)
def test_what_leaves_a_doubt_is_refused(
    released: ReleasedCRAD, name: str, tensor: Tensor | None, message: str
) -> None:
    state = {**released.state_dict(), name: tensor}
    if tensor is None:
        del state[name]
    with pytest.raises(ReleasedStateError, match=message):
        from_released(state)


ODD = {
    "single number": torch.tensor(1.0),
    "empty": torch.zeros(0),
    "no rows": torch.zeros(0, 3, 1, 1),
    "no columns": torch.zeros(3, 0, 1, 1),
    "one axis": torch.zeros(3),
    "one entry": torch.zeros(1),
    "three axes": torch.zeros(1, 2, 3),
    "four axes": torch.zeros(1, 3, 1, 1),
    "five axes": torch.zeros(1, CHANNELS, 2, 2, 2),
    "large kernel": torch.zeros(2, 2, 3, 3),
    "whole numbers": torch.zeros(CHANNELS, CHANNELS, dtype=torch.int64),
    "complex": torch.zeros(3, dtype=torch.complex64),
    "sparse": torch.zeros(3, 3).to_sparse(),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_tensors_anywhere_are_refused(released: ReleasedCRAD, odd: str) -> None:
    """In the place of any tensor, with one error."""
    state = released.state_dict()
    accepted = []
    for name in state:
        try:
            from_released({**state, name: ODD[odd]})
        except ReleasedStateError:
            continue
        accepted.append(name)
    assert all(name.endswith("num_batches_tracked") for name in accepted)
