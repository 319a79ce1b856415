"""What the overviews list, they list whole."""

from __future__ import annotations

import re

from pylon.cli.main import COMMANDS
from tests.docs.pages import ROOT, blocks, code_spans

README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_readme_names_every_command():
    told = {word for _, text in code_spans(README) for word in text.split()}
    assert set(COMMANDS) - told == set()


def test_the_tree_of_nurseries_has_every_child():
    """By the names that ``pylon status --json`` gives them."""
    children = {
        name
        for source in (ROOT / "pylon").rglob("*.py")
        for name in re.findall(r"ChildSpec\(\"([a-z-]+)\"", source.read_text(encoding="utf-8"))
    }
    (tree,) = [block.text for block in blocks(ARCHITECTURE) if "└─ supervised" in block.text]
    assert {name for name in children if not re.search(rf"\b{name}\b", tree)} == set()


def test_the_map_has_every_package():
    rooms = next(block.text for block in blocks(ARCHITECTURE) if block.text.startswith("protocols/"))
    packages = {path.parent.name for path in (ROOT / "pylon").glob("*/__init__.py")}
    assert {name for name in packages if f"  {name}/" not in rooms} == set()
