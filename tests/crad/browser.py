"""Chromium without a window, for pages that must work from disk."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def dump(page: Path, script: str) -> str:
    """Open a page, run a script on it once it is loaded, and give the HTML it has become.

    The page is copied beside itself, with the script at its end. Without a browser the test is
    skipped.
    """
    text = page.read_text(encoding="utf-8")
    assert "</body>" in text
    driver = f"<script>window.addEventListener('load', () => {{ {script} }});</script></body>"
    with _beside(page, text.replace("</body>", driver)) as copy:
        return dump_address(copy.as_uri(), page.parent / "browser", "--virtual-time-budget=20000")


def overflow_on_a_phone(page: Path, width: int = 390) -> int:
    """By how many pixels a page is wider than the screen of a phone; skips without a browser.

    It is in a frame, as the window of a browser cannot be as narrow.
    """
    text = f"""<!doctype html><body><iframe src="{quote(page.name)}"
        style="width: {width}px; height: 800px; border: 0"></iframe><script>
        window.addEventListener("load", () => {{
            const page = document.querySelector("iframe").contentWindow;
            const root = page.document.documentElement;
            document.body.dataset.found = `${{page.innerWidth}} ${{root.scrollWidth}}`;
        }});</script></body>"""
    options = ("--virtual-time-budget=20000", "--allow-file-access-from-files")
    with _beside(page, text) as frame:
        shown = dump_address(frame.as_uri(), page.parent / "browser", *options)
    found = re.search(r'data-found="(\d+) (\d+)"', shown)
    assert found, shown
    assert int(found[1]) == width
    return max(0, int(found[2]) - width)


def print_pages(page: Path) -> int:
    """Print a page to a PDF, and count the sheets of paper; skips without a browser."""
    pdf = page.parent / "printed.pdf"
    _run(page.parent / "browser", f"--print-to-pdf={pdf}", page.as_uri())
    content = pdf.read_bytes()
    pdf.unlink()
    assert content.startswith(b"%PDF-")
    return len(re.findall(rb"/Type\s*/Page\b", content))


@contextmanager
def _beside(page: Path, text: str) -> Iterator[Path]:
    """A page in the same folder during the block, so that what it links to is found."""
    copy = page.with_name(f"driven-{page.name}")
    copy.write_text(text, encoding="utf-8")
    try:
        yield copy
    finally:
        copy.unlink()


def dump_address(address: str, profile: Path, *options: str) -> str:
    """Open an address, and give the HTML it has become; skips the test without a browser.

    Args:
        address: of a page.
        profile: a folder for what the browser keeps, which is removed.
        options: of the browser.
    """
    return _run(profile, *options, "--dump-dom", address)


def _run(profile: Path, *options: str) -> str:
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    if browser is None:
        pytest.skip(f"needs a browser: {' or '.join(_NAMES)} (Debian: apt install chromium)")
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={profile}", *options),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    shutil.rmtree(profile, ignore_errors=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
