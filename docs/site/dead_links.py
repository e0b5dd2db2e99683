"""A Sphinx extension that warns of links within the built site that lead nowhere."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging

_LOG = logging.getLogger(__name__)


class _Page(HTMLParser):
    """The links of a page, and what links may point at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.targets: set[str] = {"", "top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.targets.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)


def find(folder: Path) -> list[tuple[Path, str]]:
    """Find the links of the pages of a folder that lead to no file or no place in a page of it."""
    pages = {path: _Page(path) for path in sorted(folder.resolve().rglob("*.html"))}
    dead = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target in pages:
                alive = unquote(parts.fragment) in pages[target].targets
            else:
                alive = target.exists()
            if not alive:
                dead.append((path.relative_to(folder.resolve()), link))
    return dead


def _check(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        for page, link in find(Path(app.outdir)):
            _LOG.warning("%s: the link %s leads nowhere", page, link)


def setup(app: Sphinx) -> dict[str, bool]:
    """Check the links once the pages are written."""
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
