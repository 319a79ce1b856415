"""The Spark wallets of one host: ``WalletKeeper``. A few in client mode, the rest looked after in turn.

A wallet in *client mode* hears of payments at once, and costs the SDK threads, sockets and background work of its own.
One in *server mode* shares all of that with the others, and knows only what it is told to fetch
(``docs/spark.md`` has the figures). So:

* The home's own wallet, which sells, and those that were used last are in client mode, at most ``client_cap`` of them.
* The others are in server mode: opened when they are used, closed again when ``parked_cap`` are open.
* Those whose balance somebody asks for are swept in turn, at a bounded rate, the longest unasked first: a wallet that
  was never seen, or of which there is news, before all others. What it finds, or any other look, is what ``balances``
  answers, each balance with its own ``known_at``; what no sweep has found yet is left out, for unknown is not zero.
* Where Spark cannot be reached, the sweeps pause, ever longer, instead of asking every wallet in vain.

Wallets are known by their identity key. A wallet is shared by all who ask for it here, and closed with the fleet.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager

import attrs
import trio

from pylon.backoff import Backoff
from pylon.errors import StoreError, WalletError, WalletUnreachable, brief
from pylon.wallets.port import Balance
from pylon.wallets.spark import SparkWallet
from pylon.wallets.spark_kit import SparkKit
from pylon.wallets.spark_link import SparkLink

log = logging.getLogger(__name__)

_ARRANGE_SECONDS = 30.0
_CLOSE_SECONDS = 5.0
_WANTED_SECONDS = 3_600.0
"""Whose balance nobody has asked for so long is not swept any more."""


@attrs.frozen(kw_only=True)
class FleetSettings:
    """The policy, as numbers."""

    client_cap: int = 20
    """Wallets in client mode, the home's own included."""
    parked_cap: int = 200
    """Wallets that are kept open in server mode."""
    idle_seconds: float = 900.0
    """Who has not been used for so long needs no client mode."""
    sweeps_per_second: float = 2.0
    at_once: int = 4
    sweep_seconds: float = 300.0
    """A wallet is not swept again before, unless there is news of it."""


@attrs.define
class _Known:
    balance: Balance | None = None
    swept_at: float = -math.inf
    """Monotonic."""
    wanted_at: float = -math.inf
    """Monotonic: when its balance was last asked for."""
    news: bool = True


class SparkFleet:
    """See the module. ``run`` does the work; without it wallets work too, all in server mode, and nothing is swept.

    :param seed_of: the BIP-39 seed of a wallet that was not asked for by its seed yet; ``None`` for a stranger's.
    """

    kind = "spark"
    seeded = True

    def __init__(
        self,
        kit: SparkKit,
        rng: random.Random,
        *,
        settings: FleetSettings | None = None,
        seed_of: Callable[[str], bytes | None] = lambda wallet_id: None,
    ) -> None:
        self.kit = kit
        self.settings = settings or FleetSettings()
        self.seed_of = seed_of
        self._rng = rng
        self._clock = kit.clock
        self._wallets: dict[str, SparkWallet] = {}
        self._pinned: set[str] = set()
        self._known: dict[str, _Known] = {}
        self._watchers: set[_Changes] = set()
        self._bell = trio.Event()
        self._unreachable = False
        self._closed = False

    @property
    def network(self) -> str:
        return self.kit.network.name

    @property
    def invoice_prefix(self) -> str:
        return self.kit.network.prefix

    def wallet(self, secret: bytes, name: str) -> SparkWallet:
        """The wallet of a BIP-39 seed (64 bytes). Shared; it is not the caller's to close."""
        wallet_id = self.wallet_id(secret)
        wallet = self._wallets.get(wallet_id)
        if wallet is None or wallet.is_closed:
            # Which of them go to client mode is seen to later on, when it is known who is used most.
            wallet = SparkWallet(self.kit, secret, name, server=True, on_change=self._changed, on_balance=self._learnt)
            self._wallets[wallet_id] = wallet
        wallet.used_at = self._clock.monotonic()
        return wallet

    def own(self, secret: bytes, name: str, *, client: bool = False) -> SparkWallet:
        """The home's own wallet: in client mode before all others, once the fleet runs.

        :param client: from its first use on. Who listens to it from the start would hold it in the mode that it has.
        """
        wallet = self.wallet(secret, name)
        wallet.server = not client
        self._pinned.add(wallet.identity_pubkey)
        return wallet

    def wallet_id(self, secret: bytes) -> str:
        return self.kit.identity(secret)

    def known(self, wallet_id: str) -> Balance | None:
        """What a sweep found last, without asking anybody."""
        entry = self._known.get(wallet_id)
        return None if entry is None else entry.balance

    async def balances(self, ids: Collection[str] | None = None) -> dict[str, Balance]:
        """What the last sweeps found; whoever is asked for is swept from now on."""
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise StoreError("the Spark wallets are closed")
        now = self._clock.monotonic()
        for wallet_id in self._known if ids is None else ids:
            entry = self._known.setdefault(wallet_id, _Known())
            entry.wanted_at = now
        self._ring()
        asked = self._known.keys() if ids is None else ids
        return {name: found for name in asked if (found := self._known[name].balance) is not None}

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        return _Changes(self)

    # --- the work ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sweep, and decide who is in which mode, for as long as it is let."""
        places = trio.Semaphore(self.settings.at_once)
        backoff, began = Backoff(self._rng), self._clock.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_arranged)
            while True:
                wallet_id, due_in = self._next()
                if wallet_id is None:
                    await self._wait(due_in)
                    continue
                await places.acquire()
                self._known[wallet_id].swept_at = self._clock.monotonic()
                self._known[wallet_id].news = False
                nursery.start_soon(self._sweep, wallet_id, places)
                await trio.sleep(1.0 / self.settings.sweeps_per_second)
                if self._unreachable:
                    pause = backoff.wait(self._clock.monotonic() - began)
                    log.info("Spark cannot be reached; looking again in %.0f s", pause)
                    await trio.sleep(pause)
                    began, self._unreachable = self._clock.monotonic(), False

    async def _sweep(self, wallet_id: str, places: trio.Semaphore) -> None:
        """Ask one wallet what it holds. One that nobody uses is opened for it, and closed again."""
        entry = self._known[wallet_id]
        wallet, borrowed = self._wallets.get(wallet_id), False
        try:
            if wallet is None or wallet.is_closed:
                seed = self.seed_of(wallet_id)
                if seed is None or self.wallet_id(seed) != wallet_id:
                    entry.wanted_at = -math.inf
                    return
                wallet = SparkWallet(self.kit, seed, wallet_id[:16], server=True, on_balance=self._learnt)
                borrowed = True
            await wallet.sweep()
        except WalletError as error:
            entry.news = True
            self._unreachable |= isinstance(error, WalletUnreachable)
            log.info("the wallet %s does not say what it holds: %s", wallet_id[:16], error.message)
            return
        except Exception as error:
            log.warning("the wallet %s cannot be asked: %s", wallet_id[:16], brief(error))
            return
        finally:
            if borrowed and wallet is not None:
                await wallet.aclose()
            places.release()

    def _next(self) -> tuple[str | None, float]:
        """Whom to sweep now; else in how many seconds somebody will be due."""
        now = self._clock.monotonic()
        due: tuple[float, str] | None = None
        soonest = math.inf
        for wallet_id in [*self._known, *(self._pinned - self._known.keys())]:
            entry = self._known.setdefault(wallet_id, _Known())
            if wallet_id not in self._pinned and now - entry.wanted_at > _WANTED_SECONDS:
                continue
            wait = 1.0 if entry.news else self.settings.sweep_seconds
            due_at = entry.swept_at + wait
            if due_at > now:
                soonest = min(soonest, due_at - now)
            elif due is None or entry.swept_at < due[0]:
                due = entry.swept_at, wallet_id
        return (None, soonest) if due is None else (due[1], 0.0)

    async def _wait(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._bell.wait()
        self._bell = trio.Event()

    def _ring(self) -> None:
        self._bell.set()

    async def _keep_arranged(self) -> None:
        while True:
            await self.arrange()
            await trio.sleep(_ARRANGE_SECONDS)

    async def arrange(self) -> None:
        """Have the right wallets in client mode. Who is busy is left as it is, until the next time."""
        now, most = self._clock.monotonic(), self.settings
        ranked = sorted(
            (wallet for wallet in self._wallets.values() if not wallet.is_closed),
            key=lambda wallet: (wallet.identity_pubkey not in self._pinned, -wallet.used_at),
        )
        clients = {
            wallet.identity_pubkey
            for wallet in ranked[: most.client_cap]
            if wallet.identity_pubkey in self._pinned or now - wallet.used_at <= most.idle_seconds
        }
        # First who leaves, so that there are never more than the cap; then who comes.
        for wallet in ranked:
            if wallet.identity_pubkey not in clients and not wallet.server and await wallet.let_go():
                wallet.server = True
        taken = sum(not wallet.server for wallet in ranked)
        for wallet in ranked:
            wanted = wallet.identity_pubkey in clients and wallet.server and taken < most.client_cap
            if wanted and await wallet.let_go():
                wallet.server = False
                taken += 1
                await self._open(wallet)
        parked = [wallet for wallet in ranked if wallet.server and wallet.is_open]
        for wallet in parked[most.parked_cap :]:
            await wallet.let_go()

    async def _open(self, wallet: SparkWallet) -> None:
        """A wallet in client mode is open from the start: otherwise it would hear nothing."""
        try:
            await wallet.connect()
        except WalletError as error:
            log.info("opening %r: %s", wallet, error.message)

    # --- news -------------------------------------------------------------------------------------------------

    def _changed(self, link: SparkLink) -> None:
        entry = self._known.setdefault(link.identity_pubkey, _Known())
        entry.news = True
        for wallet in self._wallets.values():
            # It may be one of ours that was paid; in server mode nobody tells it.
            if wallet.server:
                wallet.outdate()
        self._ring()
        self._tell(link.identity_pubkey)

    def _learnt(self, link: SparkLink, balance: Balance) -> None:
        """A wallet has said what it holds, whoever asked it."""
        entry = self._known.setdefault(link.identity_pubkey, _Known())
        before, entry.balance = entry.balance, balance
        if before is None or (before.settled, before.pending_out) != (balance.settled, balance.pending_out):
            self._tell(link.identity_pubkey)

    def _tell(self, wallet_id: str) -> None:
        for watcher in self._watchers:
            watcher.push(wallet_id)

    async def aclose(self) -> None:
        """Close all wallets, at once and within seconds; ends who listens to changes."""
        if self._closed:
            return
        self._closed = True
        for watcher in list(self._watchers):
            watcher.end()
        with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_SECONDS):
            async with trio.open_nursery() as nursery:
                for wallet in self._wallets.values():
                    nursery.start_soon(wallet.aclose)


class _Changes:
    """Ids of wallets of which there is news, each once until it was told."""

    def __init__(self, fleet: SparkFleet) -> None:
        self._fleet = fleet
        self._waiting: dict[str, None] = {}
        self._bell = trio.Event()
        self._ended = False

    async def __aenter__(self) -> AsyncIterator[str]:
        await trio.lowlevel.checkpoint()
        if self._fleet._closed:
            raise StoreError("the Spark wallets are closed")
        self._fleet._watchers.add(self)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._fleet._watchers.discard(self)

    def push(self, wallet_id: str) -> None:
        self._waiting[wallet_id] = None
        self._bell.set()

    def end(self) -> None:
        self._ended = True
        self._bell.set()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            await self._bell.wait()
            self._bell = trio.Event()
        wallet_id = next(iter(self._waiting))
        del self._waiting[wallet_id]
        return wallet_id
