"""JSON schemas that strangers send along, as far as they can be handed to whatever enforces them.

A backend makes a grammar of a schema and walks it with every token. 150 bytes that refer to themselves in three ways,
or a regular expression of nested repetitions, keep llama.cpp busy for ever, deaf to whoever hangs up. So:

1. It is one JSON object, of at most ``MAX_CHARS`` characters.
2. ``$ref`` leads to a place within the document, and never back to where it came from.
3. With every reference replaced by what it refers to, there are at most ``MAX_NODES`` objects and lists, within each
   other at most ``MAX_DEPTH`` deep.
4. It has no regular expressions.

Whether it is a good schema is the backend's to say. Source: JSON Schema draft 2020-12, sections 8 to 10.
"""

from __future__ import annotations

from typing import Any

import orjson

MAX_CHARS = 4_096
MAX_DEPTH = 32
MAX_NODES = 2_000

_REFUSED = frozenset({"pattern", "patternProperties", "$dynamicRef", "$recursiveRef"})
_BY_NAME = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
"""What holds schemas by names that anybody chooses: a property may be called ``pattern``."""
_DATA = frozenset({"const", "enum", "default", "example", "examples", "required"})
"""What holds values, not schemas."""


class SchemaInvalid(ValueError):
    """A schema that is not accepted. The message quotes nothing of it."""


def read_schema(text: str) -> dict[str, Any]:
    """The schema that ``text`` is. Raises ``SchemaInvalid``."""
    if len(text) > MAX_CHARS:
        raise SchemaInvalid(f"longer than {MAX_CHARS:,} characters")
    try:
        schema = orjson.loads(text)
    except ValueError:
        raise SchemaInvalid("not JSON") from None
    if not isinstance(schema, dict):
        raise SchemaInvalid("not a JSON object")
    _Walk(schema).measure(schema, 1)
    return schema


class _Walk:
    """Counts what a schema comes to when its references are written out."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._known: dict[str, tuple[int, int]] = {}
        self._open: set[str] = set()

    def measure(self, node: object, depth: int, *, named: bool = False, data: bool = False) -> tuple[int, int]:
        """Objects and lists in ``node``, and how deep they are within each other.

        :param named: its keys are names, not keywords.
        :param data: it is a value, whatever it looks like.
        """
        if not isinstance(node, dict | list):
            return 0, 0
        if depth > MAX_DEPTH:
            raise SchemaInvalid(f"nested more than {MAX_DEPTH} deep")
        nodes, height = 1, 0
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            keyword = key if isinstance(key, str) and not (named or data) else ""
            if keyword in _REFUSED:
                raise SchemaInvalid(f"{keyword} is not supported")
            if keyword == "$ref":
                more, deeper = self._follow(value, depth + 1)
            else:
                more, deeper = self.measure(value, depth + 1, named=keyword in _BY_NAME, data=data or keyword in _DATA)
            nodes, height = nodes + more, max(height, deeper)
            if nodes > MAX_NODES:
                raise SchemaInvalid(f"more than {MAX_NODES:,} parts, with its references written out")
        return nodes, height + 1

    def _follow(self, ref: object, depth: int) -> tuple[int, int]:
        if not isinstance(ref, str) or not ref.startswith("#/"):
            raise SchemaInvalid("$ref must lead to a place within the schema, like #/$defs/name")
        if ref in self._open:
            raise SchemaInvalid("$ref must not lead back to where it came from")
        if ref not in self._known:
            self._open.add(ref)
            self._known[ref] = self.measure(self._target(ref), depth)
            self._open.discard(ref)
        nodes, height = self._known[ref]
        if depth + height > MAX_DEPTH + 1:
            raise SchemaInvalid(f"nested more than {MAX_DEPTH} deep")
        return nodes, height

    def _target(self, ref: str) -> object:
        """By JSON pointer (RFC 6901)."""
        node: object = self._root
        for step in ref[2:].split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and name in node:
                node = node[name]
            elif isinstance(node, list) and name.isascii() and name.isdigit() and int(name[:6]) < len(node):
                node = node[int(name[:6])]
            else:
                raise SchemaInvalid("$ref leads to nothing")
        return node
