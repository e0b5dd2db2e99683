"""The examples of the site, with small settings, and as they are."""

import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

FOLDER = Path(__file__).parents[2] / "docs/examples"

SMALL: dict[str, dict[str, int]] = {
    "colour_table": {"STEPS": 40},
    "cube_file": {"REPEAT": 1},
    "image_warp": {"STEPS": 60},
    "optical_flow": {"STEPS": 40},
    "radiance_field": {"STEPS": 30, "PIXELS": 24, "SAMPLES": 24},
    "your_folder": {"IMAGES": 20, "EPOCHS": 2},
}


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of the figures that are shown; files go to a folder of the test."""
    shown: list[int] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with mpl.rc_context({"backend": "agg"}):
        monkeypatch.setattr(plt, "show", lambda: shown.extend(plt.get_fignums()))
        yield shown
        plt.close("all")


def run(name: str, settings: dict[str, int]) -> dict[str, Any]:
    """Run an example with other settings, and return what its names then stand for."""
    path = FOLDER / f"{name}.py"
    text = path.read_text()
    for key, value in settings.items():
        text, count = re.subn(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    names: dict[str, Any] = {"__name__": name}
    exec(compile(text, str(path), "exec"), names)
    return names


def test_every_example_is_tested_and_short() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(SMALL)
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text().splitlines()) < 120, path


def test_image_warp(figures: list[int]) -> None:
    names = run("image_warp", SMALL["image_warp"])
    assert abs(math.degrees(names["angle"].item()) - 20) < 1
    assert abs(names["zoom"].item() - 1.25) < 0.02
    assert len(figures) >= 3


def test_optical_flow(figures: list[int]) -> None:
    names = run("optical_flow", SMALL["optical_flow"])
    assert names["error"](names["warped"]) < names["error"](names["second"]) / 3
    assert names["off"].item() < 1
    assert figures


def test_colour_table(figures: list[int]) -> None:
    names = run("colour_table", SMALL["colour_table"])
    goal = names["grade"](names["photograph"], 0.0)
    before, after = ((names[name] - goal).abs().mean() for name in ("photograph", "after"))
    assert after < before / 4
    assert names["loss"].item() ** 0.5 < 0.05
    assert figures


def test_cube_file(figures: list[int]) -> None:
    names = run("cube_file", SMALL["cube_file"])
    assert (names["after"] - names["theirs"]).abs().max() < 1e-5
    assert (names["after"] - names["photograph"]).abs().mean() > 0.01
    assert figures


def test_radiance_field(figures: list[int]) -> None:
    names = run("radiance_field", SMALL["radiance_field"])
    first, last = names["shown"]["step 0"], names["shown"]["step 30"]
    assert (last - names["truth"]).square().mean() < (first - names["truth"]).square().mean() / 4
    assert figures


@pytest.mark.slow
def test_your_folder(figures: list[int]) -> None:
    names = run("your_folder", SMALL["your_folder"])
    assert len(names["predictions"]) == 6
    assert figures


@pytest.mark.thorough
def test_examples_as_they_are(figures: list[int]) -> None:
    warp = run("image_warp", {})
    assert abs(math.degrees(warp["angle"].item()) - 20) < 0.1
    assert run("optical_flow", {})["off"].item() < 0.5
    assert run("colour_table", {})["loss"].item() ** 0.5 < 1 / 255
    field = run("radiance_field", {})
    assert -10 * field["noise"].log10().item() > 26
    for prediction in run("your_folder", {})["predictions"]:
        assert prediction.is_defective == (prediction.path.parent.name == "dent")
