"""Tiles of large images: one model on all of them, and maps without seams."""

import json
import shutil
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import crad
import crad.calibrate
import crad.evaluate
import crad.predict
from crad.config import Config, ModelConfig
from crad.data.decoding import Decoding
from crad.data.frames import Frame
from crad.data.images import decode_file
from crad.data.samples import Sample
from crad.data.tensors import to_tensor, to_tile
from crad.data.tile_batches import load_tiles
from crad.data.tiles import Tiling
from crad.detector import Detector
from crad.errors import ImageError, UsageError
from crad.scoring.interest import Interest
from crad.scoring.protocols import PROTOCOLS
from crad.training.checkpoint import read_checkpoint
from tests.crad.rendered import cloth, spot, to_bytes, write_cloth

Command = Callable[..., int]

TILES = Frame(64, 64, 8, Tiling(128, 16))  # of 8 x 8 cells of 16 pixels of the image


def image_of(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(to_bytes(cloth(np.random.default_rng(seed), height, width)))


# Geometry


@pytest.mark.parametrize("size", [(128, 128), (129, 500), (1000, 777), (3072, 4096), (5000, 140)])
@pytest.mark.parametrize("overlap", [0, 16, 50, 64])
def test_tiles_cover_an_image_and_overlap_as_asked(size: tuple[int, int], overlap: int) -> None:
    grid = Tiling(128, overlap).grid(size, 8)
    assert (grid.rows, grid.columns) == tuple(round(length / 16) for length in size)
    for starts, length in ((grid.tops, grid.rows), (grid.lefts, grid.columns)):
        assert starts[0] == 0
        assert starts[-1] + 8 == length  # none reaches beyond the image
        overlaps = [one + 8 - other for one, other in pairwise(starts)]
        assert all(each >= overlap / 16 for each in overlaps)
        assert max(overlaps, default=0) - min(overlaps, default=0) <= 1  # they are even
        fewest = -(-(length - 8) // (8 - -(-overlap // 16))) + 1
        assert len(starts) == fewest


@pytest.mark.parametrize("size", [(20, 30), (128, 128), (100, 700), (500, 60), (333, 777)])
def test_pieces_of_a_map_are_put_together_again(size: tuple[int, int]) -> None:
    grid = TILES.grid(size)
    whole = torch.rand(grid.rows, grid.columns)
    padded = torch.zeros(max(8, grid.rows), max(8, grid.columns))
    padded[: grid.rows, : grid.columns] = whole
    pieces = [padded[top : top + 8, left : left + 8] for top, left in grid.places]
    assert len(pieces) == len(grid)
    torch.testing.assert_close(grid.stitch(torch.stack(pieces)), whole)


def test_a_tile_counts_less_towards_its_inner_edges() -> None:
    grid = Tiling(128, 48).grid((128, 512), 8)
    vertical, horizontal = map(torch.from_numpy, grid.weights)
    torch.testing.assert_close(vertical, torch.ones(1, 8))
    total = torch.zeros(grid.columns)
    for start, weights in zip(grid.lefts, horizontal, strict=True):
        total[start : start + 8] += weights
    torch.testing.assert_close(total, torch.ones(grid.columns))
    first, second = horizontal[:2]
    assert first[0] == first[3] == 1  # at the edge of the image, nothing else counts
    assert first[-1] < 0.25
    assert (first[4:].diff() < 0).all()
    assert (second[:3].diff() > 0).all()


def test_neighbouring_tiles_have_the_same_pixels_where_they_overlap() -> None:
    image = image_of(200, 310)
    grid = TILES.grid((200, 310))
    first, second = (to_tile(image.convert("RGB"), TILES, grid, place) for place in grid.places[:2])
    shift = 8 * grid.lefts[1]
    assert (first[:, :, shift:] - second[:, :, : 64 - shift]).abs().max() < 1.5 / 255


def test_an_image_of_the_size_of_a_tile_is_as_one_that_is_not_tiled() -> None:
    image = image_of(128, 128).convert("RGB")
    grid, whole = TILES.grid((128, 128)), Frame(64, 64)
    assert grid.places == [(0, 0)]
    assert to_tile(image, TILES, grid, (0, 0)).equal(to_tensor(image, whole))
    maps = torch.rand(1, 8, 8)
    assert grid.stitch(maps).equal(maps[0])
    for protocol in PROTOCOLS.values():
        (expected, score), (found, of_tiles) = (
            protocol.score_each(maps, frame, [(128, 128)])[0] for frame in (whole, TILES)
        )
        np.testing.assert_array_equal(found, expected)
        assert of_tiles == score


def test_a_smaller_image_is_padded() -> None:
    image = image_of(60, 300).convert("RGB")
    grid = TILES.grid((60, 300))
    assert (grid.rows, grid.columns, grid.part) == (4, 19, (4, 8))
    tile = to_tile(image, TILES, grid, grid.places[-1])
    assert tile.shape == (3, 64, 64)
    assert tile[:, :32].std() > 0.01
    for channel in tile:
        assert channel[32:].unique().numel() == 1
        assert channel[32:].mean() == pytest.approx(float(channel[:32].mean()), abs=1 / 255)


def test_lengths_of_protocols_are_those_of_a_tile() -> None:
    """A mark scores the same however large its image is."""
    protocol = PROTOCOLS["inside"]
    scores = []
    for size in ((128, 128), (640, 512), (6400, 7680)):  # the last is not measured in full
        grid = TILES.grid(size)
        maps = torch.zeros(grid.rows, grid.columns)
        maps[3:5, 3:5] = 1
        (scored, score), *_ = protocol.score_each([maps], TILES, [size])
        assert scored.size <= 1.001 * 2**20
        scores.append(score)
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)
    assert scores[2] == pytest.approx(scores[0], rel=0.1)


def test_maps_of_several_sizes_are_scored_each_by_itself() -> None:
    sizes = [(128, 256), (300, 200), (128, 256), (50, 60)]
    maps = [torch.rand(TILES.grid(size).rows, TILES.grid(size).columns) for size in sizes]
    together = PROTOCOLS["inside"].score_each(maps, TILES, sizes)
    for size, own, (scored, score) in zip(sizes, maps, together, strict=True):
        assert scored.shape == TILES.content(size)
        ((alone, its_score),) = PROTOCOLS["inside"].score_each([own], TILES, [size])
        np.testing.assert_allclose(scored, alone, rtol=1e-5, atol=1e-6)
        assert score == pytest.approx(its_score, rel=1e-5)


def test_maps_are_scored_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of many images would not fit into memory."""
    sizes = [(300, 400), (128, 128), (300, 400)]
    maps = [torch.rand(TILES.grid(size).rows, TILES.grid(size).columns) for size in sizes]
    protocol, at_once = PROTOCOLS["inside"], list[int]()
    together = protocol.score_each(maps, TILES, sizes)
    whole = type(protocol).score_each

    def score_each(self: Any, maps: Any, *rest: Any) -> Any:
        at_once.append(len(maps))
        return whole(self, maps, *rest)

    monkeypatch.setattr(type(protocol), "score_each", score_each)
    in_turn = [*protocol.score_in_turn(maps, TILES, sizes)]
    assert at_once == [1, 1, 1]
    for (scored, score), (expected, its_score) in zip(in_turn, together, strict=True):
        np.testing.assert_allclose(scored, expected, rtol=1e-5, atol=1e-6)
        assert score == pytest.approx(its_score, rel=1e-5)


def test_what_counts_is_a_part_of_the_whole_image() -> None:
    mask = np.zeros(TILES.mask_size, np.bool_)
    mask[:, : mask.shape[1] // 2] = True
    interest = Interest({"a": mask}, TILES)
    maps = [torch.rand(16, 24), torch.rand(8, 40)]
    samples = [Sample(size=(256, 384)), Sample(size=(128, 640))]
    left = interest.apply(maps, samples, ["a", "a"])
    for before, after in zip(maps, left, strict=True):
        half = before.shape[1] // 2
        assert after[:, :half].equal(before[:, :half])
        assert after[:, half:].unique().numel() == 1
    state = interest.state(["a"])
    assert Interest.from_state(state, ["a"], TILES).masks["a"].sum() == mask.sum()


# Batches


def test_few_tiles_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: those of a batch, those looked ahead, and those in use."""
    made: list[weakref.ref[torch.Tensor]] = []
    held = []

    def watched(*arguments: Any) -> torch.Tensor:
        tile = to_tile(*arguments)
        made.append(weakref.ref(tile))
        held.append(sum(each() is not None for each in made))
        return tile

    monkeypatch.setattr("crad.data.tile_batches.to_tile", watched)
    pictures = [np.zeros((1000, 1200), np.uint8)] * 2
    for _ in load_tiles(pictures, frame=TILES, batch_size=6, mixed=True):
        pass
    assert len(made) == 2 * len(TILES.grid((1000, 1200))) == 2 * 99
    assert max(held) <= 6 + 6 + 8


def test_batches_are_of_one_image_or_of_several(tmp_path: Path) -> None:
    image_of(300, 400).save(tmp_path / "large.png")
    batches = load_tiles([tmp_path / "large.png"] * 2, frame=TILES, batch_size=5, mixed=False)
    n_tiles = len(TILES.grid((300, 400)))
    sizes = [len(batch.numbers) for batch in batches]
    assert n_tiles == 12
    assert sizes == [5, 5, 2] * 2
    mixed = load_tiles([tmp_path / "large.png"] * 2, frame=TILES, batch_size=5, mixed=True)
    numbers = [number for batch in mixed for number in batch.numbers]
    assert numbers == [*range(12)] * 2


def test_a_bad_image_is_named_or_skipped(tmp_path: Path) -> None:
    image_of(300, 400).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:500])
    paths = [tmp_path / name for name in ("good.png", "bad.png", "good.png")]
    errors: list[ImageError] = []
    batches = load_tiles(paths, frame=TILES, batch_size=16, mixed=True, skip=errors.append)
    assert [len(batch.numbers) for batch in batches] == [12, 12]
    assert "bad.png" in str(errors[0])
    with pytest.raises(ImageError, match=r"bad\.png"):
        list(load_tiles(paths, frame=TILES, batch_size=16, mixed=True))


# Options


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 16}, "--tile: expected at least 32"),
        ({"tile": 100, "overlap": 51}, "--overlap: expected 0 to half of --tile, 50, but got 51"),
        ({"tile": 100, "overlap": -1}, "--overlap: expected at least 0"),
        ({"tile": 100, "fit": True}, "--fit: .*leave --fit out"),
        ({"tile": 100, "image_size": (64, 96)}, "--image-size: tiles are square.* 64 96"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Config(model=ModelConfig(**settings)).check()


def test_the_overlap_is_an_eighth_unless_it_is_given() -> None:
    assert ModelConfig(tile=512).tiling == Tiling(512, 64)
    assert ModelConfig(tile=512, overlap=0).tiling == Tiling(512, 0)
    assert ModelConfig().tiling is None


# Runs: spots of 4 pixels in images of 2 x 3 tiles

SIZE, SPOT = (168, 240), 4
SMALL = (
    *("--tile", "96", "--overlap", "24", "--image-size", "64"),
    *("--epochs", "5", "--calibration-share", "0.25"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "woven"
    for seed, (name, level) in enumerate({"cloth": 128, "felt": 60}.items()):
        write_cloth(
            root / name, SIZE, n_train=8, n_test=4, diameters=[SPOT], level=level, seed=seed
        )
    return root


@pytest.fixture(scope="module")
def tiled(
    tmp_path_factory: pytest.TempPathFactory, data: Path, train_command: Command
) -> SimpleNamespace:
    output = tmp_path_factory.mktemp("runs") / "tiled"
    assert train_command(data, output, *SMALL) == 0
    results = json.loads((output / "results.json").read_text())
    return SimpleNamespace(output=output, data=data, results=results)


@pytest.fixture(scope="module")
def detector(tiled: SimpleNamespace) -> Detector:
    return crad.load(tiled.output, "cpu")


def test_small_defects_are_found_on_tiles_and_lost_by_squashing(
    tiled: SimpleNamespace, tmp_path: Path, train_command: Command
) -> None:
    assert train_command(tiled.data, tmp_path / "whole", "--epochs", "5") == 0
    squashed = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert tiled.results["mean"]["image_auroc"] > 0.97
    assert tiled.results["mean"]["pixel_auroc"] > 0.97
    assert squashed["mean"]["image_auroc"] < 0.8


def test_a_seam_is_not_seen(detector: Detector) -> None:
    """A spot on a seam, or where four tiles meet, scores as one in the middle of a tile."""
    grid = detector.frame.grid(SIZE)
    cell = SIZE[0] / grid.rows
    starts = grid.tops, grid.lefts
    middles = [[(start + 4) * cell for start in each] for each in starts]
    seams = [[(one + other + 8) / 2 * cell for one, other in pairwise(each)] for each in starts]
    groups = {
        "middle": [(y, x) for y in middles[0] for x in middles[1]],
        "seam": [(y, x) for y in middles[0] for x in seams[1]],
        "corner": [(y, x) for y in seams[0] for x in seams[1]],
    }
    scores = {}
    for name, places in groups.items():
        found = []
        for seed in range(6):
            place = places[seed % len(places)]
            picture = cloth(np.random.default_rng(seed), *SIZE)
            spot(picture, place, SPOT, depth=100)
            prediction = detector.predict_one(to_bytes(picture), class_name="cloth")
            found.append(prediction.score)
            y, x = np.unravel_index(prediction.anomaly_map.argmax(), SIZE)
            assert np.hypot(y - place[0], x - place[1]) < cell
        scores[name] = float(np.mean(found))
    assert scores["seam"] == pytest.approx(scores["middle"], rel=0.1)
    assert scores["corner"] == pytest.approx(scores["middle"], rel=0.1)


def test_predictions_are_of_whole_images(detector: Detector, data: Path) -> None:
    paths = sorted((data / "cloth" / "test" / f"spot{SPOT}").iterdir())
    for path, prediction in zip(paths, detector.predict(paths), strict=True):
        mask = path.parents[2] / "ground_truth" / f"spot{SPOT}" / f"{path.stem}_mask.png"
        truth = np.asarray(Image.open(mask)) > 0
        assert prediction.size == prediction.anomaly_map.shape == SIZE
        assert prediction.scored_map.shape == detector.frame.content(SIZE) == (112, 160)
        assert prediction.class_name == "cloth"
        assert prediction.anomaly_mask is not None
        (y, x), cell = np.argwhere(truth).mean(axis=0), 12
        column, row = prediction.regions[0].peak if prediction.regions else (x, y)
        assert np.hypot(row - y, column - x) < 2 * cell


def test_the_product_is_recognised_from_all_tiles(detector: Detector, data: Path) -> None:
    for name in ("cloth", "felt"):
        found = detector.predict(sorted((data / name / "test" / "good").iterdir()))
        assert [each.class_name for each in found] == [name] * 4


def test_images_of_any_size_and_form(detector: Detector) -> None:
    generator = np.random.default_rng(0)
    sizes = [(30, 20), (96, 96), (80, 300), SIZE]
    pictures = [to_bytes(cloth(generator, *size)) for size in sizes]
    together = detector.predict(pictures, batch_size=3)
    for size, picture, prediction in zip(sizes, pictures, together, strict=True):
        assert prediction.anomaly_map.shape == size
        assert detector.predict_one(picture).score == pytest.approx(prediction.score, rel=1e-4)
    ((batch, maps),) = detector.map_images(pictures[-1])
    grid = detector.frame.grid(SIZE)
    assert maps.shape == (1, grid.rows, grid.columns)
    assert batch.samples[0].size == SIZE
    assert len(batch.images) == 0


def test_thresholds_are_of_whole_images(tiled: SimpleNamespace, detector: Detector) -> None:
    stored = read_checkpoint(tiled.output)
    assert {name: len(each) for name, each in stored.calibration.items()} == {"cloth": 2, "felt": 2}
    assert stored.config.model.tiling == Tiling(96, 24)
    assert stored.n_train == {"cloth": 6, "felt": 6}
    assert detector.frame == Frame(64, 64, 8, Tiling(96, 24))


def test_an_evaluation_gives_the_results_of_training(
    tiled: SimpleNamespace, tmp_path: Path, command: Command
) -> None:
    checkpoint = ["--checkpoint", str(tiled.output)]
    cache = ["--feature-cache", str(tmp_path / "cache")]
    for name, more in {"plain": [], "stored": cache, "read": cache}.items():
        output = ["--output", str(tmp_path / name)]
        assert command(crad.evaluate.main, *checkpoint, *output, *more) == 0
        found = json.loads((tmp_path / name / "results.json").read_text())
        for metric, value in tiled.results["mean"].items():
            assert found["mean"][metric] == pytest.approx(value, abs=1e-3)


def test_a_feature_cache_knows_the_tiles(
    data: Path, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ("--feature-cache", str(tmp_path / "cache"), "--classes", "cloth", "--epochs", "1")
    told = []
    for number, tile in enumerate((128, 128, 144)):
        assert train_command(data, tmp_path / str(number), "--tile", str(tile), *cache) == 0
        (line,) = [each for each in capsys.readouterr().out.splitlines() if "images from" in each]
        told.append(line.split(" images")[0])
    assert told == ["features: 0 of 16", "features: 16 of 16", "features: 0 of 16"]
    first, second = (read_checkpoint(tmp_path / name, ("model",)).model for name in "01")
    assert all(tensor.equal(second[name]) for name, tensor in first.items())


def test_a_run_is_resumed_with_its_tiles(
    tiled: SimpleNamespace,
    tmp_path: Path,
    train_command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(tiled.output, tmp_path / "run")
    assert train_command(tiled.data, run, *SMALL, "--resume") == 0
    assert train_command(tiled.data, run, *SMALL, "--resume", "--tile", "64") == 2
    assert "--tile: the run in" in capsys.readouterr().err
    assert train_command(tiled.data, run, *SMALL, "--resume", "--overlap", "12") == 2
    assert "--overlap: the run in" in capsys.readouterr().err


def test_heat_maps_and_masks_of_whole_images(
    tiled: SimpleNamespace, tmp_path: Path, command: Command
) -> None:
    image = tiled.data / "cloth" / "test" / f"spot{SPOT}" / "000.png"
    arguments = ["--checkpoint", str(tiled.output), "--output", str(tmp_path / "out"), str(image)]
    assert command(crad.predict.main, *arguments) == 0
    for kind in ("heatmap", "mask"):
        with Image.open(tmp_path / "out" / f"000_{kind}.png") as picture:
            assert picture.size == SIZE[::-1]


def test_calibration_and_region_of_interest(
    tiled: SimpleNamespace, tmp_path: Path, command: Command, train_command: Command
) -> None:
    good = str(tiled.data / "cloth" / "test" / "good")
    new = tmp_path / "new.safetensors"
    arguments = ["--checkpoint", str(tiled.output), "--good", good, "--output", str(new)]
    assert command(crad.calibrate.main, *arguments) == 0
    assert len(read_checkpoint(new).calibration["cloth"]) == 4
    mask = np.zeros(SIZE, np.uint8)
    mask[:, : SIZE[1] // 2] = 255
    Image.fromarray(mask).save(tmp_path / "roi.png")
    roi = ("--roi", str(tmp_path / "roi.png"), "--classes", "cloth")
    assert train_command(tiled.data, tmp_path / "run", *SMALL, *roi) == 0
    detector = crad.load(tmp_path / "run", "cpu")
    picture = cloth(np.random.default_rng(5), *SIZE)
    clean = detector.predict_one(to_bytes(picture)).score
    outside, inside = picture.copy(), picture.copy()
    spot(outside, (80, 200), SPOT, depth=80)
    spot(inside, (80, 50), SPOT, depth=80)
    assert detector.predict_one(to_bytes(outside)).score == pytest.approx(clean, rel=0.05)
    assert detector.predict_one(to_bytes(inside)).score > 1.5 * clean


@pytest.mark.slow
@pytest.mark.thorough
def test_a_model_for_each_class(data: Path, tmp_path: Path, train_command: Command) -> None:
    settings = (*SMALL, "--epochs", "2")
    assert train_command(data, tmp_path / "run", *settings, "--separate") == 0
    detector = crad.load(tmp_path / "run", "cpu")
    for name in ("cloth", "felt"):
        path = data / name / "test" / f"spot{SPOT}" / "000.png"
        (found,) = detector.predict(path)
        (alone,) = crad.load(tmp_path / "run" / name, "cpu").predict(path)
        assert (found.class_name, found.size) == (name, SIZE)
        assert found.score == pytest.approx(alone.score, rel=1e-4)
    bad = np.zeros((40, 40, 7), np.uint8)
    images = [image_of(*SIZE), bad, path]
    with pytest.raises(ImageError, match=r"images\[1\]"):
        detector.predict(images)
    skipped: list[ImageError] = []
    *_, last = detector.iterate(images, skip=skipped.append)
    assert len(skipped) == 1
    assert last.score == pytest.approx(found.score, rel=1e-5)


def test_an_image_that_is_left_out_leaves_no_gap(
    data: Path, tmp_path: Path, train_command: Command
) -> None:
    root = tmp_path / "data"
    shutil.copytree(data / "cloth", root / "cloth")
    shutil.rmtree(root / "cloth" / "test")
    shutil.rmtree(root / "cloth" / "ground_truth")
    broken = tmp_path / "broken"
    shutil.copytree(root, broken)
    shutil.copy(broken / "cloth" / "train" / "good" / "000.png", broken / "cloth" / "train" / "a")
    whole = sorted((broken / "cloth" / "train" / "good").iterdir())
    whole[4].write_bytes(whole[4].read_bytes()[:2000])  # its header is whole
    whole[7].write_bytes(b"none")
    (broken / "cloth" / "train" / "a").unlink()
    for number in (4, 7):
        (root / "cloth" / "train" / "good" / whole[number].name).unlink()
    few = ("--tile", "128", "--epochs", "1", "--calibration-share", "0")
    assert train_command(broken, tmp_path / "skipped", *few, "--skip-bad") == 0
    assert train_command(root, tmp_path / "removed", *few) == 0
    skipped, removed = (
        read_checkpoint(tmp_path / name, ("model",)).model for name in ("skipped", "removed")
    )
    assert all(tensor.equal(removed[name]) for name, tensor in skipped.items())


# JPEG files that are far larger than needed


@pytest.mark.parametrize(
    ("size", "reduction"),
    [((1024, 2048), 8), ((1024, 2044), 4), ((512, 512), 4), ((1028, 1028), 4), ((1021, 1021), 1)],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_large_jpeg_is_decoded_at_a_fraction(
    tmp_path: Path, size: tuple[int, int], reduction: int, turned: bool
) -> None:
    exif = Image.Exif()
    if turned:
        exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "large.jpg"
    image_of(*size).save(path, quality=95, exif=exif)
    upright = size[::-1] if turned else size
    frame, decoding = Frame(32, 32), Decoding(reduced=True)
    found, whole = decode_file(path, decoding, frame), decode_file(path, Decoding(), frame)
    assert (found.reduction, whole.reduction) == (reduction, 1)
    assert found.size == whole.size == upright
    assert found.image.size == tuple(length // reduction for length in reversed(upright))
    difference = (to_tensor(found.image, frame) - to_tensor(whole.image, frame)).abs()
    assert difference.max() < 4.5 / 255
    assert difference.mean() < 1 / 255


def test_nothing_is_reduced_that_is_needed(tmp_path: Path) -> None:
    decoding = Decoding(reduced=True)
    image_of(1024, 1024).save(tmp_path / "a.jpg")
    image_of(1024, 1024).save(tmp_path / "a.png")
    assert decode_file(tmp_path / "a.jpg", decoding, Frame(129, 129)).reduction == 1
    assert decode_file(tmp_path / "a.jpg", decoding, Frame(128, 128)).reduction == 2
    assert decode_file(tmp_path / "a.jpg", decoding, Frame(128, 128, 8)).reduction == 2
    assert decode_file(tmp_path / "a.jpg", decoding).reduction == 1
    assert decode_file(tmp_path / "a.png", decoding, Frame(32, 32)).reduction == 1
    few, many = (Frame(64, 64, 8, Tiling(side, 0)) for side in (512, 128))
    assert decode_file(tmp_path / "a.jpg", decoding, few).reduction == 2
    assert decode_file(tmp_path / "a.jpg", decoding, many).reduction == 1


def test_older_checkpoints_reduce_nothing(tiled: SimpleNamespace, tmp_path: Path) -> None:
    assert crad.load(tiled.output, "cpu").decoding.reduced
    for file in (Path(__file__).parent / "checkpoints").glob("version-*.safetensors"):
        model = read_checkpoint(file, ()).config.model
        assert not model.reduced
        assert model.tiling is None
