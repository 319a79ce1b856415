"""No link of the docs within this repository leads nowhere."""

from __future__ import annotations

from urllib.parse import unquote

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, links, named


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    wrong = []
    for line, target in links(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or not there.is_relative_to(ROOT):
            wrong.append(f"{named(page)}:{line}: there is no {target}")
        elif anchor and anchor not in anchors(there.read_text(encoding="utf-8")):
            wrong.append(f"{named(page)}:{line}: {path or 'this page'} has no heading #{anchor}")
    assert wrong == []


def test_all_pages_can_be_found():
    """``make docs`` wants each page in ``index.md``, which is its navigation."""
    index = ROOT / "docs" / "index.md"
    listed = {(index.parent / target).resolve() for _, target in links(index.read_text(encoding="utf-8"))}
    assert {named(page) for page in PAGES if page.parent != ROOT} - {named(index)} == {named(page) for page in listed}


def test_what_a_link_is():
    text = "# A `b` c, d!\n## Same\n## Same\n[x](y.md#z) `[no](no.md)` ![p](q.svg)\n```\n[no](no.md)\n# No\n```\n"
    assert links(text) == [(4, "y.md#z"), (4, "q.svg")]
    assert anchors(text) == {"a-b-c-d", "same", "same-1"}
