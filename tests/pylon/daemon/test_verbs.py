"""The verbs over the parts of a home: what is refused and how, what is answered."""

from __future__ import annotations

import attrs
import pytest
import trio

from protocols.nip19 import encode_npub
from protocols.nip90 import FeedbackStatus, parse_request
from pylon.config import Config
from pylon.daemon.verbs import MAX_PROMPT_CHARS, Verbs, check_prompt
from pylon.daemon.wallet_money import MAX_FUNDING, WALLET_VERBS
from pylon.errors import NotFound, PylonError, UsageError
from pylon.money import Msat, sats
from tests.pylon.market import PRICE, open_actor, open_home, until

ASK = {"prompt": "think", "bid_msats": sats(20), "max_tokens": 16}


class Heard:
    """A caller's notifications."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict]] = []

    async def __call__(self, method: str, params: dict) -> None:
        self.all.append((method, params))


@pytest.fixture
async def home(market):
    return await open_home(market)


@pytest.fixture
async def verbs(home):
    async with home.buying(discovery_seconds=0.5, patience_seconds=1.0) as (buyer, store):
        yield Verbs(Config(network="simnet"), home.market.clock, store, home.wallet, buyer)


async def call(verbs, name, **params):
    return await verbs.table()[name](params, Heard())


async def test_the_table(verbs):
    assert set(verbs.table()) == {
        "job.submit", "job.list", "job.status", "job.cancel", "trace", "earnings", "books", "compute", *WALLET_VERBS,
        "wallet.freeze", "wallet.thaw", "wallet.approvals", "wallet.approve", "wallet.deny",
        "wallet.connect", "wallet.connections", "wallet.disconnect",
        "provider.status", "provider.jobs", "provider.credits", "provider.payout",
        "provider.block", "provider.unblock", "provider.trust", "provider.untrust",
    }  # fmt: skip


async def test_buying_tells_every_state_then_the_end(market, verbs):
    seller = await open_actor(market, "seller")
    seller.announce()
    heard = Heard()
    done = {}

    async def buy():
        done.update(await verbs.job_submit({**ASK, "wait": True}, heard))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(buy)
        request = await seller.request()
        await seller.quote(request)
        await until(lambda: any(data.get("state") == "paid" for _, data in heard.all))
        seller.feedback(request.id, request.pubkey, FeedbackStatus.PARTIAL, content="wo")
        await trio.sleep(1)
        seller.answer(request, "words")
    states = [data["state"] for method, data in heard.all if method == "job"]
    assert states[-3:] == ["paying", "paid", "answered"]
    assert (done["state"], done["text"], done["paid_msats"]) == ("answered", "words", PRICE)
    assert done["history"][-1]["to_state"] == "answered"
    assert [data["text"] for method, data in heard.all if method == "partial"] == ["wo"]

    ident = done["id"]
    for wanted in (ident, ident[:8].upper(), request.id, request.id[:10]):
        assert await call(verbs, "job.status", id=wanted) == done
    (row,) = await call(verbs, "job.list")
    assert row == {key: value for key, value in done.items() if key != "history"}
    report = await call(verbs, "books")
    assert report["clean"], report["problems"]
    assert report["accounts"]["spent_msats"] == PRICE


async def test_money_that_our_wallet_refuses_shows_in_the_history(market, verbs, home):
    seller = await open_actor(market, "seller")
    seller.announce()
    poor = await open_home(market, "poor", funds=0)
    async with poor.buying() as (buyer, store):
        mine = Verbs(Config(network="simnet"), market.clock, store, poor.wallet, buyer)
        done = {}

        async def buy():
            done.update(await call(mine, "job.submit", **ASK, wait=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(buy)
            await seller.quote(await seller.request())
        assert done["state"] == "failed"
        assert done["history"][-1]["input"] == "PaymentRefused"


async def test_without_waiting_it_is_written_down_and_goes_on(verbs):
    for wait in (False, None, 0, "yes"):
        assert (await call(verbs, "job.submit", **ASK, wait=wait))["state"] == "seeking"
    assert len(await call(verbs, "job.list")) == 4
    assert len(await call(verbs, "job.list", limit=3)) == 3


async def test_what_else_is_asked_for_travels_with_the_request(market, verbs, autojump_clock):
    seller = await open_actor(market, "seller")
    seller.announce()
    params = [["temperature", "0.5"], ["json_schema", '{"type":"object"}']]
    await call(verbs, "job.submit", **ASK, params=params)
    asked = parse_request(await seller.request(), seller.secret)
    said = {"max_tokens": "16", "temperature": "0.5", "json_schema": '{"type":"object"}'}
    assert {**asked.params} == {**said, "pay_on_delivery": "true"}


async def test_waiting_has_an_end_and_the_job_has_not(market, verbs, autojump_clock):
    seller = await open_actor(market, "seller")
    seller.announce()
    began = trio.current_time()
    done = await call(verbs, "job.submit", **ASK, wait=True, wait_seconds=2)
    assert trio.current_time() - began < 5
    assert done["state"] == "requested"
    assert [step["to_state"] for step in done["history"]] == ["seeking", "requested"]
    request = await seller.request()
    answers = []

    async def wait():
        answers.append(await call(verbs, "job.status", id=done["id"], wait_seconds=30))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await seller.quote(request)
        await trio.sleep(1)
        assert answers == []
        seller.answer(request, "words")
    assert (answers[0]["state"], answers[0]["text"]) == ("answered", "words")
    began = trio.current_time()
    assert (await call(verbs, "job.status", id=done["id"], wait_seconds=30))["state"] == "answered"
    assert trio.current_time() - began < 1
    for wrong in (-1, "5", True):
        with pytest.raises(UsageError):
            await call(verbs, "job.status", id=done["id"], wait_seconds=wrong)


async def test_a_list_of_some(market, verbs, home, autojump_clock):
    """By state, by provider, by time; and agents' thoughts only where they are asked for."""
    sellers = [await open_actor(market, name) for name in ("one", "two")]
    for seller in sellers:
        await call(verbs, "job.submit", **ASK, provider=seller.hex)
    for seller in sellers:
        await seller.request()
    middle = market.clock.now() + 0.5
    await trio.sleep(1)
    last = await call(verbs, "job.submit", **ASK, provider=sellers[0].hex)
    await call(verbs, "job.cancel", id=last["id"])

    async def listed(**params):
        return [(row["provider"] or "", row["state"]) for row in await call(verbs, "job.list", **params)]

    assert len(await listed()) == 3
    assert [state for _, state in await listed(states=["failed"])] == ["failed"]
    assert [state for _, state in await listed(states=["requested", "seeking"])] == ["requested", "requested"]
    assert await listed(provider=encode_npub(sellers[1].secret.public)) == [(sellers[1].hex, "requested")]
    assert len(await listed(since=middle)) == 1
    assert await listed(since=middle, states=["requested"]) == []
    for wrong in (
        {"states": []}, {"states": ["merry"]}, {"states": "failed"}, {"provider": "x"}, {"since": -1}, {"since": "x"},
        {"limit": 0}, {"states": [[]]},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            await listed(**wrong)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": ""}, {"prompt": " \n"}, {"prompt": None}, {"prompt": 3}, {"prompt": ["x"]}, {"prompt": "caf\udce9"},
        {"prompt": "a" * (MAX_PROMPT_CHARS + 1)}, {"bid_msats": 0}, {"bid_msats": -5}, {"bid_msats": 1.5},
        {"bid_msats": "5"}, {"bid_msats": True}, {"bid_msats": None}, {"bid_msats": 10**30}, {"max_tokens": 0},
        {"max_tokens": 10**9}, {"max_tokens": None}, {"model": ""}, {"model": 7}, {"model": {}}, {"provider": ""},
        {"params": "x"}, {"params": [["a"]]}, {"params": [["a", 1]]}, {"params": [["", "x"]]},
        {"params": [["a b", "x"]]},
        {"params": [["a", "x" * 5_000]]}, {"params": [["a", "1"], ["a", "2"]]}, {"params": [["a", "\udce9"]]},
        {"params": [["model", "m"]]}, {"params": [["max_tokens", "5"]]}, {"params": [["pay_on_delivery", "true"]]},
        {"params": [[f"p{n}", ""] for n in range(33)]}, {"params": [["json_schema", "{"]]},
        {"wait_seconds": -1}, {"wait_seconds": "5"}, {"wait_seconds": True}, {"wait_seconds": float("inf")},
        {"provider": "nonsense"}, {"provider": 5}, {"provider": "00" * 32}, {"provider": "npub1" + "q" * 58},
    ],
    ids=lambda changes: repr(changes)[:40],
)  # fmt: skip
async def test_what_cannot_be_bought_is_a_usage_error_and_leaves_nothing(verbs, changes):
    with pytest.raises(UsageError) as caught:
        await call(verbs, "job.submit", **{**ASK, **changes})
    assert len(caught.value.message) < 200
    assert await call(verbs, "job.list") == []


def test_the_longest_prompt():
    assert check_prompt("ä" * MAX_PROMPT_CHARS)


async def test_a_home_does_not_buy_from_itself(verbs, home):
    class Runtime:
        events = None

        class identity:
            pubkey, nostr = home.secret.public.hex, home.secret

    own = attrs.evolve(verbs, runtime=Runtime)
    for text in (home.secret.public.hex, encode_npub(home.secret.public)):
        with pytest.raises(UsageError, match="itself"):
            await call(own, "job.submit", **ASK, provider=text)


async def test_an_id_that_is_ambiguous(verbs):
    def job(tx):
        for digit in "12":
            tx.execute(
                "INSERT INTO purchase_requests (request_id, purchase_id, provider, created_at) VALUES (?, ?, '', 0)",
                ("abcd" + digit * 60, digit * 32),
            )

    await verbs.store.write(job)
    with pytest.raises(NotFound, match="more than one job") as caught:
        await call(verbs, "job.status", id="abcd")
    assert "more digits" in caught.value.hint


@pytest.mark.parametrize(
    ("ident", "kind"),
    [("abcd", NotFound), ("ABCD" * 16, NotFound), ("a" * 400, NotFound), ("abc", UsageError), ("", UsageError),
     ("%%%%", UsageError), ("ab_d", UsageError), (None, UsageError), (1234, UsageError), ("é" * 9, UsageError)],
)  # fmt: skip
async def test_an_id_that_is_none(verbs, ident, kind):
    with pytest.raises(kind):
        await call(verbs, "job.status", id=ident)


@pytest.mark.parametrize("limit", [0, -1, 10_001, "5", 1.0, None, True])
async def test_a_limit_that_cannot_be(verbs, limit):
    with pytest.raises(UsageError, match="limit"):
        await call(verbs, "job.list", limit=limit)


async def test_money(verbs):
    balance = await call(verbs, "wallet.balance")
    assert (balance["network"], balance["settled_msats"]) == ("simnet", sats(1_000))
    funded = await call(verbs, "wallet.fund", amount_msats=1_500)
    assert (funded["funded_msats"], funded["settled_msats"]) == (1_500, sats(1_000) + 1_500)
    report = await call(verbs, "books")
    assert report["clean"]
    assert report["accounts"]["outside_msats"] == report["wallet_msats"] == sats(1_000) + 1_500
    assert (await call(verbs, "earnings"))["summary"]["total_msats"] == 0
    assert (await call(verbs, "earnings", limit=0))["recent"] == []
    for amount in (0, -1, MAX_FUNDING + 1, 10**30, "7", None, 1.5):
        with pytest.raises(UsageError):
            await call(verbs, "wallet.fund", amount_msats=amount)


async def test_what_has_no_wallet_says_so(verbs):
    bare = Verbs(Config(network="testnet"), verbs.clock, verbs.store)
    for name, params in (("wallet.balance", {}), ("wallet.fund", {"amount_msats": 1})):
        with pytest.raises(PylonError, match="no wallet is open"):
            await call(bare, name, **params)
    assert (await call(bare, "books"))["wallet_msats"] is None
    assert (await call(bare, "earnings"))["summary"]["job_count"] == 0


async def test_a_daemon_that_does_not_buy_says_so(verbs):
    with pytest.raises(UsageError, match="does not buy"):
        await call(attrs.evolve(verbs, buyer=None), "job.submit", **ASK)


async def test_amounts_are_whole_msats(verbs):
    assert type((await call(verbs, "wallet.balance"))["settled_msats"]) is int
    assert Msat(1) == 1


@pytest.mark.parametrize(
    "params",
    [{"limit": -1}, {"limit": True}, {"limit": "5"}, {"since": -1}, {"since": 1e12}, {"since": "7d"}, {"since": True},
     {"by": "owner"}, {"by": 3}, {"by": ["model"]}],
)  # fmt: skip
async def test_earnings_that_cannot_be_asked_for(verbs, params):
    with pytest.raises(UsageError):
        await call(verbs, "earnings", **params)
