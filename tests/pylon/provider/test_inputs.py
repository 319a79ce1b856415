"""Inputs that are somewhere else, and requests as old clients seal them."""

from __future__ import annotations

import nostr_sdk
import pytest
import trio

from protocols import nip04
from protocols.keys import PublicKey
from protocols.nip01 import sign_event
from protocols.nip90 import (
    FEEDBACK,
    JOB_TEXT,
    FeedbackStatus,
    JobInvalid,
    build_feedback,
    build_request,
    build_result,
    parse_feedback,
    parse_request,
    parse_result,
)
from pylon.provider import inputs
from pylon.provider.pricing import Terms
from pylon.provider.sale import SaleState
from pylon.testing.backend import Reply, ScriptedBackend
from tests.pylon.market import PRICE, open_actor, open_home, until

RESULT = JOB_TEXT + 1_000


def ask(market, customer, provider, *tags):
    """An open request with these ``i`` tags."""
    tags = [["p", provider.public.hex], *(["i", *tag] for tag in tags)]
    event = sign_event(customer.secret, kind=JOB_TEXT, tags=tags, created_at=market.now)
    market.relay.publish(event)
    return event


async def reason(customer, request):
    return (await customer.told(request, "error")).tags_named("status")[0][2]


@pytest.fixture
def backend():
    return ScriptedBackend("an answer")


async def asked_of(backend, customer, request):
    """Pay, and look at what the backend is asked."""
    await customer.pay(await customer.told(request, "payment-required"))
    return (await until(lambda: backend.requests))[-1].messages[0].content


async def test_an_event_is_its_content_between_the_other_inputs(autojump_clock, market, backend):
    home, customer = await open_home(market), await open_actor(market, "customer")
    note = sign_event(customer.secret, kind=1, content="what the note says", created_at=market.now)
    market.relay.publish(note)
    async with home.selling(backend):
        request = ask(
            market, customer, home.secret, ("first", "text"), (note.id, "event", "wss://anywhere"), ("last", "prompt")
        )
        assert await asked_of(backend, customer, request) == "first\nwhat the note says\nlast"


async def test_an_event_is_priced_by_what_it_holds(autojump_clock, market, backend):
    home, customer = await open_home(market), await open_actor(market, "customer")
    note = sign_event(customer.secret, kind=1, content="x" * 4_000, created_at=market.now)
    market.relay.publish(note)
    async with home.selling(backend, terms=Terms(PRICE, price_in=PRICE * 100)):
        request = ask(market, customer, home.secret, (note.id, "event"))
        quote = await customer.told(request, "payment-required")
        assert quote.tags_named("amount")[0][1] == str(PRICE * 100)


async def test_what_is_waited_for_holds_up_nobody(autojump_clock, market, backend):
    home, customer, other = [await open_home(market), *[await open_actor(market, name) for name in ("one", "two")]]
    async with home.selling(backend):
        job = customer.ask(other.secret)
        waiting = [ask(market, customer, home.secret, (job.id, "job"), (f"{n}", "text")) for n in range(14)]
        await trio.sleep(5)
        began = trio.current_time()
        await other.told(other.ask(home.secret), "payment-required")
        assert trio.current_time() - began < 2
        for request in waiting:
            await until(lambda request=request: [e for e in market.events(FEEDBACK) if e.tag("e") == request.id], 90)


async def test_what_is_not_there_is_refused(autojump_clock, market, backend):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling(backend):
        for kind in ("event", "job"):
            assert await reason(customer, ask(market, customer, home.secret, ("ab" * 32, kind))) == (
                "an input names an event that is not on our relays"
            )
            assert (await reason(customer, ask(market, customer, home.secret, ("nothing", kind)))).startswith(
                "an input names no"
            )


async def test_the_result_of_our_own_job_is_waited_for(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    backend = ScriptedBackend([Reply("the first answer", first=20.0), "the second"])
    async with home.selling(backend) as (_provider, _store):
        first = customer.ask(home.secret)
        quote = await customer.told(first, "payment-required")
        second = ask(market, customer, home.secret, ("Shorten this:", "text"), (first.id, "job"))
        await trio.sleep(5)
        assert not [e for e in market.events(FEEDBACK) if e.tag("e") == second.id]
        await customer.pay(quote)
        await customer.pay(await customer.told(second, "payment-required"))
        asked = await until(lambda: backend.requests[1:])
        assert asked[0].messages[0].content == "Shorten this:\nthe first answer"


async def test_nobody_reads_anothers_sealed_result_by_chaining(autojump_clock, market, backend):
    home, customer, thief = [await open_home(market), *[await open_actor(market, name) for name in ("one", "thief")]]
    async with home.selling(backend) as (provider, store):
        secret = customer.ask(home.secret, encrypt=True)
        open_one = customer.ask(home.secret, encrypt=False)
        for request in (secret, open_one):
            await customer.pay(await customer.told(request, "payment-required"))
            await until(lambda request=request: provider.records.load(store, request.id).state is SaleState.DELIVERED)
        told = await reason(thief, ask(market, thief, home.secret, (secret.id, "job")))
        assert told == "an input names a job whose result is for somebody else"
        await thief.told(ask(market, thief, home.secret, (open_one.id, "job")), "payment-required")


async def test_the_result_of_anothers_job_is_the_one_by_whom_it_was_asked(autojump_clock, market, backend):
    home, customer, other, liar = [
        await open_home(market),
        *[await open_actor(market, name) for name in ("customer", "other", "liar")],
    ]
    async with home.selling(backend):
        job = customer.ask(other.secret, encrypt=False)
        liar.answer(job, "a lie", encrypt=False)
        request = ask(market, customer, home.secret, (job.id, "job"))
        await trio.sleep(10)
        other.answer(job, "the truth", encrypt=False)
        assert await asked_of(backend, customer, request) == "the truth"


async def test_a_result_that_never_comes_is_waited_for_a_minute(autojump_clock, market, backend):
    home, customer, other = [await open_home(market), *[await open_actor(market, name) for name in ("one", "two")]]
    async with home.selling(backend):
        job = customer.ask(other.secret)
        began = trio.current_time()
        request = ask(market, customer, home.secret, (job.id, "job"))
        with trio.fail_after(100):
            await until(lambda: [e for e in market.events(FEEDBACK) if e.tag("e") == request.id], 100)
        assert inputs.JOB_SECONDS - 1 < trio.current_time() - began < inputs.JOB_SECONDS + 5
        assert await reason(customer, request) == "an input names a job that has no result"


async def test_so_many_look_for_inputs_at_a_time(autojump_clock, market, backend, monkeypatch):
    monkeypatch.setattr(inputs, "AT_ONCE", 3)
    home, customer, other = [await open_home(market), *[await open_actor(market, name) for name in ("one", "two")]]
    async with home.selling(backend):
        job = customer.ask(other.secret)
        requests = [ask(market, customer, home.secret, (job.id, "job"), (f"{n}", "text")) for n in range(6)]
        await trio.sleep(30)
        reasons = [[e for e in market.events(FEEDBACK) if e.tag("e") == request.id] for request in requests]
        assert sum(map(bool, reasons)) == 3
    async with home.selling(backend):
        other.answer(job, "here", encrypt=False)
        await trio.sleep(30)
        quoted = [e for e in market.events(FEEDBACK) if e.tag("status") == "payment-required"]
        assert len(quoted) == 3, "what was waited for comes again after a restart"


async def test_addresses_are_fetched_only_where_the_owner_says_so(autojump_clock, market, backend, monkeypatch):
    home, customer = await open_home(market), await open_actor(market, "customer")
    fetched = []

    async def fetch(url, *, max_bytes):
        fetched.append((url, max_bytes))
        return "what stands there"

    monkeypatch.setattr(inputs, "fetch_input", fetch)
    tags = ("https://example.com/a", "url"), ("and?", "text")
    async with home.selling(backend):
        assert await reason(customer, ask(market, customer, home.secret, *tags)) == (
            "inputs of type url are not fetched here"
        )
        assert fetched == []
    async with home.selling(backend, terms=Terms(PRICE, fetch_urls=True)):
        request = ask(market, customer, home.secret, *tags, ("again", "text"))
        assert await asked_of(backend, customer, request) == "what stands there\nand?\nagain"
        assert fetched == [("https://example.com/a", 128_000)]


async def test_too_many_inputs_are_refused_and_a_long_one_too(autojump_clock, market, backend):
    home, customer = await open_home(market), await open_actor(market, "customer")
    note = sign_event(customer.secret, kind=1, content="x" * 40_000, created_at=market.now)
    market.relay.publish(note)
    async with home.selling(backend):
        many = ask(market, customer, home.secret, *((f"{n:064x}", "event") for n in range(9)))
        assert "more than 8 inputs" in await reason(customer, many)
        assert "longer than 32,000" in await reason(customer, ask(market, customer, home.secret, (note.id, "event")))


# --- NIP-04 ---------------------------------------------------------------------------------------------------


async def test_an_old_client_is_answered_as_it_asks(autojump_clock, market):
    """Sealed and read by another library: the request, the words so far, and the result."""
    home, customer = await open_home(market), await open_actor(market, "customer")
    backend = ScriptedBackend(Reply("words that come slowly", pace=1.0))
    keys = nostr_sdk.SecretKey.parse(customer.secret.reveal().hex())
    provider = nostr_sdk.PublicKey.parse(home.secret.public.hex)
    tags = '[["i", "what is the capital of France? ", "text"], ["param", "max_tokens", "12"]]'
    sealed = nostr_sdk.nip04_encrypt(keys, provider, tags)
    request = sign_event(
        customer.secret,
        kind=JOB_TEXT,
        content=sealed,
        tags=[["p", home.secret.public.hex], ["encrypted"]],
        created_at=market.now,
    )
    market.relay.publish(request)
    async with home.selling(backend) as (provider_, store):
        await customer.pay(await customer.told(request, "payment-required"))
        await until(lambda: provider_.records.load(store, request.id).state is SaleState.DELIVERED)
    assert backend.requests[0].messages[0].content == "what is the capital of France? "
    result = market.events(RESULT)[0]
    assert [*result.tags_named("encrypted")] == [("encrypted",)]
    assert nostr_sdk.nip04_decrypt(keys, provider, result.content) == "words that come slowly"
    partial = next(e for e in market.events(FEEDBACK) if e.tag("status") == "partial")
    assert nostr_sdk.nip04_decrypt(keys, provider, partial.content).startswith("words")
    assert parse_result(result, customer.secret).text == "words that come slowly"


@pytest.mark.parametrize("scheme", ["nip04", "nip44"])
async def test_either_scheme_goes_round(market, scheme):
    alice, bob = await open_actor(market, "alice"), await open_actor(market, "bob")
    request = build_request(alice.secret, prompt="é", provider=bob.secret.public, created_at=1, scheme=scheme)
    job = parse_request(request, bob.secret)
    assert (job.prompt, job.scheme, job.encrypted) == ("é", scheme, True)
    said = {"customer": alice.hex, "created_at": 1, "encrypt": True, "scheme": scheme}
    result = build_result(bob.secret, request=request, request_kind=JOB_TEXT, text="ü", **said)
    assert parse_result(result, alice.secret).text == "ü"
    told = build_feedback(bob.secret, request=request.id, status=FeedbackStatus.PARTIAL, content="ö", **said)
    assert parse_feedback(told, alice.secret).content == "ö"
    assert ("?iv=" in result.content) == (scheme == "nip04")


async def test_what_is_sealed_for_another_is_refused_whatever_the_scheme(market):
    alice, bob = await open_actor(market, "alice"), await open_actor(market, "bob")
    other = PublicKey.from_hex(bob.hex)
    content = nip04.encrypt("[]", bob.secret, other)[:-8] + "AAAAAA=="
    event = sign_event(alice.secret, kind=JOB_TEXT, content=content, tags=[["p", bob.hex], ["encrypted"]], created_at=1)
    with pytest.raises(JobInvalid, match="cannot be decrypted"):
        parse_request(event, bob.secret)
