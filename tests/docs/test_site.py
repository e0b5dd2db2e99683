"""What the site says in code, and the check of its links."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import crad
import crad_kernels
from crad.__main__ import COMMANDS
from crad.config import Config, settings
from tests.crad.browser import dump_address, overflow_on_a_phone

ROOT = Path(__file__).parents[2]


def run_blocks(page: str) -> dict[str, Any]:
    """Run the Python of a page, one block after the other, and return what its names stand for."""
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)
    return names


def test_the_page_for_users_of_grid_sample_runs() -> None:
    run_blocks("gotchas.md")


def test_the_guide_of_the_kernels_runs() -> None:
    torch.manual_seed(0)
    names = run_blocks("site/kernels.md")
    table, colours = names["table"], names["colours"]
    assert names["warped"].shape == names["image"].shape
    torch.testing.assert_close(names["graded"], colours**0.8, atol=0.02, rtol=0)
    assert table[0, 0, 16].tolist() == [1, 0, 0]  # red moves along the last axis
    assert (names["recalled"] - names["goal"]).square().mean() < 0.05
    assert torch.nn.functional.grid_sample.__module__.startswith("torch")


@pytest.mark.parametrize(
    ("page", "package"), [("kernels-api.rst", crad_kernels), ("detector-api.rst", crad)]
)
def test_the_api_has_every_public_name(page: str, package: ModuleType) -> None:
    told = re.findall(
        r"^\.\. auto\w+:: (\S+)$", (ROOT / "docs/site" / page).read_text(), re.MULTILINE
    )
    public = {f"{package.__name__}.{name}" for name in package.__all__ if name != "__version__"}
    assert public <= set(told)
    assert not [name for name in told if "._" in name]


def test_the_page_of_options_has_every_command() -> None:
    page = (ROOT / "docs/site/options.rst").read_text()
    told = re.findall(r"^\.\. command-options:: (\S+)", page, re.MULTILINE)
    assert told == [*COMMANDS, "crad-edge"]


def test_options_are_read_from_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs/site"))
    import command_options

    def entries(command: str, *arguments: str) -> dict[str, str]:
        groups = command_options.read_help(command_options.show_help(command, *arguments))
        lines = "\n".join(command_options.to_rst(command, groups))
        return dict(re.findall(r"^\.\. option:: (.*)\n\n   (.+)$", lines, re.MULTILINE))

    train = entries("train", "--data", "PATH", "--device", "cpu")
    names = {name for option in train for name in re.findall(r"--[\w.-]+", option)}
    assert {*settings(Config()), "--resume", "--no-resume", "--device", "--add"} <= names
    assert "``pip install 'crad[vq]'``" in train["--local.memory {grid,vq,attention,none}"]
    assert "--image-size SIDE|HEIGHT WIDTH" in train
    assert train["--layers INT ..."].endswith("(2 to 9 of 12).")
    assert train["--overlap INT"].endswith("half of ``--tile``. Default: an eighth of ``--tile``.")
    serve = entries("serve")
    assert serve["--port INT"] == "Port to listen on; 0 takes any that is free. Default: ``8000``."
    assert serve["--checkpoint PATH"].endswith("a file of crad export. **Required.**")
    assert serve["--compile, --no-compile"].endswith("a minute of compiling.")
    assert "PATH ..." in entries("predict")
    assert entries("crad-edge")["--csv CSV"] == "write the scores to this CSV file"
    with pytest.raises(ValueError, match="no options"):
        command_options.read_help("usage: another layout\n\n  --port  Port\n")


def test_links_have_titles_and_extras_are_installed_in_one_way() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in (*pages, *(ROOT / "docs/site").iterdir()):
        if page.is_file():
            text = page.read_text()
            assert not re.findall(r"\[[^\]\n]*\.(?:md|rst)\]\(", text), page
            assert not re.findall(r"pip install (?:-e )?'?\.\[", text), page


def test_dead_links_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs/site"))
    import dead_links

    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"></a><a href="#gone"></a><a href="b.html#there"></a>'
        '<a href="b.html#gone"></a><a href="c.html"></a><a href="https://example.org/x"></a>'
    )
    (tmp_path / "b.html").write_text('<p id="there"><img src="gone.png"><a href="a%2ehtml">')
    sys.modules.pop("dead_links")
    assert dead_links.find(tmp_path) == [
        (Path("a.html"), "#gone"),
        (Path("a.html"), "b.html#gone"),
        (Path("a.html"), "c.html"),
        (Path("b.html"), "gone.png"),
    ]


@pytest.mark.slow
def test_the_site_is_built_and_searched_from_disk(tmp_path: Path) -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("gallery"))
    # One example is enough to see that they are shown; other tests run all of them.
    one = "sphinx_gallery_conf.filename_pattern=image_warp"
    options = ("-q", "-W", "--keep-going", "-n", "-D", one)
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, tmp_path / "docs", tmp_path / "built"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    examples = {path.stem for path in (ROOT / "docs/examples").glob("*.py")}
    assert {path.stem for path in (tmp_path / "built").rglob("*.ipynb")} == examples
    assert overflow_on_a_phone(tmp_path / "built/detector.html") == 0
    for words, page in (("jitter_std", "site/kernels-api"), ("--token-file", "site/options")):
        address = f"{(tmp_path / 'built/search.html').as_uri()}?q={words}"
        found = dump_address(address, tmp_path / "browser", "--virtual-time-budget=20000")
        assert f"{page}.html" in found.split('id="search-results"')[1].split("</article>")[0]
