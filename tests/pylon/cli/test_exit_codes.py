"""Exit codes over all commands: 0, 1 error, 2 usage, 3 not running, 4 money refused.

One row a command: what it is called with, and its code in an empty home, and in a home on simnet whose daemon does not
run. The agent ``alice`` is there, and ``bob`` is not. ``None``: it would go on for long, and is not run here.
"""

from __future__ import annotations

import io
import json
import sys

import click
import pytest

from pylon import errors
from pylon.cli.main import cli
from pylon.config_backends import DEFAULT_URLS
from pylon.errors import PylonError
from tests.pylon.cli.agent_json import NPUB

DONE, ERROR, USAGE, NOT_RUNNING, REFUSED = range(5)

TABLE = {
    "init": ("", None, DONE),  # it says what is there
    "identity show": ("", ERROR, DONE),
    "identity reveal": ("", ERROR, DONE),
    "identity export": ("", USAGE, USAGE),  # export what?
    "identity passphrase": ("", ERROR, ERROR),  # there is no terminal to ask at
    "identity backup": ("{tmp}/identity", ERROR, ERROR),
    "backup": ("{tmp}/copy", ERROR, DONE),
    "restore": ("{tmp}/none", USAGE, USAGE),
    "identity restore": ("{tmp}/none", USAGE, USAGE),
    "connect serve": ("--bind nowhere", USAGE, USAGE),
    "connect sessions": ("", ERROR, DONE),
    "config check": ("", DONE, DONE),
    "config get": ("network", DONE, DONE),
    "config path": ("", DONE, DONE),
    "config reload": ("", NOT_RUNNING, NOT_RUNNING),
    "config set": ("log.level info", DONE, DONE),
    "config show": ("", DONE, DONE),
    "config unset": ("log.level", DONE, DONE),
    "relay add": ("wss://r.example", DONE, DONE),
    "relay check": ("ws://127.0.0.1:1", ERROR, ERROR),
    "relay list": ("", DONE, DONE),
    "relay remove": ("wss://none.example", ERROR, ERROR),
    "doctor": ("", None, None),
    "start": ("", ERROR, None),
    "stop": ("", NOT_RUNNING, NOT_RUNNING),
    "status": ("", NOT_RUNNING, NOT_RUNNING),
    "events": ("", NOT_RUNNING, NOT_RUNNING),
    "logs": ("", ERROR, ERROR),
    "service install": ("", None, None),
    "service status": ("", None, None),
    "service uninstall": ("", None, None),
    "agent list": ("", ERROR, DONE),
    "agent info": ("bob", ERROR, ERROR),
    "agent spawn": ("carol", ERROR, DONE),
    "agent set": ("alice --about bread", ERROR, DONE),
    "agent start": ("alice", ERROR, DONE),
    "agent stop": ("alice", ERROR, DONE),
    "agent pause": ("alice", ERROR, DONE),
    "agent resume": ("alice", ERROR, DONE),
    "agent tick": ("bob", ERROR, None),
    "agent ticks": ("alice", ERROR, DONE),
    "agent fund": ("alice 5 --from-wallet", ERROR, REFUSED),
    "agent withdraw": ("alice 5 -y", ERROR, REFUSED),
    "agent goals add": ("alice rest", ERROR, DONE),
    "agent goals list": ("alice", ERROR, DONE),
    "agent goals set": ("alice no-such-goal --status paused", ERROR, ERROR),
    "agent memory add": ("alice x", ERROR, DONE),
    "agent memory forget": ("alice no-such-memory", ERROR, ERROR),
    "agent memory list": ("alice", ERROR, DONE),
    "agent approvals": ("", ERROR, DONE),
    "agent approve": ("nothing:1", ERROR, ERROR),
    "agent deny": ("nothing:1", ERROR, ERROR),
    "agent grant": ("alice zap", USAGE, USAGE),  # how many sats?
    "agent revoke": ("alice post", ERROR, ERROR),
    "agent reveal": ("alice -y", ERROR, DONE),
    "agent export": ("alice", USAGE, USAGE),  # the phrase, or a bundle?
    "agent import": ("--bundle {tmp}/none", USAGE, USAGE),
    "agent delete": ("bob -f", ERROR, ERROR),
    "infer": ("why?", ERROR, ERROR),  # no backend, no model
    "api": ("", None, None),
    "job submit": ("why? --provider nobody", None, None),
    "job cancel": ("abcdef12", ERROR, ERROR),
    "job list": ("", ERROR, DONE),
    "job results": ("abcdef12", ERROR, ERROR),
    "job status": ("abcdef12", ERROR, ERROR),
    "trace": ("abcdef12", ERROR, ERROR),
    "compute": ("", DONE, DONE),
    "wallet address": ("", ERROR, DONE),
    "wallet approvals": ("", ERROR, DONE),
    "wallet approve": ("abcdef12", ERROR, ERROR),
    "wallet deny": ("abcdef12", ERROR, ERROR),
    "wallet balance": ("", ERROR, DONE),
    "wallet status": ("", ERROR, DONE),
    "wallet history": ("", ERROR, DONE),
    "wallet invoice": ("5", ERROR, DONE),
    "wallet pay": ("{invoice}", ERROR, REFUSED),
    "wallet fund": ("0.5", USAGE, USAGE),
    "wallet freeze": ("", ERROR, DONE),
    "wallet thaw": ("", ERROR, DONE),
    "wallet connect": ("app --budget-day 10", ERROR, DONE),
    "wallet connections": ("", ERROR, DONE),
    "wallet disconnect": ("nobody", ERROR, ERROR),
    "provider status": ("", ERROR, DONE),
    "provider jobs": ("", ERROR, DONE),
    "provider credits": ("", ERROR, DONE),
    "provider payout": (f"{NPUB} {{invoice}}", ERROR, None),
    "provider trust": (NPUB, ERROR, DONE),
    "provider untrust": (NPUB, ERROR, DONE),
    "provider block": ("no-key", ERROR, USAGE),
    "provider unblock": (NPUB, ERROR, DONE),
    "earnings": ("", ERROR, DONE),
    "books": ("", ERROR, DONE),
    "models list": ("", DONE, DONE),
    "models pull": ("no-such-model", ERROR, ERROR),
    "completion": ("csh", USAGE, USAGE),
    "demo": ("", None, None),
}

PAYS = {
    "wallet pay": "{invoice} -y",
    "wallet approve": "abcdef12",
    "agent fund": "alice 5 --from-wallet",
    "agent withdraw": "alice 5 -y",
    "agent approve": "a:1",
    "provider payout": f"{NPUB} {{invoice}}",
    "job submit": "why? --bid 5",
    "infer": "why? --market --bid 5",
}
"""Where the daemon's wallet may refuse: the code is its own, whatever the command."""


def leaves(command, path=()):
    if not isinstance(command, click.Group):
        return [" ".join(path)]
    context = click.Context(command)
    names = command.list_commands(context)
    return [leaf for name in names for leaf in leaves(command.get_command(context, name), (*path, name))]


@pytest.fixture(autouse=True)
def nobody_there(tmp_path, monkeypatch):
    """No model, no backend, nobody at a terminal, and no port that another may have."""
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path / "models"))
    for kind in DEFAULT_URLS:
        monkeypatch.setitem(DEFAULT_URLS, kind, "http://127.0.0.1:1/v1")
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.fixture
def call(pylon, tmp_path):
    invoice = "lnsb50n1nonsense"

    def call(name, given):
        return pylon(*name.split(), *given.format(tmp=tmp_path, invoice=invoice).split())

    return call


def test_every_command_has_its_row():
    assert sorted(TABLE) == sorted(leaves(cli))


def test_the_codes_of_errors():
    """What is refused has not been sent: an unknown end of a payment, or a wallet that is away, is no refusal."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PylonError)]
    assert {kind.__name__ for kind in kinds if kind.exit_code == USAGE} == {"UsageError"}
    assert {kind.__name__ for kind in kinds if kind.exit_code == NOT_RUNNING} == {"NotRunning"}
    assert {kind.__name__ for kind in kinds if kind.exit_code == REFUSED} == {
        "WalletError", "InsufficientFunds", "BudgetExceeded", "InvoiceInvalid", "InvoiceExpired", "AlreadyPaid",
        "WrongNetwork", "NoRoute", "FeeTooHigh", "PaymentFailed", "NotSupported", "WalletFrozen",
    }  # fmt: skip
    assert {kind.exit_code for kind in kinds} == {ERROR, USAGE, NOT_RUNNING, REFUSED}


@pytest.mark.parametrize("name", TABLE)
def test_what_is_no_option_is_usage_and_help_is_none(pylon, name):
    code, out, err = pylon(*name.split(), "--nonsense")
    assert (code, out) == (USAGE, "")
    assert f"pylon {name}" in err, "it says where to look"
    assert pylon(*name.split(), "--help")[0] == DONE


def test_in_an_empty_home(call, monkeypatch):
    found = {name: code for name, (_, code, _) in TABLE.items() if code is not None}
    assert found == {name: call(name, TABLE[name][0])[0] for name in found}


def test_in_a_home_whose_daemon_does_not_run(simnet, home, call, monkeypatch):
    for given in ("relay.bind 127.0.0.1:0", f"simnet.ledger {home.root}/ledger.db"):
        assert simnet("config", "set", *given.split())[0] == DONE
    assert simnet("agent", "spawn", "alice")[0] == DONE
    found = {name: code for name, (_, _, code) in TABLE.items() if code is not None}
    assert found == {name: call(name, TABLE[name][0])[0] for name in found}


@pytest.mark.parametrize("name", PAYS)
@pytest.mark.parametrize(("kind", "code"), [("insufficient_funds", REFUSED), ("payment_unknown", ERROR)])
def test_what_the_daemons_wallet_refuses(call, daemon, name, kind, code):
    data = {"code": kind, "message": "no", "hint": "", "exit_code": code}
    with daemon({"error": {"code": -32000, "message": "no", "data": data}}):
        found = call(name, f"{PAYS[name]} --json")
    assert (found[0], json.loads(found[2].splitlines()[-1])["error"]["code"]) == (code, kind), found
