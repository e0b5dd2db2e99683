"""What detectors cost as images and classes become more."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.detectors import growth
from benchmarks.detectors.growth import NAME, GrowthOptions, enlarged, main, read_growth
from benchmarks.detectors.inputs import prepare_all
from benchmarks.detectors.options import DetectorOptions
from benchmarks.detectors.page import page
from crad.errors import UsageError
from tests.fixtures import demo_root, one_thread

__all__ = ["demo_root", "one_thread"]


def test_a_set_grows_by_its_own_features(demo_root: Path) -> None:
    config = DetectorOptions(backbone="scattering", image_size=64).config(str(demo_root))
    inputs = prepare_all(config, torch.device("cpu"))
    first = next(iter(inputs.n_train))
    grown = enlarged(inputs, 9, 1)
    assert grown.n_train == {first: 9}
    assert [sample.class_name for sample in grown.train.samples] == [first] * 9
    assert len(grown.digests) == len(grown.train.values) == 9
    n_own = inputs.n_train[first]
    again = grown.train.values[n_own] - grown.train.values[0]  # of the same image, with noise
    other = grown.train.values[1] - grown.train.values[0]
    assert 0 < again.square().mean() < other.square().mean()
    assert enlarged(inputs, 2, 2).n_train == dict.fromkeys([*inputs.n_train][:2], 2)


def test_the_command_and_its_part_of_the_page(
    demo_root: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "OF_A_CLASS", 12)
    given = ["--data", str(demo_root), "--backbone", "scattering", "--image-size", "64"]
    numbers = ["--images", "4", "8", "--classes", "1", "2", "--minutes", "0.001"]
    main([*given, *numbers, "--output", str(tmp_path)])
    found = read_growth(tmp_path)
    assert found is not None
    sizes = [(each["method"], each["n_images"], each["n_classes"]) for each in found["records"]]
    assert sizes == [
        (method, *size)
        for size in ((4, 1), (8, 1), (12, 1), (24, 2))
        for method in ("crad", "nearest_neighbour", "padim")
    ]
    size = {(each["method"], each["n_images"]): each["n_bytes"] for each in found["records"]}
    assert size["crad", 4] == size["crad", 24]
    assert size["nearest_neighbour", 24] > 2 * size["nearest_neighbour", 8]
    text = page([], growth=found)
    assert "How costs grow" in text
    assert text.count("| CRAD | 2 | 24 |") == 1


def test_what_cannot_be_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = GrowthOptions()
    for wrong in ({"methods": ("anomalib_dfm",)}, {"images": (0,)}, {"classes": (-1,)}):
        with pytest.raises(UsageError, match="--" + next(iter(wrong))):
            replace(options, **wrong).check()
    (tmp_path / NAME).write_text(json.dumps({"mine": 1}))
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path)])
    assert "was not written by" in capsys.readouterr().err
    assert json.loads((tmp_path / NAME).read_text()) == {"mine": 1}
