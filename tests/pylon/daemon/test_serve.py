"""What the daemon says of the books at its start."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio

from pylon.config import Config
from pylon.daemon import books, serve
from pylon.errors import WalletError


class Audits:
    """``books.audit``, with findings of its own: one for each look, the last one for all further ones."""

    def __init__(self, *looks):
        self.looks = list(looks)

    async def __call__(self, store, wallet, clock, *, keeper, agents):
        self.agents = agents
        await trio.lowlevel.checkpoint()
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(found, Exception):
            raise found
        return books.Report({}, None, tuple(found))


class Parts:
    store = wallet = clock = hosting = None
    config = Config()


class Hosts(Parts):
    """With agents, whose wallets are looked at too."""

    hosting = SimpleNamespace(agents=SimpleNamespace(keeper="keeper"), owned=lambda: {"aa": "owned"})


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        ([[]], []),
        ([["sale 1"], []], []),
        ([["sale 1", "sale 2"], ["sale 2"]], ["warning: books: sale 2"]),
        ([["sale 1"], ["sale 2"], ["sale 1"]], []),  # neither lasted: a crash is being put right
        ([WalletError("away")], ["warning: books: they cannot be checked: WalletError: away"]),
        ([WalletError("away"), []], []),
    ],
)
async def test_only_what_lasts_is_said(autojump_clock, monkeypatch, looks, said):
    monkeypatch.setattr(books, "audit", Audits(*looks))
    told = []
    await serve._check_books(Parts, told.append)
    assert told == said


async def test_the_agents_wallets_are_looked_at(autojump_clock, monkeypatch):
    audits = Audits([])
    monkeypatch.setattr(books, "audit", audits)
    await serve._check_books(Hosts, print)
    assert audits.agents == {"aa": "owned"}
