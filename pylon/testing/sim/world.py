"""A market for one seed: who there is, what goes wrong and when, and how it ends."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import attrs
import trio
from trio.testing import MockClock

from protocols import entropy
from pylon import crashpoints
from pylon.clock import VirtualClock
from pylon.compute import debts
from pylon.compute.purchase import PURCHASE, Purchase
from pylon.errors import InferenceError
from pylon.inference.port import InferenceRequest
from pylon.money import Msat, sats
from pylon.provider.sale import SALE
from pylon.testing.backend import EMPTY, HANG, Reply, ScriptedBackend
from pylon.testing.relay import Faults, MemoryRelay, network, open_memory_relay
from pylon.testing.sim import invariants
from pylon.testing.sim.foreigner import Foreigner
from pylon.testing.sim.node import BuyerNode, Customer, Node, SellerNode, Setting, current
from pylon.testing.sim.stranger import Stranger
from pylon.testing.sim.visitor import Visitor
from pylon.wallets.port import Payment, PaymentState
from pylon.wallets.simnet import Fault, FaultKind, SimnetLedger

RELAY = "ws://relay.sim"
TROUBLE_SECONDS = 400.0
"""How long things go wrong. After that nothing does, and everything must come to its end."""
CALM_SECONDS = 7_200.0
FUNDS = sats(1_000)
_STEP = 20.0
_LASTING = 3
"""Steps: a seller asks its wallet within two of them."""


@attrs.define
class Told:
    """What happened, for people and for the invariants."""

    seed: int
    purchases: int = 0
    answered: int = 0
    failed: int = 0
    lost: int = 0
    credited: int = 0
    deaths: list[str] = attrs.field(factory=list)
    broken: list[str] = attrs.field(factory=list)
    virtual_seconds: float = 0.0
    counted: ClassVar[tuple[str, ...]] = ("purchases", "answered")
    """What is added up over many seeds."""

    @property
    def ok(self) -> bool:
        return not self.broken

    def line(self) -> str:
        verdict = "ok" if self.ok else "BROKEN"
        return (
            f"seed {self.seed}: {verdict}; {self.purchases} purchases: {self.answered} answered, {self.failed} failed,"
            f" {self.credited} credited, {self.lost} lost; {len(self.deaths)} deaths; {self.virtual_seconds:.0f} s"
        )


def simulate(seed: int) -> Told:
    """Run the market of one seed to its end."""
    told = Told(seed)
    with tempfile.TemporaryDirectory(prefix=f"pylon-sim-{seed}-") as name, determined(seed):
        clock = MockClock(autojump_threshold=0.0)
        trio.run(World(seed, Path(name), told).run, clock=clock)
    return told


@contextlib.contextmanager
def determined(seed: int) -> Iterator[None]:
    """Every source of chance within follows from the seed; crash points ask the node that passes them."""
    rng = random.Random(f"entropy {seed}")
    entropy.use(rng.randbytes)
    crashpoints.install_hook(_passed)
    scheduler = trio._core._run._r
    state = scheduler.getstate()
    scheduler.seed(seed)
    # Else tasks that become ready at once would run in the order of their addresses.
    sorts = trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    try:
        yield
    finally:
        trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = sorts  # type: ignore[misc]
        scheduler.setstate(state)
        crashpoints.install_hook(None)
        entropy.use(None)


def _passed(point: str) -> None:
    node = current.get()
    if node is not None:
        node.passed(point)


class World:
    def __init__(self, seed: int, directory: Path, told: Told) -> None:
        self.rng = random.Random(seed)
        self.directory = directory
        self.told = told
        self.clock = VirtualClock()
        self.trouble = True
        self._open = self.rng.random() < 0.5
        """Whether others sell here too, to everybody who asks."""
        self.payments: dict[str, list[Payment]] = {}
        self.balances: dict[str, Msat] = {}
        self.sellers: list[SellerNode] = []
        self.buyer: BuyerNode
        self.visitor: Visitor
        self.foreigner: Foreigner
        self.relay: MemoryRelay
        self.ledger: SimnetLedger

    async def run(self) -> None:
        rng = self.rng
        async with (
            open_memory_relay(
                RELAY, clock=self.clock, faults=Faults(), random=random.Random(rng.random())
            ) as self.relay,
            SimnetLedger(
                self.directory / "simnet.db",
                clock=self.clock,
                rng=random.Random(rng.random()),
                poll_seconds=None,
                durable=False,
            ) as self.ledger,
        ):
            setting = Setting(self.directory, self.clock, self.ledger, network(self.relay), (RELAY,))
            self.buyer = BuyerNode(
                "buyer", setting, random.Random(rng.random()), random.Random(f"customers of seed {self.told.seed}")
            )
            for number in range(rng.randint(1, 3)):
                name = f"seller{number}"
                backend = ScriptedBackend(self._script(name), name=name)
                price = sats(rng.randint(1, 30))
                terms = random.Random(f"terms of {name} of seed {self.told.seed}")
                self.sellers.append(SellerNode(name, setting, random.Random(rng.random()), price, backend, terms))
            stranger = Stranger(self.relay, random.Random(rng.random()), self.clock, self.ledger)
            for customer in self.buyer.customers:
                await customer.wallet.fund(FUNDS)
            self.visitor = self._open_visitor()
            await self.visitor.wallet.fund(FUNDS)
            self.foreigner = Foreigner(
                self.relay,
                self.ledger,
                self.clock,
                random.Random(f"foreigner of seed {self.told.seed}"),
                invariants.answer_of,
            )
            self._plan()
            async with trio.open_nursery() as nursery:
                for node in (*self.sellers, self.buyer):
                    nursery.start_soon(self._keep_alive, node)
                nursery.start_soon(stranger.run)
                if self._open:
                    nursery.start_soon(self.foreigner.run)
                nursery.start_soon(self.visitor.run, trio.current_time() + TROUBLE_SECONDS)
                nursery.start_soon(self._make_trouble)
                await self._shop()
                self.trouble = False
                await self._calm_down()
                await self._use_debts()
                await self._until_settled()
                await self._account(stranger)
                nursery.cancel_scope.cancel()

    def _open_visitor(self) -> Visitor:
        chance = random.Random(f"visitor of seed {self.told.seed}")
        return Visitor(
            self.relay,
            self.ledger.wallet("visitor", chance.randbytes(32)),
            [seller.secret.public for seller in self.sellers],
            chance,
            self.clock,
            prompt=lambda number: f"visit {number} of seed {self.told.seed}",
            zap=self._zap_invoice,
        )

    async def _zap_invoice(self, provider: str, amount: Msat, request: str) -> str | None:
        seller = next(seller for seller in self.sellers if seller.secret.public.hex == provider)
        return await seller.zap_invoice(amount, request)

    # --- what goes wrong --------------------------------------------------------------------------------------

    def _script(self, seller: str) -> Callable[[InferenceRequest], Reply]:
        broken = self.rng.random() < 0.15

        def script(request: InferenceRequest) -> Reply:
            right = invariants.answer_of(seller, request.messages[-1].content)
            pace = self.rng.choice([0.0, 0.01, 0.5])
            if self.trouble:
                if broken:
                    return self.rng.choice([Reply(error=InferenceError("out of memory")), EMPTY])
                mood = self.rng.random()
                if mood < 0.10:
                    return Reply(right, error=InferenceError("the engine died"), fail_after=self.rng.randint(0, 2))
                if mood < 0.15:
                    return EMPTY
                if mood < 0.18:
                    return HANG
            return Reply(right, first=self.rng.choice([0.0, 0.2, 3.0]), pace=pace)

        return script

    def _plan(self) -> None:
        """At which crash points who dies, and at which passage."""
        points = {"seller": SALE.crash_points(), "buyer": PURCHASE.crash_points()}
        for node in (*self.sellers, self.buyer):
            choices = points["buyer" if node is self.buyer else "seller"]
            for _ in range(self.rng.choice([0, 0, 1, 1, 2, 3])):
                node.plan[self.rng.choice(choices)] = self.rng.randint(1, 3)

    async def _keep_alive(self, node: Node) -> None:
        """Start a node again whenever it has died, after a while."""
        while True:
            await node.live()
            self.told.deaths.extend(f"{node.name} at {why}" for why in node.deaths)
            node.deaths.clear()
            await trio.sleep(self.rng.choice([0.0, 0.5, 5.0, 30.0]) if self.trouble else 0.1)

    async def _make_trouble(self) -> None:
        rng, faults = self.rng, self.relay.faults
        while self.trouble:
            faults.delay = (0.0, rng.choice([0.0, 0.02, 0.3]))
            faults.duplicate = rng.choice([0.0, 0.0, 0.3])
            faults.reorder = rng.choice([0.0, 0.0, 0.3])
            faults.lose_ok = rng.choice([0.0, 0.0, 0.3])
            self._end_silence()
            faults.silent = rng.random() < 0.05
            await trio.sleep(rng.uniform(5.0, 40.0))
            if not self.trouble:
                return
            match rng.randrange(6):
                case 0:
                    self.relay.disconnect_all()
                case 1:
                    self.relay.close_subscriptions()
                case 2:
                    rng.choice([*self.sellers, self.buyer]).kill("a random moment")
                case 3 | 4:
                    self.ledger.inject(self._fault())

    def _fault(self) -> Fault:
        kind = self.rng.choice(list(FaultKind))
        ends = self.rng.choice([PaymentState.SETTLED, PaymentState.SETTLED, PaymentState.FAILED])
        return Fault(kind, seconds=self.rng.choice([0.0, 0.5, 5.0, 60.0]), ends=ends)

    def _end_silence(self) -> None:
        """What was said into a half-open connection is lost for good: nothing passes on it ever again."""
        if self.relay.faults.silent:
            self.relay.disconnect_all()

    async def _calm_down(self) -> None:
        self._end_silence()
        self.ledger.clear_faults()
        self.relay.faults = Faults()
        self.foreigner.calm = True
        for node in (*self.sellers, self.buyer):
            node.plan.clear()

    # --- what is done -----------------------------------------------------------------------------------------

    async def _shop(self) -> None:
        """Purchases at random times, by anybody; what was begun is what reached the buyer's database."""
        end = trio.current_time() + TROUBLE_SECONDS
        number = 0
        for _ in range(self.rng.randint(1, 6)):
            await trio.sleep(self.rng.uniform(0.0, TROUBLE_SECONDS / 6))
            customer = self.rng.choice(self.buyer.customers)
            # An agent may want several at once, and all of them within one budget.
            for _ in range(self.rng.choice([1, 1, 4]) if customer.owner else 1):
                await self._buy(number, customer)
                number += 1
        await trio.sleep_until(end)

    async def _buy(self, number: int, customer: Customer) -> None:
        buyer = self.buyer.buyer if self.buyer.alive else None
        if buyer is None:
            return
        try:
            await buyer.buy(
                f"thought {number} of seed {self.told.seed}",
                bid=sats(self.rng.choice([5, 40, 40, 40])),
                max_tokens=self.rng.choice([16, 256]),
                open_market=self._open and self.rng.random() < 0.3,
                owner=customer.owner,
                scope=customer.owner and f"{customer.owner[:16]}:{number // 8}",
            )
        except Exception:
            assert not self.buyer.alive, "a living buyer takes a purchase"

    async def _use_debts(self) -> None:
        """Once all is well, what is owed by then is of use: whoever is owed something buys again."""
        await trio.sleep(2 * _STEP)
        store = self.buyer.store
        if store is None:
            return
        owed = [customer for customer in self.buyer.customers if debts.owed_to(store, customer.owner)]
        for number, customer in enumerate(owed):
            await self._buy(1_000 + number, customer)

    async def _until_settled(self) -> None:
        """Everybody lives and nothing goes wrong: wait for every end, at most ``CALM_SECONDS``.

        An end is one that lasts: a seller may hear of the payment of an expired quote at its next look only.
        """
        end, ended = trio.current_time() + CALM_SECONDS, 0
        while trio.current_time() < end and ended < _LASTING:
            await trio.sleep(_STEP)
            alive = all(node.alive for node in (*self.sellers, self.buyer))
            ended = ended + 1 if alive and not self._unfinished() else 0
        self.told.virtual_seconds = trio.current_time()

    def _unfinished(self) -> bool:
        open_purchases = any(record.state not in PURCHASE.final for record in self.purchases())
        open_sales = any(
            sale.state not in SALE.final for seller in self.sellers for sale in invariants.sales_of(seller)
        )
        return open_purchases or open_sales or self.visitor.is_about_to_pay

    def purchases(self) -> list[Purchase]:
        return invariants.purchases_of(self.buyer)

    async def _account(self, stranger: Stranger) -> None:
        wallets = {node.name: node.bare_wallet() for node in self.sellers}
        wallets |= {customer.name: customer.wallet for customer in self.buyer.customers}
        for name, wallet in wallets.items():
            self.payments[name] = await wallet.payments()
            self.balances[name] = (await wallet.balance()).settled
        self.payments["stranger"] = await stranger.wallet.payments()
        self.payments["foreigner"] = await self.foreigner.wallet.payments()
        self.payments["visitor"] = await self.visitor.wallet.payments()
        for record in self.purchases():
            self.told.purchases += 1
            if record.state in PURCHASE.final:  # one that is not is told by the invariants
                name = record.state.value
                setattr(self.told, name, getattr(self.told, name, 0) + 1)
        self.told.broken = list(invariants.broken(self))

    def sums(self) -> dict[str, Msat]:
        return self.ledger.accounts()
