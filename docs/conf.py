"""The site of the docs: ``make docs`` builds it to build/docs. Its pages are plain Markdown, to be read anywhere.

What Sphinx wants beyond that is made here: the tree of pages from the lists of ``index.md``, the pages of the root.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pylon import __version__

HERE = Path(__file__).parent
project = "Pylon"
author = "The Pylon maintainers"
version = release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
root_doc = "index"
html_theme = "furo"
html_css_files = ["site.css"]
html_static_path = ["_static"]
html_title = f"Pylon {version}"
html_show_copyright = False
html_copy_source = False
html_use_index = False
html_show_sourcelink = False
myst_heading_anchors = 6
nitpicky = True
highlight_language = "text"

_PAGES = re.compile(r"\[[^\]]*\]\(([\w/.-]+)\.md\)")
_PARTS = re.compile(r"^## (.+)$", re.M)


def tree(text: str) -> str:
    """The pages that ``index.md`` lists, below its headings, as Sphinx wants to be told of them."""
    _, *parts = _PARTS.split(text)
    told = []
    for title, part in zip(parts[::2], parts[1::2], strict=True):
        pages = "\n".join(dict.fromkeys(_PAGES.findall(part)))
        if pages:
            told.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{pages}\n```\n")
    return "\n".join(told)


def prepare(app: Any, docname: str, source: list[str]) -> None:
    if docname == root_doc:
        source[0] += "\n" + tree(source[0])


def setup(app: Any) -> dict[str, Any]:
    app.connect("source-read", prepare)
    return {"parallel_read_safe": True}
