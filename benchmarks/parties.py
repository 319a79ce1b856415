"""The provider and the buyer of the market benchmark: ``python -m benchmarks.parties ROLE SETTINGS``.

Each is a process with its own durable store, its wallet on the shared simnet ledger, and a pool on the relay's socket;
put together as the daemon does it. Commands come as lines of JSON on stdin, answers go to stdout.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import random
import sys
import time
from pathlib import Path
from typing import Any

import trio

from benchmarks.meter import Meter, meter_pylon
from protocols.keys import SecretKey
from pylon.clock import SystemClock
from pylon.compute.buyer import Account, Buyer, BuyerSettings
from pylon.compute.purchase import PurchaseState
from pylon.inference.router import Router
from pylon.money import sats
from pylon.provider.announce import Announcer, Profile
from pylon.provider.pricing import Terms
from pylon.provider.server import Provider
from pylon.relays.pool import RelayPool
from pylon.relays.publisher import Publisher
from pylon.relays.websocket import connect
from pylon.store import outbox
from pylon.store.database import Store, open_store
from pylon.store.vault import Vault
from pylon.testing.backend import ScriptedBackend
from pylon.wallets.purse import Purse
from pylon.wallets.simnet import PREFIX, SimnetLedger

PRICE = sats(10)
FUNDS = sats(1_000_000)


class Party:
    """One side, as far as both are alike."""

    def __init__(self, settings: dict[str, Any], meter: Meter | None) -> None:
        self.settings = settings
        self.meter = meter
        self.profile: cProfile.Profile | None = None
        self.key = ""

    async def run(self, role: str) -> None:
        clock, rng = SystemClock(), random.Random()
        directory = Path(self.settings["directory"])
        name = self.settings.get("name", role)
        secret, node = SecretKey.generate(), SecretKey.generate().reveal()
        self.key = secret.public.hex
        async with (
            open_store(directory / f"{name}.db", vault=Vault(SecretKey.generate().reveal()), clock=clock) as store,
            SimnetLedger(directory / "simnet.db", clock=clock, rng=rng) as ledger,
            trio.open_nursery() as nursery,
        ):
            wallet = ledger.wallet(name, node)
            pool = RelayPool([self.settings["relay"]], connect=connect, clock=clock, rng=rng)
            await nursery.start(pool.run)
            nursery.start_soon(Publisher(pool, store, clock, rng).run)
            await pool.connected()
            if role == "provider":
                router = Router([ScriptedBackend("Pong.", name="null", models=("null-1",))])
                # One customer buys it all here, unless it is the terms that are measured.
                terms = Terms(min_price=PRICE, max_open=10_000, max_open_per_customer=10_000)
                if self.settings.get("usual_terms"):
                    terms = Terms(min_price=PRICE)
                provider = Provider(
                    secret=secret, store=store, pool=pool, wallet=wallet, wallet_name="own", router=router,
                    clock=clock, rng=rng, terms=terms, slots=self.settings["slots"],
                )  # fmt: skip
                await nursery.start(provider.run)
                announcer = Announcer(
                    secret=secret, store=store, pool=pool, router=router, clock=clock, terms=terms,
                    profile=Profile("bench", "", "simnet"),
                )  # fmt: skip
                await announcer.look()
                await _delivered(store)
                await self._obey(store, None)
            else:
                await wallet.fund(FUNDS)
                account = Account("", secret, Purse(wallet, store, clock), await wallet.info())
                buyer = Buyer(
                    accounts=lambda owner: account, store=store, pool=pool, clock=clock, rng=rng,
                    settings=BuyerSettings("simnet", PREFIX, quote_seconds=self.settings["patience"]),
                )  # fmt: skip
                await nursery.start(buyer.run)
                await self._obey(store, buyer)
            nursery.cancel_scope.cancel()

    async def _obey(self, store: Store, buyer: Buyer | None) -> None:
        """Answer commands until stdin ends."""
        print(json.dumps("ready"), flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            command = json.loads(line)
            answer: Any
            if command["do"] == "buy":
                assert buyer is not None
                answer = await _buy(buyer, command["jobs"], command["at_once"])
            elif command["do"] == "reset":
                answer = None
                if self.meter is not None:
                    self.meter.reset()
            elif command["do"] == "profile":
                answer = None
                self._profile(command["file"])
            else:
                answer = {
                    "commits": store.commits,
                    "writes": store.writes,
                    "rows": {} if self.meter is None else self.meter.snapshot(),
                    "sales": _sales(store),
                    "waiting": outbox.pending_count(store),
                    "key": self.key,
                }
            print(json.dumps(answer), flush=True)

    def _profile(self, file: str | None) -> None:
        """Begin to profile, or end it and write what was found."""
        if self.profile is None:
            self.profile = cProfile.Profile()
            self.profile.enable()
        else:
            self.profile.disable()
            self.profile.dump_stats(str(file))
            self.profile = None


def _sales(store: Store) -> dict[str, int]:
    """How many there are in each state."""
    return {row["state"]: row["n"] for row in store.read("SELECT state, COUNT(*) AS n FROM sales GROUP BY state")}


async def _delivered(store: Store) -> None:
    with store.listen("delivered") as changed:
        while store.one("SELECT 1 FROM deliveries WHERE state = 'accepted'") is None:
            await changed.receive()


async def _buy(buyer: Buyer, jobs: int, at_once: int) -> dict[str, Any]:
    """So many jobs, so many at once; seconds of each from ``buy`` to its answer."""
    slots = trio.CapacityLimiter(at_once)
    seconds: list[float] = []
    failed: list[str] = []

    async def one(number: int) -> None:
        async with slots:
            began = time.perf_counter()
            purchase = await buyer.buy(f"Thought number {number}?", bid=PRICE, max_tokens=64)
            ended = await buyer.finished(purchase.id)
            seconds.append(time.perf_counter() - began)
            if ended.state is not PurchaseState.ANSWERED:
                failed.append(f"{ended.state.value}: {ended.reason}")

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(jobs):
            nursery.start_soon(one, number)
    return {"wall": time.perf_counter() - began, "seconds": seconds, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["provider", "buyer"])
    parser.add_argument("settings", type=json.loads)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    party = Party(arguments.settings, meter_pylon() if arguments.settings["metered"] else None)
    trio.run(party.run, arguments.role)


if __name__ == "__main__":
    main()
