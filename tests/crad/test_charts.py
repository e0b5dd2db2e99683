"""Charts and tables of the page of results: at places that were computed by hand."""

import re

import pytest

from crad.data.samples import Sample
from crad.report.charts import histogram, roc_curve
from crad.report.page import make_page
from crad.report.results import Results
from crad.report.verdicts import Verdict, choose_sections, with_margins
from crad.scoring.metrics import COLUMNS


def bars(svg: str, kind: str) -> list[dict[str, float]]:
    """The bars of a histogram: place, size, and the number of images."""
    found = re.findall(
        rf'<rect class="{kind}" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)">'
        r"<title>(\d+) ",
        svg,
    )
    names = ("x", "y", "width", "height", "number")
    return [dict(zip(names, map(float, each), strict=True)) for each in found]


@pytest.mark.parametrize(
    ("threshold", "place", "words"),
    [(5.0, "185.6", ("190.6", "start")), (9.0, "363.2", ("358.2", "end"))],
)
def test_the_threshold_of_a_histogram(threshold: float, place: str, words: tuple[str, str]) -> None:
    """The axis is from 1 at 8 to 11 at 452."""
    svg = histogram([1, 2, 3, 4], [6, 11], threshold, "nut")
    assert f'<line class="threshold" x1="{place}" x2="{place}" y1="14" y2="170"/>' in svg
    assert f'<text x="{words[0]}" y="12" text-anchor="{words[1]}">threshold {threshold:.4g}<' in svg
    assert '<text x="8" y="186">1</text>' in svg
    assert '<text x="452" y="186" text-anchor="end">11</text>' in svg
    assert 'class="threshold"' not in histogram([1, 2, 3, 4], [6, 11], None, "nut")


def test_the_bars_are_all_images() -> None:
    good, defective = [1, 1.01, 1.02, 2, 3, 4], [5, 11, 100, 1000]
    svg = histogram(good, defective, 5.0, "nut")
    above, below = bars(svg, "good"), bars(svg, "defect")
    assert sum(bar["number"] for bar in above) == len(good)
    assert sum(bar["number"] for bar in below) == len(defective)
    # The axis ends 2.5 times as far above 1 as the threshold; what is beyond is in the last bar.
    assert '<text x="452" y="186" text-anchor="end">11 and above</text>' in svg
    assert below[-1] == {"x": 441.4, "y": 95, "width": 10.1, "height": 72, "number": 3}
    assert above[0] == {"x": 8.5, "y": 23, "width": 10.1, "height": 72, "number": 3}
    for bar in (*above, *below):
        assert bar["height"] == 24 * bar["number"]  # 72 for the tallest of 3
        assert bar["y"] in (95, 95 - bar["height"])


def test_a_histogram_of_equal_scores() -> None:
    for threshold in (None, 2.0):
        assert [bar["number"] for bar in bars(histogram([2, 2], [], threshold, "nut"), "good")] == [
            2
        ]


@pytest.mark.parametrize(
    ("threshold", "ring", "told"),
    [
        (3.0, ("65.0", "8.0"), "25.0% false alarms, 100.0% of defects"),
        (3.5, ("65.0", "47.0"), "25.0% false alarms, 75.0% of defects"),  # not above is good
        (4.0, ("26.0", "47.0"), "0.0% false alarms, 75.0% of defects"),
        (0.0, ("182.0", "8.0"), "100.0% false alarms, 100.0% of defects"),
        (9.0, ("26.0", "164.0"), "0.0% false alarms, 0.0% of defects"),
    ],
)
def test_the_ring_is_what_the_threshold_decides(
    threshold: float, ring: tuple[str, str], told: str
) -> None:
    """No false alarm and no defect found is at 26, 164; all of both at 182, 8."""
    svg = roc_curve([1, 2, 3, 4], [3.5, 5, 6, 7], threshold, "nut")
    assert f'<circle class="threshold" cx="{ring[0]}" cy="{ring[1]}" r="5">' in svg
    assert told in svg
    assert 'points="26.0,164.0 26.0,47.0 65.0,47.0 65.0,8.0 182.0,8.0"' in svg


def test_equal_scores_slant_the_curve() -> None:
    svg = roc_curve([1, 2], [2, 3], None, "nut")
    assert '<polyline class="curve" points="26.0,164.0 26.0,86.0 104.0,8.0 182.0,8.0"/>' in svg
    assert "circle" not in svg


def test_the_kinds_of_defect_have_a_row_each() -> None:
    cases = {
        "a": [(9, "good"), (3, "bent"), (2, "good"), (20, "good"), (11, "good"), (12, "bent")],
        "b": [(8, "cut"), (10, "cut"), (10, "good")],
    }
    cases["a"] += [(99, "crack"), (10, "crack")]
    verdicts = [
        Verdict(number, Sample(None, name, kind), float(score), 10.0)
        for number, (name, score, kind) in enumerate(
            (name, *case) for name, members in cases.items() for case in members
        )
    ]
    none = {metric: None for metrics in COLUMNS.values() for metric in metrics}
    results = Results(
        protocol="crad",
        seed=0,
        epoch=1,
        classes={name: {**none, "n_train": 5, "n_test": 8} for name in cases},
        mean=none,
        timing={},
        environment={},
    )
    sections = choose_sections(with_margins(verdicts))
    pictures = {each.number: {"image": f"pictures/{each.number}.jpg"} for each in verdicts}
    text = make_page(results, with_margins(verdicts), sections, pictures)
    table = text.partition('<h2 id="kinds">')[2].partition("</table>")[0]
    rows = re.findall(r'<tr data-class="(\w)">(.*?)</tr>', table, re.DOTALL)
    assert [(of, *re.findall(r"<td[^>]*>(.*?)</td>", row)) for of, row in rows] == [
        # class, kind, images, decided wrongly, lowest, median, highest, image AUROC
        ("a", "a", "good", "4", "2", "2", "10", "20", "-"),
        ("a", "a", "bent", "2", "1", "3", "7.5", "12", "0.500"),
        ("a", "a", "crack", "2", "1", "10", "54.5", "99", "0.750"),
        ("b", "b", "good", "1", "0", "10", "10", "10", "-"),
        ("b", "b", "cut", "2", "2", "8", "9", "10", "0.250"),
    ]
