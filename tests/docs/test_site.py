"""What the site says in code, and the check of its links."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_page_for_users_of_grid_sample_runs() -> None:
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/gotchas.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)


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
