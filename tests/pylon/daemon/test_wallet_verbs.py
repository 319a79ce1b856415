"""The operator's hand on the money, as verbs: over the store alone."""

from __future__ import annotations

import pytest

from pylon.clock import VirtualClock
from pylon.config import Config, WalletConfig
from pylon.daemon.wallet_money import WalletVerbs
from pylon.daemon.wallet_verbs import WalletGuard
from pylon.errors import FUND, PAY_IN, InsufficientFunds, NotFound, UsageError, WalletFrozen
from pylon.money import Msat, sats
from pylon.store import freeze, intents, settings
from pylon.store.database import open_store
from pylon.store.vault import Vault
from pylon.wallets.purse import Budget, Purse
from tests.pylon.wallets.fickle import FickleWallet, invoice
from tests.pylon.wallets.test_budgets import hash_of


@pytest.fixture
async def guard(tmp_path):
    clock = VirtualClock()
    async with open_store(
        tmp_path / "pylon.db", vault=Vault(bytes(32)), clock=clock, executor="inline", durable=False
    ) as store:
        yield WalletGuard(store, clock)


async def ask(guard, verb, **params):
    async def notify(method, data):
        raise AssertionError("nothing to tell")

    return await guard.table()[verb](params, notify)


async def reserve(guard, name="job", owner="", **bounds):
    amount = sats(5)
    budget = Budget(**{"per_scope": None, "per_day": None, **bounds})
    purse = Purse(FickleWallet(guard.clock, sats(100)), guard.store, guard.clock, owner, lambda source, spend: budget)
    text = invoice(name, amount, guard.clock.now())
    return await guard.store.write(
        lambda tx: purse.reserve(tx, cause=name, bolt11=text, payment_hash=hash_of(name), amount=amount)
    )


async def test_freezing_and_thawing(autojump_clock, guard):
    now = guard.clock.now()
    assert guard.summary() == {"frozen": None, "approvals": 0, "warnings": []}
    done = await ask(guard, "wallet.freeze", reason=" strange things ")
    assert done == {"frozen": {"reason": "strange things", "at": now}, "already": False}
    assert await ask(guard, "wallet.freeze") == {**done, "already": True}
    assert guard.summary()["frozen"] == done["frozen"]
    with pytest.raises(WalletFrozen):
        await reserve(guard)
    assert await ask(guard, "wallet.thaw") == {"frozen": None, "ended": done["frozen"]}
    assert await ask(guard, "wallet.thaw") == {"frozen": None, "ended": None}
    await reserve(guard)


async def test_a_freeze_that_does_not_read_is_shown_and_thawed(autojump_clock, guard):
    await guard.store.write(lambda tx: settings.put(tx, freeze.KEY, "\x00"))
    assert guard.summary()["frozen"] == {"reason": "its mark does not read", "at": None}
    assert (await ask(guard, "wallet.freeze"))["already"]
    await ask(guard, "wallet.thaw")
    await reserve(guard)


async def test_what_waits_is_shown_and_decided(autojump_clock, guard):
    first = await reserve(guard, "a", approve_above=Msat(0))
    second = await reserve(guard, "b", "aa" * 32, approve_above=Msat(0))
    await reserve(guard, "c")
    assert guard.summary()["approvals"] == 2
    shown = (await ask(guard, "wallet.approvals"))["approvals"]
    assert [entry["id"] for entry in shown] == [first.id, second.id]
    assert shown[0]["amount_msats"] == 5_000
    assert shown[0]["max_fee_msats"] == 2_000
    assert [entry["name"] for entry in shown] == ["", "aa" * 8]
    assert shown[0]["payee"] == first.payee
    done = (await ask(guard, "wallet.approve", id=first.id[:12]))["approval"]
    assert (done["approval"], done["state"]) == ("given", "pending")
    done = (await ask(guard, "wallet.deny", id=second.id, reason="too dear"))["approval"]
    assert (done["approval"], done["state"], done["reason"]) == ("denied", "failed", "too dear")
    assert (await ask(guard, "wallet.approvals"))["approvals"] == []
    assert intents.reserved(guard.store, "aa" * 32) == 0
    for verb in ("wallet.approve", "wallet.deny"):
        with pytest.raises(NotFound):
            await ask(guard, verb, id=first.id)
        for nonsense in (None, 5, ["x"], "\ud800", "x" * 20_000):
            with pytest.raises(UsageError):
                await ask(guard, verb, id=nonsense)


async def test_budgets_of_the_home_that_are_nearly_gone(autojump_clock, guard):
    await reserve(guard, "a", per_day=sats(8))
    await reserve(guard, "b", "aa" * 32, per_day=sats(7))
    (told,) = guard.summary()["warnings"]
    assert told == {"budget": "day", "used_msats": 7_000, "bound_msats": 8_000, "at": guard.clock.now()}


@pytest.mark.parametrize(
    ("network", "kind", "hint"),
    [
        ("simnet", "network", FUND),
        ("testnet", "network", FUND),
        ("mainnet", "network", PAY_IN),
        ("simnet", "nwc", PAY_IN),
    ],
)
async def test_who_has_too_little_is_told_what_can_help(autojump_clock, guard, network, kind, hint):
    config = Config(network=network, wallet=WalletConfig(kind=kind))
    verbs = WalletVerbs(config, guard.store, None, None)
    quoted = {
        "payment_hash": None, "expires_at": None, "fee_msats": 0, "max_fee_msats": 0, "spendable_msats": 5,
        "total_msats": 7,
    }  # fmt: skip
    with pytest.raises(InsufficientFunds) as caught:
        verbs._refuse(quoted)
    assert caught.value.hint == hint
