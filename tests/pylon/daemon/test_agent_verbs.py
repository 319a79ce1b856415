"""The agents' verbs: whatever callers say, they get an answer or an error with a hint, and an error changes nothing."""

from __future__ import annotations

import json
import shutil
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import event, given, settings
from hypothesis import strategies as st

from protocols import bolt11
from pylon.clock import SystemClock
from pylon.daemon.books import audit
from pylon.errors import PylonError
from pylon.host.replies import Proposed
from pylon.host.settings import ActionKind
from pylon.money import MAX_MSAT, Msat
from pylon.wallets.port import PaymentState
from pylon.wallets.simnet import Fault, FaultKind
from tests.pylon.daemon.agent_home import begin_tick, everything, furnish, open_verbs

LIFECYCLE = {"low_balance_days": 7.0, "assumed_daily_burn_sats": 10, "hibernate_threshold_sats": 5, "reserve_sats": 0,
             "low_balance_factor": 2}  # fmt: skip
SCHEDULE = {"jitter": 0.1, "late": 60.0, "catch_up": 300.0, "min_gap": 60.0, "debounce": 5.0, "patience": 30.0,
            "triggered_per_hour": 12, "stranger_budget_sats": 100}  # fmt: skip
GRANT = {"action": "zap", "each_sats": 21, "day_sats": 100, "per_day": 3, "strangers": False}
CHOSEN = {"about": "a friend", "model": "any", "autonomy": "bounded", "heartbeat": 900, "publish": True,
          "relays": ["wss://relay.example"], "trusted": ["aa" * 32], "triggers": ["mention", "kind:7"],
          "grants": [GRANT], "lifecycle": LIFECYCLE, "schedule": SCHEDULE, "reserve_sats": 5, "budget_day_sats": 100,
          "budget_tick_sats": 10, "stranger_budget_sats": 10, "max_steps": 3, "thought_tokens": 100}  # fmt: skip
A = {"agent": "alice"}
VERBS: dict[str, dict[str, Any]] = {
    "agent.list": {},
    "agent.info": A,
    "agent.spawn": {"name": "carol", "network": "simnet", "goals": ["sing"], **CHOSEN},
    "agent.delete": {**A, "name": "alice"},
    "agent.pause": A,
    "agent.stop": A,
    "agent.resume": A,
    "agent.start": A,
    "agent.fund": {**A, "amount_msats": 5_000, "source": "faucet"},
    "agent.invoice": {**A, "amount_msats": 5_000, "description": "for bread"},
    "agent.withdraw": {**A, "amount_msats": 5_000, "to": None},
    "agent.reveal": A,
    "agent.tick": A,
    "agent.ticks": {**A, "limit": 5, "quiet": True},
    "agent.goals": A,
    "agent.goal_add": {**A, "description": "dance", "priority": 3},
    "agent.goal_set": {**A, "id": "g1", "status": "paused", "progress": 0.5, "priority": 2},
    "agent.memory": {**A, "limit": 5},
    "agent.memory_add": {**A, "text": "roses are red"},
    "agent.memory_forget": {**A, "id": "?"},
    "agent.approvals": A,
    "agent.approve": {"id": "?"},
    "agent.deny": {"id": "?", "reason": "no"},
    "agent.set": {**A, "name": "alice", **CHOSEN},
    "agent.grant": {**A, **GRANT},
    "agent.revoke": {**A, "action": "pay_invoice"},
    "agent.export": {**A, "form": "phrase", "passphrase": "correct horse battery"},
    "agent.import": {"mnemonic": "x", "bundle": None, "passphrase": "x", "name": "dave", "relays": []},
}

numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 10**400, -(10**400), MAX_MSAT, MAX_MSAT + 1, 2**63, 2**64, 10**16]),
    st.floats(allow_nan=True, allow_infinity=True),
)
words = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["", " ", "\0", "\ud800", "a" * 100_000, "é" * 40_000, "npub1" + "q" * 58, "00" * 32, "ff" * 32,
                     "aabbccdd", "lnsb1", "kind:" + "9" * 5_000, "kind:٣", "ws://", "wss://" + "a" * 9_000, "alice",
                     "bob", "g", "%", "'; DROP TABLE agents; --", "../../etc/passwd"]),
)  # fmt: skip
scalars = st.none() | st.booleans() | numbers | words
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=6
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A verb, and parameters of which some are replaced, left out, added, or changed inside."""
    verb = draw(st.sampled_from(sorted(VERBS)))
    params = json.loads(json.dumps(VERBS[verb]))
    names = st.sampled_from(sorted(params) or ["agent"])
    for name in dict.fromkeys(draw(st.lists(names, min_size=1, max_size=3))):
        value = params.get(name)
        if isinstance(value, dict) and draw(st.booleans()):
            value[draw(st.sampled_from(sorted(value)))] = draw(anything)
        elif isinstance(value, list) and value and draw(st.booleans()):
            if isinstance(value[0], dict) and draw(st.booleans()):
                value[0][draw(st.sampled_from(sorted(value[0])))] = draw(anything)
            else:
                value[0] = draw(anything)
        elif draw(st.integers(0, 9)) == 0:
            params.pop(name, None)
        else:
            params[name] = draw(anything)
    if draw(st.integers(0, 9)) == 0:
        params[draw(words)] = draw(anything)
    return verb, params


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    return trio.run(furnish, tmp_path_factory.mktemp("home") / "home")


def moved(tables: dict) -> dict:
    """Without payments that have failed: one that the wallet refuses at its last look was written down before."""
    return {**tables, "intents": [row for row in tables["intents"] if "failed" not in row]}


@settings(max_examples=400)
@given(calls())
def test_whatever_is_asked(furnished, call):
    """An answer that JSON can hold, or an error of ours with a hint, after which all is as it was."""
    verb, params = call

    async def run() -> None:
        async with open_verbs(copy) as opened:
            if params.get("id") == "?":
                params["id"] = await known_id(opened, verb)
            before = everything(copy)
            try:
                answer = await opened.call(verb, params)
            except PylonError as refused:
                error = refused
            else:
                event(f"{verb}: answered")
                json.dumps(answer, allow_nan=False)
                return
            event(f"{verb}: {error.code}")
            assert 0 < len(error.message) < 1_000
            assert error.hint, f"{verb} says no without a hint: {error.message}"
            assert moved(everything(copy)) == moved(before), "who says no changes nothing"

    copy = furnished.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(furnished, copy)
    trio.run(run)


async def known_id(opened, verb: str) -> str:
    if verb == "agent.memory_forget":
        return str((await opened.ask("agent.memory", agent="alice"))["memories"][0]["id"])
    return str((await opened.ask("agent.approvals"))["approvals"][0]["id"])


# --- money ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def home(furnished, tmp_path):
    shutil.copytree(furnished, tmp_path / "home")
    async with open_verbs(tmp_path / "home") as opened:
        yield opened


async def held(opened, name: str) -> int:
    return int((await opened.ask("agent.info", agent=name))["balance_msats"])


async def invoice(opened, name: str, amount: int = 5_000) -> str:
    return str((await opened.ask("agent.invoice", agent=name, amount_msats=amount))["bolt11"])


async def refused(opened, verb: str, **params) -> PylonError:
    with pytest.raises(PylonError) as caught:
        await opened.ask(verb, **params)
    assert caught.value.hint, caught.value.message
    return caught.value


async def test_withdrawing_all_leaves_what_no_fee_can_carry(home):
    before = await held(home, "alice")
    done = await home.ask("agent.withdraw", agent="alice")
    assert done["left_msats"] == before - done["withdrawn_msats"] - done["fee_msats"]
    assert done["left_msats"] < 1_000
    assert "nothing to withdraw" in (await refused(home, "agent.withdraw", agent="bob")).message


@pytest.mark.parametrize("amount", [1_000_001, 10**12, MAX_MSAT])
async def test_more_than_there_is(home, amount):
    before = everything(home.verbs.home.root)["ledger"]
    assert (await refused(home, "agent.withdraw", agent="alice", amount_msats=amount)).exit_code == 4
    assert (await refused(home, "agent.fund", agent="alice", amount_msats=amount, source="wallet")).exit_code == 4
    assert everything(home.verbs.home.root)["ledger"] == before
    assert not home.store.read("SELECT 1 FROM intents WHERE state <> 'failed'")


async def test_no_more_than_exists_comes_out_of_the_faucet(home):
    await refused(home, "agent.fund", agent="alice", amount_msats=MAX_MSAT)
    assert await held(home, "alice") == 1_000_000


async def test_invoices_that_cannot_be_withdrawn_to(home):
    own, other = await invoice(home, "alice"), await invoice(home, "bob")
    before = await held(home, "alice")
    fields = {"payment_secret": "22" * 32, "node_secret": b"\x73" * 32, "description": "x"}
    now = int(home.store.clock.now())
    stranger = bolt11.encode(prefix="bc", amount_msats=5_000, timestamp=now, payment_hash="11" * 32, **fields)
    nothing = bolt11.encode(prefix="sb", amount_msats=None, timestamp=now, payment_hash="12" * 32, **fields)
    old = bolt11.encode(prefix="sb", amount_msats=5_000, timestamp=1, expiry=10, payment_hash="13" * 32, **fields)
    for text in (own, stranger, nothing, old, other[:-1], "lnsb1", "", other.replace("lnsb50", "lnsb90")):
        await refused(home, "agent.withdraw", agent="alice", to=text)
    await refused(home, "agent.withdraw", agent="alice", to=other, amount_msats=4_000)
    assert (await held(home, "alice"), await held(home, "bob")) == (before, 0)


async def test_an_invoice_is_paid_once_and_that_is_said(home):
    to = await invoice(home, "bob")
    done = await home.ask("agent.withdraw", agent="alice", to=to)
    left = done["left_msats"]
    assert (await refused(home, "agent.withdraw", agent="alice", to=to)).code == "already_paid"
    assert (await held(home, "alice"), await held(home, "bob")) == (left, 5_000)


async def test_many_at_once(home):
    """Ten who withdraw all, and ten who pay one invoice: each payment is one, and sats are conserved."""
    to = await invoice(home, "bob")
    said = []

    async def take(**params):
        try:
            said.append(await home.ask("agent.withdraw", agent="alice", **params))
        except PylonError as error:
            said.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(lambda: take(to=to))
            nursery.start_soon(take)
    assert sum(isinstance(entry, dict) for entry in said) <= 2
    assert sum(home.ledger.accounts().values()) == 0
    assert await held(home, "bob") in (0, 5_000)
    assert not home.store.read("SELECT 1 FROM intents WHERE state = 'pending'")
    report = await audit(home.store, None, home.store.clock, keeper=home.verbs.agents.keeper,
                         agents=home.verbs.hosting.owned())  # fmt: skip
    assert not report.problems


# --- what a call has left behind --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [PaymentState.SETTLED, PaymentState.FAILED])
async def test_a_withdrawal_whose_end_nobody_has_seen(furnished, tmp_path, ends):
    """The wallet times out, and the process dies before it is known: the next life books what became of it."""
    shutil.copytree(furnished, tmp_path / "home")
    clock = LateClock()
    async with open_verbs(tmp_path / "home", clock) as opened:
        opened.ledger.inject(Fault(FaultKind.TIMEOUT, seconds=300.0, ends=ends))
        error = await refused(opened, "agent.withdraw", agent="alice", amount_msats=5_000)
        assert "not known" in error.message
        await opened.verbs.hosting.withdrawals.reconciler.settle(purses(opened))
        assert opened.store.one("SELECT state FROM intents")["state"] == "pending"
    clock.late = 400.0
    async with open_verbs(tmp_path / "home", clock) as opened:
        await opened.verbs.hosting.withdrawals.reconciler.settle(purses(opened))
        assert opened.store.one("SELECT state FROM intents")["state"] == ends.value
        report = await audit(opened.store, None, clock, keeper=opened.verbs.agents.keeper,
                             agents=opened.verbs.hosting.owned())  # fmt: skip
        assert not report.problems


async def test_a_withdrawal_that_was_never_sent(furnished, tmp_path):
    """Dead between the intent and the wallet: nobody sends it later, and it counts until nobody could."""
    shutil.copytree(furnished, tmp_path / "home")
    clock = LateClock()
    async with open_verbs(tmp_path / "home", clock) as opened:
        found = bolt11.decode(text := await invoice(opened, "bob"))
        agent = (await opened.ask("agent.info", agent="alice"))["pubkey"]
        await opened.store.write(
            lambda tx: opened.verbs.agents.purse(agent).reserve(
                tx, cause="withdrawal:x", bolt11=text, payment_hash=found.payment_hash,
                amount=Msat(5_000), purpose="withdrawal",
            )
        )  # fmt: skip
    for late, state in ((0.0, "pending"), (86_400.0, "pending"), (2 * 86_400.0, "failed")):
        clock.late = late
        async with open_verbs(tmp_path / "home", clock) as opened:
            await opened.verbs.hosting.withdrawals.reconciler.settle(purses(opened))
            assert opened.store.one("SELECT state FROM intents")["state"] == state
            assert await held(opened, "alice") == 1_000_000


def purses(opened):
    return lambda owner: opened.verbs.agents.purse(owner) if owner else opened.verbs.purse


class LateClock(SystemClock):
    """The system's, so many seconds later."""

    late = 0.0

    def now(self) -> float:
        return super().now() + self.late


# --- approvals --------------------------------------------------------------------------------------------------------


async def test_who_is_asked_for_leave_to_pay_is_told_the_price(home):
    """The invoice's, whatever the model says of it; what is over the grant is not even asked."""
    cheap, dear, lying = [await invoice(home, "bob", amount) for amount in (20_000, 60_000, 60_000)]
    wish = partial(Proposed, kind=ActionKind.PAY_INVOICE)
    wishes = [wish(invoice=cheap), wish(invoice=dear), wish(invoice=lying, sats=1)]
    names = await begin_tick(home, "alice", *wishes, n=2)
    waiting = {entry["id"]: entry for entry in (await home.ask("agent.approvals"))["approvals"]}
    assert (waiting[names[0]]["cost_msats"], "20 sat" in waiting[names[0]]["text"]) == (20_000, True)
    assert names[1] not in waiting
    assert names[2] not in waiting
    assert "more than the grant" in home.verbs.deeds.load(names[1]).reason


@pytest.mark.parametrize("gone", ["deleted", "moved"])
async def test_nobody_approves_for_an_agent_that_is_gone(home, gone):
    (asked,) = (await home.ask("agent.approvals"))["approvals"]
    agent = (await home.ask("agent.info", agent="alice"))["pubkey"]
    if gone == "deleted":
        await home.ask("agent.delete", agent="alice", name="alice")
    else:
        await home.verbs.agents.park(agent, "run by another")
    before = home.store.one("SELECT COUNT(*) AS n FROM outbox WHERE kind = 1")["n"]
    await refused(home, "agent.approve", id=asked["id"])
    assert home.store.one("SELECT COUNT(*) AS n FROM outbox WHERE kind = 1")["n"] == before
    assert home.verbs.deeds.load(asked["id"]).state.value == "waiting"
    assert (await home.ask("agent.deny", id=asked["id"]))["approval"]["state"] == "denied"


async def test_what_is_set_of_an_agent_that_is_run_elsewhere_is_told_to_nobody(home):
    """A state of ours, being newer, would stand in the place of the one that its runner has published."""
    agent = (await home.ask("agent.info", agent="alice"))["pubkey"]
    await home.verbs.agents.park(agent, "run by another")
    before = home.store.one("SELECT MAX(id) AS id FROM outbox")["id"]
    await home.ask("agent.set", agent="alice", about="another", name="alicia")
    await home.ask("agent.goal_add", agent="alicia", description="sing")
    await home.ask("agent.memory_add", agent="alicia", text="roses are red")
    await home.ask("agent.grant", agent="alicia", action="zap", each_sats=1)
    await home.ask("agent.pause", agent="alicia")
    home.verbs.agents.address = lambda name: f"{name}@elsewhere.example"
    await home.verbs.agents.readdress()
    told = home.store.read("SELECT event FROM outbox WHERE id > ?", (before,))
    assert not [row for row in told if json.loads(row["event"])["pubkey"] == agent]
