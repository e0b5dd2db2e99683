"""Training images that may be defective: named, worst first, and no false calls."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crad.data.demo import write_demo
from crad.data.samples import Sample
from crad.scoring.suspects import find_suspects


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


@pytest.mark.slow
def test_training_names_a_defect_among_the_normal_images(
    train_command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_demo(tmp_path, n_train=24, n_test=2, size=64, classes=("brick",))
    data = tmp_path / "brick"
    stripes = np.zeros((64, 64), np.uint8)
    stripes[::4, 32:] = 255
    Image.fromarray(stripes).save(data / "train" / "good" / "bad.png")
    assert train_command(data, tmp_path / "run", "--calibration-share", "0") == 0
    out = capsys.readouterr().out
    assert "suspicious: 1 of 25 normal images" in out
    listed = out.partition("times the median")[2]
    assert str(data / "train" / "good" / "bad.png") in listed


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
