"""What the pages of a run have in common: their frame, their style, and pictures of an image."""

from collections.abc import Mapping
from html import escape
from importlib import resources

from crad.training.run_folder import PAGE_HEAD

Pictures = Mapping[str, str | None]
"""The pictures of an image, by what they show: a path from the page, or None if not known."""


def document(title: str, *parts: str) -> str:
    """Make a page of the parts of its body, with the style that all pages have."""
    return (
        f'{PAGE_HEAD}<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{content('page.css')}</style>\n</head>\n"
        f"<body>\n{''.join(parts)}</body>\n</html>\n"
    )


def escaped(text: str) -> str:
    """A text as HTML; bytes of a file name that are no character are escaped."""
    return escape(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def content(name: str) -> str:
    """The text of a file that belongs to the pages."""
    return resources.files("crad.report").joinpath(name).read_text(encoding="utf-8")


def figures(pictures: Pictures) -> str:
    """The pictures of an image side by side, each loaded once it is seen."""
    each = "".join(
        f"<figure>{_picture(title, file)}<figcaption>{title}</figcaption></figure>"
        for title, file in pictures.items()
    )
    return f'<div class="pictures">{each}</div>\n'


def _picture(title: str, file: str | None) -> str:
    if not file:
        return '<div class="none">not known</div>'
    address = escaped(file)
    return f'<a href="{address}"><img src="{address}" loading="lazy" alt="{title}"></a>'
