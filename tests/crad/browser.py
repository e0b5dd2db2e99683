"""Chromium without a window, for pages that must work from disk."""

import shutil
import subprocess
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def dump(page: Path, script: str) -> str:
    """Open a page, run a script on it once it is loaded, and give the HTML it has become.

    The page is copied beside itself, with the script at its end. Without a browser the test is
    skipped.
    """
    copy = page.with_name(f"driven-{page.name}")
    text = page.read_text(encoding="utf-8")
    assert "</body>" in text
    driver = f"<script>window.addEventListener('load', () => {{ {script} }});</script></body>"
    copy.write_text(text.replace("</body>", driver), encoding="utf-8")
    try:
        return dump_address(copy.as_uri(), page.parent / "browser", "--virtual-time-budget=20000")
    finally:
        copy.unlink()


def dump_address(address: str, profile: Path, *options: str) -> str:
    """Open an address, and give the HTML it has become; skips the test without a browser.

    Args:
        address: of a page.
        profile: a folder for what the browser keeps, which is removed.
        options: of the browser.
    """
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    if browser is None:
        pytest.skip(f"needs a browser: {' or '.join(_NAMES)} (Debian: apt install chromium)")
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={profile}", *options, "--dump-dom", address),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    shutil.rmtree(profile, ignore_errors=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
