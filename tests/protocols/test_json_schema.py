"""Schemas of strangers: what is handed to a backend, and what would stop it."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.json_schema import MAX_CHARS, MAX_DEPTH, MAX_NODES, SchemaInvalid, read_schema
from protocols.keys import SecretKey
from protocols.nip90 import JobInvalid, build_request, parse_request

CUSTOMER, PROVIDER = SecretKey(b"\x01" * 32), SecretKey(b"\x02" * 32)

ORDINARY = {
    "type": "object",
    "properties": {
        "pattern": {"type": "string", "maxLength": 10},
        "$ref": {"type": "integer"},
        "pet": {"$ref": "#/$defs/pet"},
        "other": {"$ref": "#/$defs/pet"},
        "const": {"enum": ["pattern", {"$ref": "nowhere"}]},
    },
    "required": ["pet"],
    "additionalProperties": False,
    "$defs": {"pet": {"anyOf": [{"const": {"pattern": "^a"}}, {"type": "null"}]}},
}


def nested(levels: int) -> dict:
    schema: dict = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


def doubling(levels: int) -> dict:
    """Each definition refers to the next one twice: 2 ** levels ways through a text of ``levels`` lines."""
    names = [f"d{n}" for n in range(levels + 1)]
    defs: dict = {
        name: {"anyOf": [{"items": {"$ref": f"#/$defs/{after}"}} for _ in "ab"]}
        for name, after in itertools.pairwise(names)
    }
    return {"$defs": {**defs, names[-1]: {"const": 1}}, "$ref": "#/$defs/d0"}


HOSTILE = {
    "a reference to itself": {"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
    "two that refer to each other": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                                     "$ref": "#/$defs/a"},
    "one that nothing else refers to": {"$defs": {"a": {"not": {"$ref": "#/$defs/a"}}}},
    "to all of it": {"items": {"$ref": "#"}},
    "to what holds it": {"items": {"$ref": "#/items"}},
    "by way of a list": {"anyOf": [{"$ref": "#/anyOf/0"}]},
    "to somewhere else": {"$ref": "https://127.0.0.1/schema"},
    "to a file": {"$ref": "file:///etc/passwd"},
    "to nothing": {"$ref": "#/$defs/a"},
    "past the end": {"anyOf": [{"$ref": "#/anyOf/7"}]},
    "no reference": {"$ref": 5},
    "dynamic": {"$dynamicRef": "#a"},
    "a pattern": {"type": "string", "pattern": "^((a{0,50}){0,50}){0,50}$"},
    "a pattern within": {"properties": {"a": {"anyOf": [{"pattern": "a"}]}}},
    "patterns of names": {"patternProperties": {"(a|a)*": {}}},
    "a pattern in a definition": {"$defs": {"pattern": {"pattern": "a"}}},
    "many ways": doubling(11),
    "deep": nested(MAX_DEPTH + 1),
    "deep by reference": {"x": nested(MAX_DEPTH - 1), "items": {"items": {"$ref": "#/x"}}},
}  # fmt: skip


@pytest.mark.parametrize("schema", [{}, ORDINARY, nested(MAX_DEPTH), doubling(5)])
def test_ordinary_schemas_are_taken_as_they_are(schema):
    read = read_schema(json.dumps(schema))
    assert read == schema
    assert list(read) == list(schema)  # the order of properties is the order of the reply


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_schemas_are_not(name):
    text = json.dumps(HOSTILE[name])
    assert len(text) <= MAX_CHARS
    with pytest.raises(SchemaInvalid):
        read_schema(text)


@pytest.mark.parametrize("name", ["a reference to itself", "two that refer to each other", "to what holds it"])
def test_a_circle_is_called_one(name):
    with pytest.raises(SchemaInvalid, match="lead back"):
        read_schema(json.dumps(HOSTILE[name]))


def test_what_was_seen_before_counts_where_it_is_seen_again():
    shallow, deep = {"$ref": "#/x"}, {"$ref": "#/x"}
    for _ in range(MAX_DEPTH // 2):
        deep = {"items": deep}
    read_schema(json.dumps({"x": nested(MAX_DEPTH // 2), "anyOf": [shallow]}))
    with pytest.raises(SchemaInvalid, match="deep"):
        read_schema(json.dumps({"x": nested(MAX_DEPTH // 2), "anyOf": [shallow, deep]}))


def test_what_is_reached_in_two_ways_counts_twice_but_is_no_circle():
    target = {"enum": ["x"]}
    once = {"$defs": {"a": target}, "items": {"$ref": "#/$defs/a"}}
    read_schema(json.dumps(once))
    wide = {"$defs": {"a": {"anyOf": [target] * 100}}, "anyOf": [{"$ref": "#/$defs/a"}] * (MAX_NODES // 200)}
    with pytest.raises(SchemaInvalid, match="parts"):
        read_schema(json.dumps(wide))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"{}"', "NaN", '{"a": NaN}', "{}" + " " * MAX_CHARS, "[" * 4_000]
)
def test_what_is_no_object_is_none(text):
    with pytest.raises(SchemaInvalid):
        read_schema(text)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from(["#/$defs/a", "#/items", "#", "a", ""])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["$ref", "$defs", "properties", "items", "anyOf", "pattern", "a", "const", "0"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["$ref", "$defs", "items", "anyOf", "a"]), json_values))
def test_nothing_else_is_raised(schema):
    try:
        assert read_schema(json.dumps(schema)) == schema
    except SchemaInvalid:
        pass


@given(st.text(max_size=60))
def test_nor_by_any_text(text):
    try:
        read_schema(text)
    except SchemaInvalid:
        pass


# --- in a request ---------------------------------------------------------------------------------------------


def asked(schema: str, *, encrypt: bool = True):
    event = build_request(CUSTOMER, prompt="x", provider=PROVIDER.public, created_at=1, encrypt=encrypt,
                          params=[("json_schema", schema)])  # fmt: skip
    return parse_request(event, PROVIDER)


@pytest.mark.parametrize("encrypt", [True, False])
def test_a_request_carries_a_schema(encrypt):
    assert asked(json.dumps(ORDINARY), encrypt=encrypt).json_schema == ORDINARY


def test_or_none():
    plain = parse_request(build_request(CUSTOMER, prompt="x", provider=PROVIDER.public, created_at=1), PROVIDER)
    assert plain.json_schema is None
    assert asked("").json_schema is None


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_or_one_that_is_refused(name):
    with pytest.raises(JobInvalid, match="json_schema: "):
        asked(json.dumps(HOSTILE[name])).json_schema  # noqa: B018
