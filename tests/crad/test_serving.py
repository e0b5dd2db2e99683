"""What the server answers: scores, maps, heat maps, and what it says of itself."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import crad
import crad.export
import crad.predict
from crad.data.decoding import MAX_MEGAPIXELS
from crad.detector import Detector
from crad.loading import load_any
from crad.report.heat_maps import overlay
from tests.crad.served import Served, Watched, serving

Command = Callable[..., int]


@pytest.fixture(scope="module")
def detector(trained) -> Detector:
    return crad.load(trained.output, "cpu")


@pytest.fixture(scope="module")
def served(detector: Detector) -> Iterator[Served]:
    with serving(detector) as running:
        yield running


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of both classes, in several formats; not to be changed."""
    folder = tmp_path_factory.mktemp("files")
    found = sorted(trained.data.glob("*/test/*/00[01].png"))
    with Image.open(found[0]) as image:
        image.convert("RGB").resize((512, 512)).save(folder / "large.jpg", quality=95)
        turned = Image.Exif()
        turned[0x0112] = 6
        image.convert("RGB").resize((80, 40)).save(folder / "turned.jpg", exif=turned)
        image.convert("RGB").save(folder / "a.webp", lossless=True)
        image.convert("RGB").save(folder / "a.bmp")
        image.convert("RGB").save(folder / "a.ppm")
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
        Image.fromarray(grey).save(folder / "deep.tif")
    return [*found, *sorted(folder.iterdir())]


def rows_of(command: Command, trained: Any, images: list[Path], folder: Path) -> list[Any]:
    """What `crad predict` writes of images."""
    file = folder / "scores.json"
    arguments = ["--checkpoint", str(trained.output), "--device", "cpu", "--json", str(file)]
    assert command(crad.predict.main, *arguments, *map(str, images)) == 0
    return json.loads(file.read_text())


def test_several_images_get_the_rows_of_predict_bit_for_bit(
    trained, served: Served, files: list[Path], command: Command, tmp_path: Path
) -> None:
    sent = [(f"{number}.png", file.read_bytes()) for number, file in enumerate(files)]
    answer = served.ask_for_several("/predict", sent)
    assert answer.status == 200
    expected = rows_of(command, trained, files, tmp_path)
    assert answer.json == [
        {**row, "image": name} for row, (name, _) in zip(expected, sent, strict=True)
    ]
    assert {"good", "defect"} <= {row["decision"] for row in expected} | {"defect"}


def test_one_image_gets_the_row_of_predict_bit_for_bit(
    trained, served: Served, files: list[Path], command: Command, tmp_path: Path
) -> None:
    for file in (files[0], tmp_path / "deep.png"):
        if not file.exists():  # in more than 8 bits, which an image in memory would lose
            levels = np.random.default_rng(0).integers(0, 2**16, (40, 50, 3), np.uint16)
            write_deep_png(file, levels)
        answer = served.ask("/predict", file.read_bytes())
        assert answer.status == 200
        (expected,) = rows_of(command, trained, [file], tmp_path)
        assert answer.json == {**expected, "image": None}


def write_deep_png(file: Path, levels: np.ndarray) -> None:
    import struct
    import zlib

    height, width, _ = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_a_list_of_one_stays_a_list(served: Served, files: list[Path]) -> None:
    answer = served.ask_for_several("/predict", [("ü 'x'.png", files[0].read_bytes())])
    assert [row["image"] for row in answer.json] == ["ü 'x'.png"]


def test_the_class_may_be_named(detector: Detector, served: Served, files: list[Path]) -> None:
    image = files[0].read_bytes()
    for name in detector.classes:
        answer = served.ask(f"/predict?class={name}", image)
        (expected,) = detector.predict(files[0], class_name=name)
        assert (answer.json["class_name"], answer.json["score"]) == (name, expected.score)
    answer = served.ask("/predict?class=boat", image)
    assert answer.status == 422
    assert answer.json["error"] == "the model has no class 'boat'; it has brick, gauge"


def test_the_heat_map_is_that_of_predict(
    trained, served: Served, files: list[Path], command: Command, tmp_path: Path
) -> None:
    answer = served.ask("/heat-map", files[0].read_bytes())
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/png")
    arguments = ["--checkpoint", str(trained.output), "--output", str(tmp_path / "out")]
    assert command(crad.predict.main, *arguments, str(files[0])) == 0
    (file,) = (tmp_path / "out").glob("*_heatmap.png")
    with Image.open(file) as expected, Image.open(io.BytesIO(answer.body)) as got:
        assert np.array_equal(np.asarray(got), np.asarray(expected))
    several = served.ask_for_several("/heat-map", [("a", files[0].read_bytes())] * 2)
    assert (several.status, several.json) == (
        422,
        {"error": "a heat map is of one image; send one"},
    )


def test_a_map_comes_with_the_row(detector: Detector, served: Served, files: list[Path]) -> None:
    turned = next(file for file in files if file.name == "turned.jpg")
    row = served.ask("/predict?map=true", turned.read_bytes()).json
    (expected,) = detector.predict(turned)
    assert (row["map"]["width"], row["map"]["height"]) == (40, 80)
    with Image.open(io.BytesIO(base64.b64decode(row["map"]["png"]))) as got:
        assert got.mode == "RGBA"
        picture = overlay(expected.scored_map, *detector.colour_scale)
        assert np.array_equal(np.asarray(got), np.asarray(picture))


def test_what_waits_is_computed_together_in_one_thread(
    detector: Detector, files: list[Path]
) -> None:
    watched = Watched(detector)
    image = files[0].read_bytes()
    (alone,) = detector.predict(files[0])
    with (
        serving(watched, batch_size=6) as served,
        ThreadPoolExecutor(13) as pool,
        watched.held(),
    ):
        paths = ["/predict"] * 8 + ["/predict?class=brick"] * 4
        first = pool.submit(served.ask, "/predict", image)
        assert watched.called.wait(60)
        answers = [pool.submit(served.ask, path, image) for path in paths]
        wait_until(lambda: served.service.places.taken == 13)
        watched.go.set()
        scores = [each.result().json["score"] for each in (first, *answers)]
    assert watched.batches[0] == 1
    assert sum(watched.batches) == 13
    assert len(watched.batches) <= 5  # 1, 6, 2 and 4, but for the order in which they came
    assert len(watched.threads) == 1
    # A batch of another size may be summed in another order.
    assert scores == pytest.approx([alone.score] * 13, rel=2e-6)


def wait_until(holds: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(600):
        if holds():
            return
        waiting.wait(0.05)
    raise AssertionError("it does not come")


def test_metrics_count_decisions_latencies_and_scores(
    detector: Detector, files: list[Path]
) -> None:
    with serving(detector) as served:
        rows = served.ask_for_several("/predict", [("a", f.read_bytes()) for f in files]).json
        assert served.ask("/predict", b"no image").status == 422
        assert served.ask("/no-such-route").status == 404
        answer = served.ask("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    for name in detector.classes:
        own = [row for row in rows if row["class_name"] == name]
        for decision in ("good", "defect"):
            count = sum(row["decision"] == decision for row in own)
            assert value("crad_images_total", decision=decision, class_name=name) == count
        assert value("crad_score_ratio_count", class_name=name) == len(own)
        above = value("crad_score_ratio_bucket", class_name=name, le="1.0")
        assert above == sum(row["score"] <= row["threshold"] for row in own)
        assert value("crad_p_value_count", class_name=name) == len(own)
    assert value("crad_bad_images_total") == 1
    assert value("crad_request_seconds_count", route="/predict", status="200") == 1
    assert value("crad_request_seconds_count", route="/predict", status="422") == 1
    assert value("crad_request_seconds_count", route="other", status="404") == 1
    assert value("crad_batch_images_sum") == len(files) + 1
    assert value("crad_images_in_progress") == 0
    assert value("process_resident_memory_bytes") > 2**20


def test_it_says_what_its_detector_is(detector: Detector, served: Served) -> None:
    told = served.ask("/model").json
    assert told["classes"] == [*detector.classes] == ["brick", "gauge"]
    assert told["thresholds"] == {n: each.score for n, each in detector.thresholds.items()}
    assert told["image_size"] == [32, 32]
    assert told["false_alarm_rate"] == 0.01
    assert told["max_megapixels"] == MAX_MEGAPIXELS
    assert {"crad", "python", "torch"} <= {*told["versions"]}
    assert served.ask("/health").json == {"status": "ok"}
    schema = served.ask("/openapi.json").json
    assert {"/predict", "/heat-map", "/model", "/metrics", "/health"} == {*schema["paths"]}


@pytest.mark.thorough
def test_an_exported_file_is_served_too(
    trained, files: list[Path], command: Command, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    model = tmp_path / "model.onnx"
    assert command(crad.export.main, "--checkpoint", str(trained.output), str(model)) == 0
    exported = load_any(model)
    sent = [("a", files[0].read_bytes()), ("bad", b"BM"), ("b", files[1].read_bytes())]
    with serving(exported) as served:
        first, bad, last = served.ask_for_several("/predict", sent).json
        told = served.ask("/model").json
    (one, other) = exported.predict(files[:2])
    assert (first["score"], last["score"]) == pytest.approx((one.score, other.score), rel=2e-6)
    assert (first["decision"], last["decision"]) == (one.decision, other.decision)
    assert {*bad} == {"image", "error"}
    assert (told["device"], told["classes"]) == ("cpu", ["brick", "gauge"])


def test_the_page_needs_nothing_from_elsewhere(served: Served) -> None:
    page = served.ask("/")
    assert page.headers["Content-Type"].startswith("text/html")
    text = page.body.decode()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert addresses == ["/page.css", "/page.js"]
    assert not re.findall(r"<script>|<style|style=|\son\w+=", text)  # its policy allows none
    for address in addresses:
        part = served.ask(address)
        assert part.status == 200
        assert "://" not in part.body.decode()
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path in ("/?file=/etc/passwd", "/page.js?name=/etc/passwd&file=/etc/passwd"):
        assert b"root:" not in served.ask(path).body
    assert served.ask("/../etc/passwd").status == 404


@pytest.mark.parametrize("language", ["sh", "python"])
def test_the_examples_of_the_docs(
    detector: Detector, served: Served, files: list[Path], tmp_path: Path, language: str
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    after = text.partition("Or ask from a program")[2]
    found = re.search(rf"```{language}\n(.*?)```", after, re.DOTALL)
    assert found
    example = found[1].replace("http://127.0.0.1:8000", served.address)
    for name in ("a.png", "b.png"):
        shutil.copy(files[0], tmp_path / name)
    if language == "python":
        command = [sys.executable, "-c", example]
    elif shutil.which("curl"):
        command = ["sh", "-ec", example.replace("curl", "curl -sS")]
    else:
        pytest.skip("needs curl")
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    (row,) = detector.predict(files[0])
    if language == "python":
        assert ended.stdout.startswith(f"{row.decision} {row.score} {row.p_value} [")
        return
    one, end = json.JSONDecoder().raw_decode(ended.stdout)
    several = json.loads(ended.stdout[end:])
    assert one["score"] == several[1]["score"] == row.score
    assert [each["image"] for each in several] == ["a.png", "b.png"]
    with Image.open(tmp_path / "heat.png") as picture:
        assert (picture.height, picture.width) == row.size
