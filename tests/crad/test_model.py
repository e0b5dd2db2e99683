"""The model: its sizes, its gradients, its memory format; `test_method` has what it computes."""

import pytest
import torch
from torch import Tensor
from torch.nn import BatchNorm2d

from crad.config import PRESETS, PresetName
from crad.detector import create_model
from crad.model.crad import CRAD, GroupedBatchNorm

CHANNELS_LAST = torch.channels_last


def small(**options: float | None) -> CRAD:
    torch.manual_seed(0)
    model = CRAD(8, 5, 7, depth=2, expansion=12, **options)  # type: ignore[arg-type]
    for parameter in model.parameters():  # far enough from the start that every part matters
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def feature(batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 8, 5, 7, generator=generator).to(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize(("preset", "expansion"), [("crad", 864), ("crad-s", 216)])
def test_number_of_parameters(preset: PresetName, expansion: int) -> None:
    """The published 15.36 M of CRAD and 5.26 M of CRAD-S, to the last one."""
    model = create_model(PRESETS[preset], (216, 28, 28))
    channels, width = 216, 2 * 216
    coordinates = 2 * (channels * channels + channels + channels * 2 + 2)  # local, global
    entries = 8 * 8 * channels + 4 * 4 * channels * 28 * 28
    bottleneck = (
        2 * width * expansion  # expand, project
        + 9 * expansion  # depthwise
        + 2 * (expansion + expansion + width)  # BatchNorm
        + 2 * expansion * (expansion // 4)  # squeeze, excite
    )
    expected = coordinates + entries + 11 * bottleneck + width * channels
    assert expected == {"crad": 15_361_492, "crad-s": 5_261_116}[preset]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_initial_values() -> None:
    torch.manual_seed(0)
    model = CRAD(216, 28, 28, depth=1)
    local, whole = model.memory_parameters()
    assert local.std().item() == pytest.approx(0.0120, rel=0.02)
    assert whole.std().item() == pytest.approx(0.00086, rel=0.02)
    assert model.fusion[-1].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.local_representation.coordinates[0].bias.any()


def test_channels_last_in_and_out() -> None:
    result = small()(feature())
    assert result.reconstruction.is_contiguous(memory_format=CHANNELS_LAST)
    assert result.normal_feature.is_contiguous(memory_format=CHANNELS_LAST)
    assert result.anomaly_map.shape == (3, 5, 7)
    torch.testing.assert_close(
        small().eval()(feature().contiguous()).reconstruction,
        small().eval()(feature()).reconstruction,
    )


@pytest.mark.parametrize("resolutions", [((8,), (4,)), ((3, 4, 5), (2, 2, 2, 2))])
def test_any_number_of_coordinates(resolutions: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    local, whole = resolutions
    model = CRAD(8, 5, 7, depth=1, expansion=8, local_resolution=local, global_resolution=whole)
    result = model(feature())
    result.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_jitter_in_training_only_and_with_its_probability() -> None:
    model = small(jitter_prob=1, jitter_std=0.3)

    def local() -> Tensor:
        return model.local_representation(feature().permute(0, 2, 3, 1)).entries

    assert not torch.equal(local(), local())
    model.local_representation.jitter_prob = 0.5
    model.eval()
    reference = local()
    model.train()
    torch.manual_seed(0)
    jittered = sum(not torch.equal(local(), reference) for _ in range(100))
    assert 30 < jittered < 70
    torch.manual_seed(3)
    first = local()
    torch.manual_seed(3)
    assert torch.equal(first, local())


def test_without_refinement() -> None:
    result = small(mse_weight=0, cosine_weight=0).eval()(feature())
    assert torch.equal(result.reconstruction, result.normal_feature)


def test_folded_batch_norm_changes_nothing_but_rounding() -> None:
    model, expected = small(), small()
    for each in (model, expected):
        for seed, norm in enumerate(m for m in each.modules() if isinstance(m, BatchNorm2d)):
            generator = torch.Generator().manual_seed(seed)
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
    folded = model.fold_batch_norm()
    assert folded is model
    assert not any(isinstance(module, BatchNorm2d) for module in folded.modules())
    for actual, wanted in zip(folded(feature()), expected.eval()(feature()), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
    weight = folded.fusion[0].expand.weight
    assert weight.is_contiguous(memory_format=CHANNELS_LAST)
    folded.fold_batch_norm()
    assert folded.fusion[0].expand.weight is weight


@pytest.mark.parametrize(
    ("batch", "sizes"), [(16, [4] * 4), (6, [4, 2]), (9, [4, 5]), (5, [5]), (4, [4]), (2, [2])]
)
def test_statistics_of_groups_of_images(batch: int, sizes: list[int]) -> None:
    """A single image joins the group before; the running statistics take one step to the mean."""
    norm, expected = GroupedBatchNorm(8, 4), BatchNorm2d(8)
    for each in (norm, expected):
        torch.nn.init.normal_(each.weight, generator=torch.Generator().manual_seed(0))
    x = feature(batch) + torch.arange(batch)[:, None, None, None]
    groups, means, variances = [], [], []
    for group in x.split(sizes):
        expected.reset_running_stats()
        expected.momentum = 1.0  # its running statistics are those of the group
        groups.append(expected(group))
        means.append(expected.running_mean.clone())
        variances.append(expected.running_var.clone())
    normalised = norm(x)
    torch.testing.assert_close(normalised, torch.cat(groups))
    assert normalised.is_contiguous(memory_format=CHANNELS_LAST)
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_mean, 0.1 * torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * torch.stack(variances).mean(0))


def test_groups_are_of_training_only_and_change_no_name() -> None:
    whole, grouped = small(jitter_prob=0), small(jitter_prob=0, norm_batch=2)
    assert whole.state_dict().keys() == grouped.state_dict().keys()
    assert not torch.equal(whole(feature(6)).loss, grouped(feature(6)).loss)
    whole.load_state_dict(grouped.state_dict())
    expected = grouped.eval()(feature(6)).anomaly_map
    assert torch.equal(whole.eval()(feature(6)).anomaly_map, expected)
    folded = grouped.fold_batch_norm()
    assert not any(isinstance(module, BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(feature(6)).anomaly_map, expected, rtol=1e-5, atol=1e-5)


def test_groups_no_smaller_than_the_batch_change_nothing() -> None:
    for norm_batch in (6, 64):
        models = [small(jitter_prob=0, norm_batch=each) for each in (None, norm_batch)]
        losses = [model(feature(6)).loss for model in models]
        assert torch.equal(*losses)
        torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=0, atol=0)


def test_groups_under_autocast() -> None:
    model = small(jitter_prob=0, norm_batch=2)
    with torch.autocast("cpu", torch.bfloat16):
        result = model(feature(5))
    result.loss.backward()
    torch.testing.assert_close(result.loss, model(feature(5)).loss, rtol=0.1, atol=0.05)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_group_of_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="norm_batch to be at least 2, but got 1"):
        small(norm_batch=1)


def test_a_perfect_reconstruction_has_finite_gradients() -> None:
    model = small(jitter_prob=0)
    torch.nn.init.zeros_(model.fusion[-1].weight)
    result = model(torch.zeros(2, 8, 5, 7))
    result.loss.backward()
    assert result.loss == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_autocast_leaves_coordinates_and_loss_in_float32() -> None:
    model = small(jitter_prob=0)
    with torch.autocast("cpu", torch.bfloat16):
        result = model(feature())
    assert result.loss.dtype == result.anomaly_map.dtype == torch.float32
    torch.testing.assert_close(result.loss, model(feature()).loss, rtol=0.1, atol=0.05)


def test_two_groups_of_parameters() -> None:
    model = small()
    both = [*model.network_parameters(), *model.memory_parameters()]
    assert {id(p) for p in both} == {id(p) for p in model.parameters()}
    assert len(both) == len(list(model.parameters()))


def test_a_feature_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 8, 5, 7\), but got \(1, 8, 7, 5\)"):
        small()(torch.zeros(1, 8, 7, 5))
    with pytest.raises(ValueError, match="channels"):
        CRAD(0, 5, 7)


@pytest.mark.parametrize("name", ["local_resolution", "global_resolution"])
def test_resolutions_that_are_no_sizes_for_each_coordinate_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} .* such as \(8, 8\), but got 8"):
        small(**{name: 8})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jitter_std", -1.0),
        ("jitter_std", float("inf")),
        ("jitter_std", float("nan")),
        ("jitter_prob", 7),
        ("jitter_prob", -0.1),
        ("jitter_prob", float("nan")),
    ],
)
def test_jitter_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} .* but got {value}"):
        small(**{name: value})
