"""Requests and amounts as software in use sends them: how they are read, and what a provider makes of them.

Shapes after what was seen on public relays and in the sources of clients (noogle, Amethyst, nostrudel, nostrdvm, nak),
with some that are one slip away from those.
``refused``: a part of the words of the refusal. ``silent``: not even that. All others are quoted and, paid, answered.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event
from protocols.nip90 import FEEDBACK, JOB_TEXT, parse_feedback, parse_request, parse_result
from pylon.provider.sale import SaleState
from pylon.testing.backend import ScriptedBackend
from tests.pylon.market import PRICE, Market, open_actor, open_home, open_market, until

FIXTURES = Path(__file__).parent / "fixtures"
REQUESTS = json.loads((FIXTURES / "requests.json").read_text())
AMOUNTS = json.loads((FIXTURES / "amounts.json").read_text())
NOW = 1_800_000_000
CUSTOMER, PROVIDER = SecretKey((1).to_bytes(32, "big")), SecretKey((2).to_bytes(32, "big"))
DAY = 86_400


def signed(entry: dict[str, Any], customer: SecretKey, provider: SecretKey, now: int) -> Event:
    said = {"$provider": provider.public.hex, "$tomorrow": str(now + DAY), "$yesterday": str(now - DAY)}
    tags = [[said.get(value, value) for value in tag] for tag in entry["tags"]]
    return sign_event(customer, kind=JOB_TEXT, content=entry["content"], tags=tags, created_at=now)


@pytest.mark.parametrize("entry", REQUESTS, ids=lambda entry: entry["name"])
def test_requests_are_read(entry):
    read = parse_request(signed(entry, CUSTOMER, PROVIDER, NOW), PROVIDER)
    for name, value in entry["reads"].items():
        found = getattr(read, name)
        assert (list(found) if isinstance(found, tuple) else found) == value, name


@pytest.mark.parametrize("entry", AMOUNTS, ids=lambda entry: entry["name"])
def test_amounts_are_read(entry):
    common = [["e", "ab" * 32], ["p", CUSTOMER.public.hex], entry["tag"]]
    feedback = sign_event(PROVIDER, kind=FEEDBACK, tags=[["status", "payment-required"], *common], created_at=NOW)
    result = sign_event(PROVIDER, kind=JOB_TEXT + 1_000, content="words", tags=common, created_at=NOW)
    for read in (parse_feedback(feedback), parse_result(result)):
        assert (read.amount_msats, read.bolt11) == (entry["amount"], entry["bolt11"])


@pytest.fixture
async def market(tmp_path):
    async with open_market(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("entry", REQUESTS, ids=lambda entry: entry["name"])
async def test_requests_are_answered_or_refused(autojump_clock, market: Market, entry):
    """Each is put to this provider by name, whomever its client would have asked."""
    home, customer = await open_home(market, "home", funds=0), await open_actor(market, "customer")
    if not any(tag[0] == "p" for tag in entry["tags"]):
        entry = {**entry, "tags": [*entry["tags"], ["p", "$provider"]]}
    async with home.selling(ScriptedBackend("an answer")) as (provider, store):
        request = signed(entry, customer.secret, home.secret, market.now)
        market.relay.publish(request)
        if entry.get("silent"):
            await trio.sleep(60)
            assert market.events(FEEDBACK) == []
            return
        if "refused" in entry:
            refusal = await customer.told(request, "error")
            assert entry["refused"] in parse_feedback(refusal).message
            assert (refusal.tag("e"), refusal.tag("p")) == (request.id, customer.hex)
            return
        quote = await customer.told(request, "payment-required")
        # What clients look for: who is meant, which request, whole msats, and the invoice beside them.
        assert (quote.tag("e"), quote.tag("p")) == (request.id, customer.hex)
        (amount,) = quote.tags_named("amount")
        assert amount[1] == str(PRICE)
        await customer.pay(quote)
        (result,) = await until(lambda: market.events(JOB_TEXT + 1_000))
        assert (result.tag("e"), result.tag("p"), result.content) == (request.id, customer.hex, "an answer")
        assert json.loads(result.tag("request"))["id"] == request.id
        sale = provider.records.load(store, request.id)
        assert sale.prompt == parse_request(request, home.secret).prompt
        await until(lambda: provider.records.load(store, request.id).state is SaleState.DELIVERED)
