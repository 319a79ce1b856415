"""``pylon job``: what is asked of the daemon, what is said, and with which exit code."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from pylon.cli import job as module
from pylon.cli.main import run
from pylon.compute.purchase import PURCHASE, PurchaseState

ID = "0123456789abcdef" * 2
DONE = {
    "id": ID, "state": "answered", "request": "aa" * 32, "provider": "bb" * 32, "model": None, "max_tokens": 16,
    "bid_msats": 100_000, "invoice_msats": 10_000, "paid_msats": 10_000, "fee_msats": 50, "payment_hash": "cc" * 32,
    "credit_msats": 0, "result": "dd" * 32, "prompt": "why?", "text": "because", "reason": "", "tried": [],
    "created_at": 1_800_000_000.0, "history": [],
}  # fmt: skip


def step(state, **changes):
    return {"method": "job", "params": {**DONE, "state": state, "text": None, **changes}}


def ended(state, reason="", *inputs):
    history = [{"at": 1.0, "from_state": "x", "input": name, "to_state": "y"} for name in inputs]
    return {"result": {**DONE, "state": state, "reason": reason, "text": None, "history": history}}


@pytest.fixture
def type_in(monkeypatch):
    def type_in(raw: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))

    return type_in


def test_without_waiting_the_id_is_all(pylon, daemon):
    with daemon({"result": {**DONE, "state": "seeking"}}) as asked:
        code, out, err = pylon("job", "submit", "why?", "--bid", "25", "--max-tokens", "16", "--model", "m")
    assert (code, out, err) == (0, f"{ID}\n", "")
    assert asked[0]["method"] == "job.submit"
    assert asked[0]["params"] == {
        "prompt": "why?", "model": "m", "max_tokens": 16, "bid_msats": 25_000, "provider": None, "wait": False
    }  # fmt: skip


def test_what_else_a_request_asks_for(pylon, daemon):
    with daemon({"result": {**DONE, "state": "seeking"}}) as asked:
        arguments = ["--param", "temperature=0.5", "--param", "note=a=b", "--param", "empty="]
        assert pylon("job", "submit", "why?", "--no-wait", *arguments)[0] == 0
    assert asked[0]["params"]["params"] == [["temperature", "0.5"], ["note", "a=b"], ["empty", ""]]
    assert asked[0]["params"]["wait"] is False


def test_waiting_has_an_end(pylon, daemon):
    """The job has not: it is said where it goes on."""
    with daemon(step("seeking"), step("paid"), {"result": {**DONE, "state": "paid", "text": None}}) as asked:
        code, out, err = pylon("job", "submit", "why?", "--timeout", "90s")
    assert (asked[0]["params"]["wait"], asked[0]["params"]["wait_seconds"]) == (True, 90)
    assert (code, out) == (1, "")
    assert f"job {ID[:16]} is paid after 90 s: there is no answer yet" in err
    assert f"it goes on in the daemon; pylon job results {ID[:16]}" in err


def test_nobody_would_see_to_it(simnet, home):
    code, out, err = simnet("job", "submit", "why?", "--no-wait", "--json")
    assert (code, out) == (3, "")
    assert json.loads(err)["error"]["code"] == "not_running"


def test_the_states_are_all_of_them():
    assert set(module.STATES) == {state.value for state in PurchaseState} - {"new"}
    assert set(module.ENDS) == {state.value for state in PURCHASE.final}


def test_waiting_tells_each_step_on_stderr_and_the_answer_on_stdout(pylon, daemon):
    lines = [
        step("seeking"), step("requested"), step("paying"), step("paid"),
        {"method": "partial", "params": {"id": ID, "text": "bec"}}, step("answered"), {"result": DONE},
    ]  # fmt: skip
    with daemon(*lines) as asked:
        code, out, err = pylon("job", "submit", "why?", "--wait")
    assert asked[0]["params"]["wait"] is True
    assert (code, out) == (0, "because\n")
    assert err.splitlines() == [
        "looking for a provider",
        f"requested {'aa' * 8} from {'bb' * 8}",
        "quoted 10 sat, paying",
        "paid 10 sat + 0.05 sat fee; waiting for the answer",
    ]


def test_json_is_one_value_and_silence(pylon, daemon):
    with daemon(step("seeking"), step("answered"), {"result": DONE}):
        code, out, err = pylon("--json", "job", "submit", "why?", "--wait")
    assert (code, json.loads(out), err) == (0, DONE, "")


def test_on_a_terminal_words_are_shown_as_they_come(pylon, daemon, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    texts = ("be", "beca", "beca", "b")
    lines = [{"method": "partial", "params": {"id": ID, "text": text}} for text in texts]
    with daemon(step("paid"), *lines, {"result": DONE}):
        _, out, _ = pylon("job", "submit", "why?", "--wait")
    assert out == "because\n"


def test_words_that_the_answer_did_not_keep_stand_above_it(capsys):
    words = module.Words()
    words.show("another")
    words.finish("because")
    assert capsys.readouterr().out == "another\nbecause\n"


def test_what_a_provider_writes_commands_no_terminal(pylon, daemon):
    evil = "\x1b]0;title\x07 \x1b[2J \x9b1m \x7f fine\n\tline"
    with daemon(step("seeking", reason=evil), {"result": {**DONE, "text": evil}}):
        _, out, err = pylon("job", "submit", "why?", "--wait")
    assert not {"\x1b", "\x07", "\x9b", "\x7f"} & set(out + err)
    assert "fine\n\tline" in out
    with daemon(step("seeking"), ended("failed", evil)):
        _, _, err = pylon("job", "submit", "why?", "--wait")
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("result", "code", "name", "hint"),
    [
        (ended("failed", "the cheapest asks 25 sat, the bid is 5 sat"), 1, "market", "--bid"),
        (ended("failed", "needs 1 sat, 0 sat are available", "PaymentRefused"), 4, "wallet", "pylon wallet fund"),
        (ended("failed", "the route broke", "PaymentFailed"), 1, "market", "pylon --home DIR start -m provider"),
        (ended("lost"), 1, "market", f"pylon job status {ID[:16]}"),
        (ended("credited", "engine died"), 1, "market", "owes it"),
    ],
)
def test_a_job_that_ended_without_an_answer(pylon, daemon, result, code, name, hint):
    with daemon(result):
        got, out, err = pylon("job", "submit", "why?", "--wait", "--json")
    error = json.loads(err)["error"]
    assert (got, out, error["code"]) == (code, "", name)
    assert ID[:16] in error["message"]
    assert (result["result"]["reason"] or "no reason given") in error["message"]
    assert hint in error["hint"]


def test_a_refusal_of_the_daemon_keeps_its_class(pylon, daemon):
    data = {"code": "usage", "message": "the prompt is empty", "hint": "ask", "exit_code": 2}
    with daemon({"error": {"code": -32000, "message": "x", "data": data}}):
        assert pylon("job", "submit", "x")[0] == 2


def test_a_daemon_that_dies_while_we_wait(pylon, daemon):
    with daemon(step("seeking"), None):
        code, out, err = pylon("job", "submit", "why?", "--wait")
    assert (code, out) == (1, "")
    assert "hung up" in err
    assert f"job {ID[:16]} goes on when a daemon runs here again: pylon start" in err


def test_an_interrupt_says_that_the_job_goes_on(pylon, daemon, monkeypatch):
    def interrupted(*arguments, on_progress, **options):
        on_progress("job", DONE)
        raise BaseExceptionGroup("nursery", [KeyboardInterrupt()])

    monkeypatch.setattr(module, "run_verb", interrupted)
    with daemon({"result": {}}):
        code, _, err = pylon("job", "submit", "why?", "--wait")
    assert code == 130
    assert f"goes on in the daemon: pylon job status {ID[:16]}" in err
    assert "interrupted" in err
    code, _, err = pylon("job", "submit", "why?")
    assert (code, "pylon start" in err) == (130, True)


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_prompt_from_stdin(pylon, daemon, type_in):
    type_in("why äöü?\n".encode())
    with daemon({"result": DONE}) as asked:
        assert pylon("job", "submit", "-")[0] == 0
    assert asked[0]["params"]["prompt"] == "why äöü?\n"


def test_a_prompt_that_is_piped(pylon, daemon, type_in, terminal):
    type_in(b"why?")
    with daemon({"result": DONE}) as asked:
        assert pylon("job", "submit")[0] == 0
    assert asked[0]["params"]["prompt"] == "why?"
    terminal()
    code, _, err = pylon("job", "submit")
    assert code == 2
    assert "there is no prompt" in err


@pytest.mark.parametrize(
    ("typed", "words"),
    [(b"", "empty"), (b" \n\t", "empty"), (b"a" * 32_001, "32,001 characters"), (b"a" * (2 << 20), "characters")],
)
def test_a_prompt_that_cannot_be(pylon, daemon, type_in, typed, words):
    """Said before anybody is asked: a line to the daemon has an end."""
    type_in(typed)
    with daemon({"result": DONE}) as asked:
        code, out, err = pylon("job", "submit", "-")
    assert (code, out, asked) == (2, "", [])
    assert words in err
    assert "hint: " in err


def test_a_prompt_of_stray_bytes_is_a_usage_error(simnet, type_in, home):
    home.config.write_text('network = "simnet"\n[relay]\nbind = "127.0.0.1:0"\n')
    type_in(b"caf\xe9")
    code, out, err = simnet("job", "submit", "-", "--json")
    assert (code, out) == (2, "")
    assert json.loads(err)["error"]["code"] == "usage"


@pytest.mark.parametrize(
    "arguments",
    [
        ("job", "submit", "x", "--param", "hot"), ("job", "submit", "x", "--param", "=1"),
        ("job", "submit", "x", "--timeout", "soon"), ("job", "submit", "x", "--no-wait", "--timeout", "5"),
        ("job", "list", "--state", "merry"), ("job", "list", "--since", "2999-01-01"),
        ("job", "results", "ab", "--timeout"),
        ("job", "submit", "x", "--bid", "0"), ("job", "submit", "x", "--bid", "-5"),
        ("job", "submit", "x", "--bid", "1.5"), ("job", "submit", "x", "--max-tokens", "0"),
        ("job", "submit", "x", "--max-tokens", "many"), ("job", "submit", "two", "words"), ("job", "list", "-l", "0"),
        ("job", "status"), ("job", "nonsense"), ("job",), ("wallet",), ("models",),
    ],
)  # fmt: skip
def test_usage(pylon, arguments):
    code, out, err = pylon("--json", *arguments)
    assert (code, out) == (2, "")
    error = json.loads(err)["error"]
    assert error["code"] == "usage"
    assert error["hint"].startswith("see pylon ")


# --- without a daemon -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [("job", "submit", "x"), ("job", "list"), ("wallet", "balance"), ("earnings",), ("books",), ("start",)]
)
def test_a_home_that_is_none_is_left_alone(pylon, home, arguments):
    code, out, err = pylon("--json", *arguments)
    assert (code, out) == (1, "")
    error = json.loads(err)["error"]
    assert error["code"] == "identity"
    assert error["hint"] == "pylon init --network simnet"
    assert not home.root.exists()


@pytest.mark.parametrize("where", ["file", "file/below"])
@pytest.mark.parametrize("arguments", [("status",), ("init",), ("wallet", "balance")])
def test_a_file_is_no_home(tmp_path, capsys, where, arguments):
    (tmp_path / "file").touch()
    assert run(["--json", "--home", str(tmp_path / where), *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    error = json.loads(err)["error"]
    assert error["code"] == "config"
    assert str(tmp_path / where) in error["message"]


def test_home_after_the_command_is_explained(pylon):
    code, _, err = pylon("status", "--home", "x")
    assert code == 2
    assert "pylon --home DIR status" in err


def test_buying_on_another_network_wants_somebody_who_sells(pylon, home):
    pylon("init")
    home.config.write_text('network = "testnet"\nrelays = []\n[relay]\nbind = "127.0.0.1:0"\n')
    code, _, err = pylon("job", "submit", "x")
    assert code == 1
    assert "no provider" in err
    assert "hint: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize("provider", ["nonsense", "npub1xyz", "00" * 31])
def test_a_provider_that_is_no_key(simnet, home, provider):
    """Found out within the nursery of a runtime of its own: told as itself."""
    home.config.write_text('network = "simnet"\n[relay]\nbind = "127.0.0.1:0"\n')
    code, _, err = simnet("job", "submit", "x", "--provider", provider)
    assert code == 2
    assert f"error: {provider!r} is no public key" in err


def test_list(simnet, daemon):
    assert simnet("job", "list")[:2] == (0, "no jobs yet\n")
    assert json.loads(simnet("job", "list", "--json")[1]) == []
    failed = {**DONE, "id": "ff" * 16, "state": "failed", "text": None, "paid_msats": 0, "fee_msats": 0, "reason": "no"}
    with daemon({"result": [DONE, failed]}) as asked:
        code, out, _ = simnet("job", "list", "-l", "7")
    assert (code, asked[0]["params"]) == (0, {"limit": 7})
    first, second = out.splitlines()
    assert first.split()[0] == ID[:16]
    assert first.endswith("answered      10.05 sat  because")
    assert second.endswith("no")


def test_a_list_of_some(simnet, daemon):
    with daemon({"result": [DONE]}) as asked:
        arguments = [
            "--state",
            "lost",
            "--state",
            "failed",
            "--since",
            "2026-01-01",
            "--provider",
            "bb" * 32,
            "--agents",
        ]
        assert simnet("job", "list", *arguments)[0] == 0
    assert asked[0]["params"] == {
        "limit": 20, "states": ["lost", "failed"], "since": 1_767_225_600.0, "provider": "bb" * 32, "agents": True
    }  # fmt: skip
    assert simnet("job", "list", "--state", "lost")[:2] == (0, "no jobs like that\n")
    assert simnet("job", "list", "--provider", "nobody")[0] == 2


def test_status(simnet, daemon):
    history = [{"at": 1.0, "from_state": "new", "input": "Begun", "to_state": "seeking"}]
    with daemon({"result": {**DONE, "history": history}}):
        _, out, _ = simnet("job", "status", ID[:8])
    for text in (
        f"job:      {ID}",
        "answered",
        "10 sat of a bid of 100 sat",
        "10 sat + 0.05 sat fee",
        "new -> seeking",
    ):
        assert text in out
    assert out.endswith("\n\nbecause\n")
    nothing = {
        **DONE,
        "provider": None,
        "request": None,
        "result": None,
        "text": None,
        "state": "failed",
        "reason": "n",
    }
    with daemon({"result": nothing}):
        _, out, _ = simnet("job", "status", ID[:8])
    assert "None" not in out


@pytest.mark.parametrize(("ident", "code"), [("zzzz", 2), ("abc", 2), ("", 2), ("abcd%", 2), ("abcd", 1)])
def test_status_of_a_job_that_is_none(simnet, ident, code):
    got, out, err = simnet("job", "status", ident)
    assert (got, out) == (code, "")
    assert "hint: " in err


# --- start ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--config", "--model-file"])
def test_start_with_a_file_that_is_not_there(simnet, tmp_path, option):
    code, _, err = simnet("start", option, str(tmp_path / "nope"))
    assert code == 1
    assert str(tmp_path / "nope") in err
    assert "hint: " in err


def test_a_home_on_another_network_is_told_what_works(pylon, home):
    _, out, _ = pylon("init")
    assert "pylon --home DIR init --network simnet" in out
    assert "wants the internet" in out
    assert Path(home.config).exists()


# --- results and cancel -----------------------------------------------------------------------------------------------


def test_results_are_the_text_alone(pylon, daemon):
    with daemon({"result": {**DONE, "text": "because\nof it"}}) as asked:
        code, out, err = pylon("job", "results", ID[:8])
    assert (code, out, err) == (0, "because\nof it\n", "")
    assert (asked[0]["method"], asked[0]["params"]) == ("job.status", {"id": ID[:8]})
    with daemon({"result": DONE}):
        assert json.loads(pylon("job", "results", ID, "--json")[1]) == DONE


def test_results_are_waited_for(pylon, daemon, simnet):
    with daemon({"result": DONE}) as asked:
        assert pylon("job", "results", ID, "--timeout", "5m")[:2] == (0, "because\n")
    assert asked[0]["params"] == {"id": ID, "wait_seconds": 300}
    assert simnet("job", "results", "abcd", "--timeout", "5m")[0] == 1, "where nothing would change it is not waited"


@pytest.mark.parametrize(
    ("result", "code", "words"),
    [
        (ended("paying"), 1, "there is no answer yet"),
        ({"result": {**DONE, "state": "paying"}}, 1, "there is no answer yet"),
        (ended("failed", "nobody sells"), 1, "nobody sells"),
        (ended("failed", "no sats", "PaymentRefused"), 4, "no sats"),
        (ended("lost"), 1, "lost"),
    ],
)
def test_results_that_are_not_there(pylon, daemon, result, code, words):
    with daemon(result):
        got, out, err = pylon("job", "results", ID)
    assert (got, out) == (code, "")
    assert words in err


def test_cancel(pylon, daemon):
    with daemon({"result": {**DONE, "state": "failed", "reason": "cancelled by its owner"}}) as asked:
        code, out, _ = pylon("job", "cancel", ID[:8])
    assert (code, out) == (0, f"job {ID[:16]} failed: cancelled by its owner\n")
    assert (asked[0]["method"], asked[0]["params"]) == ("job.cancel", {"id": ID[:8], "wait": False})


def test_cancel_of_what_is_paid(pylon, daemon):
    data = {"code": "already_paid", "message": "job x was paid", "hint": "", "exit_code": 4}
    with daemon({"error": {"code": -32000, "message": "x", "data": data}}):
        code, out, err = pylon("job", "cancel", ID)
    assert (code, out) == (4, "")
    assert "was paid" in err


@pytest.mark.parametrize("verb", ["results", "cancel"])
def test_without_a_daemon_an_unknown_job_is_said(simnet, home, verb):
    home.config.write_text('network = "simnet"\n[relay]\nbind = "127.0.0.1:0"\n')
    code, out, err = simnet("job", verb, "abcd")
    assert (code, out) == (1, "")
    assert "no job has an id" in err
