"""NIP-90 and NIP-89: round trips, and what the wild sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.keys import SecretKey
from protocols.nip01 import sign_event
from protocols.nip89 import AnnouncementInvalid, parse_announcement
from protocols.nip90 import (
    FEEDBACK,
    FeedbackStatus,
    JobInvalid,
    build_feedback,
    build_request,
    build_result,
    parse_feedback,
    parse_request,
    parse_result,
)
from protocols.strategies import (
    MESSY_JOBS,
    announcements,
    events,
    job_feedback,
    job_requests,
    job_results,
    messy_jobs,
    resigned,
    tags,
)

SECRET, OTHER = SecretKey(b"\x01" * 32), SecretKey(b"\x02" * 32)


@given(job_requests())
def test_a_request_says_what_it_was_built_from(job):
    job.event.check()
    read = parse_request(job.event, job.provider)
    assert read.prompt == job.prompt
    assert (read.model, read.max_tokens, read.bid_msats) == (job.model, job.max_tokens, job.bid_msats)
    assert (read.provider, read.customer) == (job.provider.public.hex, job.customer.public.hex)
    assert read.encrypted is job.encrypted
    assert job.prompt not in repr(read) or len(job.prompt) < 12


@given(job_requests(encrypted=True))
def test_an_encrypted_request_shows_its_prompt_to_nobody_else(job):
    assert job.event.tags_named("i") == ()
    assert job.event.tags_named("param") == ()
    for stranger in (None, OTHER):
        with pytest.raises(JobInvalid):
            parse_request(job.event, stranger)


@given(messy_jobs())
def test_messy_requests(messy):
    name, acceptable, event = messy
    if acceptable:
        read = parse_request(event)
        assert read.prompt == "a question", name
        assert all(url.startswith(("ws://", "wss://")) for url in read.relays)
    else:
        with pytest.raises(JobInvalid):
            parse_request(event)


@pytest.mark.parametrize("name", sorted(MESSY_JOBS))
def test_each_mess_by_name(name):
    acceptable, found, content = MESSY_JOBS[name]
    event = sign_event(SECRET, kind=5050, tags=found, content=content, created_at=1)
    if not acceptable:
        with pytest.raises(JobInvalid):
            parse_request(event)
        return
    read = parse_request(event)
    assert read.prompt == "a question"
    if name == "nested relays":
        assert read.relays == ("wss://a.example", "wss://b.example")
    if name == "bid with underscores":
        assert read.bid_msats == 100_000


def test_inputs_that_are_no_text_make_no_prompt():
    event = sign_event(SECRET, kind=5050, tags=[["i", "https://x", "url"]], content="label", created_at=1)
    assert parse_request(event).prompt is None
    assert parse_request(sign_event(SECRET, kind=5050, created_at=1)).prompt is None


def test_a_sealed_tag_cannot_contradict_a_public_one():
    sealed = build_request(SECRET, prompt="x", provider=OTHER.public, bid_msats=5, created_at=1, params=[("p", "1")])
    assert parse_request(sealed, OTHER).bid_msats == 5


@given(job_feedback())
def test_feedback_survives(event):
    event.check()
    read = parse_feedback(event)
    assert read.provider == event.pubkey
    assert read.request_id == event.tag("e")
    assert (read.amount_msats is None) is (event.tag("amount") is None)
    assert (read.credit_msats is None) is (event.tag("credit") is None)


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (["amount", "100_000"], (100_000, None)),
        (["amount", "me@wallet.example"], (None, None)),
        (["amount"], (None, None)),
        (["amount", "5", "LNBC1X"], (5, "LNBC1X")),
        (["amount", "5", "http://x"], (5, None)),
        (["amount", "9" * 30], (None, None)),
        (["amount", "-5"], (None, None)),
        (["amount", "1e3"], (None, None)),
    ],
)
def test_odd_amounts(amount, expected):
    found = [["status", "payment-required"], ["e", "ab" * 32], amount]
    read = parse_feedback(sign_event(SECRET, kind=FEEDBACK, tags=found, created_at=1))
    assert (read.amount_msats, read.bolt11) == expected


@given(job_results())
def test_a_result_reaches_its_customer(built):
    event, customer, text = built
    event.check()
    assert parse_result(event, customer).text == text
    if event.tag("encrypted"):
        assert text not in event.content or len(text) < 4
        with pytest.raises(JobInvalid):
            parse_result(event, None)


@pytest.mark.parametrize(
    ("tags_", "credit_used", "hold_until"),
    [
        ([], None, None),
        ([["credit_used", "1_500"], ["hold", "1800000000"]], 1_500, 1_800_000_000),
        ([["credit_used", "-1"], ["hold", "soon"]], None, None),
        ([["credit_used"], ["hold", "9" * 40]], None, None),
    ],
)
def test_what_a_quote_says_of_debts_and_of_holding(tags_, credit_used, hold_until):
    said = [["status", "payment-required"], ["e", "ab" * 32], ["p", OTHER.public.hex], *tags_]
    read = parse_feedback(sign_event(SECRET, kind=FEEDBACK, tags=said, created_at=1))
    assert (read.credit_used_msats, read.hold_until) == (credit_used, hold_until)


def test_a_quote_and_a_result_say_what_they_were_told():
    quote = build_feedback(
        SECRET,
        request="ab" * 32,
        customer=OTHER.public.hex,
        status=FeedbackStatus.PAYMENT_REQUIRED,
        credit_used_msats=7,
        hold_until=1_800_000_000,
        created_at=1,
    )
    read = parse_feedback(quote)
    assert (read.credit_used_msats, read.hold_until) == (7, 1_800_000_000)
    result = build_result(
        SECRET,
        request="ab" * 32,
        request_kind=5050,
        customer=OTHER.public.hex,
        text="words",
        encrypt=True,
        created_at=1,
        credit_used_msats=7,
    )
    assert parse_result(result, OTHER).credit_used_msats == 7


def test_an_open_result_repeats_the_request():
    request = build_request(SECRET, prompt="x", provider=OTHER.public, created_at=1, encrypt=False)
    result = build_result(OTHER, request=request, request_kind=5050, customer=SECRET.public.hex, text="y",
                          encrypt=False, created_at=2)  # fmt: skip
    assert result.tag("request") == request.to_json()
    assert result.tags_named("i") == (("i", "x", "text"),)


@given(st.sampled_from([FEEDBACK, 5050, 6050, 31990]), st.lists(tags(), max_size=6), st.text(max_size=40), events())
def test_no_event_breaks_the_readers(kind, found, content, event):
    content = content.encode("utf-8", "replace").decode()
    strange = resigned(SECRET, event, tags=found)
    for candidate in (strange, sign_event(SECRET, kind=kind, tags=found, content=content, created_at=1)):
        for read, error in ((parse_request, JobInvalid), (parse_feedback, JobInvalid), (parse_result, JobInvalid),
                            (parse_announcement, AnnouncementInvalid)):  # fmt: skip
            try:
                read(candidate)
            except error:
                pass


@given(announcements())
def test_announcements_survive(event):
    event.check()
    read = parse_announcement(event)
    assert read.provider == event.pubkey
    assert read.d == event.d
    assert event.tags_named("price") == (("price", str(read.price_msats), "msats"),)
    assert [str(kind) for kind in read.kinds] == [tag[1] for tag in event.tags_named("k")]


@pytest.mark.parametrize(
    ("found", "price"),
    [([["price", "10", "sats"]], 10_000), ([["price", "10"]], 10), ([["price", "free"]], None), ([], None),
     ([["price", "1.5", "sats"]], None), ([["price", "5", "usd"], ["price", "7", "msats"]], 7)],
)  # fmt: skip
def test_other_peoples_prices(found, price):
    event = sign_event(SECRET, kind=31990, tags=[["k", "5050"], *found], content="{not json", created_at=1)
    assert parse_announcement(event).price_msats == price


def test_an_announcement_names_a_kind():
    with pytest.raises(AnnouncementInvalid):
        parse_announcement(sign_event(SECRET, kind=31990, tags=[["k", "many"]], created_at=1))
