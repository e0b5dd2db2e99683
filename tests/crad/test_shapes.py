"""Images that are not square: frames, padding, and all that follows from them."""

import dataclasses
import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.ndimage import maximum_filter
from skimage.measure import label

import crad
import crad.evaluate
import crad.predict
import crad.train
from crad.config import ModelConfig
from crad.data.bad_images import BadImages
from crad.data.batches import load_batches
from crad.data.frames import Frame, fit_frame, frame_of, show_size
from crad.data.images import open_image, to_rgb
from crad.data.masks import MaskResize, resize_mask
from crad.data.samples import Sample
from crad.data.tensors import to_tensor
from crad.errors import CheckpointError
from crad.report.heat_maps import heat_map
from crad.scoring.evaluation import Evaluation, Truths
from crad.scoring.metrics import measure_class, measure_ranking
from crad.scoring.prediction import Prediction
from crad.scoring.protocols import PROTOCOLS, Protocol, decision_scores
from crad.train_options import parse_options
from crad.training.checkpoint import CHECKPOINT_NAME, read_checkpoint
from tests.fixtures import run

CHECKPOINTS = Path(__file__).parent / "checkpoints"
EVERY_PROTOCOL = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
FRAME = Frame(40, 64, 8)


def noise(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


# Frames


@pytest.mark.parametrize(
    ("size", "content"),
    [
        ((40, 64), (40, 64)),
        ((400, 640), (40, 64)),
        ((39, 64), (40, 64)),  # but for a whole cell, it is of the same aspect ratio
        ((100, 100), (40, 40)),
        ((10, 100), (8, 64)),
        ((1, 1000), (8, 64)),
        ((1000, 1), (40, 8)),
    ],
)
def test_an_image_keeps_its_aspect_ratio_as_nearly_as_cells_allow(size, content) -> None:
    assert FRAME.content(size) == content
    assert Frame(64, 40, 8).content(size[::-1]) == content[::-1]


def test_without_a_stride_images_are_stretched() -> None:
    for size in ((1, 9), (9, 1), None):
        assert Frame(5, 7).content(size) == (5, 7)
    assert frame_of(8) == Frame(8, 8)
    assert frame_of((8, 9)) == Frame(8, 9)
    assert frame_of(FRAME) is FRAME
    assert (Frame(8, 8).size, Frame(8, 9).size) == (8, (8, 9))
    assert (show_size(8), show_size((8, 9)), show_size(FRAME)) == ("8", "8 9", "40 64")


@pytest.mark.parametrize("side", [64, 128, 224])
@pytest.mark.parametrize("stride", [8, 14, 16])
def test_a_frame_has_the_median_aspect_ratio_and_the_area(side: int, stride: int) -> None:
    cases = {0.5: [(10, 20), (30, 60), (60, 30)], 1: [(1, 2), (2, 1)], 500 / 1260: [(500, 1260)]}
    for aspect, sizes in cases.items():
        frame = fit_frame(side, stride, sizes)
        assert abs(frame.width - side / aspect**0.5) <= stride / 2
        assert abs(frame.height - frame.width * aspect) <= stride / 2
        assert frame.height % stride == frame.width % stride == 0
        turned = fit_frame(side, stride, [size[::-1] for size in sizes])
        assert turned == Frame(frame.width, frame.height, stride)


def test_images_of_one_aspect_ratio_are_not_padded() -> None:
    for size in itertools.product(range(7, 90, 3), range(7, 90, 4)):
        for side, stride in ((64, 8), (128, 8), (224, 14), (224, 16)):
            frame = fit_frame(side, stride, [size])
            assert frame.content(size) == (frame.height, frame.width)
            assert frame.content((3 * size[0], 3 * size[1])) == (frame.height, frame.width)


def test_a_frame_is_not_too_narrow_for_a_backbone() -> None:
    assert fit_frame(64, 14, [(1, 10_000)], least=32).height == 42


@pytest.mark.parametrize("cells", [(5, 8), (10, 16), (4, 7), (1, 1)])
def test_the_part_of_a_map_is_that_of_the_image(cells: tuple[int, int]) -> None:
    maps = torch.rand(2, *cells)
    for content in ((40, 64), (8, 64), (40, 24)):
        part = FRAME.crop(maps, content)
        expected = [
            max(1, round(n * c / w)) for n, c, w in zip(cells, content, (40, 64), strict=True)
        ]
        assert torch.equal(part, maps[:, : expected[0], : expected[1]])


# Images and masks


def test_a_padded_image_is_itself_and_its_mean_colour() -> None:
    pixels = noise(90, 30, 3)
    image = Image.fromarray(pixels)
    tensor = to_tensor(image, FRAME)
    assert tensor.shape == (3, 40, 64)
    content = to_tensor(image, (40, 16))
    assert torch.equal(tensor[:, :, :16], content)
    mean = content.mean(dim=(1, 2))[:, None, None]
    torch.testing.assert_close(tensor[:, :, 16:], mean.expand(3, 40, 48), atol=1 / 255, rtol=0)
    assert len(tensor[:, :, 16:].flatten(1).unique(dim=1).T) == 1
    assert tensor.is_contiguous()


def test_every_path_leads_to_the_same_pixels(tmp_path: Path) -> None:
    """They are antialiased: of a chessboard of single pixels, grey remains."""
    board = np.repeat((np.indices((128, 192)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    path = tmp_path / "board.png"
    Image.fromarray(board).save(path)
    sources = [path, Image.fromarray(board), board, board / 255, torch.tensor(board).movedim(2, 0)]
    for size in (32, (32, 40), Frame(32, 32, 8)):
        (batch,) = load_batches(sources, size=size, batch_size=9)
        assert all(torch.equal(image, batch.images[0]) for image in batch.images)
        assert batch.images.shape == (5, 3, frame_of(size).height, frame_of(size).width)
        torch.testing.assert_close(
            batch.images, torch.full_like(batch.images, 0.5), atol=0.03, rtol=0
        )


@pytest.mark.parametrize("resize", ["nearest", "bilinear", "any"])
def test_masks_go_with_their_images(resize: MaskResize) -> None:
    mask = np.zeros((90, 60), bool)
    mask[30:60, 40:50] = True
    both = resize_mask(mask, (48, 24), resize)
    assert both.shape == (48, 24)
    np.testing.assert_array_equal(resize_mask(mask.T, (24, 48), resize), both.T)
    expected = np.zeros((48, 24), bool)
    expected[16:32, 16:20] = True
    np.testing.assert_array_equal(both, expected)
    np.testing.assert_array_equal(
        resize_mask(mask, FRAME, resize), resize_mask(mask, (40, 24), resize)
    )


def test_the_truth_of_a_normal_image_has_the_size_of_its_content(tmp_path: Path) -> None:
    Image.fromarray(noise(100, 20)).save(tmp_path / "x.png")
    sample = Sample(tmp_path / "x.png", defect="good")
    for each in (sample, replace(sample, size=(100, 20))):
        truth = each.read_truth(FRAME)
        assert truth is not None
        assert truth.shape == (40, 8)
        assert not truth.any()


# Protocols


@EVERY_PROTOCOL
@pytest.mark.parametrize("cells", [(4, 9), (9, 4), (20, 3)])
def test_turned_images_have_turned_maps(protocol: Protocol, cells: tuple[int, int]) -> None:
    maps = torch.rand(3, *cells, dtype=torch.float64)
    size = (8 * cells[0], 8 * cells[1])
    scored, scores = protocol.score(maps, size)
    turned, same = protocol.score(maps.mT, size[::-1])
    assert scored.shape[1:] == ((256, 256) if protocol.size else size)
    torch.testing.assert_close(turned, scored.mT)
    torch.testing.assert_close(same, scores)


@EVERY_PROTOCOL
@pytest.mark.parametrize("size", [(32, 512), (8, 128), (128, 8)])
def test_windows_longer_than_a_side_are_cut(protocol: Protocol, size: tuple[int, int]) -> None:
    maps, scores = protocol.score(torch.full((2, size[0] // 8, size[1] // 8), 2.5), size)
    assert maps.isfinite().all()
    assert (scores <= 2.5 + 1e-5).all()
    assert (scores > 0).all()


@EVERY_PROTOCOL
def test_a_square_by_any_name_scores_the_same(protocol: Protocol) -> None:
    maps = torch.rand(3, 8, 8)
    expected = protocol.score(maps, 64)
    each = protocol.score_each(maps, Frame(64, 64), [None, (5, 9), (9, 5)])
    for found in (
        protocol.score(maps, (64, 64)),
        protocol.score(maps, Frame(64, 64)),
        (torch.tensor(np.stack([one for one, _ in each])), torch.tensor([two for _, two in each])),
    ):
        assert all(map(torch.equal, found, expected))


def test_lengths_scale_with_the_root_of_the_area() -> None:
    for protocol in PROTOCOLS.values():
        assert protocol.scale(112) == (1 if protocol.size else 0.5)
        assert protocol.scale((56, 224)) == protocol.scale(112)


# Padding


SIZES = [(40, 64), (90, 30), (5, 50), (90, 30)]
CONTENTS = [(40, 64), (40, 16), (8, 64), (40, 16)]


def maps_of_frames(padding: float) -> torch.Tensor:
    maps = torch.rand(4, 5, 8, generator=torch.Generator().manual_seed(0))
    for each, (height, width) in zip(maps, CONTENTS, strict=True):
        each[height // 8 :] = padding
        each[:, width // 8 :] = padding
    return maps


def padded_samples(folder: Path) -> list[Sample]:
    samples = []
    for number, size in enumerate(SIZES):
        mask = np.zeros(size, np.uint8)
        mask[: size[0] // 2, : size[1] // 2] = 255
        path = folder / f"{number}.png"
        Image.fromarray(mask).save(path)
        samples += [Sample(path, "a", "crack", mask=path, size=size)]
    normal = [replace(each, defect="good", mask=None) for each in samples]
    return samples + normal


@EVERY_PROTOCOL
def test_padding_counts_for_no_score_map_or_metric(protocol: Protocol, tmp_path: Path) -> None:
    samples = padded_samples(tmp_path)
    evaluation = Evaluation(samples, {"a": 1}, Truths(FRAME, BadImages(skip=False)))
    found = []
    for padding in (0.0, 1e6, -1e6):
        maps = torch.cat([maps_of_frames(padding), 1 - maps_of_frames(1 - padding)])
        metrics = evaluation.measure(maps, protocol)
        assert metrics["mean"]["pixel_aupro"] is not None
        scores = decision_scores(maps, samples, FRAME, protocol)
        (scored,) = (list(each) for _, each in evaluation.predictions(maps, protocol))
        found.append((metrics, scores, [each.scored_map.tolist() for each in scored]))
        for each, content in zip(scored, 2 * CONTENTS, strict=True):
            assert each.scored_map.shape == ((256, 256) if protocol.size else content)
            assert each.anomaly_map.shape == each.size
            assert each.truth is not None
            if each.is_anomaly:
                assert each.truth.mean() == pytest.approx(0.25, abs=0.1)
    assert found[0] == found[1] == found[2]


def test_metrics_of_maps_of_several_shapes_are_those_of_all_their_pixels() -> None:
    random = np.random.default_rng(0)

    def images(shapes: list[tuple[int, int]]) -> list[Prediction]:
        found = []
        for defect, shape in itertools.product(("good", "crack"), shapes):
            truth = np.zeros(shape, bool)
            truth[1, :2] = defect == "crack"
            scored = random.random(shape, np.float32) + truth * np.float32(0.3)
            found.append(Prediction(defect=defect, score=0.0, scored_map=scored, truth=truth))
        return found

    for shapes in itertools.permutations([(4, 4), (3, 9), (20, 5)]):
        several = images([*shapes])
        measured = measure_class(several, n_train=1, n_test=len(several))
        size = sum(each.scored_map.shape[1] for each in several) + len(several)
        whole, truth = np.zeros((20, size), np.float32), np.zeros((20, size), bool)
        counted = np.zeros_like(truth)
        column = 0  # side by side, with a gap of what is no image between them
        for each in several:
            assert each.truth is not None
            rows, columns = each.scored_map.shape
            place = np.s_[:rows, column : column + columns]
            whole[place], truth[place], counted[place] = each.scored_map, each.truth, True
            column += columns + 1
        regions = label(truth, connectivity=2)[truth]
        ranking = measure_ranking(
            whole[truth], whole[counted & ~truth], np.bincount(regions)[regions]
        )
        assert ranking is not None
        for name, value in ranking._asdict().items():
            assert measured[f"pixel_{name}"] == pytest.approx(value, abs=1e-12)


def test_a_map_that_shrinks_is_antialiased() -> None:
    scored = np.zeros((64, 64), np.float32)
    scored[::8] = 1  # lines that single pixels of a small image lie between
    for size in ((4, 8), (64, 8), (8, 100)):
        prediction = Prediction(score=0.0, scored_map=scored, size=size)
        assert prediction.anomaly_map.shape == size
        assert prediction.anomaly_map.mean() == pytest.approx(1 / 8, abs=0.02)
    enlarged = Prediction(score=0.0, scored_map=scored, size=(90, 70)).anomaly_map
    exact = torch.tensor(scored, dtype=torch.float64)[None, None]
    expected = F.interpolate(exact, (90, 70), mode="bilinear")[0, 0]
    np.testing.assert_allclose(enlarged, expected, rtol=0, atol=1e-7)


# Checkpoints and options


@pytest.mark.parametrize("version", [1, 2, 3])
def test_square_images_are_mapped_as_ever(version: int) -> None:
    """Bit for bit: resized by Pillow, computed, and scored as one batch of whole maps."""
    detector = crad.load(CHECKPOINTS / f"version-{version}.safetensors", "cpu", "fp32")
    assert detector.image_size == 32
    assert detector.frame == Frame(32, 32)
    arrays = [noise(*size, 3, seed=3) for size in ((32, 32), (50, 20), (20, 50))]
    resized = [Image.fromarray(each).resize((32, 32), Image.Resampling.BILINEAR) for each in arrays]
    images = torch.stack([torch.tensor(np.array(each)).movedim(2, 0) for each in resized])
    with torch.inference_mode():
        maps = detector.model(detector.backbone(images.float() / 255)).anomaly_map
        smooth, scores = detector.protocol.score(maps, 32)
    for prediction, one, score in zip(detector.predict(arrays), smooth, scores, strict=True):
        assert prediction.score == score.item()
        np.testing.assert_array_equal(prediction.scored_map, one)
        size = prediction.size
        exact = one[None, None].double()
        expected = F.interpolate(exact, size, mode="bilinear", antialias=min(size) < 32)
        np.testing.assert_allclose(prediction.anomaly_map, expected[0, 0], rtol=1e-6)


def rewritten(file: Path, **model: object) -> Path:
    with safe_open(CHECKPOINTS / "version-3.safetensors", "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    found = json.loads(metadata["run"])
    found["settings"]["model"] |= model
    save_file(tensors, file, metadata | {"run": json.dumps(found)})
    return file


def test_a_checkpoint_keeps_sizes(tmp_path: Path) -> None:
    file = tmp_path / CHECKPOINT_NAME
    for model in (
        {"image_size": 64},
        {"image_size": [32, 64]},
        {"image_size": 64, "fit": True, "fitted": [48, 80, 8]},
    ):
        config = read_checkpoint(rewritten(file, **model)).config
        read_checkpoint(file).write(file)
        assert read_checkpoint(file).config == config
        stored = dataclasses.asdict(config.model)
        for name, value in model.items():
            assert stored[name] == (tuple(value) if isinstance(value, list) else value)
    assert config.model.frame == Frame(48, 80, 8)
    assert ModelConfig(image_size=(32, 64)).frame == Frame(32, 64)


@pytest.mark.parametrize(
    "model",
    [
        {"image_size": [32]},
        {"image_size": [32, 64, 8]},
        {"image_size": [32, 6]},
        {"image_size": [32, "64"]},
        {"fitted": [32, 64]},
        {"fitted": [32, 60, 8]},
        {"fitted": [0, 0, 0]},
        {"fitted": [-32, 64, -8]},
        {"fit": 1},
    ],
    ids=str,
)
def test_a_damaged_size_is_refused(tmp_path: Path, model: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=r"image|fit"):
        read_checkpoint(rewritten(tmp_path / CHECKPOINT_NAME, **model))


def test_one_number_or_two() -> None:
    for words, size in ((["64"], 64), (["64", "96"], (64, 96)), (["64", "64"], 64), ([], 128)):
        given = ["--image-size", *words] if words else []
        model = parse_options(["--data", "demo", *given]).config.model
        assert (model.image_size, model.fit) == (size, False)
    assert parse_options(["--data", "demo", "--fit"]).config.model.fit


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("0 5", "--image-size: expected one side, or a height and a width, of at least 32 pixels"),
        ("64 31", "of at least 32 pixels, but got 64 31"),
        ("-64", "of at least 32 pixels, but got -64"),
        ("64 4294967296", "--image-size: expected less than 2**31, but got 4294967296"),
        (
            "1 2 3",
            "--image-size: expected one side, or a height and a width, in pixels, but got 1 2 3",
        ),
        (
            "64.5",
            "--image-size: expected one side, or a height and a width, in pixels, but got 64.5",
        ),
        (
            "",
            "--image-size: expected one side, or a height and a width, in pixels, but got nothing",
        ),
    ],
)
def test_sizes_out_of_range(size: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(crad.train.main, "--data", "demo", "--image-size", *size.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--image-size", "60", "64"], 1, "at --image-size 60 64: .* multiples of 8"),
        (
            ["--image-size", "64", "60", "--fit"],
            2,
            "^error: --image-size: with --fit.* multiples of 8.* 64 60",
        ),
    ],
)
def test_a_size_that_the_backbone_cannot_take(
    options: list[str], code: int, told: str, demo_root: Path, tmp_path: Path, capsys
) -> None:
    common = ["--data", str(demo_root), "--backbone", "scattering", "--output", str(tmp_path / "o")]
    assert run(crad.train.main, *common, *options) == code
    assert re.search(told, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "o" / CHECKPOINT_NAME).exists()


# From images to decisions

SMALL = ("--backbone", "scattering", "--batch-size", "4", "--epochs", "4", "--device", "cpu")
MARK = 20
SHAPES = [(80, 160), (160, 80), (64, 200)]
FRAME_80 = Frame(56, 112, 8)  # of about 80 x 80 pixels, for SHAPES


def stripes(height: int, width: int, seed: int, mark: tuple[int, int] | None) -> np.ndarray:
    """Noise on a gradient along the longer side, with a mark at a row and a column."""
    random = np.random.default_rng(seed)
    longer = np.arange(width) if width >= height else np.arange(height)[:, None]
    levels = 90 + 60 * longer / max(height, width) + random.normal(0, 6, (height, width))
    if mark:
        place = np.s_[mark[0] : mark[0] + MARK, mark[1] : mark[1] + MARK]
        levels[place] = np.where(np.indices((MARK, MARK)).sum(0) // 3 % 2, 250, 10)
    return np.clip(levels, 0, 255).astype(np.uint8)


def write_shapes(root: Path, sizes: list[tuple[int, int]]) -> Path:
    """A data set of images of some sizes, in turn, with marks near the far end of each."""
    for kind in ("train/good", "test/good", "test/mark", "ground_truth/mark"):
        (root / "sheet" / kind).mkdir(parents=True)
    for number in range(24):
        height, width = sizes[number % len(sizes)]
        kind = "train/good" if number < 12 else "test/good" if number < 18 else "test/mark"
        mark = (height - MARK - 6, width - MARK - 10) if kind == "test/mark" else None
        pixels = stripes(height, width, number, mark)
        Image.fromarray(pixels).save(root / "sheet" / kind / f"{number:02}.png")
        if mark:
            truth = np.zeros((height, width), np.uint8)
            truth[mark[0] : mark[0] + MARK, mark[1] : mark[1] + MARK] = 255
            Image.fromarray(truth).save(root / "sheet/ground_truth/mark" / f"{number:02}.png")
    return root


def spoil_padding(maps: torch.Tensor, sizes: list[tuple[int, int]]) -> torch.Tensor:
    """Maps of whole frames with huge values in the padding of images of some sizes."""
    maps = maps.clone()
    for each, size in zip(maps, sizes, strict=True):
        height, width = FRAME_80.content(size)
        each[height // 8 :] = 1e6
        each[:, width // 8 :] = 1e6
    return maps


def check_peaks(output: Path, data: Path) -> None:
    """The peak of each map, in pixels of the image, lies on the mark."""
    marked = sorted((data / "sheet/test/mark").iterdir())
    for path, prediction in zip(marked, crad.load(output, "cpu").predict(marked), strict=True):
        found = prediction.anomaly_map
        height, width = np.asarray(Image.open(path)).shape
        assert found.shape == (height, width)
        row, column = np.unravel_index(found.argmax(), found.shape)
        truth = np.asarray(Image.open(data / "sheet/ground_truth/mark" / path.name))
        pixel = -(-height // prediction.scored_map.shape[0])  # of the map, in pixels of the image
        truth = maximum_filter(truth, 2 * pixel + 1)
        assert truth[row, column], (path.name, (row, column))
        assert prediction.is_defective


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Upright, lying and very narrow images, and a run on them that keeps their aspect ratios."""
    folder = tmp_path_factory.mktemp("mixed")
    data = write_shapes(folder / "data", SHAPES)
    arguments = ["--data", str(data), "--output", str(folder / "run"), "--image-size", "80"]
    assert run(crad.train.main, *arguments, "--fit", "--protocol", "all", *SMALL) == 0
    return folder / "run", data


def test_images_of_any_aspect_ratio_are_mapped_pixel_by_pixel(mixed: tuple[Path, Path]) -> None:
    output, data = mixed
    config = read_checkpoint(output).config
    assert (config.model.image_size, config.model.fit) == (80, True)
    assert config.model.fitted == (56, 112, 8)
    check_peaks(output, data)
    results = json.loads((output / "results.json").read_text())
    assert results["mean"]["pixel_auroc"] > 0.95
    assert results["mean"]["image_auroc"] > 0.95


def test_evaluate_and_predict_follow(
    mixed: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, data = mixed
    arguments = ["--checkpoint", str(output), "--output", str(tmp_path / "e"), "--protocol", "all"]
    assert run(crad.evaluate.main, *arguments, "--device", "cpu") == 0
    former = json.loads((output / "results.json").read_text())
    again = json.loads((tmp_path / "e/results.json").read_text())
    assert [*again["other_protocols"]] == [*former["other_protocols"]]
    for name, measured in ({"": former} | former["other_protocols"]).items():
        found = again["other_protocols"][name] if name else again
        assert found["mean"] == pytest.approx(measured["mean"], abs=1e-3)  # BatchNorm is folded
    assert again["decisions"]["classes"]["sheet"]["misses"] == 0
    images = sorted((data / "sheet/test/mark").iterdir())
    arguments = ["--checkpoint", str(output), "--output", str(tmp_path / "p"), "--device", "cpu"]
    assert run(crad.predict.main, *arguments, *map(str, images)) == 0
    detector = crad.load(output, "cpu")
    for path, prediction in zip(images, detector.predict(images), strict=True):
        heat = Image.open(tmp_path / "p" / f"{path.stem}_heatmap.png")
        expected = heat_map(open_image(path), prediction.anomaly_map, *detector.colour_scale)
        np.testing.assert_array_equal(heat, expected)


def test_a_turned_file_is_an_upright_image(mixed: tuple[Path, Path], tmp_path: Path) -> None:
    output, data = mixed
    detector = crad.load(output, "cpu")
    image = Image.open(data / "sheet/test/mark/18.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees to the right
    turned.save(tmp_path / "turned.png", exif=exif)
    upright, by_exif = detector.predict([image, tmp_path / "turned.png"])
    assert by_exif.size == upright.size == image.size[::-1]
    assert by_exif.score == upright.score
    np.testing.assert_array_equal(by_exif.anomaly_map, upright.anomaly_map)
    assert to_rgb(image).size == image.size


def test_the_padding_of_a_prediction_counts_for_nothing(
    mixed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, data = mixed
    detector = crad.load(output, "cpu")
    images = sorted((data / "sheet/test").rglob("*.png"))
    before = detector.predict(images)
    compute, left = detector.map_features, iter([each.size for each in before])

    def spoilt(features: torch.Tensor) -> torch.Tensor:
        return spoil_padding(compute(features), [next(left) for _ in features])

    monkeypatch.setattr(detector, "map_features", spoilt)
    for one, other in zip(before, detector.predict(images), strict=True):
        assert one.score == other.score
        np.testing.assert_array_equal(one.scored_map, other.scored_map)


def test_a_run_is_resumed_with_its_frame(
    mixed: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, data = mixed
    shutil.copytree(output, tmp_path / "run")
    resume = ["--resume", "--output", str(tmp_path / "run"), "--data", str(data)]
    assert run(crad.train.main, *resume, "--image-size", "80", "--fit") == 0
    assert read_checkpoint(tmp_path / "run").config.model.fitted == (56, 112, 8)
    assert run(crad.train.main, *resume, "--image-size", "80", "88") == 2
    assert "--image-size: the run" in capsys.readouterr().err
    assert run(crad.train.main, *resume, "--no-fit") == 2
    assert "--fit: the run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("fit", [(), ("--fit",)])
def test_marks_are_found_where_they_are(tmp_path: Path, turned: bool, fit: tuple[str, ...]) -> None:
    step = -1 if turned else 1
    size, shape = ("48", "96")[::step], (80, 160)[::step]
    data = write_shapes(tmp_path / "data", [shape])
    arguments = ["--data", str(data), "--output", str(tmp_path / "run"), *fit, *SMALL]
    assert run(crad.train.main, *arguments, "--image-size", *size) == 0
    check_peaks(tmp_path / "run", data)
    detector = crad.load(tmp_path / "run", "cpu")
    assert detector.image_size == tuple(map(int, size))
    assert detector.model.feature_size[1:] == tuple(int(side) // 8 for side in size)


@pytest.mark.slow
def test_padding_counts_for_no_threshold_or_colour(
    mixed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, data = mixed
    map_features = crad.train.map_features

    def spoilt(model, features, device):
        maps = map_features(model, features, device)
        return spoil_padding(maps, [sample.size for sample in features.samples])

    monkeypatch.setattr(crad.train, "map_features", spoilt)
    arguments = ["--data", str(data), "--output", str(tmp_path / "run"), "--image-size", "80"]
    assert run(crad.train.main, *arguments, "--fit", "--protocol", "all", *SMALL) == 0
    former, now = read_checkpoint(output), read_checkpoint(tmp_path / "run")
    assert former.colour_scale == now.colour_scale
    assert former.thresholds == now.thresholds
    for key in ("mean", "other_protocols", "decisions"):
        one, two = (
            json.loads((folder / "results.json").read_text())[key]
            for folder in (output, tmp_path / "run")
        )
        assert one == two


@pytest.mark.slow
def test_classes_trained_alone_have_frames_of_their_own(tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "data", [(80, 160)])
    write_shapes(tmp_path / "other", [(160, 80)])
    shutil.move(tmp_path / "other/sheet", data / "post")
    arguments = ["--data", str(data), "--output", str(tmp_path / "run"), "--image-size", "64"]
    assert run(crad.train.main, *arguments, "--fit", "--separate", *SMALL, "--epochs", "1") == 0

    def frames() -> list[Frame]:
        folders = [tmp_path / "run" / name for name in ("sheet", "post")]
        return [read_checkpoint(folder).config.model.frame for folder in folders]

    assert frames() == [Frame(48, 88, 8), Frame(88, 48, 8)]
    shutil.rmtree(tmp_path / "run/sheet")  # as if it had not begun
    resume = ["--resume", "--separate", "--output", str(tmp_path / "run")]
    assert run(crad.train.main, *resume) == 0
    assert frames() == [Frame(48, 88, 8), Frame(88, 48, 8)]
