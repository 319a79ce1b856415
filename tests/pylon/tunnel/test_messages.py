"""The messages of the tunnel: what is written is read, what is odd harms nobody."""

from __future__ import annotations

import json

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.testing import tunnel_messages as some
from pylon.tunnel import messages as m


@given(some.messages)
def test_what_is_written_is_read(message):
    received = m.read(m.write(message))
    assert received == m.Received(message)
    assert m.read(m.write(message).encode()) == received


@given(some.messages, st.dictionaries(st.sampled_from(["x", "y"]), some.json_values, min_size=1))
def test_fields_that_nobody_knows_are_ignored_and_told(message, more):
    text = orjson.dumps(orjson.loads(m.write(message)) | more).decode()
    assert m.read(text) == m.Received(message, tuple(sorted(more)))


@given(some.messages)
def test_a_null_is_a_field_that_is_missing(message):
    value = json.loads(m.write(message))
    optional = {field.name: None for field in attrs.fields(type(message)) if field.default is not attrs.NOTHING}
    assert m.read(orjson.dumps({**optional, **value})).message == message


@given(some.broken_messages)
def test_what_does_not_have_its_form_is_refused(broken):
    with pytest.raises(m.MessageRefused) as refused:
        m.read(broken[1])
    assert 0 < len(refused.value.reason) <= 200


@given(st.one_of(st.text(), st.binary(), some.json_values.map(json.dumps)))
def test_anything_else_is_refused_or_unknown(text):
    try:
        m.read(text)
    except m.MessageRefused:
        pass


@given(some.messages, st.data())
def test_any_value_in_any_field_is_read_or_refused(message, data):
    value = json.loads(m.write(message))
    name = data.draw(st.sampled_from(sorted(set(value) - {"type"}) or ["type"]))
    value[name] = data.draw(some.json_values)
    try:
        received = m.read(json.dumps(value))
    except m.MessageRefused:
        return
    if isinstance(received.message, m.Unknown | m.Unused):
        return
    assert m.read(m.write(received.message)).message == received.message


def test_every_type_that_is_known_has_a_strategy():
    assert set(some.by_kind) == set(m.TYPES.values()) == {*m.FROM_PAGE, *m.FROM_MACHINE, *m.FROM_SERVER}


def test_what_the_original_says_is_read():
    said = {
        "type": "claude_create_session",
        "session_id": "b7e3",
        "request": {
            "model": "claude-opus-4",
            "system_prompt": None,
            "initial_prompt": "hello",
            "tools": [{"name": "Bash", "description": "a shell", "config": {"timeout": 3}}],
            "max_cost_usd": 250000,
            "autonomy": "full",
            "approval_required_tools": [],
        },
    }
    message = m.read(json.dumps(said)).message
    assert isinstance(message, m.CreateSession)
    assert message.request == m.SessionRequest(
        model="claude-opus-4",
        initial_prompt="hello",
        tools=(m.ToolWish("Bash", "a shell", {"timeout": 3}),),
        max_cost_usd=250_000,
        autonomy="full",
        approval_required_tools=(),
    )


def test_what_the_original_reads_is_said():
    usage = m.Usage(input_tokens=3, output_tokens=4, total=7)
    chunk = m.Chunk(m.ChunkBody(session_id="b7e3", chunk_type="done", usage=usage))
    assert json.loads(m.write(chunk)) == {
        "type": "claude_chunk",
        "chunk": {
            "session_id": "b7e3",
            "chunk_type": "done",
            "usage": {"input_tokens": 3, "output_tokens": 4, "cache_read": 0, "cache_write": 0, "total": 7},
        },
    }
    assert json.loads(m.write(m.TunnelConnected("0.1.0"))) == {
        "type": "tunnel_connected",
        "version": "0.1.0",
        "capabilities": ["claude"],
        "protocol": m.PROTOCOL,
        "sessions": [],
    }


def test_types_of_the_originals_other_users_are_known_and_not_acted_upon():
    assert m.read('{"type":"start_task","task":"x"}').message == m.Unused("start_task")
    assert m.read('{"type":"claude_fly"}').message == m.Unknown("claude_fly")
    assert len(m.read(json.dumps({"type": "x" * 100_000})).message.type) == m.MAX_NAME


def test_a_refusal_names_the_field_and_the_session_but_not_what_was_in_it():
    with pytest.raises(m.MessageRefused) as refused:
        m.read('{"type":"claude_prompt","session_id":"b7e3","content":["a secret"]}')
    assert refused.value.session_id == "b7e3"
    assert "claude_prompt: content: " in refused.value.reason
    assert "secret" not in str(refused.value)


def test_fields_within_objects_are_told_too():
    said = {"type": "claude_create_session", "session_id": "s", "request": {"tools": [{"name": "x", "z": 1}], "y": 2}}
    assert m.read(json.dumps(said)).ignored == ("y", "z")


@pytest.mark.parametrize(
    "message",
    [
        m.Prompt("a b", "x"),
        m.Prompt("s", "x" * (m.MAX_TEXT + 1)),
        m.Chunk(m.ChunkBody(session_id="s", chunk_type="tool_start", tool=m.ToolUse(name="x", params={"a": {1, 2}}))),
        m.Chunk(m.ChunkBody(session_id="s", chunk_type="tool_start", tool=m.ToolUse(name="x", params=[10**30]))),
        m.ToolApproval("s", "x", ["\U0001f600" * 100_000] * 4),
        m.SessionState("s", "dead"),
        m.Prompt("s", "\ud800"),
    ],
)
def test_what_would_be_refused_is_not_written(message):
    with pytest.raises(ValueError, match="claude_"):
        m.write(message)


def test_prompts_are_in_no_repr():
    assert "a secret" not in repr(m.CreateSession("s", m.SessionRequest(initial_prompt="a secret")))
    assert "a secret" not in repr(m.Prompt("s", "a secret"))
