"""Draw a state machine's table as SVG: layers from top to bottom, final states with a double line, back arrows in grey.

A layered layout in the manner of Sugiyama: cycles are broken at arrows that lead back to where a walk from the first
state came from, states are put as low as their longest way, long arrows get a bend in each layer that they pass, layers
are ordered by the mean place of their neighbours. Nothing is random: the same table is the same picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from xml.sax.saxutils import escape

from pylon.machine import Machine

FONT = 13
LETTER = 7.4
"""The width of one, of the monospace fonts named below at ``FONT``."""
HEIGHT, GAP, RISE, MARGIN = 30.0, 26.0, 64.0, 18.0
"""Of a state; between two of a layer; from a layer to the next without its height; around all of it."""
SWEEPS = 24
MOST_LABELS = 16
"""Arrows up to which those that lead on can carry their words without covering others."""
WIDER = 86.0
"""The gap then."""

_STYLE = """
text { font: 13px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #1f2328; text-anchor: middle }
text.input { font-size: 11px; fill: #57606a; paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
rect.all { fill: #ffffff }
rect.state { fill: #f6f8fa; stroke: #57606a; stroke-width: 1.2 }
rect.final { fill: none; stroke: #57606a; stroke-width: 1.2 }
rect.first { fill: #ddf4ff; stroke: #0969da }
path { fill: none; stroke: #1f2328; stroke-width: 1.2 }
path.back { stroke: #9a6700; stroke-dasharray: 5 3 }
marker path { fill: #1f2328; stroke: none }
marker#back path { fill: #9a6700 }
"""

Edge = tuple[str, str]


def svg(machine: Machine) -> str:
    """The whole picture."""
    edges = _edges(machine)
    states = [state.value for state in machine.states()]
    backwards = _backwards(machine.initial.value, states, edges)
    layers, chains = _layers(states, [edge for edge in edges if edge not in backwards], backwards)
    _order(layers, chains)
    labelled = len(edges) <= MOST_LABELS
    places = _places(layers, WIDER if labelled else GAP)
    final = {state.value for state in machine.final}
    right = max(x + _width(name) / 2 for name, (x, _) in places.items()) + MARGIN
    bottom = max(y for _, y in places.values()) + HEIGHT / 2 + MARGIN
    shapes = [_rect("all", 0, 0, right, bottom, 8)]
    words: list[str] = []
    for edge, inputs in edges.items():
        points = [places[name] for name in chains[edge]]
        back = edge in backwards
        shapes.append(_arrow(points, back))
        if labelled and not back:
            words += _label(points, inputs)
    for name in states:
        x, y = places[name]
        kind = "state first" if name == machine.initial.value else "state"
        shapes.append(_rect(kind, x - _width(name) / 2, y - HEIGHT / 2, _width(name), HEIGHT, 6))
        if name in final:
            shapes.append(_rect("final", x - _width(name) / 2 + 3, y - HEIGHT / 2 + 3, _width(name) - 6, HEIGHT - 6, 4))
        shapes.append(f'<text x="{x:.1f}" y="{y + 4.5:.1f}">{escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:.0f} {bottom:.0f}" width="{right:.0f}"'
        f' height="{bottom:.0f}" role="img">\n<title>The {machine.name} machine</title>\n<style>{_STYLE}</style>\n'
        "<defs>"
        + "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8"'
            ' orient="auto"><path d="M0 0.8 L8 4 L0 7.2 z"/></marker>'
            for name in ("on", "back")
        )
        + "</defs>\n"
        + "\n".join([*shapes, *words])
        + "\n</svg>\n"
    )


# --- what is drawn ----------------------------------------------------------------------------------------------------


def _edges(machine: Machine) -> dict[Edge, list[str]]:
    """From, to -> the inputs that lead there. What stays where it is is no arrow."""
    found: dict[Edge, list[str]] = {}
    several = len({message for _, message in machine.table}) > 2  # else what tells them apart is when they apply
    for (state, message), arrows in machine.table.items():
        for arrow in arrows:
            if arrow.to is not state:
                inputs = found.setdefault((state.value, arrow.to.value), [])
                text = message.__name__ if several else arrow.label.partition(":")[0]
                if text not in inputs:
                    inputs.append(text)
    return found


def _backwards(first: str, states: Sequence[str], edges: dict[Edge, list[str]]) -> set[Edge]:
    """The arrows that close a circle."""
    found: set[Edge] = set()
    done: set[str] = set()
    under_way: list[str] = []

    def walk(name: str) -> None:
        under_way.append(name)
        for edge in edges:
            if edge[0] == name:
                if edge[1] in under_way:
                    found.add(edge)
                elif edge[1] not in done:
                    walk(edge[1])
        under_way.pop()
        done.add(name)

    for name in [first, *states]:
        if name not in done:
            walk(name)
    return found


# --- where it is drawn ------------------------------------------------------------------------------------------------


def _layers(
    states: Sequence[str], forwards: list[Edge], backwards: set[Edge]
) -> tuple[list[list[str]], dict[Edge, list[str]]]:
    """The layers, bends among them; and each arrow as the states and bends that it goes through."""
    depth = dict.fromkeys(states, 0)
    for _ in states:
        for start, end in forwards:
            depth[end] = max(depth[end], depth[start] + 1)
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in states:
        layers[depth[name]].append(name)
    chains: dict[Edge, list[str]] = {}
    for start, end in [*forwards, *sorted(backwards)]:
        upper, lower = sorted((start, end), key=depth.__getitem__)
        bends = [f" {upper} {lower} {start} {level}" for level in range(depth[upper] + 1, depth[lower])]
        if (start, end) in backwards and depth[lower] - depth[upper] == 1 and (upper, lower) in chains:
            bends = []
        for level, bend in enumerate(bends, depth[upper] + 1):
            layers[level].append(bend)
        chain = [upper, *bends, lower]
        chains[(start, end)] = chain if start == upper else chain[::-1]
    return layers, chains


def _neighbours(chains: dict[Edge, list[str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for chain in chains.values():
        for one, other in pairwise(chain):
            found[one].append(other)
            found[other].append(one)
    return found


def _order(layers: list[list[str]], chains: dict[Edge, list[str]]) -> None:
    """Fewer crossings: each layer by the mean place of its neighbours in the one above, then below, and again."""
    neighbours = _neighbours(chains)
    best, fewest = [list(layer) for layer in layers], _crossings(layers, neighbours)
    for sweep in range(SWEEPS):
        order = range(1, len(layers)) if sweep % 2 == 0 else range(len(layers) - 2, -1, -1)
        for level in order:
            beside = layers[level - 1] if sweep % 2 == 0 else layers[level + 1]
            place = {name: index for index, name in enumerate(beside)}
            before = {name: index for index, name in enumerate(layers[level])}

            def mean(name: str, place: dict[str, int] = place, before: dict[str, int] = before) -> float:
                at = [place[other] for other in neighbours[name] if other in place]
                return sum(at) / len(at) if at else before[name]

            layers[level].sort(key=mean)
        if (crossed := _crossings(layers, neighbours)) < fewest:
            best, fewest = [list(layer) for layer in layers], crossed
    layers[:] = best


def _crossings(layers: list[list[str]], neighbours: dict[str, list[str]]) -> int:
    crossed = 0
    for upper, lower in pairwise(layers):
        place = {name: index for index, name in enumerate(lower)}
        lines = [(i, place[other]) for i, name in enumerate(upper) for other in neighbours[name] if other in place]
        crossed += sum((a - c) * (b - d) < 0 for k, (a, b) in enumerate(lines) for c, d in lines[:k])
    return crossed


def _places(layers: list[list[str]], least: float) -> dict[str, tuple[float, float]]:
    """The middle of each state and bend. Layers are centred."""
    widest = max(sum(map(_width, layer)) + least * (len(layer) - 1) for layer in layers)
    places = {}
    for level, layer in enumerate(layers):
        spare = widest - sum(map(_width, layer))
        gap = max(least, min(spare / (len(layer) + 1), 3 * GAP)) if len(layer) > 1 else 0.0
        x = MARGIN + (spare - gap * (len(layer) - 1)) / 2
        for name in layer:
            places[name] = (x + _width(name) / 2, MARGIN + HEIGHT / 2 + level * (HEIGHT + RISE))
            x += _width(name) + gap
    return places


def _width(name: str) -> float:
    return 12.0 if name.startswith(" ") else len(name) * LETTER + 26


# --- how it is drawn --------------------------------------------------------------------------------------------------


def _rect(kind: str, x: float, y: float, width: float, height: float, round_by: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{round_by:g}"/>'


def _arrow(points: Sequence[tuple[float, float]], back: bool) -> str:
    kind = "back" if back else "on"
    return f'<path class="{kind}" d="{" ".join(_curve(points))}" marker-end="url(#{kind})"/>'


def _ends(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """From border to border, and not from middle to middle; what leads up a little to the side of what leads down."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    down = 1 if y1 > y0 else -1
    aside = 0 if down > 0 else 14
    return [(x0 + aside, y0 + down * HEIGHT / 2), *points[1:-1], (x1 + aside, y1 - down * HEIGHT / 2)]


def _curve(points: Sequence[tuple[float, float]]) -> Iterator[str]:
    ends = _ends(points)
    yield f"M{ends[0][0]:.1f} {ends[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(ends):
        middle = (y0 + y1) / 2
        yield f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"


def _label(points: Sequence[tuple[float, float]], inputs: Sequence[str]) -> Iterator[str]:
    ends = _ends(points)
    (x0, y0), (x1, y1) = ends[(len(ends) - 1) // 2], ends[(len(ends) - 1) // 2 + 1]
    x, y = (x0 + x1) / 2, (y0 + y1) / 2 - (len(inputs) - 1) * 6.5
    for count, text in enumerate(inputs):
        yield f'<text class="input" x="{x:.1f}" y="{y + 4 + count * 13:.1f}">{escape(text)}</text>'
