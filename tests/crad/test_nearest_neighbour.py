import pytest
import torch

from crad.model.nearest_neighbour import nearest_neighbour_maps


def test_distances_are_those_of_cdist() -> None:
    train, test = torch.randn(3, 5, 4, 6), torch.randn(2, 5, 7, 3)
    memory = train.movedim(1, -1).reshape(-1, 5)
    expected = torch.cdist(test.movedim(1, -1).reshape(-1, 5), memory).amin(1).reshape(2, 7, 3)
    torch.testing.assert_close(nearest_neighbour_maps(train, test), expected, atol=1e-4, rtol=1e-4)


def test_remembered_features_are_at_distance_zero() -> None:
    train = torch.randn(2, 8, 4, 4)
    assert nearest_neighbour_maps(train, train).max() < 1e-2


def test_subset_is_chosen_by_the_seed() -> None:
    train, test = torch.randn(4, 3, 8, 8), torch.randn(2, 3, 8, 8)
    one, again, other = (
        nearest_neighbour_maps(train, test, max_entries=20, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert (one >= nearest_neighbour_maps(train, test) - 1e-4).all()


def test_no_test_images_give_no_maps() -> None:
    assert nearest_neighbour_maps(torch.randn(2, 3, 4, 4), torch.zeros(0, 3, 4, 4)).shape == (
        0,
        4,
        4,
    )


@pytest.mark.parametrize(
    ("train", "test", "max_entries"),
    [
        (torch.zeros(0, 3, 4, 4), torch.zeros(1, 3, 4, 4), 10),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), 0),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4), 10),
        (torch.zeros(3, 4, 4), torch.zeros(1, 3, 4, 4), 10),
    ],
)
def test_impossible_arguments_are_refused(
    train: torch.Tensor, test: torch.Tensor, max_entries: int
) -> None:
    with pytest.raises(ValueError, match="nearest_neighbour_maps: expected"):
        nearest_neighbour_maps(train, test, max_entries=max_entries)
