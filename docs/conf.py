"""The site: `sphinx-build -W --keep-going -n docs build/site`, after `pip install 'crad[docs]'`.

Pages of the repository are pages of the site as they are. Those in `site/` are for the site alone:
parts of README.md and CONTRIBUTING.md, and what is made of docstrings.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "site"))

project = "CRAD"
copyright = "the CRAD contributors"
html_title = "CRAD and crad_kernels"

extensions = [
    "command_options",
    "dead_links",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "examples",
    "sg_execution_times.rst",
    "gallery/sg_execution_times.rst",
    "**/*.ipynb",
]
html_theme = "furo"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_copy_source = False

# Links to headings, by the names that GitHub gives them.
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # an included part begins at the level that it has in its file

# Docstrings name things in single backticks.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the text has the types, with shapes and ranges
napoleon_use_ivar = True
# What has no page here is shown as code.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|np|npt|PIL|os|collections)\..*"),
    (
        r"py:.*",
        r"crad\.(model|scoring)\..*|GroupedBatchNorm|Batch\.images|Prediction\.has_more|iterate",
    ),
]

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "NumberOfCodeLinesSortKey",  # the simplest first
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
}

# Pages outside of docs/, which have a page of the site in their place.
_OUTSIDE = {"../README.md": "/site/your-data.md", "../CONTRIBUTING.md": "/site/contributing.md"}


def _adapt(app: Sphinx, page: str, source: list[str]) -> None:
    for outside, inside in _OUTSIDE.items():
        source[0] = re.sub(rf"\]\({re.escape(outside)}", f"]({inside}", source[0])
    # A mean and its deviation stay on one line.
    source[0] = source[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def setup(app: Sphinx) -> None:
    """Have links that lead out of docs/ lead to the site, and numbers stay together."""
    app.connect("source-read", _adapt)
