"""Training images that may be defective: named, worst first, and no false calls."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

import crad.evaluate
from crad.data.demo import write_demo
from crad.data.samples import Sample
from crad.scoring.suspects import find_suspects
from tests.crad.html_page import Page, loads_from_elsewhere
from tests.fixtures import run


def samples(name: str, count: int) -> list[Sample]:
    return [Sample(Path(f"{name}/{index}.png"), name, "good") for index in range(count)]


def test_outliers_of_each_class_are_found_worst_first() -> None:
    random = np.random.default_rng(0)
    nut, bolt = (random.lognormal(mean, 0.2, 40) for mean in (0, 3))
    nut[7], nut[11], bolt[5] = 5.0, 9.0, 900.0
    found = find_suspects(samples("nut", 40) + samples("bolt", 40), [*nut, *bolt])
    names = [each.sample.path.as_posix() for each in found if each.sample.path]
    assert names == ["bolt/5.png", "nut/11.png", "nut/7.png"]
    assert [each.score for each in found] == [900.0, 9.0, 5.0]
    assert found[1].times == pytest.approx(9 / np.median(nut))


def test_many_defects_do_not_hide_each_other() -> None:
    scores = np.random.default_rng(1).lognormal(0, 0.2, 40)
    scores[:8] = 5.0
    assert len(find_suspects(samples("nut", 40), scores)) == 8


def test_normal_scores_are_seldom_suspicious() -> None:
    scores = np.random.default_rng(2).lognormal(1, 0.3, (50, 60))
    found = [len(find_suspects(samples("nut", 60), each)) for each in scores]
    assert np.mean(found) < 0.1


@pytest.mark.parametrize("scores", [[1.0] * 9, [0.0] * 9, [1.0, 1.1, 0.9, 1.0, 1.05], [1.0, 99.0]])
def test_scores_that_hardly_differ_or_are_few(scores: list[float]) -> None:
    assert find_suspects(samples("nut", len(scores)), scores) == []


def write_with_a_defect(root: Path, *others: str) -> Path:
    """Write normal images of bricks, and one among them that is the path given back."""
    write_demo(root, n_train=24, n_test=2, size=64, classes=("brick", *others))
    stripes = np.zeros((64, 64), np.uint8)
    stripes[::4, 32:] = 255
    bad = root / "brick" / "train" / "good" / "bad.png"
    Image.fromarray(stripes).save(bad)
    return bad


def shows(picture: Path, image: Path) -> bool:
    """Whether a JPEG is that of a picture."""
    with Image.open(picture) as drawn, Image.open(image) as true:
        difference = np.asarray(drawn.convert("L"), int) - np.asarray(true.convert("L"), int)
    return bool(np.abs(difference).mean() < 6)


@pytest.mark.slow
def test_training_names_a_defect_among_the_normal_images(
    train_command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_with_a_defect(tmp_path / "data")
    output, data = tmp_path / "run", tmp_path / "data" / "brick"
    no_share = ("--calibration-share", "0")
    assert train_command(data, output, *no_share) == 0
    out = capsys.readouterr().out
    assert "suspicious: 1 of 25 normal images" in out
    assert f"open {output / 'suspects.html'} in a browser" in out
    assert str(bad) in out.partition("times the median")[2]
    (suspect,) = json.loads((output / "results.json").read_text())["suspects"]
    assert (suspect["image"], suspect["class"]) == (str(bad), "brick")

    text = (output / "suspects.html").read_text(encoding="utf-8")
    for told in (str(bad), f"score {suspect['score']:.4g}", "--contamination", "remove those"):
        assert told in text
    assert f"{suspect['times_the_median']:.2f} times the median of its class" in text
    assert not loads_from_elsewhere(text)
    page = Page(text)
    assert page.open == []
    assert [each["alt"] for each in page.images] == ["image", "overlay"]
    assert {each["loading"] for each in page.images} == {"lazy"}
    first, overlay = (output / str(each["src"]) for each in page.images)
    assert shows(first, bad)
    assert not shows(overlay, bad)

    # An evaluation leaves it, a training without suspects removes it, but nothing of the user's.
    evaluation = ("--checkpoint", str(output), "--output", str(output), "--overwrite")
    assert run(crad.evaluate.main, *evaluation) == 0
    assert (output / "suspects.html").read_text(encoding="utf-8") == text
    assert first.exists()
    (output / "pictures" / "suspect.jpg").write_text("mine")
    bad.unlink()
    assert train_command(data, output, *no_share, "--overwrite", "--epochs", "1") == 0
    assert not (output / "suspects.html").exists()
    assert [*(output / "pictures").glob("suspect*")] == [output / "pictures" / "suspect.jpg"]
    assert "suspects" not in json.loads((output / "results.json").read_text())


@pytest.mark.slow
def test_models_of_classes_have_a_page_together(
    train_command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_with_a_defect(tmp_path / "data", "gauge")
    brick, output = tmp_path / "data" / "brick", tmp_path / "run"
    brick = brick.rename(brick.with_name("50% brick #1?"))
    bad = brick / bad.relative_to(tmp_path / "data" / "brick")
    options = ("--separate", "--calibration-share", "0")
    assert train_command(tmp_path / "data", output, *options) == 0
    assert f"open {output / 'suspects.html'} in a browser" in capsys.readouterr().out
    pages = [
        Page((folder / "suspects.html").read_text()) for folder in (output, output / brick.name)
    ]
    first, alone = (str(page.images[0]["src"]) for page in pages)
    assert unquote(first) == f"{brick.name}/{alone}"
    assert shows(output / unquote(first), bad)
    suspects = json.loads((output / "results.json").read_text())["suspects"]
    assert suspects[0]["image"] == str(bad)
    assert len(suspects) * 2 == len(pages[0].images)


@pytest.mark.slow
@pytest.mark.thorough
def test_defects_among_the_normal_images_cost_little(
    train_command: Callable[..., int], tmp_path: Path
) -> None:
    """One in twenty: at most 0.02 image AUROC and twice the misses, if the share is stated."""
    classes = ("circuit_board", "gauge")
    write_demo(tmp_path / "clean", n_train=38, n_test=30, size=96, classes=classes)
    dirty = shutil.copytree(tmp_path / "clean", tmp_path / "dirty")
    for name in classes:
        for number, defect in enumerate(("missing", "scratch")):
            image = sorted((dirty / name / "test" / defect).iterdir())[0]
            target = Path(name) / "test" / defect / image.name
            shutil.move(image, dirty / name / "train" / "good" / f"bad{number}.png")
            (tmp_path / "clean" / target).unlink()  # the same images test both
            for root in (dirty, tmp_path / "clean"):
                (root / name / "ground_truth" / defect / f"{image.stem}_mask.png").unlink()
    options = ("--image-size", "96", "--batch-size", "16", "--epochs", "10")
    options += ("--calibration-share", "0.33", "--contamination", "0.05")
    aurocs, misses = [], []
    for root in (tmp_path / "clean", dirty):
        assert train_command(root, tmp_path / "run", *options, "--overwrite") == 0
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        aurocs.append(results["mean"]["image_auroc"])
        misses.append(sum(each["misses"] for each in results["decisions"]["classes"].values()))
    assert aurocs[1] > aurocs[0] - 0.02
    assert misses[1] <= 2 * max(misses[0], 1)
