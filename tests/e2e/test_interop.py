"""Our daemon trades with parties made of nostr-sdk, over a relay that is not ours either.

They know NIP-90 and nothing of Pylon: no code, no convention. Money moves by our wallet command, on simnet.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from pylon.testing.provider_process import answer
from tests.e2e.homes import FEE_MSATS, FUNDS_SATS, PRICE_MSATS, World, environment, fetch, until

pytestmark = pytest.mark.e2e


class Party:
    """One such process: what it hears comes in the order in which it heard it."""

    def __init__(self, process):
        self._process = process
        self._heard = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.hex = self.hear("key")["key"]

    def _read(self):
        for line in self._process.stdout:
            self._heard.put(json.loads(line))

    def hear(self, field, within=20.0, **wanted):
        """The next thing said that has ``field``, and these values; what comes before it is left out."""
        while True:
            said = self._heard.get(timeout=within)
            if field in said and all(said[name] == value for name, value in wanted.items()):
                return said

    def do(self, **wish):
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        return self.hear("did")["did"]

    def silent(self):
        return self._heard.empty()

    def end(self):
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()


@contextmanager
def party(role, relay):
    script = str(Path(__file__).with_name("sdk_party.py"))
    process = subprocess.Popen(
        [sys.executable, script, role, relay],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    made = Party(process)
    try:
        yield made
    finally:
        made.end()


@pytest.mark.parametrize("sealed", ["nip44", "nip04", None])
def test_a_customer_made_of_nostr_sdk_buys_from_us(sealed, world, shared_relay):
    provider, purse = world.market(shared_relay)
    provider.start("provider", fake=True)
    purse.fund()
    with party("customer", shared_relay) as customer:
        request = customer.do(ask="Who are you?", provider=provider.pubkey, sealed=sealed, params={"max_tokens": "64"})
        quote = customer.hear("status", request=request)
        assert (quote["status"], quote["by"], quote["msats"]) == ("payment-required", provider.pubkey, PRICE_MSATS)
        purse.json("wallet", "pay", quote["bolt11"], "--yes")
        assert customer.hear("status", request=request)["status"] == "processing"
        result = customer.hear("text", request=request)
        assert (result["text"], result["by"]) == (answer("Who are you?"), provider.pubkey)
        assert (result["sealed"], result.get("scheme")) == (sealed is not None, sealed)
    assert provider.sale_ended()["state"] == "delivered"
    assert len(fetch(shared_relay, kinds=[6050], tags={"e": [request]})) == 1
    assert provider.wallet_msats() == PRICE_MSATS
    assert purse.wallet_msats() == FUNDS_SATS * 1000 - PRICE_MSATS - FEE_MSATS
    accounts = provider.check_books()["accounts"]
    assert (accounts["earned_msats"], accounts["owed_msats"]) == (PRICE_MSATS, 0)
    provider.stop()


CLIENTS = {
    "noogle: the content is a label": (
        "NIP 90 Text Generation Request",
        [["i", "Why?", "text"], ["relays", "wss://relay.damus.io", "wss://nos.lol"]],
    ),
    "Amethyst: an input of type prompt": (
        "",
        [
            ["i", "Why?", "prompt"],
            *(["param", "max_tokens", "512"], ["param", "temperature", "0.5"], ["param", "top-k", "50"]),
            *(["param", "top-p", "0.7"], ["param", "frequency_penalty", "1"]),
        ],
    ),
    "a list of relays within a list": (
        "",
        [["i", "Why?", "text"], ["relays", "['wss://a.example', 'wss://b.example']"]],
    ),
    "no input, the content is the prompt": ("Why?", [["output", "text/plain"]]),
    "an input without a type": ("", [["i", "Why?"]]),
    "a bid as people write it": ("", [["i", "Why?", "text"], ["bid", "100_000"]]),
}
"""Content and tags of requests as they are seen on public relays."""


@pytest.fixture(scope="module")
def seller(tmp_path_factory):
    """On a relay of its own: it quotes whatever is asked there."""
    with World(tmp_path_factory.mktemp("seller")) as world:
        relay = world.relay()
        provider, purse = world.market(relay)
        provider.start("provider", fake=True)
        purse.fund()
        yield provider, purse, relay
        provider.stop()
        provider.check_books()


@pytest.mark.parametrize("client", CLIENTS)
def test_requests_as_real_clients_send_them(client, seller):
    provider, purse, relay = seller
    content, tags = CLIENTS[client]
    with party("customer", relay) as customer:
        request = customer.do(tags=[*tags, ["p", provider.pubkey]], content=content)
        quote = customer.hear("status", request=request, by=provider.pubkey)
        assert (quote["status"], quote["msats"]) == ("payment-required", PRICE_MSATS)
        purse.json("wallet", "pay", quote["bolt11"], "--yes")
        assert customer.hear("text", request=request)["text"] == answer("Why?")


def test_a_customer_made_of_nostr_sdk_is_told_why_not(world, shared_relay):
    provider, _ = world.market(shared_relay)
    provider.start("provider", fake=True)
    with party("customer", shared_relay) as customer:
        request = customer.do(ask="Who?", provider=provider.pubkey, sealed="nip44", params={"model": "gpt-9"})
        refusal = customer.hear("status", request=request)
        assert (refusal["status"], refusal["bolt11"]) == ("error", "")
    assert provider.sale_ended()["state"] == "refused"
    provider.stop()


@pytest.mark.parametrize("amount", [str(PRICE_MSATS), "10_000"])
def test_we_buy_from_a_provider_made_of_nostr_sdk(amount, world, shared_relay):
    shop, buyer = world.node("shop").configure(), world.market(shared_relay)[1]
    buyer.start()
    buyer.fund()
    with party("provider", shared_relay) as provider:
        provider.do(announce=PRICE_MSATS)
        offer = {**bill(shop, PRICE_MSATS), "msats": amount}
        job = buyer.json("job", "submit", "-", "--provider", provider.hex, stdin="What do you sell?")
        asked = provider.hear("job")
        assert (asked["by"], asked["prompt"], asked["sealed"]) == (buyer.pubkey, "What do you sell?", True)
        provider.do(quote=asked["job"], **offer)
        until(lambda: shop.wallet_msats() == PRICE_MSATS, 20, "the payment")
        provider.do(answer=asked["job"], text="Words of another library, sealed by it.")
        assert buyer.purchase_ended()["state"] == "answered"
        assert buyer.json("job", "status", job["id"])["text"] == "Words of another library, sealed by it."
        assert provider.silent()
    assert [(row["msats"], row["fee_msats"]) for row in buyer.charges()] == [(PRICE_MSATS, FEE_MSATS)]
    assert buyer.check_books()["accounts"]["spent_msats"] == PRICE_MSATS
    buyer.stop()


def test_a_provider_made_of_nostr_sdk_that_asks_for_more_is_not_paid(world, shared_relay):
    shop, buyer = world.node("shop").configure(), world.market(shared_relay)[1]
    buyer.start()
    buyer.fund()
    with party("provider", shared_relay) as provider:
        provider.do(announce=PRICE_MSATS)
        offer = bill(shop, PRICE_MSATS + 1_000)
        buyer.run("job", "submit", "-", "--provider", provider.hex, "--bid", "10", stdin="What do you sell?")
        provider.do(quote=provider.hear("job")["job"], **offer)
        ended = buyer.purchase_ended()
    assert ended["state"] == "failed"
    assert buyer.charges() == []
    buyer.check_books()
    buyer.stop()


def test_we_ask_everybody_and_buy_from_the_cheapest_who_answers(world):
    """In the open: two bidders made of nostr-sdk quote, one is paid; what the other says is not heard."""
    relay = world.relay()
    shop, buyer = world.node("shop").configure(), world.market(relay)[1]
    buyer.start()
    buyer.fund()
    with party("bidder", relay) as dear, party("bidder", relay) as cheap:
        # Made before they are asked for: a command takes its time, and quotes are waited for for seconds.
        offers = [(dear, bill(shop, PRICE_MSATS + 5_000)), (cheap, bill(shop, PRICE_MSATS))]
        buyer.run("job", "submit", "-", "--open", "--bid", "20", stdin="Who is the cheapest?")
        for bidder, offer in offers:
            asked = bidder.hear("job", by=buyer.pubkey)
            assert (asked["prompt"], asked["sealed"]) == ("Who is the cheapest?", False)
            bidder.do(quote=asked["job"], **offer)
        dear.do(answer=asked["job"], text="Me, I said it first!")
        until(lambda: shop.wallet_msats() == PRICE_MSATS, 20, "the payment")
        cheap.do(answer=asked["job"], text="I am.")
        ended = buyer.purchase_ended()
        assert (ended["state"], ended["provider"]) == ("answered", cheap.hex)
    assert buyer.json("job", "status", ended["id"])["text"] == "I am."
    assert [row["msats"] for row in buyer.charges()] == [PRICE_MSATS]
    assert buyer.check_books()["accounts"]["spent_msats"] == PRICE_MSATS
    buyer.stop()


def bill(shop, msats):
    """An amount as a provider's quote has it."""
    return {"msats": str(msats), "bolt11": shop.json("wallet", "invoice", f"{msats}msat")["bolt11"]}
