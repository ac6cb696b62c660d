"""Configuration of the site: `sphinx-build -W docs build/site`, then open `build/site/index.html`.

The search index is a script, so that search works from the disk as well.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

import onnxslim

project = "onnxslim"
author = "the onnxslim authors"
version = release = onnxslim.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
root_doc = "index"
smartquotes = False  # `--calib` has two hyphens
html_theme = "furo"
html_title = f"onnxslim {version}"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_extra_path = ["report.schema.json", "recipe.schema.json"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

default_role = "code"  # docstrings put code between single backticks
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
napoleon_use_ivar = True
copybutton_selector = "div.highlight-sh pre, div.highlight-python pre, div.highlight-toml pre"

_ROOT = Path(__file__).parents[1]
_PAGES = {"../CONTRIBUTING.md": "contributing.md", "../CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"\[([^\]\[]+)\]\((?:\.\./)+([^)#\s]+)\)")


def _link_inside(app: Sphinx, name: str, source: list[str]) -> None:
    """Links out of `docs/` lead to pages of the site, or become the path in the checkout."""
    text = source[0]
    for target, here in _PAGES.items():
        text = text.replace(f"]({target}", f"]({here}")
    source[0] = _LINK.sub(_as_path, text)


def _as_path(link: re.Match[str]) -> str:
    text, path = link.groups()
    if not (_ROOT / path).exists():
        return link[0]  # which Sphinx reports
    return text if path in text else f"{text} (`{path}`)"


def _literal_blocks(
    app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]
) -> None:
    """Indented blocks of a docstring, behind a blank line, are code or tables as they stand."""
    for at, (before, blank, block) in enumerate(zip(lines, lines[1:], lines[2:], strict=False)):
        indent = len(before) - len(before.lstrip())
        if before.strip() and not blank.strip() and block.startswith(" " * (indent + 4)):
            lines[at] = before + ":" if before.endswith(":") else before + " ::"


def setup(app: Sphinx) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("source-read", _link_inside)
    app.connect("autodoc-process-docstring", _literal_blocks, priority=100)  # before napoleon
