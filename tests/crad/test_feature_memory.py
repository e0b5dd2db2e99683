"""Features in memory or in a file: the same values, no file left, no memory taken."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import crad.training.feature_memory
from crad.backbones import Backbone
from crad.data.batches import load_batches
from crad.data.samples import Sample
from crad.errors import ImageError, LaunchError, StorageError
from crad.model.crad import CRAD
from crad.training import processes
from crad.training.checkpoint import ALL_PARTS, read_checkpoint
from crad.training.feature_memory import FeatureMemory
from crad.training.features import extract
from tests.fixtures import before_step, largest_file

Train = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor lies in a file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(each, 16) for each in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return "crad-features-" in line
    raise AssertionError


def test_what_exceeds_the_budget_lies_in_a_file_without_a_name(folder: Path) -> None:
    memory = FeatureMemory(gigabytes=1.201e-6)
    tensors = [memory.allocate(*size) for size in ((10, 20), (5, 5, 5), (10, 10), (1,))]
    assert [is_mapped(tensor) for tensor in tensors] == [False, True, False, True]
    assert not list(folder.iterdir())
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    for number, tensor in enumerate(tensors):
        assert (tensor == number).all()
        assert tensor.dtype == torch.float32
    assert tensors[1].shape == (5, 5, 5)
    assert memory.allocate(0, 3, 3, 4).shape == (0, 3, 3, 4)


def test_a_mapped_file_takes_no_memory_of_the_process(folder: Path) -> None:
    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    before, size = anonymous(), 2**27
    values = FeatureMemory(gigabytes=0).allocate(size // 4 // 64, 64)
    for part in values.split(2**14):
        part.fill_(1.0)
    assert float(values[:: 2**10].sum()) == 64 * len(values[:: 2**10])
    assert anonymous() - before < size / 8


def test_the_default_budget_is_half_of_what_is_available(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crad.training.feature_memory, "available_memory", lambda: 8000)
    memory = FeatureMemory()
    assert not is_mapped(memory.allocate(999))
    assert is_mapped(memory.allocate(2))


def test_a_machine_with_two_first_processes_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda own: [own, own])
    with pytest.raises(LaunchError, match=r"2 of those .* its first one; start them with torchrun"):
        FeatureMemory().allocate(3)
    assert not list(folder.iterdir())


def test_a_disk_without_space_is_an_error_with_a_way_out(folder: Path) -> None:
    with pytest.raises(StorageError, match=r"4000000\.0 GB .*TMPDIR.*--feature-memory") as caught:
        FeatureMemory(gigabytes=0).allocate(10**15)
    assert str(folder) in str(caught.value)
    free = re.search(r"has (\d+\.\d) GB free", str(caught.value))
    assert free is not None
    assert float(free[1]) == pytest.approx(shutil.disk_usage(folder).free / 1e9, rel=0.2)
    with largest_file(4 * 1000 - 1), pytest.raises(OSError, match="too large"):
        FeatureMemory(gigabytes=0).allocate(1000)
    assert not list(folder.iterdir())
    assert FeatureMemory(gigabytes=0).allocate(1000).shape == (1000,)


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_folder_for_temporary_files_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path / kind))
    with pytest.raises(StorageError, match=r"TMPDIR.*--feature-memory") as caught:
        FeatureMemory(gigabytes=0).allocate(3)
    assert f"'{tmp_path / kind}'" in str(caught.value)
    assert FeatureMemory(gigabytes=1).allocate(3).shape == (3,)


def test_a_run_is_the_same_with_features_in_a_file(
    trained, folder: Path, tmp_path: Path, train_command: Train
) -> None:
    mapped_files: list[int] = []

    def note(_: CRAD) -> None:
        mapped_files.append(Path("/proc/self/maps").read_text().count(f"{folder}/crad-features-"))

    with before_step(0, note):
        assert train_command(trained.data, tmp_path / "run", "--feature-memory", "0") == 0
    assert mapped_files == [3]  # of the images trained on, held back, and tested on
    assert not list(folder.iterdir())
    mapped, in_memory = (
        read_checkpoint(each, ALL_PARTS) for each in (tmp_path / "run", trained.output)
    )
    for part in ALL_PARTS:
        torch.testing.assert_close(getattr(mapped, part), getattr(in_memory, part), rtol=0, atol=0)
    assert mapped.thresholds == in_memory.thresholds


@pytest.mark.parametrize("gigabytes", [0.0, 1.0])
def test_images_that_are_left_out_leave_no_gap(
    demo_root: Path, tmp_path: Path, folder: Path, gigabytes: float
) -> None:
    class Means(Backbone):
        """A backbone: the mean colour."""

        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3), keepdim=True)

    root = shutil.copytree(demo_root, tmp_path / "data")
    paths = sorted((root / "brick").rglob("*.png"))
    images = torch.cat([each.images for each in load_batches(paths, size=32, batch_size=4)])
    bad = [0, 3, 4, len(paths) - 1]
    for index in bad:
        paths[index].write_bytes(b"no image")
    skipped: list[ImageError] = []
    features = extract(
        Means(),
        [Sample(path) for path in paths],
        32,
        device=torch.device("cpu"),
        skip=skipped.append,
        memory=FeatureMemory(gigabytes),
    )
    kept = [index for index in range(len(paths)) if index not in bad]
    assert [sample.path for sample in features.samples] == [paths[index] for index in kept]
    assert len(skipped) == len(bad)
    expected = Means()(images[kept])
    torch.testing.assert_close(features.channels_first(), expected, rtol=1e-6, atol=0)
    chosen = torch.tensor([5, 0, 2])
    batch = features.batch(chosen, torch.device("cpu"))
    torch.testing.assert_close(batch, features.channels_first()[chosen], rtol=0, atol=0)
