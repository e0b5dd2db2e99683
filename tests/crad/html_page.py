"""What a page of a run has: links, pictures and scripts."""

import re
from html.parser import HTMLParser


def loads_from_elsewhere(text: str) -> bool:
    """Whether a page has the address of another machine, but for the name of SVG."""
    return "//" in re.sub(r"\s//.*", "", text).replace("http://www.w3.org/2000/svg", "")


class Page(HTMLParser):
    """The links, pictures and scripts of a page, and whether its elements are closed."""

    VOID = ("meta", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.names: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [str(given[name]) for name in ("src", "href") if name in given]
        self.names += [str(given["id"])] if "id" in given else []
        self.images += [given] if tag == "img" else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
