"""The streaming JSON of Claude Code: what it says is understood, and what it never said harms nobody."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.testing import tunnel_messages as some
from pylon.tunnel import stream as s
from pylon.tunnel.messages import Usage


def line(**message) -> bytes:
    return json.dumps(message).encode()


def delta(text, parent=None):
    event = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return line(type="stream_event", event=event, parent_tool_use_id=parent, session_id="x", uuid="y")


def start(message_id, parent=None):
    event = {"type": "message_start", "message": {"id": message_id, "content": []}}
    return line(type="stream_event", event=event, parent_tool_use_id=parent)


def assistant(message_id, *blocks, parent=None):
    message = {"id": message_id, "role": "assistant", "model": "m", "content": list(blocks)}
    return line(type="assistant", message=message, parent_tool_use_id=parent, session_id="x")


def text(value):
    return {"type": "text", "text": value}


def use(ident="toolu_1", name="Bash", **params):
    return {"type": "tool_use", "id": ident, "name": name, "input": params}


def result_of(ident, content, **more):
    block = {"type": "tool_result", "tool_use_id": ident, "content": content, **more}
    return line(type="user", message={"role": "user", "content": [block]}, parent_tool_use_id=None)


def result(**more):
    told = {"type": "result", "subtype": "success", "is_error": False, "duration_ms": 1, "num_turns": 1, **more}
    return line(**told)


def read(*lines) -> list:
    reader = s.Reader()
    return [event for each in lines for event in reader.read(each)]


@given(st.lists(st.text(min_size=1), min_size=1), st.booleans())
def test_text_comes_once_however_it_comes(pieces, streamed):
    whole = "".join(pieces)
    lines = [start("m1"), *map(delta, pieces)] if streamed else []
    events = read(*lines, assistant("m1", text(whole)), assistant("m1", use()), result())
    assert "".join(event.text for event in events if isinstance(event, s.Text)) == whole


def test_a_message_that_did_not_come_in_pieces_after_one_that_did():
    events = read(start("m1"), delta("a"), assistant("m1", text("a")), assistant("m2", text("b")))
    assert events == [s.Text("a"), s.Text("b")]


def test_what_a_subagent_thinks_is_its_own_and_what_it_does_is_told():
    events = read(
        start("m9", "toolu_0"),
        delta("psst", "toolu_0"),
        assistant("m9", text("psst"), use("toolu_9"), parent="toolu_0"),
    )
    assert events == [s.ToolStarted("toolu_9", "Bash", {})]


@given(some.json_values)
def test_a_tools_output_is_text_whatever_it_was(content):
    events = read(assistant("m", use()), result_of("toolu_1", content))
    assert isinstance(events[1].output, str)


def test_tool_results():
    begun = assistant("m", use(command="ls"))
    assert read(begun, result_of("toolu_1", "a\nb")) == [
        s.ToolStarted("toolu_1", "Bash", {"command": "ls"}),
        s.ToolEnded("toolu_1", "Bash", "a\nb", False),
    ]
    blocks = [text("a"), {"type": "image", "source": {}}, "b"]
    assert read(begun, result_of("toolu_1", blocks, is_error=True))[1] == s.ToolEnded(
        "toolu_1", "Bash", "a\n[image]", True
    )
    long = read(begun, result_of("toolu_1", "x" * (s.MAX_OUTPUT + 7)))[1].output
    assert long.endswith("[7 more characters]")
    assert read(result_of("toolu_of_nobody", "x")) == []


def test_a_tool_use_that_is_said_twice_is_told_once():
    assert len(read(assistant("m", use()), assistant("m", use()))) == 1


@pytest.mark.parametrize(
    ("told", "outcome", "error"),
    [
        ({}, "done", ""),
        ({"terminal_reason": "completed", "result": "text"}, "done", ""),
        (
            {"subtype": "error_max_turns", "is_error": True, "errors": ["Reached max turns"]},
            "failed",
            "Reached max turns",
        ),
        ({"subtype": "error_during_execution"}, "failed", "error_during_execution"),
        ({"is_error": True, "result": "API Error: 529"}, "failed", "API Error: 529"),
        ({"is_error": True, "errors": [7], "result": ""}, "failed", "it failed"),
        (
            {"subtype": "error_during_execution", "is_error": True, "terminal_reason": "aborted_streaming"},
            "interrupted",
            "",
        ),
    ],
)
def test_how_turns_end(told, outcome, error):
    (event,) = read(result(**told))
    assert (event.outcome, event.error) == (outcome, error)


def test_usage_and_cost():
    usage = {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 4}
    (event,) = read(result(usage={**usage, "service_tier": "standard"}, total_cost_usd=0.0123456))
    assert event.usage == Usage(input_tokens=1, output_tokens=2, cache_read=3, cache_write=4, total=10)
    assert event.cost_usd == 12_346


@given(st.integers(0, 10**10))
def test_dollars_are_rounded_up_to_millionths_and_not_further(micro):
    assert s.micro_usd(micro / 1_000_000) == micro


@pytest.mark.parametrize("cost", [None, -1, "0.1", True, [1], 1e400, float("nan")])
def test_what_is_no_cost_is_not_zero(cost):
    assert s.micro_usd(cost) is None


def asked(**request):
    return line(type="control_request", request_id="r1", request=request)


def test_both_who_ask_are_answered_in_their_own_way():
    told = {"tool_name": "Bash", "tool_input": {"command": "ls"}, "hook_event_name": "PreToolUse", "tool_use_id": "t1"}
    (by_hook,) = read(asked(subtype="hook_callback", callback_id=s.HOOK, input=told, tool_use_id="t1"))
    (by_rule,) = read(asked(subtype="can_use_tool", tool_name="Bash", input={"command": "ls"}, tool_use_id="t1"))
    assert by_hook == s.Asked("r1", "t1", "Bash", {"command": "ls"}, by_hook=True)
    assert by_rule == s.Asked("r1", "t1", "Bash", {"command": "ls"}, by_hook=False)

    def answer(data: bytes):
        value = json.loads(data)
        assert data.endswith(b"\n")
        assert data.count(b"\n") == 1
        assert (value["type"], value["response"]["subtype"]) == ("control_response", "success")
        assert value["response"]["request_id"] == "r1"
        return value["response"]["response"]

    assert answer(s.allowance(by_hook))["hookSpecificOutput"]["permissionDecision"] == "allow"
    refusal = answer(s.refusal(by_hook, "no"))["hookSpecificOutput"]
    assert refusal == {"hookEventName": "PreToolUse", "permissionDecision": "deny", "permissionDecisionReason": "no"}
    assert answer(s.allowance(by_rule)) == {"behavior": "allow", "updatedInput": {"command": "ls"}}
    assert answer(s.refusal(by_rule, "no")) == {"behavior": "deny", "message": "no"}


@pytest.mark.parametrize(
    "request_",
    [
        {"subtype": "mcp_message"},
        {"subtype": "hook_callback", "callback_id": "somebody's", "input": {"tool_name": "Bash", "tool_input": {}}},
        {"subtype": "can_use_tool", "tool_name": "", "input": {}},
        {"subtype": "can_use_tool", "tool_name": "Bash", "input": "ls"},
        {"subtype": "hook_callback", "callback_id": "pylon"},
        {"subtype": "hook_callback", "callback_id": "pylon", "input": {"tool_name": "Bash", "tool_input": "ls"}},
        {},
    ],
)
def test_a_request_that_is_not_understood_is_told_so(request_):
    (event,) = read(asked(**request_))
    assert isinstance(event, s.Unanswerable)
    response = json.loads(s.complaint(event, "no"))["response"]
    if request_.get("callback_id") == "pylon":  # an error there is no objection
        assert response["response"]["hookSpecificOutput"]["permissionDecision"] == "deny"
    else:
        assert response["subtype"] == "error"


@pytest.mark.parametrize("odd", ['"\\ud800"', "[" * 2_000 + "]" * 2_000])
def test_a_request_that_does_not_read_is_no_noise(odd):
    hook = '{"subtype":"hook_callback","callback_id":"pylon","input":{"tool_name":"Bash","tool_input":{"command":%s}}}'
    line_ = '{"type":"control_request","request_id":"r1","request":%s}' % (hook % odd)
    assert read(line_.encode()) == [s.Unreadable()]


def test_what_we_ask_for():
    value = json.loads(s.initialization("i", hook_seconds=300.5))
    (matcher,) = value["request"]["hooks"]["PreToolUse"]
    assert matcher == {"matcher": None, "hookCallbackIds": ["pylon"], "timeout": 301}
    assert json.loads(s.interruption("i"))["request"] == {"subtype": "interrupt"}
    assert json.loads(s.prompt("a\nb"))["message"] == {"role": "user", "content": "a\nb"}


def test_withdrawals_and_answers():
    assert read(line(type="control_cancel_request", request_id="r1")) == [s.Withdrawn("r1")]
    ok = {"subtype": "success", "request_id": "i", "response": {}}
    assert read(line(type="control_response", response=ok)) == [s.Answered("i", "")]
    bad = {"subtype": "error", "request_id": "i", "error": "too old"}
    assert read(line(type="control_response", response=bad)) == [s.Answered("i", "too old")]


@given(
    st.dictionaries(
        st.sampled_from(["type", "event", "message", "request", "response", "request_id", "subtype", "total_cost_usd"]),
        st.one_of(
            some.json_values,
            st.sampled_from(["assistant", "user", "result", "stream_event", "control_request", "control_response"]),
            st.fixed_dictionaries({"content": some.json_values, "id": some.json_values, "type": some.json_values}),
            st.fixed_dictionaries(
                {"content": st.lists(st.just({"type": "tool_use", "id": 1, "name": {}, "input": []}))}
            ),
        ),
    )
)
def test_anything_is_read(message):
    read(json.dumps(message).encode())


@given(st.binary())
def test_noise_is_read(data):
    s.Reader().read(data)
    s.Reader().read(b"{" + data)


def test_what_means_nothing_is_counted():
    reader = s.Reader()
    for each in (b"", b"[SandboxDebug] x", b"{", b'{"type":"keep_alive"}', delta("x")):
        reader.read(each)
    assert reader.ignored == 3
