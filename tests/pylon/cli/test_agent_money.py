"""``pylon agent fund`` and ``withdraw``."""

from __future__ import annotations

import json

import pytest

from protocols import bolt11
from pylon.cli import agent_money as module
from tests.pylon.cli.agent_json import NOW, agent, refusal

BOLT11 = bolt11.encode(
    prefix="sb", amount_msats=250_000_000, timestamp=1_800_000_000, payment_hash="aa" * 32, payment_secret="bb" * 32,
    node_secret=b"\x01" * 32, description="home",
)  # fmt: skip
FUNDED = {"funded_msats": 10_000_000, "fee_msats": 0, "source": "faucet", "agent": agent()}
INVOICE = {"bolt11": "lnsb1invoice", "payment_hash": "aa" * 32, "amount_msats": 5_000, "expires_at": NOW + 3_630}
WITHDRAWN = {
    "withdrawn_msats": 880_000, "fee_msats": 9_000, "left_msats": 1_000,
    "agent": agent(state="hibernating", balance_msats=1_000),
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "amount", "source"),
    [
        ((), 10_000_000, "faucet"), (("5",), 5_000, "faucet"), (("1500msat",), 1_500, "faucet"),
        (("5", "--from-wallet"), 5_000, "wallet"), (("--from-wallet", "2,000"), 2_000_000, "wallet"),
    ],
)  # fmt: skip
def test_fund(asked_once, arguments, amount, source):
    call, _, _ = asked_once("fund", "alice", *arguments, **FUNDED)
    assert call == ("agent.fund", {"agent": "alice", "amount_msats": amount, "source": source})


def test_what_funding_says(asked_once):
    _, out, err = asked_once("fund", "alice", **FUNDED)
    assert (out.splitlines(), err) == (
        [
            "funded with 10,000 sat", "network: simnet (simnet sats are not money)",
            "alice is active: 12,345 sat, runway 12 days, next tick in 12m.",
        ],
        "",
    )  # fmt: skip
    paid = {**FUNDED, "source": "wallet", "fee_msats": 2_000, "agent": agent(network="regtest")}
    _, out, _ = asked_once("fund", "alice", "10000", "--from-wallet", **paid)
    assert out.splitlines()[0] == "funded with 10,000 sat from the home's wallet, 2 sat fee"
    assert "not money" not in out
    _, out, err = asked_once("fund", "alice", "--json", **FUNDED)
    assert (json.loads(out), err) == (FUNDED, "")


def test_an_invoice_is_all_that_stdout_gets(asked_once):
    call, out, err = asked_once("fund", "alice", "5", "--invoice", **INVOICE)
    assert call == ("agent.invoice", {"agent": "alice", "amount_msats": 5_000})
    assert (out, err) == ("lnsb1invoice\n", "an invoice for 5 sat; it expires in 1h\n")
    _, out, err = asked_once("fund", "alice", "5", "--invoice", "--json", **INVOICE)
    assert (json.loads(out), err) == (INVOICE, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("fund",), ("fund", "alice", "0"), ("fund", "alice", "1.5"), ("fund", "alice", "--from-wallet"),
        ("fund", "alice", "--invoice"), ("fund", "alice", "5", "--invoice", "--from-wallet"),
        ("fund", "alice", "5", "6"),
        ("withdraw",), ("withdraw", "alice"), ("withdraw", "alice", "5", "--all"), ("withdraw", "alice", "0"),
        ("withdraw", "alice", "all"), ("withdraw", "alice", "--to", "lnsb1x", "--all"),
    ],
)  # fmt: skip
def test_usage(pylon, daemon, arguments):
    with daemon({"result": FUNDED}) as asked:
        code, out, err = pylon("--json", "agent", *arguments)
    assert (code, out, asked) == (2, "", [])
    error = json.loads(err)["error"]
    assert error["code"] == "usage"
    assert error["hint"]


@pytest.mark.parametrize(
    ("arguments", "params"),
    [
        (("--all",), {"amount_msats": None}),
        (("880",), {"amount_msats": 880_000}),
        (("880", "--to", "lnsb1x"), {"amount_msats": 880_000, "to": "lnsb1x"}),
        (("--to", "lnsb1x"), {"amount_msats": None, "to": "lnsb1x"}),
    ],
)
def test_withdraw(asked_once, arguments, params):
    call, out, err = asked_once("withdraw", "alice", *arguments, **WITHDRAWN)
    assert call == ("agent.withdraw", {"agent": "alice", **params})
    where = "paid that invoice" if "to" in params else "went to the wallet of this home"
    assert out.splitlines() == [
        f"880 sat {where}, 9 sat fee; 1 sat left",
        "alice is hibernating, with 1 sat: it wakes on funds (pylon agent fund alice).",
    ]
    assert err == "", "nobody is asked where there is no terminal"
    _, out, err = asked_once("withdraw", "alice", "--json", *arguments, **WITHDRAWN)
    assert (json.loads(out), err) == (WITHDRAWN, "")


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        (("--all",), "Send all that it has from alice to the wallet of this home? [y/N]"),
        (("5",), "Send 5 sat from alice to the wallet of this home? [y/N]"),
        (("--to", "lnsb1x"), "Pay this invoice, of an amount that cannot be read, from the wallet of alice? [y/N]"),
        (("--to", BOLT11), "Pay this invoice, of 250,000 sat, from the wallet of alice? [y/N]"),
    ],
)
def test_a_terminal_is_asked(pylon, daemon, terminal, arguments, question):
    for answer, code, calls in (("n", 1, 0), ("", 1, 0), ("y", 0, 1)):
        terminal(answer)
        with daemon({"result": WITHDRAWN}) as asked:
            got, out, err = pylon("agent", "withdraw", "alice", *arguments)
        assert (got, len(asked)) == (code, calls)
        assert question in err
        assert question not in out
        assert ("nothing was withdrawn" in err) is (code == 1)
    terminal()
    with daemon({"result": WITHDRAWN}) as asked:
        assert pylon("agent", "withdraw", "alice", "-y", *arguments)[0] == 0
    assert len(asked) == 1


@pytest.mark.parametrize("arguments", [("fund", "alice", "5", "--from-wallet"), ("withdraw", "alice", "--all")])
def test_money_refused_exits_with_4(pylon, daemon, arguments):
    with daemon(refusal("insufficient_funds", "needs 7 sat, 5 sat are available", "pylon wallet fund", 4)):
        code, out, err = pylon("agent", *arguments)
    assert (code, out) == (4, "")
    assert "needs 7 sat" in err
    assert "may still settle" not in err


@pytest.mark.parametrize("arguments", [("fund", "alice", "5", "--from-wallet"), ("withdraw", "alice", "--all")])
def test_a_payment_that_was_not_answered_may_still_settle(pylon, daemon, monkeypatch, arguments):
    with daemon(None):
        code, out, err = pylon("agent", *arguments)
    assert (code, out) == (1, "")
    assert "the payment may still settle; before you try again: pylon agent info alice" in err

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_verb", interrupted)
    code, _, err = pylon("agent", *arguments)
    assert code == 130
    assert "may still settle" in err
