"""A connection never spends more than its budget, whatever is asked of it, however often, and whatever breaks.

Apps are played by hand: their requests are events of any time, sent twice, replayed after a restart, several at once.
The home's process dies in between, at any commit and around the call of its wallet; payments settle late or fail late.
Everything is held against the ledger of simnet, which is not ours, to the millisatoshi.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import attrs
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols import nip47
from protocols.keys import SecretKey
from protocols.nip01 import EventInvalid
from protocols.nip47 import Encryption
from pylon import crashpoints
from pylon.errors import StoreError
from pylon.money import Msat, max_fee, sats
from pylon.store import intents, ledger
from pylon.store import wallet_connections as connections
from pylon.store.intents import IntentState
from pylon.store.wallet_connections import DAY
from pylon.wallets.nwc_service import MAX_AGE
from pylon.wallets.port import PaymentState
from pylon.wallets.simnet import Fault, FaultKind
from tests.pylon.wallets.nwc_world import open_world

BUDGET = sats(1_000)
EACH = sats(999)
FUNDS = sats(100_000)
LIFE = 1_800
"""Of an invoice, seconds."""


@attrs.frozen
class Ask:
    """Pay invoice number ``nth``, of ``amount``, by a request of this age (seconds)."""

    nth: int
    amount: int
    age: int
    lives: int | None
    cipher: Encryption


@attrs.frozen
class Replay:
    """The relay shows a request of before again."""

    which: int


@attrs.frozen
class Break:
    """The wallet's next payment goes wrong."""

    fault: Fault


@attrs.frozen
class Crash:
    """The home dies at once, or at a point of its next payment, and starts again after a while."""

    point: str
    away: float


@attrs.frozen
class Wait:
    seconds: float


@attrs.frozen
class Close:
    pass


ends = st.sampled_from([PaymentState.SETTLED, PaymentState.FAILED])
faults = st.one_of(
    st.builds(Fault, st.just(FaultKind.DELAY), st.floats(0.5, 90), ends),
    st.builds(Fault, st.just(FaultKind.PENDING), st.floats(1, 5_000), ends),
    st.builds(Fault, st.just(FaultKind.TIMEOUT), st.floats(0, 90), ends),
    st.builds(Fault, st.sampled_from([FaultKind.FAIL, FaultKind.NO_ROUTE])),
)
asks = st.builds(
    Ask,
    st.integers(0, 6),
    st.sampled_from([1, 999, 150_000, 200_000, 300_000, 396_000, 400_000, 990_000, 998_000, 999_001, 2_000_000]),
    st.sampled_from([0, 0, 0, 0, -100, 200, int(MAX_AGE) + 1, 10_000, -400]),
    st.sampled_from([None, None, -5, 10, 500]),
    st.sampled_from(list(Encryption)),
)
steps = st.lists(
    st.one_of(
        asks,
        asks,
        asks,
        st.builds(Replay, st.integers(0, 20)),
        st.builds(Break, faults),
        st.builds(
            Crash,
            st.sampled_from(["now", "nwc.pay.before", "nwc.pay.after"]),
            st.sampled_from([0.0, 5.0, 400.0, 4_000.0, DAY / 2, DAY]),
        ),
        st.builds(Wait, st.sampled_from([0.0, 0.5, 30.0, 400.0])),
        st.builds(Close),
    ),
    min_size=3,
    max_size=20,
)


class Died(BaseException):
    """The process is gone."""


class Play:
    """One run of steps."""

    def __init__(self, world):
        self.world = world
        self.home = world.wallet("home")
        self.payee = world.wallet("payee")
        self.secret = SecretKey(b"\x77" * 32)
        self.uri = None
        self.sent = []
        self.invoices = {}
        self.armed = None
        self.wanted = set()
        """Hashes that a request of the present has asked for."""

    async def invoice(self, nth, amount):
        there = self.invoices.get(nth)
        if there is None or there.expires_at < self.world.clock.now() - 60:
            key = f"bill-{nth}-{int(self.world.clock.now())}"
            self.invoices[nth] = await self.payee.receive(Msat(amount), f"bill {nth}", LIFE, key)
        return self.invoices[nth]

    async def ask(self, step):
        issued = await self.invoice(step.nth, step.amount)
        at = int(self.world.clock.now()) - step.age
        event = nip47.build_request(
            self.uri.secret,
            self.uri.wallet,
            method="pay_invoice",
            params={"invoice": issued.bolt11},
            created_at=at,
            encryption=step.cipher,
            expires_at=None if step.lives is None else int(self.world.clock.now()) + step.lives,
        )
        self.sent.append(event)
        if abs(step.age) <= MAX_AGE and (step.lives or 1) > 0:
            self.wanted.add(issued.payment_hash)
        self.show(event)

    def show(self, event):
        with contextlib.suppress(EventInvalid):  # relays refuse some by themselves
            self.world.relay.publish(event)

    def hook(self, passed):
        if passed == self.armed:
            self.armed = None
            raise Died

    async def run(self, steps):
        await self.home.fund(FUNDS)
        todo = list(steps)
        while True:
            died = await self.live(todo)
            if died is None:
                break
            await trio.sleep(died.away)
        # All ends by itself by then, the wallet's payments and what it was never asked for.
        await trio.sleep(3 * LIFE + 4_000)
        await self.live([], over=True)

    async def live(self, todo, over=False):
        """A life of the process; returns the crash that ended it, or nothing when all is done."""
        ended = None
        try:
            async with self.world.serving(self.home, "home") as serving:
                if self.uri is None:
                    _, self.uri = await serving.connect(per_day=BUDGET, each=EACH)
                while todo:
                    step = todo.pop(0)
                    ended = step if isinstance(step, Crash) else None
                    await self.take(serving, step)
                    await self.check(serving.store)
                    if ended is not None and step.point == "now":
                        serving.store.kill()
                        raise Died
                self.armed = None
                await trio.sleep(150 if over else 0)
                await self.check(serving.store, over=over)
                return None
        except BaseException as error:
            if not _is_death(error):
                raise
        return ended or Crash("now", 0.0)

    async def take(self, serving, step):
        match step:
            case Ask():
                await self.ask(step)
                await trio.sleep(0.01)
            case Replay(which) if self.sent:
                self.show(self.sent[which % len(self.sent)])
                await trio.sleep(0.01)
            case Break(fault):
                self.world.ledger.inject(fault, wallet=self.home)
            case Crash(point) if point != "now":
                self.armed = point
            case Wait(seconds):
                await trio.sleep(seconds)
            case Close():
                await serving.store.write(
                    lambda tx: (
                        connections.close(tx, "app", tx.clock.now())
                        if connections.get(tx, self.uri.client.hex).closed_at is None
                        else None
                    )
                )

    async def check(self, store, over=False):
        now = self.world.clock.now()
        connection = connections.get(store, self.uri.client.hex)
        mine = [intent for intent in every_intent(store) if intent.scope == connection.scope]
        # By our own books, in any window of a day.
        for end in {intent.created_at for intent in mine} | {now}:
            window = [intent for intent in mine if end - DAY < intent.created_at <= end]
            assert sum(intent.reserved for intent in window) <= BUDGET
        assert all(intent.amount_msats <= EACH for intent in mine)
        assert {intent.payment_hash for intent in mine} <= self.wanted
        assert all(connection.closed_at is None or intent.created_at <= connection.closed_at for intent in mine)
        # By the ledger of the network: every payment is one of these, each once, and nothing else has moved.
        charged = await self.home.payments(limit=10_000)
        sent = [payment for payment in charged if payment.direction == "sent" and payment.state != "failed"]
        by_hash = {intent.payment_hash: intent for intent in mine}
        assert len({payment.payment_hash for payment in sent}) == len(sent)
        for payment in sent:
            intent = by_hash[payment.payment_hash]
            assert payment.amount == intent.amount_msats
            assert payment.fee <= max_fee(payment.amount)
        assert len({intent.cause for intent in mine}) == len(mine)
        accounts = self.world.ledger.accounts()
        assert sum(accounts.values()) == 0
        settled = [payment for payment in sent if payment.state == "settled"]
        gone = sum(payment.amount + payment.fee for payment in settled)
        assert accounts[self.home.node_pubkey] == FUNDS - gone
        if over:
            known = [intent for intent in mine if intent.state is IntentState.SETTLED]
            assert {intent.payment_hash for intent in known} == {payment.payment_hash for payment in settled}
            assert sum(intent.reserved for intent in known) == gone
            assert -ledger.held(store, "") == gone
            assert not [intent for intent in mine if intent.state is IntentState.PENDING]
            assert connections.open_requests(store) == []


def every_intent(store):
    return [intents.find(store, row["payment_hash"]) for row in store.read("SELECT payment_hash FROM intents")]


def _is_death(error):
    """Whether the process died; what else breaks then, breaks of its store being gone."""
    found = list(_leaves(error))
    return any(isinstance(leaf, Died) for leaf in found) and all(isinstance(leaf, Died | StoreError) for leaf in found)


def _leaves(error):
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def play(steps):
    async def run():
        with tempfile.TemporaryDirectory() as directory:
            async with open_world(Path(directory)) as world:
                stage = Play(world)
                crashpoints.install_hook(stage.hook)
                try:
                    await stage.run(steps)
                finally:
                    crashpoints.install_hook(None)
                return stage

    return trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_never_over_budget_never_twice(found):
    play(found)
