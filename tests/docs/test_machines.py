"""A machine's page tells all of its table, and its picture shows every state and arrow."""

from __future__ import annotations

import importlib.util
import re
import sys
from xml.etree import ElementTree

import pytest

from tests.docs.pages import ROOT

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def generate():
    """``docs/generate.py``, which is a script and no module."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "docs"))


def test_each_arrow_is_in_the_table_in_its_order(generate):
    for machine, _ in generate.MACHINES:
        rows = [[cell.strip() for cell in row.split(" | ")] for row in generate.transitions(machine).splitlines()[2:]]
        told = {}
        for message, states, label, then, effects in ([cell.strip("| ") for cell in row] for row in rows):
            for state in states.split(", "):
                told.setdefault((state, message), []).append((label, state if then == "*stays*" else then, effects))
        assert told == {
            (state.value, message.__name__): [
                (arrow.label, arrow.to.value, ", ".join(effect.value for effect in arrow.effects)) for arrow in arrows
            ]
            for (state, message), arrows in machine.table.items()
        }


def test_each_state_and_arrow_is_drawn_once_within_the_picture(generate):
    for machine, _ in generate.MACHINES:
        picture = ElementTree.fromstring(generate.svg(machine))
        assert generate.svg(machine) == generate.svg(machine)
        width, height = float(picture.get("width")), float(picture.get("height"))
        names = [text.text for text in picture.iter(f"{SVG}text") if text.get("class") is None]
        assert sorted(names) == sorted(state.value for state in machine.states())
        boxes = [rect for rect in picture.iter(f"{SVG}rect") if rect.get("class") == "final"]
        assert len(boxes) == len(machine.final)
        moves = {(s, a.to) for (s, _), arrows in machine.table.items() for a in arrows if a.to is not s}
        paths = [path.get("d") for path in picture.findall(f"{SVG}path")]
        assert len(paths) == len(moves)
        for path in paths:
            points = [float(number) for number in re.findall(r"-?\d+\.\d+", path)]
            assert all(0 <= x <= width for x in points[::2])
            assert all(0 <= y <= height for y in points[1::2])


def test_no_two_states_cover_each_other(generate):
    for machine, _ in generate.MACHINES:
        picture = ElementTree.fromstring(generate.svg(machine))
        boxes = [
            [float(rect.get(name)) for name in ("x", "y", "width", "height")]
            for rect in picture.iter(f"{SVG}rect")
            if str(rect.get("class")).startswith("state")
        ]
        for count, (x, y, width, height) in enumerate(boxes):
            for a, b, c, d in boxes[:count]:
                assert x >= a + c or a >= x + width or y >= b + d or b >= y + height
