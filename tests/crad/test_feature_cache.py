"""Features kept on disk: the same bits, found by the bytes of images, and safe against damage."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

import crad.data.images
import crad.training.feature_cache
import crad.training.features
from crad.backbones import Backbone, create_backbone
from crad.backbones.scattering import ScatteringBackbone
from crad.data.decoding import DEFAULT_DECODING, Decoding
from crad.data.frames import Frame
from crad.data.samples import Sample
from crad.errors import ImageError, StorageError
from crad.evaluate import main as evaluate
from crad.train import main as train
from crad.training.checkpoint import ALL_PARTS, CHECKPOINT_NAME, read_checkpoint
from crad.training.feature_cache import FeatureCache, recipe
from crad.training.features import Features, extract, fit_backbone
from tests.fixtures import files_of, largest_file

Command = Callable[..., int]
CPU = torch.device("cpu")
N_IMAGES = 2 * (6 + 6)  # of the small demo set


class Means(Backbone):
    """A backbone: the mean colour of each cell of 8 x 8 pixels."""

    channels, stride = 3, 8

    def forward(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 8)


@pytest.fixture
def images(demo_root: Path, tmp_path: Path) -> list[Path]:
    """Images that may be changed."""
    root = shutil.copytree(demo_root / "brick" / "train" / "good", tmp_path / "images")
    return sorted(root.iterdir())


def compute(
    paths: list[Path],
    folder: Path | None,
    *,
    backbone: Backbone | None = None,
    **options: Any,
) -> tuple[Features, str]:
    """Features, and what a new cache in a folder says."""
    cache = FeatureCache(folder) if folder else None
    features = extract(
        backbone or Means(),
        [Sample(path) for path in paths],
        64,
        device=CPU,
        cache=cache,
        **{"skip": None} | options,
    )
    return features, cache.report() if cache else ""


def entries(folder: Path) -> list[Path]:
    """The files of a cache."""
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def the_line(printed: str) -> str:
    """What a command says of its features."""
    (line,) = [line for line in printed.splitlines() if line.startswith("features: ")]
    return line


def same_run(folder: Path, other: Path) -> bool:
    """Whether two runs have come to the same bits."""
    one, two = (read_checkpoint(each, ALL_PARTS) for each in (folder, other))
    for part in ALL_PARTS:
        torch.testing.assert_close(getattr(one, part), getattr(two, part), rtol=0, atol=0)
    return one.thresholds == two.thresholds and one.colour_scale == two.colour_scale


@contextmanager
def calls_of(kind: type, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Note the calls of a method in the block."""
    calls: list[object] = []
    method = getattr(kind, name)

    def noting(self: object, *arguments: object) -> object:
        calls.append(arguments)
        return method(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(kind, name, noting)
        yield calls


def test_a_run_finds_the_features_of_another(
    trained,
    tmp_path: Path,
    train_command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "cache"
    option = ("--feature-cache", str(cache))
    assert train_command(trained.data, tmp_path / "first", *option) == 0
    said = the_line(capsys.readouterr().out)
    n_bytes = N_IMAGES * 4 * 4 * 16 * 4
    assert said == (
        f"features: 0 of {N_IMAGES} images from '{cache}'; {N_IMAGES} computed and stored "
        f"({n_bytes / 1e6:.3g} MB)"
    )
    before = files_of(cache)
    with (
        calls_of(ScatteringBackbone, "fit", monkeypatch) as fits,
        calls_of(ScatteringBackbone, "forward", monkeypatch) as computed,
    ):
        assert train_command(trained.data, tmp_path / "second", *option) == 0
    assert the_line(capsys.readouterr().out) == (
        f"features: {N_IMAGES} of {N_IMAGES} images from '{cache}'"
    )
    assert not fits
    assert len(computed) == 3  # one blank image for each split
    assert files_of(cache) == before
    assert same_run(tmp_path / "first", trained.output)
    assert same_run(tmp_path / "second", trained.output)
    for name in ("first", "second"):
        assert os.fsencode(cache) not in (tmp_path / name / CHECKPOINT_NAME).read_bytes()


def test_resuming_and_evaluating_find_what_the_other_has_stored(
    trained, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, run = tmp_path / "cache", shutil.copytree(trained.output, tmp_path / "run")
    option = ("--feature-cache", str(cache))
    assert command(train, "--resume", "--output", str(run), *option) == 0
    assert "computed and stored" in the_line(capsys.readouterr().out)
    assert same_run(run, trained.output)
    tables = []
    for more in ((), option):
        assert command(evaluate, "--checkpoint", str(run), *more) == 0
        tables.append(capsys.readouterr().out)
    said = the_line(tables[1])
    assert said == f"features: 12 of 12 images from '{cache}'"
    assert tables[1].replace(f"{said}\n", "") == tables[0]


def test_features_of_a_timm_model_are_those_of_a_run_without_a_cache(
    trained, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pt")
    cache = tmp_path / "cache"
    option = ("--feature-cache", str(cache))
    arguments = ["--data", str(trained.data), "--backbone", "test_efficientnet"]
    arguments += ["--preset", "tiny", "--epochs", "1", "--image-size", "64"]
    arguments += ["--weights", str(tmp_path / "weights.pt")]
    assert command(train, *arguments, "--output", str(tmp_path / "run")) == 0
    part = ("--classes", "gauge", "--seed", "1")
    assert command(train, *arguments, "--output", str(tmp_path / "part"), *part, *option) == 0
    assert command(train, *arguments, "--output", str(tmp_path / "other"), *option) == 0
    said = the_line(capsys.readouterr().out.rpartition("features: 0 of 12")[2])
    assert said.startswith("features: 12 of 24 images")
    assert same_run(tmp_path / "other", tmp_path / "run")
    assert command(evaluate, "--checkpoint", str(tmp_path / "run"), *option) == 0
    assert the_line(capsys.readouterr().out) == f"features: 12 of 12 images from '{cache}'"


def test_images_that_were_moved_and_renamed_are_found(images: list[Path], tmp_path: Path) -> None:
    compute(images, tmp_path / "cache")
    moved = [path.rename(tmp_path / f"{9 - number}.png") for number, path in enumerate(images)]
    found, said = compute(moved[1:][::-1], tmp_path / "cache")
    assert said == f"features: 5 of 5 images from '{tmp_path / 'cache'}'"
    assert [sample.path for sample in found.samples] == moved[1:][::-1]
    expected = compute(moved, None)[0].values[1:].flip(0)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=0)


def test_features_do_not_depend_on_what_is_computed_with_them(
    demo_root: Path, tmp_path: Path
) -> None:
    paths = sorted(demo_root.glob("*/*/*/*.png"))
    paths = [path for path in paths if "ground_truth" not in path.parts][:21]
    # Its depthwise convolutions take another algorithm for 16 images than for fewer.
    backbone = create_backbone("tf_efficientnet_lite0", pretrained=False)
    expected = compute(paths, None, backbone=backbone)[0].values
    for some in (paths[3:4], paths[7:12]):
        compute(some, tmp_path, backbone=backbone)
    found, said = compute(paths, tmp_path, backbone=backbone)
    assert said.startswith("features: 6 of 21 images")
    torch.testing.assert_close(found.values, expected, rtol=0, atol=0)


def test_scattering_has_the_same_bits_in_every_batch() -> None:
    backbone = ScatteringBackbone(8)
    images = torch.rand(16, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    backbone.fit([images])
    assert backbone.is_separate
    together = backbone(images)
    for count in (1, 5, 15):
        torch.testing.assert_close(backbone(images[:count]), together[:count], rtol=0, atol=0)


def test_an_image_that_was_edited_is_computed(images: list[Path], tmp_path: Path) -> None:
    compute(images, tmp_path / "cache")
    edited, times = images[2], os.stat(images[2])
    pixels = np.asarray(Image.open(edited)).copy()
    for level in range(256):  # until the file is as long as before
        pixels[20:40, 20:40] = level
        Image.fromarray(pixels).save(edited, compress_level=0)
    os.utime(edited, ns=(times.st_atime_ns, times.st_mtime_ns))
    found, said = compute(images, tmp_path / "cache")
    assert said.startswith("features: 5 of 6 images")
    torch.testing.assert_close(found.values, compute(images, None)[0].values, rtol=0, atol=0)


def test_what_a_feature_depends_on_has_entries_of_its_own(
    images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scattering(channels: int, seed: int = 0) -> Backbone:
        torch.manual_seed(seed)
        backbone = ScatteringBackbone(channels)
        backbone.fit([torch.rand(2, 3, 32, 32)])
        return backbone

    def timm(layers: tuple[int, ...]) -> Backbone:
        return create_backbone("test_resnet.r160_in1k", pretrained=False, layers=layers)

    frame = Frame(64, 64)
    found = [
        recipe(scattering(8), frame, DEFAULT_DECODING, CPU),
        recipe(scattering(9), frame, DEFAULT_DECODING, CPU),
        recipe(scattering(8, seed=1), frame, DEFAULT_DECODING, CPU),
        recipe(scattering(8), Frame(64, 72), DEFAULT_DECODING, CPU),
        recipe(scattering(8), Frame(64, 64, 8), DEFAULT_DECODING, CPU),
        recipe(scattering(8), frame, Decoding(bit_depth=12), CPU),
        recipe(timm((1,)), frame, DEFAULT_DECODING, CPU),
        recipe(timm((0, 1)), frame, DEFAULT_DECODING, CPU),
        recipe(timm((1, 2)), frame, DEFAULT_DECODING, CPU),
    ]
    # An image is refused or not; its feature is the same.
    assert recipe(scattering(8), frame, Decoding(max_megapixels=1), CPU) == found[0]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "3.0")
        found.append(recipe(scattering(8), frame, DEFAULT_DECODING, CPU))
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
        found.append(recipe(scattering(8), frame, DEFAULT_DECODING, CPU))
    with monkeypatch.context() as patch:
        patch.setattr(crad.data.images, "__file__", str(images[0]))  # other code
        found.append(recipe(scattering(8), frame, DEFAULT_DECODING, CPU))
    assert len({*found}) == len(found)


def test_statistics_are_found_and_fitted_again_to_other_images(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitted(paths: list[Path], folder: Path | None, side: int = 32) -> dict[str, Tensor]:
        backbone = ScatteringBackbone(4)
        cache = FeatureCache(folder) if folder else None
        samples = [Sample(path) for path in paths]
        fit_backbone(backbone, samples, side, device=CPU, skip=None, cache=cache)
        return backbone.state_dict()

    cache = tmp_path / "cache"
    expected = fitted(images, cache)
    moved = [path.rename(tmp_path / path.name) for path in images]
    with calls_of(ScatteringBackbone, "fit", monkeypatch) as fits:
        torch.testing.assert_close(fitted(moved, cache), expected, rtol=0, atol=0)
        assert not fits
        others = [fitted(moved[1:], cache), fitted(moved, cache, 40), fitted(moved[::-1], cache)]
        assert len(fits) == 3
        for entry in entries(cache):
            entry.write_bytes(entry.read_bytes()[:-1])
        torch.testing.assert_close(fitted(moved, cache), expected, rtol=0, atol=0)
        assert len(fits) == 4
    torch.testing.assert_close(others[0], fitted(moved[1:], None), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["cut short", "longer", "changed", "empty"])
def test_a_damaged_entry_is_not_used_and_written_anew(
    images: list[Path], tmp_path: Path, kind: str
) -> None:
    cache = tmp_path / "cache"
    expected, _ = compute(images, cache)
    before = files_of(cache)
    damaged = entries(cache)[2]
    data = bytearray(damaged.read_bytes())
    if kind == "changed":
        data[-7] ^= 1
    damaged.write_bytes(
        {"cut short": data[:-9], "longer": data + b"0", "empty": b""}.get(kind, data)
    )
    found, said = compute(images, cache)
    assert said.startswith("features: 5 of 6 images")
    assert said.endswith("; 1 file there damaged and not used")
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=0)
    assert files_of(cache) == before


def test_sizes_are_part_of_what_is_checked(images: list[Path], tmp_path: Path) -> None:
    compute(images, tmp_path / "cache")
    entry = entries(tmp_path / "cache")[0]
    data = bytearray(entry.read_bytes())
    data[12] ^= 1  # the height
    entry.write_bytes(data)
    found, said = compute(images, tmp_path / "cache")
    assert "damaged" in said
    assert {sample.size for sample in found.samples} == {(64, 64)}


@pytest.mark.parametrize("kind", ["file", "folder", "FIFO"])
def test_what_crad_did_not_write_is_named_and_left(
    images: list[Path], tmp_path: Path, kind: str
) -> None:
    cache = tmp_path / "cache"
    expected, _ = compute(images, cache)
    entry = entries(cache)[1]
    entry.unlink()
    if kind == "file":
        entry.write_text("my thesis")
    elif kind == "folder":
        entry.mkdir()
    else:
        os.mkfifo(entry)
    (cache / "notes.txt").write_text("mine")
    for _ in range(2):
        found, said = compute(images, cache)
        assert said.startswith("features: 5 of 6 images")
        assert f"not used: '{entry}': " in said
        assert said.endswith("; move it away")
        torch.testing.assert_close(found.values, expected.values, rtol=0, atol=0)
    assert entry.read_text() == "my thesis" if kind == "file" else not entry.is_file()
    assert (cache / "notes.txt").read_text() == "mine"


def test_what_a_killed_run_leaves_is_not_used_and_removed_after_a_day(
    images: list[Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    compute(images, cache)
    entry = entries(cache)[0]
    leftover = entry.with_name(f".{entry.name}.123.tmp")
    entry.rename(leftover)
    foreign = entry.with_name(".editor.123.tmp")
    foreign.touch()
    assert compute(images, cache)[1].startswith("features: 5 of 6 images")
    assert leftover.exists()
    for path in (leftover, foreign):
        os.utime(path, (time.time() - 90_000,) * 2)
    assert compute(images, cache)[1].startswith("features: 6 of 6 images")
    assert not leftover.exists()
    assert foreign.exists()


def test_a_full_disk_leaves_nothing_half_written(images: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    compute(images[:2], cache)
    before = files_of(cache)
    with largest_file(500), pytest.raises(StorageError, match="for --feature-cache") as caught:
        compute(images, cache)
    assert caught.value.errno == errno.EFBIG
    assert str(cache) in str(caught.value)
    assert files_of(cache) == before
    assert "4 computed and stored" in compute(images, cache)[1]


def test_a_full_disk_is_an_error_with_a_way_out(
    trained, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    with largest_file(500):
        arguments = ("--feature-cache", str(cache))
        assert train_command(trained.data, tmp_path / "run", *arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"for --feature-cache: '{cache}'; " in error
    assert error.endswith("run the same command again, with --resume if an epoch was finished")
    assert not entries(cache)


def test_a_read_only_folder_is_read_and_that_it_takes_nothing_is_said(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    compute(images[:4], cache)
    before = files_of(cache)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(crad.training.feature_cache, "replacing", refuse)
    found, said = compute(images, cache)
    assert said == (
        f"features: 4 of 6 images from '{cache}'; 2 computed and not stored (Read-only file system)"
    )
    torch.testing.assert_close(found.values, compute(images, None)[0].values, rtol=0, atol=0)
    assert files_of(cache) == before


def test_a_folder_that_is_none(
    trained, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    among = trained.data / "brick" / "train" / "cache"
    for folder, reason in ((tmp_path / "file", "is no folder"), (among, "lies among the images")):
        assert train_command(trained.data, tmp_path / "run", "--feature-cache", str(folder)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: feature-cache: ")
        assert f"'{folder}' {reason}" in line
    assert (tmp_path / "file").read_text() == "mine"
    assert not among.exists()
    with pytest.raises(StorageError, match="--feature-cache"):
        FeatureCache(tmp_path / "file" / "below")


def test_what_is_known_of_an_image_is_kept_and_its_size_still_refused(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    for _ in range(2):
        features, said = compute([tmp_path / "pages.tiff"], tmp_path / "cache")
        (sample,) = features.samples
        assert (sample.size, sample.has_more) == ((30, 40), True)
        assert sample.digest is not None
    assert said.startswith("features: 1 of 1 image ")
    with pytest.raises(ImageError, match="more than the limit"):
        compute(
            [tmp_path / "pages.tiff"], tmp_path / "cache", decoding=Decoding(max_megapixels=0.001)
        )


def test_bad_images_leave_no_gap_between_those_read_and_computed(
    images: list[Path], tmp_path: Path
) -> None:
    images[4].write_bytes(b"no image")
    good = [path for path in images if path != images[4]]
    expected = compute(good, None)[0].values
    compute([images[0], images[5]], tmp_path / "cache")
    skipped: list[ImageError] = []
    found, said = compute(images, tmp_path / "cache", skip=skipped.append)
    assert len(skipped) == 1
    assert said.startswith("features: 2 of 5 images")
    assert [sample.path for sample in found.samples] == good
    torch.testing.assert_close(found.values, expected, rtol=0, atol=0)


def test_an_image_that_is_edited_while_it_is_computed_is_not_stored(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest_of = crad.training.features.digest_of

    def edit(path: Path) -> bytes:
        digest = digest_of(path)
        if path == images[1]:
            Image.new("RGB", (64, 64), "red").save(path)
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(crad.training.features, "digest_of", edit)
        _, said = compute(images, tmp_path / "cache")
    assert "5 computed and stored" in said
    found, said = compute(images, tmp_path / "cache")
    assert said.startswith("features: 5 of 6 images")
    torch.testing.assert_close(found.values, compute(images, None)[0].values, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.thorough
def test_several_processes_and_runs_at_once(trained, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    common = [*trained.arguments, "--data", str(trained.data), "--feature-cache", str(cache)]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "crad", "train"]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}

    def start(name: str, *command: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *command, *common, "--output", str(tmp_path / name)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    at_once = [start(name, "-m", "crad", "train") for name in ("one", "two")]
    for process in at_once:
        assert process.communicate()[0]
        assert process.returncode == 0
    both = start("both", *torchrun)
    assert f"features: {N_IMAGES} of {N_IMAGES} images" in both.communicate()[0]
    assert both.returncode == 0
    stored = files_of(cache)
    shutil.rmtree(cache)
    again = start("again", *torchrun)
    assert f"{N_IMAGES} computed and stored" in again.communicate()[0]
    assert files_of(cache) == stored
    assert same_run(tmp_path / "one", trained.output)
    assert same_run(tmp_path / "two", trained.output)
