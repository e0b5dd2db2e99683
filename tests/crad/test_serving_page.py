"""The page of the server in a browser: from the token to the boxes."""

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request, Response
from PIL import Image

import crad
from crad.scoring.calibration import Threshold, Thresholds
from tests.crad.browser import dump_address
from tests.crad.served import serving

TOKEN = "0123456789abcdef"

_DRIVER = """
const violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  violations.push(event.violatedDirective);
});
document.addEventListener("DOMContentLoaded", async () => {
  const part = (id) => document.getElementById(id);
  const until = async (holds) => {
    while (!holds()) await new Promise((go) => setTimeout(go, 20));
  };
  const give = (blob, name) => {
    const files = new DataTransfer();
    files.items.add(new File([blob], name));
    part("file").files = files.files;
    part("file").dispatchEvent(new Event("change"));
  };
  const found = { violations };
  const enter = (token) => {
    part("token").value = token;
    part("access").requestSubmit();
  };
  await until(() => !part("access").hidden);
  found.focus = document.activeElement.id;
  enter("of another server");
  await until(() => part("status").textContent);
  found.wrong = part("status").textContent;
  enter("TOKEN");
  await until(() => !part("input").hidden);
  found.classes = [...part("class").options].map((each) => each.value);

  give(new Blob(["no image"]), "bad.png");
  await until(() => part("status").classList.contains("error"));
  found.bad = part("status").textContent;

  give(await (await fetch("/test-image")).blob(), "a.png");
  await until(() => !part("result").hidden);
  found.status = part("status").textContent;
  found.decision = part("decision").textContent;
  found.facts = Object.fromEntries(
    [...part("facts").children].map((each) => [...each.children].map((one) => one.textContent)),
  );
  found.image = [part("image").naturalWidth, part("image").naturalHeight];
  found.map = part("map").naturalWidth;
  found.regions = [...part("regions").children].map((each) => each.textContent);
  found.boxes = [...part("boxes").children].map((each) => each.getAttribute("style"));
  part("regions").querySelector("button").click();
  found.chosen = part("boxes").firstChild.className;
  part("opacity").value = 30;
  part("opacity").dispatchEvent(new Event("input"));
  found.opacity = part("map").style.opacity;
  part("show-boxes").click();
  found.hidden = part("boxes").hidden;
  found.unlabelled = [...document.querySelectorAll("input, select, button, img, video")]
    .filter((each) => !(each.labels?.length || each.textContent || each.ariaLabel || each.alt))
    .map((each) => each.id);
  found.wide = document.documentElement.scrollWidth > window.innerWidth;

  give(await (await fetch("/test-tiff")).blob(), "a.tif");
  await until(() => part("status").textContent.includes("cannot show"));
  part("camera").click();
  await until(() => !part("live").hidden && document.querySelector("video").videoWidth);
  part("snap").click();
  await until(() => part("status").textContent.startsWith("snapshot: "));
  part("stop").click();
  found.camera = [part("live").hidden, part("camera").hidden];
  found.stage = part("stage").getBoundingClientRect().height > 50;
  await fetch("/test-found", { method: "POST", body: JSON.stringify(found) });
});
"""


@pytest.mark.slow
def test_a_browser_scores_an_image(trained, tmp_path: Path) -> None:
    detector = crad.load(trained.output, "cpu")
    image = next(iter(sorted(trained.data.glob("brick/test/*/*.png"))))
    (row,) = detector.predict(image)
    # A threshold that the image exceeds, so that there are regions.
    half = {n: Threshold(float(row.scored_map.max()) * 0.9, 9) for n in detector.classes}
    detector.pixel_thresholds = Thresholds(half)
    (row,) = detector.predict(image)
    assert row.regions
    assert row.size

    with serving(detector, token=TOKEN) as served:
        app = served.service.app
        text = served.ask("/").body.decode()
        # The browser closes once the page is loaded: with a picture that comes at the end.
        driven = text.replace("</head>", '<script src="/driver.js" defer></script></head>').replace(
            "</body>", '<img src="/test-end" alt="end"></body>'
        )
        script = _DRIVER.replace("TOKEN", TOKEN)

        def route(path: str, content: Any, kind: str) -> None:
            app.get(path)(lambda: Response(content, media_type=kind))

        route("/driven", driven, "text/html")
        route("/driver.js", script, "text/javascript")
        route("/test-image", image.read_bytes(), "image/png")
        route("/test-tiff", tiff_of(image, tmp_path), "image/tiff")
        got: list[Any] = []
        ended = threading.Event()

        @app.post("/test-found")
        async def find(request: Request) -> None:
            got.append(await request.json())
            ended.set()

        @app.get("/test-end")
        def end() -> None:
            ended.wait(60)

        dump_address(
            f"{served.address}/driven",
            tmp_path / "browser",
            "--window-size=400,800",
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
        )
    (found,) = got
    assert found.pop("violations") == []
    assert found["focus"] == "token"
    assert found["wrong"] == "This is not the token of the server."
    assert found["classes"] == ["", "brick", "gauge"]
    assert "not an image" in found["bad"]
    assert found["decision"] == row.decision
    assert found["status"].startswith(f"a.png: {row.decision}, score ")
    assert float(found["facts"]["Score"]) == pytest.approx(row.score, rel=1e-3)
    assert found["facts"]["Class"] == (row.class_name or "unknown")
    height, width = row.size
    assert found["image"] == [width, height]
    assert found["map"] == row.scored_map.shape[1]
    assert len(found["regions"]) == len(found["boxes"]) == len(row.regions)
    left, top, right, bottom = row.regions[0].box
    told = f"{right - left} \N{MULTIPLICATION SIGN} {bottom - top} px at x {left}, y {top}; peak "
    assert found["regions"][0].startswith(told)
    percents = [float(each) for each in re.findall(r"([\d.]+)%", found["boxes"][0])]
    expected = [left / width, top / height, (right - left) / width, (bottom - top) / height]
    assert percents == pytest.approx([100 * each for each in expected], abs=0.01)
    assert found["chosen"] == "chosen"
    assert found["opacity"] == "0.3"
    assert found["hidden"]
    assert found["unlabelled"] == []
    assert not found["wide"]  # of a phone
    assert found["stage"]
    assert found["camera"] == [True, False]


def tiff_of(image: Path, folder: Path) -> bytes:
    file = folder / "a.tif"
    with Image.open(image) as opened:
        opened.save(file)
    return file.read_bytes()
