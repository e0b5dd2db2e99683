"""What an evaluation leaves to judge decisions by: scores.csv, and a page that a browser opens."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import crad.predict
from crad.data.demo import write_demo
from crad.data.samples import Sample
from crad.evaluate import main
from crad.png import is_own_jpeg, write_jpeg
from crad.report.page import make_page
from crad.report.verdicts import Verdict, choose_sections, with_margins
from crad.training.run_folder import PAGE_HEAD, SCORES_HEAD
from tests.crad.browser import dump, overflow_on_a_phone, print_pages
from tests.crad.html_page import Page, loads_from_elsewhere
from tests.fixtures import files_of

Command = Callable[..., int]


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an evaluation of a set with defects that are hard to see; not to be changed."""
    data = tmp_path_factory.mktemp("hard") / "set"
    write_demo(data, n_train=1, n_test=12, size=64, classes=("brick", "gauge"), contrast=0.2)
    output = data.parent / "out"
    main(["--checkpoint", str(trained.output), "--data", str(data), "--output", str(output)])
    return output


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "scores.csv").open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def worst_miss(rows: list[dict[str, str]], class_name: str) -> dict[str, str]:
    missed = [
        row
        for row in rows
        if (row["class"], row["truth"], row["decision"]) == (class_name, "defect", "good")
    ]
    assert missed, "the set is too easy for this test"
    return min(missed, key=lambda row: float(row["score"]))


def test_the_table_says_what_is_decided_of_each_image(trained, measured: Path) -> None:
    rows = rows_of(measured)
    assert ",".join(rows[0]).startswith(f"{SCORES_HEAD}p_value,threshold,decision")
    assert len({row["image"] for row in rows}) == len(rows) == 24
    results = json.loads((measured / "results.json").read_text())
    for name, entry in results["decisions"]["classes"].items():
        own = [row for row in rows if row["class"] == name]
        assert {float(row["threshold"]) for row in own} == {entry["threshold"]}
        for row in own:
            assert Path(row["image"]).parent.name == row["kind"]
            assert row["truth"] == ("good" if row["kind"] == "good" else "defect")
            assert (row["decision"] == "defect") == (float(row["score"]) > entry["threshold"])
        wrong = [row["truth"] for row in own if row["truth"] != row["decision"]]
        assert wrong.count("defect") == entry["misses"]
        assert wrong.count("good") == entry["false_alarms"]
    of_training = rows_of(trained.output)
    assert [Path(row["image"]) for row in of_training if row["class"] == "brick"] == [
        *sorted((trained.data / "brick" / "test").rglob("*.png"))
    ]


def test_the_page_needs_nothing_from_elsewhere(measured: Path) -> None:
    text = (measured / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not loads_from_elsewhere(text)
    files = {address for address in page.addresses if not address.startswith("#")}
    assert all((measured / file).is_file() for file in files)
    drawn = {str(path.relative_to(measured)) for path in (measured / "pictures").iterdir()}
    assert drawn == files - {"scores.csv"}
    assert {a.removeprefix("#") for a in page.addresses if a.startswith("#")} <= {*page.names}


def test_pictures_are_loaded_once_they_are_seen(measured: Path) -> None:
    page = Page((measured / "report.html").read_text(encoding="utf-8"))
    assert len(page.images) >= len([*(measured / "pictures").iterdir()]) > 0
    assert {image.get("loading") for image in page.images} == {"lazy"}


@pytest.mark.slow
def test_a_browser_opens_sorts_and_filters_it_and_shows_the_worst_miss(measured: Path) -> None:
    def rows(text: str) -> list[str]:
        body = text.partition('<table id="images">')[2].partition("<tbody>")[2]
        return re.findall(r"<tr><td[^>]*>(.*?)</td>", body.partition("</tbody>")[0])

    def number(row: str) -> int:
        return int(re.findall(r"#image-(\d+)", row)[0])

    table = rows_of(measured)
    opened = dump(measured / "report.html", "")
    assert len(rows(opened)) == len(table)

    script = """
        document.querySelector("select[name='class']").value = "gauge";
        document.querySelector("select[name='class']").dispatchEvent(new Event("input"));
        document.querySelector("th[data-key='score'] button").click();
    """
    filtered = dump(measured / "report.html", script)
    shown = [table[number(row)] for row in rows(filtered)]
    assert [row["class"] for row in shown] == ["gauge"] * 12
    assert shown == sorted(shown, key=lambda row: float(row["score"]))
    assert '<th scope="col" data-key="score" aria-sort="ascending">' in filtered
    assert "12 of 24 images" in filtered
    cases = re.findall(r'<article class="case ([\w-]+)"[^>]*data-number="(\d+)"([^>]*)>', filtered)
    visible = [(kind, table[int(at)]) for kind, at, more in cases if "hidden" not in more]
    assert {row["class"] for _, row in visible} == {"gauge"}
    assert visible[0] == ("miss-case", worst_miss(table, "gauge"))

    # The picture in it is that of the image.
    script += """
        const image = [...document.querySelectorAll(".case img")].find((each) => each.offsetParent);
        image.loading = "eager";
        image.decode().then(() => {
            document.body.dataset.shown = `${image.getAttribute("src")} ${image.naturalWidth}`;
        });
    """
    found = re.search(r'data-shown="(\S+) (\d+)"', dump(measured / "report.html", script))
    assert found
    with Image.open(measured / found[1]) as picture, Image.open(visible[0][1]["image"]) as image:
        assert picture.width == int(found[2]) == image.width
        difference = np.asarray(picture.convert("RGB"), int) - np.asarray(image.convert("RGB"), int)
    assert np.abs(difference).mean() < 6  # of JPEG


@pytest.mark.slow
def test_it_fits_a_phone_and_is_printed(measured: Path) -> None:
    assert overflow_on_a_phone(measured / "report.html") == 0
    assert print_pages(measured / "report.html") > 1


@pytest.mark.slow
def test_what_is_wider_than_a_phone_is_found(tmp_path: Path) -> None:
    page = tmp_path / "wide #1.html"
    page.write_text('<!doctype html><body style="margin: 0"><p style="width: 400px">wide', "utf-8")
    assert overflow_on_a_phone(page) == 10


@pytest.mark.slow
def test_thousands_of_images_stay_responsive(measured: Path, tmp_path: Path) -> None:
    verdicts = [
        Verdict(
            number,
            Sample(Path(f"/d/a/test/{kind}/{number}.png"), "a", kind),
            float(number % 997),
            500.0,
        )
        for number, kind in enumerate(["good", "bent"] * 5000)
    ]
    results = json.loads((measured / "results.json").read_text())
    entry = next(iter(results["classes"].values()))
    results["classes"] = {"a": entry}
    sections = choose_sections(with_margins(verdicts))
    pictures = {each.number: {"image": "a.jpg"} for part in sections for each in part.shown}
    assert len(pictures) == 150 + 100 + 50
    page = tmp_path / "report.html"
    page.write_text(make_page(results, with_margins(verdicts), sections, pictures), "utf-8")
    assert page.stat().st_size < 3e6
    script = """
        const begin = performance.now();
        for (let i = 0; i < 4; i++) document.querySelector("th[data-key='score'] button").click();
        document.querySelector("select[name='result']").value = "miss";
        document.querySelector("select[name='result']").dispatchEvent(new Event("input"));
        document.body.dataset.spent = performance.now() - begin;
    """
    shown = dump(page, script)
    assert "Show more (200 of" in shown
    assert shown.partition('<table id="images">')[2].count("<tr") == 201
    spent = float(re.findall(r'data-spent="([\d.]+)"', shown)[0])
    assert spent < 5000  # ms, for five actions, on a busy machine


def test_no_name_is_markup(trained, command: Command, tmp_path: Path) -> None:
    mark = "<img src=x onerror=alert(1)>"
    kind = f'{mark}"&amp;'.replace("/", "")
    data = tmp_path / "data" / f"{mark} é"
    shutil.copytree(trained.data / "gauge" / "train", data / "train")
    defects = [*(trained.data / "gauge" / "test").iterdir()]
    defect = next(each for each in defects if each.name != "good")
    shutil.copytree(trained.data / "gauge" / "test" / "good", data / "test" / "good")
    shutil.copytree(defect, data / "test" / kind)
    file = data / "test" / kind / os.fsdecode(b"caf\xe9 <script>&\n.png")
    next((data / "test" / kind).iterdir()).rename(file)
    output = tmp_path / "out"
    arguments = ["--checkpoint", str(trained.output), "--data", str(data.parent)]
    assert command(main, *arguments, "--output", str(output)) == 0
    text = (output / "report.html").read_bytes().decode("utf-8")
    assert "<img src=x" not in text
    assert text.count("<script") == text.count("</script>") == 2
    assert Page(text).open == []
    rows = json.loads(re.findall(r'id="data">(.*?)</script>', text)[0])
    assert {row["class"] for row in rows} == {data.name}
    assert kind in {row["kind"] for row in rows}
    assert b"caf\\udce9 <script>" in (output / "scores.csv").read_bytes()
    assert any("caf\udce9 <script>" in row["image"] for row in rows)


def test_misses_come_first_then_false_alarms_then_the_nearest_calls() -> None:
    def verdict(number: int, score: float, kind: str, name: str = "a") -> Verdict:
        return Verdict(number, Sample(Path(f"{number}.png"), name, kind), score, 10.0)

    cases = [(9.0, "good"), (2.0, "good"), (20.0, "good"), (11.0, "good"), (3.0, "bent")]
    cases += [(1.0, "bent"), (12.0, "bent"), (99.0, "bent")]
    verdicts = [verdict(number, *case) for number, case in enumerate(cases)]
    verdicts += [verdict(8, 9.5, "bent", "b"), verdict(9, 9.0, "good", "b")]
    verdicts += [verdict(10, 1.0, "good", "b")]
    sections = choose_sections(with_margins(verdicts))
    assert [[each.score for each in part.shown] for part in sections] == [
        [1.0, 3.0, 9.5],
        [20.0, 11.0],
        [9.0, 9.0, 12.0, 2.0, 1.0, 99.0],
    ]
    few = choose_sections(with_margins(verdicts), misses=1, false_alarms=1, others=2)
    assert [len(part.shown) for part in few] == [1, 1, 2]
    assert [part.total for part in few] == [3, 2, 6]


def test_without_thresholds_the_hardest_images_are_shown(
    trained, command: Command, train_command: Command, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    assert train_command(trained.data, output, "--calibration-share", "0", "--epochs", "1") == 0
    rows = rows_of(output)
    assert {(row["threshold"], row["decision"]) for row in rows} == {("", "")}
    text = (output / "report.html").read_text(encoding="utf-8")
    assert "no thresholds" in text
    assert text.index("Defects, the lowest scores first") < text.index("Good images, the highest")
    assert 'class="case miss-case"' not in text


def test_a_truth_that_is_not_known_is_said(trained, command: Command, tmp_path: Path) -> None:
    data = shutil.copytree(trained.data, tmp_path / "data")
    shutil.rmtree(data / "gauge" / "ground_truth")
    arguments = ["--checkpoint", str(trained.output), "--data", str(data), "--classes", "gauge"]
    assert command(main, *arguments, "--output", str(tmp_path / "out")) == 0
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert text.count('<div class="none">not known</div>') == 3
    assert len([*(tmp_path / "out" / "pictures").glob("*-truth.png")]) == 3


NAMES = ("scores.csv", "report.html", "pictures/00000-image.jpg", "pictures/00003-truth.png")
NAMES += ("suspects.html", "pictures/suspect-00000-overlay.jpg")


@pytest.mark.parametrize("name", NAMES)
def test_no_file_of_the_user_is_replaced(
    trained,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    if file.suffix == ".jpg":
        Image.new("RGB", (8, 8)).save(file)
    else:
        file.write_text("mine")
    before = files_of(tmp_path)
    arguments = ["--checkpoint", str(trained.output), "--output", str(tmp_path / "out")]
    for more in ([], ["--overwrite"]):
        assert command(main, *arguments, *more) == 1
        assert f"{name}' exists and was not written by crad" in capsys.readouterr().err
    assert files_of(tmp_path) == before


def test_a_prediction_and_an_evaluation_do_not_replace_each_other(
    trained, measured: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(next((trained.data / "brick" / "test" / "good").iterdir()))
    predicted, checkpoint = tmp_path / "out", ("--checkpoint", str(trained.output))
    predicting = (*checkpoint, image, "--output")
    assert command(crad.predict.main, *predicting, str(predicted)) == 0
    assert command(main, *checkpoint, "--overwrite", "--output", str(predicted)) == 1
    assert command(crad.predict.main, *predicting, str(measured)) == 1
    errors = capsys.readouterr().err
    assert errors.count("scores.csv' exists and was not written by crad for this purpose") == 2


def test_the_former_evidence_is_replaced_and_files_beside_it_stay(
    trained, measured: Path, command: Command, tmp_path: Path
) -> None:
    output = shutil.copytree(measured, tmp_path / "out")
    (output / "pictures" / "mine.jpg").write_text("mine")
    (output / "scores.txt").write_text("mine")
    arguments = ["--checkpoint", str(trained.output), "--output", str(output), "--overwrite"]
    assert command(main, *arguments, "--classes", "gauge") == 0
    assert {row["class"] for row in rows_of(output)} == {"gauge"}
    page = Page((output / "report.html").read_text(encoding="utf-8"))
    named = {address for address in page.addresses if address.startswith("pictures/")}
    drawn = {f"pictures/{path.name}" for path in (output / "pictures").iterdir()}
    assert drawn == named | {"pictures/mine.jpg"}
    assert (output / "scores.txt").read_text() == "mine"


def test_scores_of_predictions_are_no_scores_of_an_evaluation(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(trained.data / "brick" / "test" / "good" / "000.png")
    checkpoint = ["--checkpoint", str(trained.output), "--output", str(tmp_path)]
    assert command(crad.predict.main, *checkpoint, image) == 0
    before = (tmp_path / "scores.csv").read_bytes()
    assert command(main, *checkpoint, "--overwrite") == 1
    assert "scores.csv" in capsys.readouterr().err
    assert (tmp_path / "scores.csv").read_bytes() == before


def test_a_jpeg_of_crad_is_known(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    write_jpeg(tmp_path / "own.jpg", picture)
    picture.save(tmp_path / "other.jpg")
    assert is_own_jpeg(tmp_path / "own.jpg")
    assert not is_own_jpeg(tmp_path / "other.jpg")
    assert not is_own_jpeg(tmp_path / "missing.jpg")


def test_training_leaves_the_same_evidence(trained) -> None:
    assert (trained.output / "report.html").read_text(encoding="utf-8").startswith(PAGE_HEAD)
    assert len(rows_of(trained.output)) == 12
