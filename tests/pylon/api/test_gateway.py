"""OpenAI's own package against the market: each answer is bought, within the budgets, and told what it has cost."""

from __future__ import annotations

import functools
import random
from contextlib import asynccontextmanager

import attrs
import openai
import pytest
import trio

from protocols.nip90 import JOB_TEXT, FeedbackStatus
from pylon.api import gateway as gateway_module
from pylon.api.gateway import MarketAnswerer, paid_so_far
from pylon.api.metrics import Metrics
from pylon.clock import VirtualClock
from pylon.compute.buyer import Account, Buyer, BuyerSettings
from pylon.compute.purchase import PurchaseState
from pylon.config import ApiConfig, WalletConfig
from pylon.daemon import books
from pylon.money import Msat, sats
from pylon.provider import partials
from pylon.provider.pricing import Terms
from pylon.store import freeze, intents
from pylon.testing.backend import Reply, ScriptedBackend
from pylon.wallets.limits import API_SCOPE, home_limits
from pylon.wallets.purse import Purse
from pylon.wallets.simnet import PREFIX
from tests.pylon.api.openai_client import Client, open_client
from tests.pylon.api.test_openai_routes import ask, joined, raised
from tests.pylon.market import PRICE, Actor, account_of, open_actor, open_home, until

BEFOREHAND = Terms(min_price=PRICE, pay_on_delivery=False)
ON_TRUST = Terms(min_price=PRICE, on_trust=True)
WORDS = "it is not known why, and never was"


@attrs.define
class Gateway:
    client: Client
    buyer: Buyer
    store: object

    def jobs(self) -> list:
        return list(self.buyer.records.where(self.store, "1 = 1 ORDER BY created_at", ()))

    def told(self) -> tuple[float, float]:
        """What ``/metrics`` says that was paid, and its fees."""
        said = dict(line.split(" ") for line in self.client.api.metrics.text().decode().splitlines() if line[0] != "#")
        return float(said["pylon_api_paid_msats_total"]), float(said["pylon_api_fee_msats_total"])

    def spent(self) -> int:
        return intents.committed(self.store, "", since=0.0)


@asynccontextmanager
async def open_gateway(home, wallet=None, *, open_market=False, **api):
    """The API of ``home``, which buys."""
    config = ApiConfig(market=True, **{name: Msat(value) for name, value in api.items()})
    async with home.opened() as (store, pool), trio.open_nursery() as nursery:
        clock = home.market.clock
        purse = Purse(home.wallet, store, clock, limits=home_limits(wallet or WalletConfig(), config))
        account = Account("", home.secret, purse, await home.wallet.info())
        buyer = Buyer(
            accounts=functools.partial(account_of, {"": account}, set()),
            store=store,
            pool=pool,
            clock=clock,
            rng=random.Random(1),
            settings=BuyerSettings("simnet", PREFIX, patience_seconds=0.2, discovery_seconds=0.5, answer_seconds=2.0),
        )
        await nursery.start(buyer.run)
        answerer = MarketAnswerer(
            buyer,
            purse,
            store,
            most=config.budget_each_msats,
            network="simnet",
            own=home.secret.public.hex,
            open_market=open_market,
        )
        async with open_client(answerer, metrics=Metrics(functools.partial(paid_so_far, store))) as client:
            yield Gateway(client, buyer, store)
        assert books.report(store, None).problems == ()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_seller(market, backend=None, terms=None, **said):
    """Somebody who sells, and announces it."""
    home = await open_home(market, "seller")
    async with home.selling(backend or ScriptedBackend(WORDS), terms=terms):
        Actor(market, home.secret, home.wallet).announce(**said)
        yield home


@pytest.fixture(autouse=True)
def words_at_once(monkeypatch):
    monkeypatch.setattr(partials, "_SECONDS", 0.0)


async def test_a_chat_is_bought(market):
    backend = ScriptedBackend(WORDS)
    async with open_seller(market, backend), open_gateway(await open_home(market)) as gateway:
        raw = await gateway.client.run(
            lambda client: client.chat.completions.with_raw_response.create(
                model="scripted-1",
                messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}],
                max_tokens=40,
                temperature=0.25,
                seed=3,
                response_format={"type": "json_object"},
            )
        )
        answer = raw.parse()
        (job,) = gateway.jobs()
        assert answer.choices[0].message.content == WORDS
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.total_tokens > 0
        assert raw.headers["x-pylon-paid-msats"] == str(PRICE) == str(job.paid)
        assert raw.headers["x-pylon-fee-msats"] == str(job.fee)
        assert raw.headers["x-pylon-job"] == job.id
        assert (job.scope, job.state) == (API_SCOPE, PurchaseState.ANSWERED)
        assert gateway.told() == (job.paid, job.fee)
    (request,) = backend.requests
    assert request.messages[0].content == "System: be brief\n\nUser: why?\n\nAssistant:"
    assert (request.temperature, request.max_tokens) == (0.25, 40)
    assert ("seed", "3") in job.params
    assert request.json_schema == {"type": "object"}


async def test_a_bought_stream_comes_word_by_word(market):
    backend = ScriptedBackend(Reply(WORDS, pace=0.03))
    async with open_seller(market, backend), open_gateway(await open_home(market)) as gateway:
        pieces = await gateway.client.pieces(stream_options={"include_usage": True})
        assert joined(pieces) == WORDS
        assert len([piece for piece in pieces if piece.choices and piece.choices[0].delta.content]) > 2
        assert pieces[-1].usage.completion_tokens > 0
        cut = await gateway.client.pieces(stop=["never"])
        assert joined(cut) == WORDS[: WORDS.index("never")]
        raw = await gateway.client.run(
            lambda client: client.chat.completions.with_raw_response.create(
                model="", messages=[{"role": "user", "content": "why?"}], stream=True
            )
        )
        assert raw.headers["x-pylon-paid-msats"] == str(PRICE), "words that are told while they come are paid before"
        assert joined(await gateway.client.run(lambda _: list(raw.parse()))) == WORDS
        await until(lambda: gateway.told()[0] == 3 * PRICE, 5)


async def test_everybody_is_asked_where_that_is_wished(market):
    async with open_seller(market), open_gateway(await open_home(market), open_market=True) as gateway:
        assert joined(await gateway.client.pieces()) == WORDS
        (request,) = market.events(JOB_TEXT)
        assert request.tag("p") is None


async def test_a_stream_that_is_paid_beforehand_says_so(market):
    backend = ScriptedBackend(Reply(WORDS, pace=0.03))
    async with open_seller(market, backend, BEFOREHAND), open_gateway(await open_home(market)) as gateway:
        raw = await gateway.client.run(
            lambda client: client.chat.completions.with_raw_response.create(
                model="", messages=[{"role": "user", "content": "why?"}], stream=True
            )
        )
        assert raw.headers["x-pylon-paid-msats"] == str(PRICE)
        assert "x-pylon-price-msats" not in raw.headers
        assert joined(await gateway.client.run(lambda _: list(raw.parse()))) == WORDS


async def test_models_are_those_for_sale(market):
    async with open_seller(market, models=("b", "a")), open_gateway(await open_home(market)) as gateway:
        other = await open_actor(market, "other")
        other.announce(network="mainnet", models=("not-here",))
        models = list(await gateway.client.run(lambda client: client.models.list()))
        assert [(model.id, model.owned_by) for model in models] == [("a", "market"), ("b", "market")]
        error = await raised(gateway.client, openai.NotFoundError, ask(model="gpt"))
        assert error.code == "model_not_found"
        assert gateway.spent() == 0


async def quota(gateway):
    error = await raised(gateway.client, openai.RateLimitError, ask())
    assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
    assert error.response.headers["x-should-retry"] == "false"
    return error


async def test_the_budget_of_a_day_is_kept(market):
    """Also by many who ask at once; and what is bought by hand is not bounded by it."""
    day = 3 * (PRICE + sats(2))
    async with open_seller(market), open_gateway(await open_home(market), budget_day_msats=day) as gateway:
        for _ in range(2):
            bought = await gateway.buyer.buy("by hand", bid=sats(20), max_tokens=9)
            assert (await gateway.buyer.finished(bought.id)).state is PurchaseState.ANSWERED
        by_hand, codes = gateway.spent(), []

        async def call():
            try:
                await gateway.client.chat()
                codes.append("ok")
            except openai.RateLimitError as error:
                codes.append(error.code)

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(call)
        assert codes.count("ok") >= 3
        assert set(codes) == {"ok", "insufficient_quota"}
        while gateway.spent() - by_hand + PRICE + sats(2) <= day:
            await gateway.client.chat()
        assert gateway.spent() - by_hand <= day
        requests = len(market.events(JOB_TEXT))
        await quota(gateway)
        assert gateway.spent() - by_hand <= day
        assert len(market.events(JOB_TEXT)) == requests, "nobody is asked for what cannot be paid"


@pytest.mark.parametrize(
    ("wallet", "api"),
    [
        (WalletConfig(), {"budget_day_msats": 0}),
        (WalletConfig(), {"budget_each_msats": 0}),
        (WalletConfig(), {"budget_each_msats": PRICE - 1}),
        (WalletConfig(budget_day_sats=0), {}),
        (WalletConfig(budget_each_sats=PRICE // 1_000 - 1), {}),
        (WalletConfig(reserve_sats=2_000), {}),
    ],
)
async def test_every_bound_holds(market, wallet, api):
    async with open_seller(market), open_gateway(await open_home(market), wallet, **api) as gateway:
        await quota(gateway)
        assert gateway.spent() == 0


async def test_an_empty_wallet(market):
    async with open_seller(market), open_gateway(await open_home(market, funds=0)) as gateway:
        await quota(gateway)
        assert gateway.jobs() == [], "nothing is begun that cannot be paid"


async def test_frozen(market):
    async with open_seller(market), open_gateway(await open_home(market)) as gateway:
        await gateway.store.write(lambda tx: freeze.freeze(tx, "look into it", 1.0))
        error = await raised(gateway.client, openai.InternalServerError, ask())
        assert (error.status_code, error.code) == (503, "wallet_unavailable")
        assert gateway.spent() == 0


async def test_nobody_sells(market):
    async with open_gateway(await open_home(market)) as gateway:
        error = await raised(gateway.client, openai.InternalServerError, ask(model=""))
        assert (error.status_code, error.code) == (503, "no_provider")
        assert list(await gateway.client.run(lambda client: client.models.list())) == []


@pytest.mark.parametrize("options", [{"messages": [{"role": "user", "content": "x" * 40_000}]}, {"messages": [
    {"role": "user", "content": " "}]}, {"response_format": {"type": "json_schema", "json_schema": {
        "schema": {"enum": ["x" * 5_000]}}}}])  # fmt: skip
async def test_what_cannot_be_sent_is_not_bought(market, options):
    async with open_seller(market), open_gateway(await open_home(market)) as gateway:
        await raised(gateway.client, openai.BadRequestError, ask(**options))
        assert gateway.jobs() == []


async def paid_request(gateway, seller):
    """A call that was paid, its provider silent: the request."""
    request = await seller.request()
    await seller.quote(request)
    await until(lambda: gateway.jobs()[-1].state is PurchaseState.PAID, 10)
    return request


async def failing(gateway, call, then):
    """What the package raises of ``call``, while ``then`` happens."""
    found = []

    async def run():
        found.append(await raised(gateway.client, openai.APIError, call))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await then()
    return found[0]


async def test_what_was_paid_and_lost_is_told_and_not_tried_again(market):
    seller = await open_actor(market, "seller")
    seller.announce()
    async with open_gateway(await open_home(market)) as gateway:
        error = await failing(gateway, ask(), lambda: paid_request(gateway, seller))
        assert (error.status_code, error.code) == (503, "answer_lost")
        assert error.response.headers["x-should-retry"] == "false"
        assert error.response.headers["x-pylon-paid-msats"] == str(PRICE)
        assert gateway.jobs()[0].id[:16] in error.message


async def test_what_takes_too_long_goes_on(market, monkeypatch):
    monkeypatch.setattr(gateway_module, "ANSWER_SECONDS", 0.3)
    backend = ScriptedBackend(Reply(WORDS, first=0.6))
    async with open_seller(market, backend), open_gateway(await open_home(market)) as gateway:
        error = await raised(gateway.client, openai.InternalServerError, ask())
        assert (error.status_code, error.code) == (503, "answer_pending")
        assert error.response.headers["x-should-retry"] == "false"
        (job,) = gateway.jobs()
        assert (await gateway.buyer.finished(job.id)).text == WORDS


async def test_a_provider_that_owes_is_named(market):
    seller = await open_actor(market, "seller")
    seller.announce()
    async with open_gateway(await open_home(market)) as gateway:

        async def owe():
            request = await paid_request(gateway, seller)
            seller.feedback(request.id, request.pubkey, FeedbackStatus.ERROR, message="broke", credit_msats=PRICE)

        error = await failing(gateway, ask(), owe)
        assert error.code == "provider_failed"
        assert error.response.headers["x-should-retry"] == "false"


async def test_words_that_were_said_cannot_be_taken_back(market):
    seller = await open_actor(market, "seller")
    seller.announce()
    async with open_gateway(await open_home(market)) as gateway:

        async def change():
            request = await paid_request(gateway, seller)
            for words in ("one tw", "one", "another one, and", "one two"):
                seller.feedback(request.id, request.pubkey, FeedbackStatus.PARTIAL, content=words)
                await trio.sleep(0.2)
            seller.answer(request, "another one")

        got = []
        error = await failing(gateway, lambda client: got.extend(ask(stream=True)(client)), change)
        assert error.code == "answer_changed"
        assert joined(got) == "one two", "whoever streams gets no word twice"
        assert gateway.jobs()[0].text == "another one"


async def test_what_nobody_has_read_yet_may_change(market):
    seller = await open_actor(market, "seller")
    seller.announce()
    async with open_gateway(await open_home(market)) as gateway:
        said = []

        async def run():
            said.append(await gateway.client.chat())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            request = await paid_request(gateway, seller)
            seller.feedback(request.id, request.pubkey, FeedbackStatus.PARTIAL, content="one tw")
            await trio.sleep(0.2)
            seller.answer(request, "another one")
        assert said[0].choices[0].message.content == "another one"


async def test_a_key_pays_once(market):
    """Whole, in pieces and at the same time; also once the budget is spent."""
    backend = ScriptedBackend(Reply(WORDS, first=0.2))
    day = PRICE + sats(2)
    async with open_seller(market, backend), open_gateway(await open_home(market), budget_day_msats=day) as gateway:
        said = []

        async def call():
            said.append(joined_answer(await gateway.client.chat(extra_headers={"Idempotency-Key": "k-1"})))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            nursery.start_soon(call)
        await call()
        said.append(joined(await gateway.client.pieces(extra_headers={"Idempotency-Key": "k-1"})))
        assert said == [WORDS] * 4
        (job,) = gateway.jobs()
        assert gateway.told() == (job.paid, job.fee), "four times answered, once paid"
        await quota(gateway)
        error = await raised(
            gateway.client, openai.BadRequestError, ask(max_tokens=5, extra_headers={"Idempotency-Key": "k-1"})
        )
        assert error.code == "idempotency_key_reused"
        assert len(gateway.jobs()) == 1


async def test_a_key_that_has_failed_is_tried_again(market):
    keyed = {"extra_headers": {"Idempotency-Key": "k-1"}}
    async with open_gateway(await open_home(market)) as gateway:
        await raised(gateway.client, openai.InternalServerError, ask(model="", **keyed))
        async with open_seller(market):
            assert joined_answer(await gateway.client.chat(model="", **keyed)) == WORDS
        assert [job.state for job in gateway.jobs()] == [PurchaseState.FAILED, PurchaseState.ANSWERED]


def joined_answer(answer) -> str:
    return answer.choices[0].message.content


def leaver(gateway, key=""):
    """A client that will leave."""
    keyed = {"Idempotency-Key": key} if key else {}
    return gateway.client.served.client(Authorization=f"Bearer {gateway.client.sync.api_key}", **keyed)


async def call(http):
    await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "why?"}]})


@pytest.mark.parametrize("key", ["", "k-1"])
async def test_who_leaves_before_anything_is_paid_gives_it_up(market, key):
    """Unless it has a key, with which it may come again."""
    seller = await open_actor(market, "seller")
    seller.announce()
    async with open_gateway(await open_home(market)) as gateway:
        async with leaver(gateway, key) as http, trio.open_nursery() as nursery:
            nursery.start_soon(call, http)
            request = await seller.request()
            nursery.cancel_scope.cancel()
        await until(lambda: gateway.client.api.running == 0, 5)
        await seller.quote(request)
        await trio.sleep(0.3)
        (job,) = gateway.jobs()
        if key:
            assert job.paid == PRICE
        else:
            assert (job.state, job.paid, job.reason) == (PurchaseState.FAILED, 0, "its caller has left")
            assert gateway.spent() == 0
            assert gateway.buyer._signed == {}


async def test_who_leaves_early_asks_nobody(market):
    """While somebody who sells is still being looked for."""
    async with open_gateway(await open_home(market)) as gateway:
        async with leaver(gateway) as http:
            with trio.move_on_after(0.15):
                await call(http)
        await until(lambda: gateway.client.api.running == 0, 5)
        (await open_actor(market, "seller")).announce()
        await trio.sleep(1.0)
        (job,) = gateway.jobs()
        assert (job.state, job.tried) == (PurchaseState.FAILED, ())
        assert gateway.buyer._signed == {}
        assert market.events(JOB_TEXT) == []


async def test_who_leaves_while_it_is_held_pays_nothing(market):
    """The payment comes back, and the provider stops working."""
    backend = ScriptedBackend(Reply(WORDS, first=60))
    async with open_seller(market, backend), open_gateway(await open_home(market)) as gateway:
        async with leaver(gateway) as http, trio.open_nursery() as nursery:
            nursery.start_soon(call, http)
            await until(lambda: backend.active, 10)
            nursery.cancel_scope.cancel()
        await until(lambda: gateway.client.api.running == 0, 5)
        await until(lambda: gateway.jobs()[0].state is PurchaseState.FAILED, 10)
        await until(lambda: backend.active == 0, 10)
        assert gateway.told() == (0, 0)
        assert gateway.spent() == 0
        assert (await gateway.buyer._accounts("").purse.wallet.balance()).pending_out == 0


async def test_what_was_heard_is_paid(market):
    """Whoever leaves in the middle has had words that were paid before."""
    backend = ScriptedBackend(Reply(WORDS, pace=0.2))
    async with open_seller(market, backend), open_gateway(await open_home(market)) as gateway:
        await gateway.client.run(hear_one)
        await until(lambda: gateway.jobs()[0].state is PurchaseState.ANSWERED, 10)
        assert gateway.jobs()[0].text == WORDS
        assert gateway.told()[0] == PRICE


def hear_one(client):
    with ask(stream=True)(client) as pieces:
        next(piece for piece in pieces if piece.choices[0].delta.content)


async def test_words_on_trust(market):
    """They come before anything is paid: with their price, and who has heard some does not give the purchase up."""
    backend = ScriptedBackend(Reply(WORDS, pace=0.1))
    async with open_seller(market, backend, ON_TRUST), open_gateway(await open_home(market)) as gateway:
        raw = await gateway.client.run(
            lambda client: client.chat.completions.with_raw_response.create(
                model="", messages=[{"role": "user", "content": "why?"}], stream=True
            )
        )
        assert "x-pylon-price-msats" in raw.headers
        assert "x-pylon-paid-msats" not in raw.headers
        assert joined(await gateway.client.run(lambda _: list(raw.parse()))) == WORDS
        await gateway.client.run(hear_one)
        await until(lambda: [job.state for job in gateway.jobs()] == [PurchaseState.ANSWERED] * 2, 10)


async def test_who_leaves_loses_no_answer(market):
    """What was paid beforehand is kept."""
    backend = ScriptedBackend(Reply(WORDS, first=0.5))
    async with open_seller(market, backend, BEFOREHAND), open_gateway(await open_home(market)) as gateway:
        async with leaver(gateway) as http:
            with trio.move_on_after(0.4):
                await call(http)
        await until(lambda: gateway.client.api.running == 0, 5)
        await until(lambda: gateway.jobs() and gateway.jobs()[0].state is PurchaseState.ANSWERED, 10)
        (job,) = gateway.jobs()
        assert job.text == WORDS
        assert gateway.told() == (job.paid, job.fee), "paid is paid, whoever is there to be told"
        by_hand = await gateway.buyer.buy("by hand", bid=sats(20), max_tokens=9)
        assert (await gateway.buyer.finished(by_hand.id)).paid > 0
        assert gateway.told() == (job.paid, job.fee)
        assert isinstance(market.clock, VirtualClock)
