"""What is forgotten, and what never is."""

from __future__ import annotations

import trio

from pylon.daemon import books, housekeeping, retention
from pylon.errors import StoreError
from pylon.provider.pricing import Terms
from pylon.provider.sale import SaleState
from pylon.store import outbox
from pylon.store.database import open_store
from pylon.store.vault import Vault
from pylon.testing.backend import EMPTY, ScriptedBackend
from tests.pylon.market import PRICE, open_actor, open_home, until

MONTH = 31 * 86_400.0


def count(store, table):
    return store.one(f"SELECT COUNT(*) AS n FROM {table}")["n"]


async def test_what_came_to_nothing_is_forgotten_and_what_was_paid_is_not(autojump_clock, market, monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 2)
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling(terms=Terms(PRICE, invoice_seconds=30)) as (provider, store):
        paid = customer.ask(home.secret, prompt="paid")
        await customer.pay(await customer.told(paid, "payment-required"))
        for number in range(5):
            customer.ask(home.secret, prompt=f"never paid {number}")
        customer.ask(home.secret, prompt=" ")
        await trio.sleep(120)
        await until(lambda: provider.records.load(store, paid.id).state is SaleState.DELIVERED)
        assert (count(store, "sales"), count(store, "inbox")) == (7, 7)
        await housekeeping.sweep(store, market.clock.now())
        assert (count(store, "sales"), count(store, "inbox")) == (7, 7)
        await housekeeping.sweep(store, market.clock.now() + MONTH)
        assert (count(store, "sales"), count(store, "inbox"), count(store, "outbox")) == (1, 0, 0)
        assert {row["subject"] for row in store.read("SELECT subject FROM transitions")} == {paid.id}
        assert books.report(store, await home.wallet.balance()).problems == ()


async def test_what_a_dead_relay_never_took_is_given_up_but_no_result_and_no_debt(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    dead = "ws://dead.test"
    backend = ScriptedBackend(lambda asked: "fine" if "answered" in asked.messages[0].content else EMPTY)
    async with home.selling(backend) as (provider, store):
        provider._pool.add_relay(dead)
        for prompt in ("answered", "owed"):
            request = customer.ask(home.secret, prompt=prompt)
            await customer.pay(await customer.told(request, "payment-required"))
            await trio.sleep(120)
        customer.ask(home.secret, prompt=" ")
        # Not by the same customer, whose credit would pay.
        (await open_actor(market, "other")).ask(home.secret, prompt="never paid")
        await trio.sleep(5)

        def waiting(*states):
            marks = ", ".join("?" * len(states))
            rows = store.read(
                "SELECT o.effect AS effect FROM deliveries d JOIN outbox o ON o.event_id = d.event_id"
                f" WHERE d.relay = ? AND d.state IN ({marks}) ORDER BY effect",
                (dead, *states),
            )
            return [row["effect"].removeprefix("sale.publish_") for row in rows]

        for_ever = ["debt", "result"]
        assert waiting("pending") == [
            "debt", "processing", "processing", "quote", "quote", "quote", "refusal", "result"
        ]  # fmt: skip
        await housekeeping.sweep(store, market.clock.now() + 1_260)
        assert waiting("pending") == ["debt", "refusal", "result"]
        await housekeeping.sweep(store, market.clock.now() + 90_000)
        assert waiting("pending") == for_ever
        await housekeeping.sweep(store, market.clock.now() + MONTH)
        assert waiting("pending", "expired") == for_ever
        assert outbox.pending_count(store) == 2
        await housekeeping.sweep(store, market.clock.now() + 12 * MONTH)
        assert waiting("pending") == for_ever


async def test_a_full_disk_does_not_end_it(autojump_clock, market):
    path = market.directory / "alone.db"
    async with open_store(path, vault=Vault(bytes(32)), clock=market.clock, executor="inline", durable=False) as store:
        tries = []

        async def full(fn):
            tries.append(1)
            raise StoreError("the disk is full")

        store.write = full
        with trio.move_on_after(3 * housekeeping.EVERY + 1):
            await housekeeping.keep_house(store, market.clock)
        assert len(tries) == 4


async def test_requests_of_apps_are_forgotten_once_they_are_answered(autojump_clock, market):
    home = await open_home(market, funds=0)
    async with home.selling() as (_, store):

        def asked(tx):
            tx.execute(
                "INSERT INTO wallet_connections VALUES ('app', 'own', 'app', x'00', '[]', 1, NULL, 1.0, NULL, NULL)"
            )
            for name, answered_at in (("answered", 2.0), ("open", None)):
                tx.execute(
                    "INSERT INTO connection_requests (id, client, encryption, created_at, taken_at, answered_at)"
                    " VALUES (?, 'app', 'nip44_v2', 1.0, 1.0, ?)",
                    (name, answered_at),
                )

        await store.write(asked)
        await housekeeping.sweep(store, 1.0 + 30 * 86_400.0)
        assert count(store, "connection_requests") == 2
        await housekeeping.sweep(store, market.clock.now() + MONTH)
        assert [row["id"] for row in store.read("SELECT id FROM connection_requests")] == ["open"]
