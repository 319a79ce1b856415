"""Money that an agent spends by its actions: races, changes of mind, hostile services, circles, deaths in between.

In each case: nothing is paid twice or beyond what was granted at the moment of paying, wallets and books agree, and
sats are conserved.
"""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from functools import partial

import attrs
import pytest
import trio

from protocols import bolt11
from protocols.keys import SecretKey
from protocols.nip19 import encode_npub
from protocols.nip_sa import Autonomy
from pylon import crashpoints
from pylon.daemon.books import Owned, audit
from pylon.errors import PylonError, UsageError
from pylon.host import registry
from pylon.host.acting import Action, ActionState
from pylon.host.agents import action_records
from pylon.host.settings import ActionKind, Grant
from pylon.money import Msat, sats
from pylon.store import approvals, freeze, intents
from pylon.testing.sim.host_node import HostNode
from pylon.testing.sim.node import current
from pylon.wallets.port import PaymentState
from pylon.wallets.simnet import PREFIX, Fault, FaultKind
from tests.pylon.host.world import NOTHING, open_world, reply, settings, until

ZAPPED, OTHER = SecretKey(b"\x09" * 32), SecretKey(b"\x08" * 32)
ZAP = {"do": "zap", "sats": 5, "to": encode_npub(ZAPPED.public)}
SECOND = {**ZAP, "to": encode_npub(OTHER.public)}
GRANTS = tuple(Grant(action=kind, each=sats(5), day=sats(20)) for kind in (ActionKind.ZAP, ActionKind.PAY_INVOICE))
DEARER = (Grant(action=ActionKind.ZAP, each=sats(50), day=sats(100)),)
FREE = settings(autonomy=Autonomy.AUTONOMOUS, grants=GRANTS)
ASKING = settings(autonomy=Autonomy.SUPERVISED, grants=GRANTS, trusted=(ZAPPED.public.hex, OTHER.public.hex))


class Service:
    """A zap service; ``answers`` is what it gives, ``meanwhile`` what happens while it is asked."""

    def __init__(self) -> None:
        self.wallet = None
        self.made = 0
        self.answers = self.honest
        self.meanwhile = None

    async def __call__(self, agent, secret, to, amount, comment, note):
        if self.meanwhile is not None:
            await self.meanwhile(agent.id)
        return await self.answers(amount)

    async def honest(self, amount):
        self.made += 1
        return (await self.wallet.receive(amount, "a zap", 600, key=f"z{self.made}")).bolt11


@asynccontextmanager
async def stage(directory, *answers):
    """A world whose agents zap at one service, and what is checked at its end."""
    service = Service()
    async with open_world(directory, *answers, zap_invoice=service) as world:
        service.wallet = world.ledger.wallet("zapped", b"\x22" * 32)
        yield world, service
        if world.node.store is None:
            await world.live()
        await until(lambda: not intents.pending(world.store))
        await check_books(world)


async def check_books(world):
    agents = {
        row["id"]: Owned(row["wallet"], partial(_opened, world, row["id"]), row["created_at"])
        for row in world.store.read("SELECT id, wallet, created_at FROM agents")
    }
    report = await audit(world.store, None, world.clock, keeper=world.agents.keeper, agents=agents)
    assert not report.problems, report.problems
    assert sum(world.ledger.accounts().values()) == 0


@asynccontextmanager
async def _opened(world, agent):
    yield world.wallet(agent)


def actions(world, agent) -> list[Action]:
    return list(action_records(world.store).where(world.store, "agent = ? ORDER BY created_at, seq", (agent,)))


async def received(wallet) -> int:
    return (await wallet.balance()).settled


async def rested(world, agent, count=1) -> list[Action]:
    return await until(lambda: len(found := actions(world, agent)) >= count and all(a.at_rest for a in found) and found)


# --- what the operator decides meanwhile ------------------------------------------------------------------------------


def without_grants(world, agent):
    return world.agents.change(agent, lambda chosen: attrs.evolve(chosen, grants=()))


def with_less(world, agent):
    less = tuple(attrs.evolve(grant, each=sats(4)) for grant in GRANTS)
    return world.agents.change(agent, lambda chosen: attrs.evolve(chosen, grants=less))


def with_no_budget(world, agent):
    return world.agents.change(agent, lambda chosen: attrs.evolve(chosen, budget_day_sats=0))


def with_a_reserve(world, agent):
    return world.agents.change(
        agent, lambda chosen: attrs.evolve(chosen, lifecycle=attrs.evolve(chosen.lifecycle, reserve_sats=990))
    )


@pytest.mark.parametrize(
    "change",
    [
        without_grants,
        with_less,
        with_no_budget,
        with_a_reserve,
        lambda world, agent: world.agents.pause(agent, registry.STOPPED),
        lambda world, agent: world.agents.park(agent, "run by another since epoch 2"),
        lambda world, agent: world.agents.delete(agent),
        lambda world, agent: world.store.write(lambda tx: freeze.freeze(tx, "strange things", world.clock.now())),
    ],
    ids=["revoked", "lowered", "no-budget", "reserve", "stopped", "moved", "deleted", "frozen"],
)
async def test_what_changes_while_a_zap_is_prepared_counts(autojump_clock, tmp_path, change):
    async with stage(tmp_path, reply(ZAP), NOTHING) as (world, service):

        async def meanwhile(agent):
            await change(world, agent)

        service.meanwhile = meanwhile
        agent = await world.spawn(FREE, goals=["give"])
        (action,) = await rested(world, agent)
        assert action.state is ActionState.FAILED
        assert service.made == 1
        assert await received(service.wallet) == 0
        await trio.sleep(7_200)
        assert await received(service.wallet) == 0


async def test_a_pause_lets_the_tick_end(autojump_clock, tmp_path):
    async with stage(tmp_path, reply(ZAP), NOTHING) as (world, service):

        async def meanwhile(agent):
            await world.agents.pause(agent, registry.PAUSED)

        service.meanwhile = meanwhile
        agent = await world.spawn(FREE, goals=["give"])
        (action,) = await rested(world, agent)
        assert action.state is ActionState.DONE
        assert await received(service.wallet) == sats(5)


# --- approvals --------------------------------------------------------------------------------------------------------


async def test_ten_who_decide_at_once(autojump_clock, tmp_path):
    async with stage(tmp_path, reply(ZAP), NOTHING) as (world, service):
        agent = await world.spawn(ASKING, goals=["give"])
        (action,) = await until(lambda: world.host.deeds.waiting(agent))
        refused = []

        async def decide(n):
            try:
                await (world.host.deeds.approve(action.id) if n % 2 else world.host.deeds.deny(action.id, "no"))
            except UsageError as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(decide, n)
        assert len(refused) == 9
        (ended,) = await rested(world, agent)
        assert ended.state in (ActionState.DONE, ActionState.DENIED)
        assert await received(service.wallet) == (sats(5) if ended.state is ActionState.DONE else 0)


async def test_an_approval_is_for_one_action_and_its_price(autojump_clock, tmp_path):
    """The service asks for more than was approved: nothing is paid; asked for again, it is the same action still."""
    async with stage(tmp_path, reply(ZAP, SECOND), NOTHING) as (world, service):
        service.answers = lambda amount: service.honest(Msat(amount + 1_000))
        agent = await world.spawn(ASKING, goals=["give"])
        first, second = await until(lambda: len(found := world.host.deeds.waiting(agent)) == 2 and found)
        await world.host.deeds.approve(first.id)
        await until(lambda: world.host.deeds.load(first.id).state is ActionState.FAILED)
        assert world.host.deeds.load(second.id).state is ActionState.WAITING
        with pytest.raises(UsageError):
            await world.host.deeds.approve(first.id)
        assert await received(service.wallet) == 0


async def test_what_is_approved_is_within_the_budget_of_the_day(autojump_clock, tmp_path):
    chosen = attrs.evolve(ASKING, budget_day_sats=14, budget_tick_sats=14)
    async with stage(tmp_path, reply(ZAP), NOTHING) as (world, service):
        agent = await world.spawn(chosen, goals=["give"])
        (action,) = await until(lambda: world.host.deeds.waiting(agent))
        await world.host.deeds.approve(action.id)
        (ended,) = await rested(world, agent)
        assert ended.state is ActionState.FAILED
        assert "24 hours" in ended.reason
        assert await received(service.wallet) == 0


@pytest.mark.parametrize("yes", [True, False])
async def test_a_zap_above_the_threshold_waits(autojump_clock, tmp_path, yes):
    """Its grant lets it pass, and what it costs wants a yes all the same; its thought did not."""
    chosen = attrs.evolve(FREE, approve_above_sats=30, grants=DEARER)
    async with stage(tmp_path, reply({**ZAP, "sats": 40}), NOTHING) as (world, service):
        agent = await world.spawn(chosen, goals=["give"])
        (waiting,) = await until(lambda: approvals.waiting(world.store))
        (action,) = actions(world, agent)
        assert (waiting.owner, waiting.purpose, waiting.cause) == (agent, "zap", action.id)
        await trio.sleep(60)
        assert await received(service.wallet) == 0
        decide = approvals.approve if yes else partial(approvals.deny, reason="no")
        await world.store.write(lambda tx: decide(tx, waiting.id, at=world.clock.now()))
        (ended,) = await rested(world, agent)
        assert ended.state is (ActionState.DONE if yes else ActionState.FAILED)
        assert await received(service.wallet) == (sats(40) if yes else 0)


async def test_what_was_approved_as_an_action_does_not_wait_again(autojump_clock, tmp_path):
    chosen = attrs.evolve(ASKING, approve_above_sats=30, grants=DEARER)
    async with stage(tmp_path, reply({**ZAP, "sats": 40}), NOTHING) as (world, service):
        agent = await world.spawn(chosen, goals=["give"])
        (action,) = await until(lambda: world.host.deeds.waiting(agent))
        await world.host.deeds.approve(action.id)
        (ended,) = await rested(world, agent)
        assert ended.state is ActionState.DONE
        assert await received(service.wallet) == sats(40)


# --- services that lie ------------------------------------------------------------------------------------------------


def written(**changes) -> str:
    """An invoice with a signature, of nobody that this ledger knows."""
    fields = {
        "prefix": PREFIX,
        "amount_msats": 5_000,
        "timestamp": 1_800_000_000,
        "expiry": 10**6,
        "payment_hash": "11" * 32,
        "payment_secret": "22" * 32,
        "description": "x",
        "node_secret": b"\x33" * 32,
    }
    return bolt11.encode(**{**fields, **changes})  # fmt: skip


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (written(amount_msats=5_001), "was decided"),
        (written(amount_msats=10**14), "was decided"),
        (written(amount_msats=None), "names no amount"),
        (written(prefix="bc"), "is for mainnet"),
        (written(prefix="tb"), "is for testnet"),
        (written(timestamp=1, expiry=10), "has expired"),
        (written(), "no wallet"),
        ("", "does not decode"),
        ("lnsb1", "does not decode"),
        ("lnsb" + "q" * 5_000, "does not decode"),
        ("lightning:" + written(), "does not decode"),
    ],
    ids=["more", "huge", "no-amount", "mainnet", "testnet", "expired", "nobody's", "empty", "short", "long", "uri"],
)
async def test_invoices_that_a_service_may_give(autojump_clock, tmp_path, text, why):
    async with stage(tmp_path, reply(ZAP, thought="give"), NOTHING) as (world, service):

        async def answer(amount):
            return text

        service.answers = answer
        agent = await world.spawn(FREE, goals=["give"])
        (action,) = await rested(world, agent)
        assert action.state is ActionState.FAILED
        assert why in action.reason
        (tick,) = await until(lambda: world.ended(agent))
        assert tick.status == "partial"


async def test_a_service_that_breaks_us_is_not_asked_for_ever(autojump_clock, tmp_path):
    async with stage(tmp_path, reply(ZAP), NOTHING) as (world, service):
        asked = []

        async def answer(amount):
            asked.append(world.clock.now())
            raise RuntimeError("nobody expects this")

        service.answers = answer
        agent = await world.spawn(FREE, goals=["give"])
        (action,) = await until(lambda: (found := actions(world, agent)) and found[0].at_rest and found, 8_000)
        assert (action.state, action.reason) == (ActionState.FAILED, "it broke (RuntimeError)")
        assert 10 < len(asked) < 200


async def test_a_service_that_gives_less(autojump_clock, tmp_path):
    """A zap may be smaller than was wished for, never larger."""
    async with stage(tmp_path, reply(ZAP), NOTHING) as (world, service):
        service.answers = lambda amount: service.honest(Msat(amount - 1_000))
        agent = await world.spawn(FREE, goals=["give"])
        (action,) = await rested(world, agent)
        assert (action.state, action.paid) == (ActionState.DONE, sats(4))


async def test_a_service_that_gives_one_invoice_to_all(autojump_clock, tmp_path):
    """One payment hash is paid once, for one cause, whoever offers it again and to whom."""
    async with stage(tmp_path, reply(ZAP, SECOND)) as (world, service):
        text = await service.honest(sats(5))

        async def same(amount):
            return text

        service.answers = same
        agents = [await world.spawn(attrs.evolve(FREE, name=name), goals=["give"]) for name in ("alice", "bob")]
        for agent in agents:
            await rested(world, agent, 2)
        await trio.sleep(4_000)
        assert await received(service.wallet) == sats(5)
        done = [a for agent in agents for a in actions(world, agent) if a.state is ActionState.DONE]
        assert len(done) == 1


async def test_nobody_pays_itself(autojump_clock, tmp_path):
    """Neither an invoice of its own, nor a zap whose service leads back to its own wallet."""
    async with stage(tmp_path) as (world, service):
        agent = await world.spawn(FREE)
        own = (await world.wallet(agent).receive(sats(5), "mine", 86_400, key="own")).bolt11

        async def back(amount):
            return own

        service.answers = back
        world.answers[:] = [reply(ZAP, {"do": "pay_invoice", "invoice": own}, {**ZAP, "to": agent}), NOTHING]
        await world.agents.remind(agent, add_goal)
        for action in await rested(world, agent, 3):
            assert action.state is ActionState.FAILED
            assert "itself" in action.reason


def add_goal(mind):
    from pylon.host import memory

    return memory.add_goal(mind, "give", priority=1, now=1.0)[0]


# --- circles ----------------------------------------------------------------------------------------------------------


async def test_agents_of_one_home_that_pay_each_other_in_circles(autojump_clock, tmp_path):
    """Each zap wakes the other one, and each thought zaps back: grants and strangers' budgets end it, for a day."""
    grants = (Grant(action=ActionKind.ZAP, each=sats(5), day=sats(20), strangers=True),)
    chosen = attrs.evolve(FREE, grants=grants, heartbeat=86_400, mentions=True)
    answers = reply({"do": "zap", "about": 1, "sats": 5}, {"do": "reply", "about": 1, "text": "and back"})
    async with stage(tmp_path, answers) as (world, _):
        wallets, names = {}, {}

        async def others(agent, secret, to, amount, comment, note):
            issued = await wallets[to].receive(amount, "a zap", 600, key=f"z{len(names)}")
            names[len(names)] = agent.id
            return issued.bolt11

        world.host.deeds._zap_invoice = others
        one, other = [await world.spawn(attrs.evolve(chosen, name=name)) for name in ("alice", "bob")]
        wallets |= {agent: world.wallet(agent) for agent in (one, other)}
        await until(lambda: all(world.state(agent) == "active" for agent in (one, other)))
        world.mention(one, "begin", world.agents.keys(other).nostr)
        await trio.sleep(20 * 3_600)
        for agent in (one, other):
            zapped = intents.committed(world.store, agent, since=0.0, purpose="zap")
            assert 0 < zapped <= sats(20)
            assert intents.committed(world.store, agent, since=0.0) <= sats(120)


# --- deaths and delays ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [PaymentState.SETTLED, PaymentState.FAILED])
@pytest.mark.parametrize("meanwhile", ["nothing", "killed", "deleted", "moved", "stopped"])
async def test_a_payment_that_takes_an_hour(autojump_clock, tmp_path, ends, meanwhile):
    """What was sent is booked when the wallet knows, whatever has become of the agent; it is never sent again."""
    async with stage(tmp_path, reply(ZAP), NOTHING) as (world, service):

        async def slow(amount):
            world.ledger.inject(Fault(FaultKind.PENDING, seconds=3_600, ends=ends), wallet=world.wallet(agent))
            return await service.honest(amount)

        service.answers = slow
        agent = (await world.agents.spawn(FREE, goals=["give"])).agent.id
        await world.fund(agent, sats(1_000))
        await until(lambda: intents.committed(world.store, agent, since=0.0, purpose="zap"))
        (action,) = actions(world, agent)
        assert action.state is ActionState.PAYING
        match meanwhile:
            case "killed":
                await world.kill()
                await trio.sleep(600)
                await world.live()
            case "deleted":
                await world.agents.delete(agent)
            case "moved":
                await world.agents.park(agent, "run by another")
            case "stopped":
                await world.agents.pause(agent, registry.STOPPED)
        counted = intents.committed(world.store, agent, since=0.0, purpose="zap")
        assert counted >= sats(5), "what is on its way counts"
        await trio.sleep(7_200)
        action = action_records(world.store).load(world.store, action.id)
        assert action.state is (ActionState.DONE if ends is PaymentState.SETTLED else ActionState.FAILED)
        assert await received(service.wallet) == (sats(5) if ends is PaymentState.SETTLED else 0)
        assert service.made == 1


@pytest.fixture
def mortal():
    """Nodes die at the points of their plan."""

    def passed(point: str) -> None:
        if (node := current.get()) is not None:
            node.passed(point)

    crashpoints.install_hook(passed)
    yield
    crashpoints.install_hook(None)


@pytest.mark.parametrize("point", ["action.prepare.before", "action.prepare.after", "action.pay.before",
                                   "action.pay.after", "tick.act.before", "tick.act.after"])  # fmt: skip
async def test_dead_in_the_middle(autojump_clock, tmp_path, point, mortal):
    """Killed at each point between a wish and its payment, and up again: paid once."""
    async with stage(tmp_path, reply(ZAP), NOTHING) as (world, service):
        world.node.plan[point] = 1
        agent = (await world.agents.spawn(FREE, goals=["give"])).agent.id
        wallet = world.wallet(agent)
        await wallet.fund(sats(1_000))
        await until(lambda: world.node.store is None)
        await world.live()
        (action,) = await rested(world, agent)
        assert action.state is ActionState.DONE
        await trio.sleep(1_000)
        assert await received(service.wallet) == sats(5)


async def test_an_agent_that_is_run_elsewhere_spends_nothing_here(autojump_clock, tmp_path):
    """Parked: no thought, no deed, no yes; what its operator takes out is the operator's."""
    async with stage(tmp_path, reply(ZAP), NOTHING) as (world, service):
        agent = await world.spawn(ASKING, goals=["give"])
        (action,) = await until(lambda: world.host.deeds.waiting(agent))
        spent = intents.committed(world.store, agent, since=0.0)
        await world.agents.park(agent, "run by another")
        with pytest.raises(PylonError, match="not run here"):
            await world.host.deeds.approve(action.id)
        world.mention(agent, "hello?", world.node.secret)
        await trio.sleep(10_000)
        assert intents.committed(world.store, agent, since=0.0) == spent
        assert await received(service.wallet) == 0
        assert not world.events(1, agent)


async def test_two_homes_with_one_agent(autojump_clock, tmp_path):
    """Whoever has the lower epoch parks, and spends nothing from then on; both have paid from one wallet, once each."""
    async with stage(tmp_path, reply(ZAP)) as (world, service):
        agent = await world.spawn(attrs.evolve(FREE, heartbeat=300), goals=["give"])
        phrase = registry.phrase(world.store, world.store.vault, agent)
        await until(lambda: world.ended(agent))
        other = HostNode("other", world.node.setting, random.Random(7), zap_invoice=service)
        await world.nursery.start(other.live)
        mind = world.mind(agent)
        chosen = attrs.evolve(world.row(agent).settings, heartbeat=300)
        await other.agents.spawn(chosen, phrase=phrase, mind=mind, epoch=2)
        await until(lambda: world.row(agent).moved)
        spent, ticks = intents.committed(world.store, agent, since=0.0), world.row(agent).ticks
        made = service.made
        await trio.sleep(3_000)
        assert intents.committed(world.store, agent, since=0.0) == spent
        assert world.row(agent).ticks <= ticks + 1
        assert intents.committed(other.store, agent, since=0.0, purpose="zap") > 0
        hashes = [
            {row["payment_hash"] for row in store.read("SELECT payment_hash FROM intents")}
            for store in (world.store, other.store)
        ]
        assert hashes[0].isdisjoint(hashes[1])
        assert service.made > made
        other.kill("the test is over")
        await until(lambda: other.store is None)
        world.agents.forget(agent)
        # What the other home has paid is nothing that this one's books can know.
        await world.store.write(lambda tx: tx.execute("DELETE FROM agents WHERE id = ?", (agent,)))
