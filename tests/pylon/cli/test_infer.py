"""``pylon infer``: what is asked of the daemon, what is said, and the answer of one's own backend without it."""

from __future__ import annotations

import functools
import io
import json
import sys

import pytest

from pylon.daemon import answering
from pylon.errors import InferenceError
from pylon.testing.backend import Reply, ScriptedBackend

DONE = {
    "text": "so it is", "model": "m", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 3, "job": None,
    "price_msats": None, "paid_msats": None, "fee_msats": None,
}  # fmt: skip
ASKED = {
    "prompt": "why?", "system": None, "model": None, "max_tokens": 256, "temperature": None, "market": False,
    "bid_msats": 100_000, "whole": False,
}  # fmt: skip


def words(*texts):
    return [{"method": "words", "params": {"text": text}} for text in texts]


@pytest.fixture
def backend(monkeypatch):
    """A scripted backend instead of the embedded engine."""

    def backend(script):
        made = ScriptedBackend(script)
        monkeypatch.setattr(answering, "open_local", functools.partial(answering.open_local, backend=made))
        return made

    return backend


@pytest.fixture
def type_in(monkeypatch):
    def type_in(raw: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))

    return type_in


def test_words_come_as_they_are_said(pylon, daemon):
    with daemon(*words("so ", "it is"), {"result": DONE}) as asked:
        assert pylon("infer", "why?") == (0, "so it is\n", "")
    assert (asked[0]["method"], asked[0]["params"]) == ("infer", ASKED)


def test_the_answer_in_one_piece(pylon, daemon):
    with daemon(*words("so ", "it is"), {"result": DONE}) as asked:
        assert pylon("infer", "why?", "--no-stream") == (0, "so it is\n", "")
    assert asked[0]["params"] == {**ASKED, "whole": True}
    with daemon(*words("so ", "it is"), {"result": DONE}):
        code, out, err = pylon("infer", "why?", "--json")
    assert (code, json.loads(out), err) == (0, DONE, "")


def test_what_is_asked(pylon, daemon):
    options = ["--system", "be brief", "--model", "m", "--max-tokens", "9", "--temperature", "0.5"]
    with daemon({"result": {**DONE, "finish_reason": "length"}}) as asked:
        code, _, err = pylon("infer", "why?", *options)
    assert code == 0
    assert asked[0]["params"] == {**ASKED, "system": "be brief", "model": "m", "max_tokens": 9, "temperature": 0.5}
    assert "cut at 9 tokens" in err


def test_what_else_is_asked(pylon, daemon, type_in):
    with daemon({"result": DONE}) as asked:
        options = ["--top-p", "0.5", "--seed", "7", "--stop", "x", "--stop", "y"]
        assert pylon("infer", "--prompt", "why?", *options)[0] == 0
    assert asked[0]["params"] == {**ASKED, "top_p": 0.5, "seed": 7, "stop": ["x", "y"]}
    type_in(b"why, from stdin?")
    with daemon({"result": DONE}) as asked:
        assert pylon("infer", "--prompt", "-")[0] == 0
    assert asked[0]["params"]["prompt"] == "why, from stdin?"


def test_what_was_bought_says_what_it_has_cost(pylon, daemon):
    paid = {**DONE, "job": "ab" * 16, "paid_msats": 5_000, "fee_msats": 0}
    with daemon(*words("so it is"), {"result": paid}) as asked:
        code, out, err = pylon("infer", "why?", "--market", "--bid", "25")
    assert (code, out) == (0, "so it is\n")
    assert asked[0]["params"] == {**ASKED, "market": True, "bid_msats": 25_000}
    assert "5 sat" in err
    assert "abababababababab" in err


def test_what_is_paid_later_says_so(pylon, daemon):
    cut = {**DONE, "job": "ab" * 16, "price_msats": 5_000}
    with daemon(*words("so it is"), {"result": cut}):
        _, _, err = pylon("infer", "why?", "--market", "--stop", "not")
    assert "5 sat are paid once the answer is whole: pylon job status abababababababab" in err


@pytest.mark.parametrize("arguments", [["-"], []])
def test_a_prompt_from_stdin(pylon, daemon, type_in, arguments):
    type_in("why, ö?\nand how?\n".encode())
    with daemon({"result": DONE}) as asked:
        assert pylon("infer", *arguments)[0] == 0
    assert asked[0]["params"]["prompt"] == "why, ö?\nand how?"


def test_no_prompt_at_a_terminal(pylon, terminal):
    terminal("why?")
    code, _, err = pylon("infer")
    assert code == 2
    assert "no prompt" in err


def test_words_cannot_command_the_terminal(pylon, daemon):
    with daemon(*words("a\x1b]0;b"), {"result": DONE}):
        assert pylon("infer", "why?")[1] == "a\ufffd]0;b\n"


def test_a_daemon_that_goes_leaves_the_job(pylon, daemon):
    with daemon({"method": "job", "params": {"id": "ab" * 16}}, *words("so "), None):
        code, out, err = pylon("infer", "why?", "--market")
    assert (code, out) == (1, "so ")
    assert "job abababababababab goes on" in err


def test_errors_are_the_daemons(pylon, daemon):
    error = {"code": -32000, "message": "no", "data": {"code": "wallet", "message": "no", "hint": "", "exit_code": 4}}
    with daemon({"error": error}):
        code, out, err = pylon("infer", "why?", "--market")
    assert (code, out) == (4, "")
    assert "error: no" in err


@pytest.mark.parametrize("stop", ["nobody", "b", "zzz", "knows all"])
def test_stop_cuts_whatever_the_backend_does(pylon, backend, stop):
    whole = "so it is, but nobody knows"
    backend(whole)
    code, out, _ = pylon("infer", "why?", "--stop", stop, "--json")
    assert code == 0
    assert json.loads(out)["text"] == whole.partition(stop)[0]
    assert json.loads(out)["finish_reason"] == "stop"
    assert pylon("infer", "why?", "--stop", stop)[1] == whole.partition(stop)[0] + "\n"


def test_without_a_daemon_ones_own_backend_answers(pylon, backend, home):
    """No identity is wanted for it, and none is made."""
    made = backend("so it is")
    assert pylon("infer", "why?", "--system", "be brief") == (0, "so it is\n", "")
    code, out, _ = pylon("infer", "why?", "--json")
    assert code == 0
    assert json.loads(out)["text"] == "so it is"
    assert [message.role for message in made.requests[0].messages] == ["system", "user"]
    assert not home.mnemonic.exists()


def test_a_backend_that_fails(pylon, backend):
    backend(Reply("so it is", error=InferenceError("it broke"), fail_after=1))
    code, out, err = pylon("infer", "why?")
    assert (code, out) == (1, "so")
    assert "it broke" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["  "],
        ["why?", "--max-tokens", "0"],
        ["why?", "--temperature", "3"],
        ["a", "--prompt", "b"],
        ["a", "--top-p", "0"],
    ],
)
def test_what_makes_no_sense(pylon, backend, arguments):
    backend("x")
    assert pylon("infer", *arguments)[0] == 2


def test_who_buys_has_an_identity(pylon):
    code, _, err = pylon("infer", "why?", "--market")
    assert code == 1
    assert "no identity" in err
