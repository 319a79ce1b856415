"""What wakes an agent: every kind, every hostile shape, and what becomes of it in the store."""

from __future__ import annotations

import hashlib
import logging
import random
from unittest import mock

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import nip04, nip10, nip17, nip44, nip57, nip59
from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event
from protocols.strategies import events, hex_ids, resigned, texts
from protocols.strategies_agents import hostile_json, private_messages, twisted, zap_invoice, zaps
from pylon.host import triggers as t
from pylon.host.schedule import Trigger, TriggerKind
from pylon.host.settings import AgentSettings
from pylon.host.triggers import Heard
from pylon.money import Msat
from pylon.store.database import open_store
from pylon.store.vault import Vault
from tests.pylon.store.conftest import NOW, StoppedClock, transaction

AGENT = SecretKey(b"\x01" * 32)
ME = AGENT.public.hex
ALICE, HOME, MALLORY = (SecretKey(bytes([n]) * 32) for n in (2, 3, 4))
AT = int(NOW)
EVERYTHING = AgentSettings(name="a", kinds=(7, 30_023))
SECRET_TEXT = "the words that nobody else may read"


def understand(event, *, settings=EVERYTHING, now=NOW, secret=AGENT, signer=HOME, **more):
    return t.understand(
        event,
        secret=secret,
        settings=settings,
        zap_signer=signer.public.hex,
        invoice_prefix="sb",
        now=now,
        **more,
    )


def note(text="hello", *, kind=1, tags=(), at=AT, secret=ALICE, named=ME):
    return sign_event(secret, kind=kind, content=text, tags=[["p", named], *tags], created_at=at)


def dm(text="hello", *, at=AT, now=AT, secret=ALICE, to=AGENT, seed=1, **more):
    rumor = nip17.build_message(secret.public, [to.public], text, created_at=at, **more)
    return nip17.wrap_message(rumor, secret, now=now, random=random.Random(seed))[to.public.hex]


def old_dm(text="hello", *, at=AT, secret=ALICE):
    return nip04.build_message(secret, AGENT.public, text, created_at=at)


def zap(
    comment="thanks", *, sats=21, at=AT, secret=ALICE, signer=HOME, recipient=ME, prefix="sb", preimage=b"\x07" * 32
):
    request = nip57.build_request(
        secret,
        recipient=recipient,
        relays=["wss://a.example"],
        amount_msats=sats * 1000,
        comment=comment,
        created_at=at,
    ).to_json()
    invoice = zap_invoice(request, amount_msats=sats * 1000, timestamp=at, preimage=preimage, prefix=prefix)
    return nip57.build_receipt(signer, request=request, invoice=invoice, paid_at=at)


# --- what is heard --------------------------------------------------------------------------------------------


def test_a_mention():
    event = note("hello agent")
    heard = understand(event, relay="ws://a")
    assert heard == Heard(
        id=event.id,
        kind=TriggerKind.MENTION,
        event_id=event.id,
        event_kind=1,
        author=ALICE.public.hex,
        text="hello agent",
        created_at=AT,
        event=event.to_json(),
        relay="ws://a",
    )


def test_a_named_kind():
    event = note("+", kind=7)
    heard = understand(event)
    assert (heard.kind, heard.event_kind, heard.id, heard.event) == (TriggerKind.KIND, 7, event.id, event.to_json())
    assert understand(note(kind=6)) is None


def test_a_message_is_its_rumor_however_often_it_is_wrapped():
    one, other = dm(SECRET_TEXT, seed=1), dm(SECRET_TEXT, seed=2)
    heard, again = understand(one), understand(other)
    assert one.id != other.id
    assert attrs.evolve(heard, event_id=other.id) == again
    assert (heard.kind, heard.event_kind, heard.event_id) == (TriggerKind.DM, 1059, one.id)
    assert (heard.author, heard.text, heard.created_at, heard.event) == (ALICE.public.hex, SECRET_TEXT, AT, "")
    assert heard.id not in (one.id, other.id)


def test_an_old_message():
    event = old_dm(SECRET_TEXT)
    heard = understand(event)
    assert (heard.kind, heard.event_kind, heard.id, heard.text) == (TriggerKind.DM, 4, event.id, SECRET_TEXT)
    assert (heard.author, heard.event) == (ALICE.public.hex, "")


def test_a_zap_is_its_request_however_many_receipts_tell_of_it_and_whoever_pays_for_it_again():
    one, other = zap(at=AT), None
    request, invoice = one.tag("description"), one.tag("bolt11")
    other = nip57.build_receipt(HOME, request=request, invoice=invoice, paid_at=AT + 5)
    heard, again = understand(one), understand(other)
    assert one.id != other.id
    assert heard.id == again.id == Event.from_json(request).id
    paid_again = zap_invoice(request, amount_msats=21_000, timestamp=AT + 9, preimage=b"\x08" * 32)
    replay = nip57.build_receipt(HOME, request=request, invoice=paid_again, paid_at=AT + 9)
    assert understand(replay).id == heard.id
    late = nip57.build_receipt(HOME, request=request, invoice=paid_again, paid_at=AT + t.LATE_SECONDS)
    assert understand(late, now=AT + t.LATE_SECONDS + 60) is None
    assert (heard.kind, heard.amount_msats, heard.author) == (TriggerKind.ZAP, 21_000, ALICE.public.hex)
    assert (heard.text, heard.event_id, heard.event) == ("thanks", one.id, "")


def test_own_funds():
    heard = t.of_payment(payment_id="x", amount=Msat(5_000), at=NOW + 0.5)
    assert (heard.id, heard.kind, heard.amount_msats) == ("payment:x", TriggerKind.FUNDS, 5_000)
    assert (heard.author, heard.event_id, heard.created_at) == ("", "", AT)


@given(private_messages())
def test_messages_of_every_sort_are_read_by_their_receivers_alone(sent):
    now = sent.rumor.created_at
    for receiver in {key.public.hex: key for key in (*sent.receivers, sent.sender)}.values():
        wrap = sent.wraps[receiver.public.hex]
        heard = understand(wrap, secret=receiver, now=now)
        if receiver == sent.sender:
            assert heard is None
        else:
            assert (heard.text, heard.author) == (sent.text, sent.sender.public.hex)
            assert heard.id == sent.rumor.id
        assert understand(wrap, secret=MALLORY, now=now) is None
        renamed = resigned(MALLORY, wrap, tags=[["p", MALLORY.public.hex]])
        assert understand(renamed, secret=MALLORY, now=now) is None


@given(zaps(recipient=ME, service=HOME))
def test_zaps_of_every_sort(paid):
    heard = understand(paid.receipt, now=paid.receipt.created_at)
    assert (heard.amount_msats, heard.author) == (paid.amount_msats, paid.sender.public.hex)
    assert heard.text == paid.comment
    assert heard.id == paid.request.id
    assert understand(paid.receipt, now=paid.receipt.created_at, signer=MALLORY) is None


# --- what is not ----------------------------------------------------------------------------------------------

ALL = {"note": note, "message": dm, "old message": old_dm, "zap": zap, "kind": lambda **more: note(kind=7, **more)}
everything = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


@pytest.mark.parametrize(
    ("switch", "silenced"),
    [
        ({"mentions": False}, {"note"}),
        ({"dms": False}, {"message", "old message"}),
        ({"zaps": False}, {"zap"}),
        ({"kinds": ()}, {"kind"}),
        ({"mentions": False, "dms": False, "zaps": False, "kinds": (1, 4, 1059, 9735)}, set(ALL)),
        ({"kinds": (1, 4, 7, 1059, 9735)}, set()),
    ],
)
def test_the_operator_decides(switch, silenced):
    chosen = attrs.evolve(EVERYTHING, **switch)
    assert {name for name, make in ALL.items() if understand(make(), settings=chosen) is None} == silenced


@everything
def test_it_is_for_the_agent_and_not_its_own(make):
    assert understand(make()) is not None
    assert understand(make(), secret=MALLORY) is None
    assert understand(make(secret=AGENT)) is None


@everything
def test_neither_of_the_far_future_nor_of_the_distant_past(make):
    week = 7 * 86_400
    assert understand(make(at=AT - week)) is not None
    assert understand(make(at=AT - week - 1)) is None
    assert understand(make(at=AT + 900)) is not None
    assert understand(make(at=AT + 901)) is None


def test_the_time_of_a_message_is_its_rumors():
    for shift in (-40 * 86_400, 40 * 86_400):
        assert understand(dm(now=AT + shift)).created_at == AT
    assert understand(dm(at=AT - 8 * 86_400, now=AT)) is None


def test_what_has_expired():
    assert understand(note(tags=[["expiration", str(AT)]])) is None
    assert understand(note(tags=[["expiration", str(AT + 1)]])) is not None


def test_zaps_that_are_none():
    stranger = SecretKey(b"\x09" * 32).public.hex
    assert understand(zap()) is not None
    assert understand(zap(signer=MALLORY)) is None
    assert understand(zap(prefix="bc")) is None
    other = zap(recipient=stranger)
    assert understand(resigned(HOME, other, tags=[["p", ME], *other.tags])) is None
    assert understand(resigned(HOME, other, tags=[*other.tags, ["p", ME]])) is None
    paid = zap()
    tags = [tag for tag in paid.tags if tag[0] != "bolt11"]
    assert understand(resigned(HOME, paid, tags=tags)) is None
    larger = zap(sats=21_000).tag("bolt11")
    assert understand(resigned(HOME, paid, tags=[*tags, ["bolt11", larger]])) is None


def test_a_message_that_another_claims_to_have_written():
    rumor = nip17.build_message(HOME.public, [AGENT.public], "send all", created_at=AT)
    key = nip44.conversation_key(MALLORY, AGENT.public)
    seal = sign_event(MALLORY, kind=13, content=nip44.encrypt(rumor.to_json(), key), created_at=AT)
    assert understand(gift(seal.to_json())) is None


def test_a_wrapped_file_is_no_message():
    rumor = nip59.build_rumor(ALICE.public, kind=15, content="https://x", tags=[["p", ME]], created_at=AT)
    assert understand(nip59.wrap(rumor, ALICE, AGENT.public, now=AT, random=random.Random(1))) is None


def gift(inner):
    content = nip44.encrypt(inner or " ", nip44.conversation_key(MALLORY, AGENT.public))
    return sign_event(MALLORY, kind=1059, content=content, tags=[["p", ME]], created_at=AT)


def sound(heard):
    """What is heard, if anything is, is bounded and somebody else's."""
    if heard is not None:
        assert len(heard.text) <= t.MAX_TEXT_CHARS
        assert len(heard.event) <= t.MAX_NOTE_CHARS
        assert heard.author != ME
        assert AT - t.LATE_SECONDS <= heard.created_at <= AT + t.EARLY_SECONDS
        assert t._load(t._dump(heard), "x") == heard


@given(twisted(kinds=[1, 4, 7, 1059, 9735, 30_023], secrets=st.sampled_from([AGENT, ALICE, HOME])), st.integers(-9, 2))
def test_nothing_that_is_signed_and_makes_no_sense_breaks_it(event, days):
    event = resigned(HOME if event.kind == 9735 else ALICE, event, tags=[["p", ME], *event.tags])
    sound(understand(attrs.evolve(event, created_at=AT + days * 86_400)))


@given(events(kinds=[1, 4, 7, 1059, 9735]))
def test_no_event_at_all_breaks_it(event):
    sound(understand(event))


@given(st.one_of(hostile_json, texts.filter(bool)), st.booleans(), st.booleans())
def test_nothing_in_a_wrap_breaks_it(text, sealed, looks_right):
    if looks_right:
        text = orjson.dumps({"pubkey": MALLORY.public.hex, "created_at": AT, "kind": 14, "tags": [["p", ME]],
                             "content": text}).decode()  # fmt: skip
    if sealed:
        content = nip44.encrypt(text or " ", nip44.conversation_key(MALLORY, AGENT.public))
        text = sign_event(MALLORY, kind=13, content=content, created_at=AT).to_json()
    heard = understand(gift(text))
    sound(heard)
    assert (heard is not None) == (sealed and looks_right)


@given(zaps(recipient=ME, service=HOME), st.data())
def test_no_receipt_that_was_tampered_with_is_a_zap(paid, data):
    """Its service's key signs it, and yet something is not as it was."""
    tags = [list(tag) for tag in paid.receipt.tags]
    index = data.draw(st.sampled_from([n for n, tag in enumerate(tags) if tag[0] in ("p", "bolt11", "description")]))
    tags[index][1] = data.draw(st.one_of(hostile_json, hex_ids, st.just(tags[index][1][:-1])))
    now = paid.receipt.created_at
    assert understand(resigned(HOME, paid.receipt, tags=tags), now=now) is None


def test_sizes_are_looked_at_before_anything_is_opened():
    def never(*_args, **_more):
        raise AssertionError("it was opened")

    with (
        mock.patch.object(nip17, "open_message", never),
        mock.patch.object(nip04, "open_message", never),
        mock.patch.object(nip57, "check_receipt", never),
    ):
        assert understand(note("A" * 65_537, kind=1059)) is None
        assert understand(note("A" * 65_537, kind=4)) is None
        assert understand(note(kind=9735, tags=[["description", "A" * 65_537]])) is None
        assert understand(note(kind=9735, tags=[["x"] * 100] * 700)) is None


def test_text_is_cut():
    for make in (note, dm, old_dm):
        assert understand(make("é" * 5_000)).text == "é" * t.MAX_TEXT_CHARS
    assert len(understand(zap("é" * 2_500)).text) == t.MAX_TEXT_CHARS
    assert len(understand(note(), relay="wss://" + "x" * 5_000).relay) == 300


@pytest.mark.parametrize("thread", ["none", "marked", "positional"])
@pytest.mark.parametrize("people", [0, 50, 4_000])
def test_a_note_too_long_to_keep_is_answered_all_the_same(thread, people):
    tags = {
        "none": [],
        "marked": [["e", "aa" * 32, "wss://a.example", "root", "bb" * 32], ["e", "cc" * 32, "", "reply"]],
        "positional": [["e", "aa" * 32, "wss://a.example"], ["e", "dd" * 32], ["e", "cc" * 32]],
    }[thread]
    tags += [["p", hashlib.sha256(str(n).encode()).hexdigest()] for n in range(people)]
    event = note("x" * 20_000, tags=[*tags, ["t", "x" * 50_000]])
    kept = understand(event).event
    assert len(kept) <= t.MAX_NOTE_CHARS
    short = Event.from_json(kept)
    assert nip10.build_reply(short, me=ME) == nip10.build_reply(event, me=ME)
    assert nip10.mentions(short, ME)


def test_an_address_is_kept_and_hostile_tags_are_not():
    event = note("x" * 20_000, kind=30_023, tags=[["d", "an article"], ["e", "aa" * 32, "wss://" + "x" * 90_000]])
    short = Event.from_json(understand(event).event)
    assert short.address == event.address
    long = understand(note("x" * 20_000, kind=30_023, tags=[["d", "x" * 9_000]]))
    assert len(long.event) < 1_000


def test_nothing_is_said_of_what_is_not_heard_and_words_are_not_shown(caplog):
    caplog.set_level(logging.DEBUG)
    for event in (gift("?"), note("?", kind=4), note(kind=9735), note(kind=3), zap(signer=MALLORY)):
        assert understand(event) is None
    assert not caplog.records
    for event in (dm(SECRET_TEXT), note(SECRET_TEXT)):
        assert SECRET_TEXT not in repr(understand(event))


@given(st.sets(hex_ids, max_size=3), hex_ids, hex_ids)
def test_who_is_a_stranger(trusted, operator, author):
    chosen = attrs.evolve(EVERYTHING, trusted=tuple(trusted))
    assert not t.is_stranger(operator, chosen, operator)
    assert not any(t.is_stranger(each, chosen, operator) for each in trusted)
    assert t.is_stranger(author, chosen, operator) == (author not in trusted | {operator})
    assert t.is_stranger("", chosen, "")


# --- what waits -----------------------------------------------------------------------------------------------


def heard(n, text="hello", kind=TriggerKind.MENTION):
    name = hashlib.sha256(str(n).encode()).hexdigest()
    return Heard(
        id=name,
        kind=kind,
        event_id=name,
        event_kind=1,
        author=ALICE.public.hex,
        text=text,
        created_at=AT,
        relay="ws://a",
    )


def put(tx, n, *, agent=ME, at=None, stranger=False, **more):
    return t.note(tx, tx.vault, agent, heard(n, **more), at=NOW + n if at is None else at, stranger=stranger)


def waiting(tx, agent=ME, **more):
    return [int(trigger.at - NOW) for trigger in t.pending(tx, agent, **more)]


heards = st.builds(
    Heard,
    id=hex_ids,
    kind=st.sampled_from(TriggerKind),
    event_id=hex_ids,
    event_kind=st.integers(0, 65_535),
    author=hex_ids,
    text=texts,
    created_at=st.integers(0, 2**40),
    amount_msats=st.none() | st.integers(1, 10**15),
    event=st.one_of(st.just(""), hostile_json),
    relay=texts,
)


@given(heards, hex_ids, st.booleans())
def test_what_was_heard_is_kept_as_it_was(value, agent, stranger):
    with transaction() as tx:
        assert t.note(tx, tx.vault, agent, value, at=NOW, stranger=stranger)
        assert t.pending(tx, agent) == (Trigger(value.id, value.kind, NOW, stranger),)
        assert t.heard(tx, tx.vault, [value.id, "another"], agent) == [value]
        assert t.heard(tx, tx.vault, [], agent) == []


def test_it_is_known_once_taken_or_not():
    with transaction() as tx:
        assert put(tx, 1)
        assert not put(tx, 1, text="the same again")
        assert put(tx, 1, agent="other")
        t.take(tx, ME, [heard(1).id], "tick 1")
        assert not put(tx, 1)
        assert waiting(tx) == []
        assert waiting(tx, "other") == [1]
        assert t.heard(tx, tx.vault, [heard(1).id], ME) == [heard(1)]


def test_a_tick_takes_what_no_other_has_and_gives_it_back():
    with transaction() as tx:
        for n in range(4):
            put(tx, n)
            put(tx, n, agent="other")
        ids = [heard(n).id for n in range(4)]
        t.take(tx, ME, ids[:2], "one")
        t.take(tx, ME, [*ids[1:3], "unknown"], "two")
        assert waiting(tx) == [3]
        t.release(tx, ME, "two")
        assert waiting(tx) == [2, 3]
        t.release(tx, ME, "one")
        t.release(tx, ME, "never was")
        assert waiting(tx) == waiting(tx, "other") == [0, 1, 2, 3]


def test_those_who_are_known_are_heard_before_any_number_of_strangers():
    with transaction() as tx:
        for n in range(10):
            put(tx, n, stranger=n != 7)
        assert waiting(tx, limit=3) == [0, 1, 7]
        assert waiting(tx) == list(range(10))


def test_only_what_was_taken_is_forgotten():
    with transaction() as tx:
        for n in range(4):
            put(tx, n)
        t.take(tx, ME, [heard(n).id for n in (0, 2)], "tick")
        assert t.prune(tx, NOW + 2) == 1
        assert put(tx, 0)
        assert not put(tx, 2)
        assert waiting(tx) == [0, 1, 3]


def test_words_are_sealed_and_bound_to_their_place(caplog):
    with transaction() as tx:
        put(tx, 1, text=SECRET_TEXT)
        put(tx, 2, text="another")
        for row in tx.all("SELECT * FROM triggers"):
            assert SECRET_TEXT.encode() not in row["heard"]
            assert ALICE.public.hex.encode() not in row["heard"]
            assert SECRET_TEXT not in repr(tuple(row))
        tx.execute("UPDATE triggers SET heard = (SELECT heard FROM triggers WHERE id = ?)", (heard(1).id,))
        assert t.heard(tx, tx.vault, [heard(1).id, heard(2).id], ME) == [heard(1, text=SECRET_TEXT)]
        assert heard(2).id in caplog.text
        junk = tx.vault.seal(f'["{SECRET_TEXT}"]', t.place(ME, heard(1).id))
        tx.execute("UPDATE triggers SET heard = ? WHERE id = ?", (junk, heard(1).id))
        assert t.heard(tx, tx.vault, [heard(1).id], ME) == []
        assert SECRET_TEXT not in caplog.text


def test_a_thousand_wait_and_known_ones_push_out_the_latest_of_strangers(caplog):
    with transaction() as tx:
        for n in range(t.MAX_WAITING):
            assert put(tx, n, stranger=n % 2 == 0)
        assert t.dropped(tx, ME) == 0
        for n in range(2_000, 2_300):
            assert not put(tx, n, stranger=True)
        assert t.dropped(tx, ME) == 300
        assert len(caplog.records) == 9
        assert put(tx, 3_000)
        assert len(waiting(tx)) == t.MAX_WAITING
        assert t.dropped(tx, ME) == 301
        assert 998 not in waiting(tx)
        assert {0, 1, 996, 999, 3_000} <= set(waiting(tx))
        assert put(tx, 1, agent="other", stranger=True)
        assert t.dropped(tx, "other") == 0
        # A known one that is said again is no new one.
        assert not put(tx, 5, stranger=True)
        assert t.dropped(tx, ME) == 301


def test_where_no_stranger_waits_nobody_makes_room():
    with transaction() as tx:
        for n in range(t.MAX_WAITING):
            put(tx, n)
        assert not put(tx, 5_000)
        assert t.dropped(tx, ME) == 1
        t.take(tx, ME, [heard(0).id], "tick")
        assert put(tx, 5_000)


async def test_listeners_are_woken_after_the_commit(tmp_path):
    vault, clock = Vault(bytes(32)), StoppedClock()
    opened = open_store(tmp_path / "pylon.db", vault=vault, clock=clock, executor="inline", durable=False)
    async with opened as store:
        await hear_of_commits(store)


async def hear_of_commits(store):
    with store.listen(f"triggers:{ME}") as woken:

        def told():
            return woken.statistics().current_buffer_used == 1 and woken.receive_nowait() is None

        assert await store.write(lambda tx: put(tx, 1))
        assert told()
        assert not await store.write(lambda tx: put(tx, 1))
        await store.write(lambda tx: t.take(tx, ME, [heard(1).id], "tick"))
        assert not told()
        await store.write(lambda tx: t.release(tx, ME, "other"))
        assert not told()
        await store.write(lambda tx: t.release(tx, ME, "tick"))
        assert told()
        assert [trigger.id for trigger in t.pending(store, ME)] == [heard(1).id]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("note"), st.integers(0, 15), st.booleans()),
        st.tuples(st.just("tick"), st.integers(1, 6)),
        st.tuples(st.just("abandon"), st.integers(0, 5)),
        st.tuples(st.just("prune"), st.integers(0, 40)),
    ),
    max_size=60,
)


@given(operations, st.integers(1, 5))
def test_nothing_is_handled_twice_and_nothing_is_lost_unless_it_is_counted(chosen, cap):
    """Against a model that is a dictionary."""
    with mock.patch.object(t, "MAX_WAITING", cap), transaction() as tx:
        rows: dict[int, dict] = {}
        ticks: list[str] = []
        turned_away = 0
        for moment, operation in enumerate(chosen):
            match operation:
                case ("note", n, stranger):
                    new = n not in rows
                    free = sum(row["tick"] is None for row in rows.values()) < cap
                    strangers = [key for key, row in rows.items() if row["tick"] is None and row["stranger"]]
                    accepted = put(tx, n, at=NOW + moment, stranger=stranger)
                    assert accepted == (new and (free or (not stranger and bool(strangers))))
                    turned_away += new and not free
                    if accepted and not free:
                        del rows[max(strangers, key=lambda key: rows[key]["at"])]
                    if accepted:
                        rows[n] = {"at": moment, "stranger": stranger, "tick": None}
                case ("tick", most):
                    taken = t.pending(tx, ME, limit=most)
                    ticks.append(f"tick {moment}")
                    t.take(tx, ME, [trigger.id for trigger in taken], ticks[-1])
                    moments = {trigger.at - NOW for trigger in taken}
                    for row in rows.values():
                        assert row["tick"] is None or row["at"] not in moments
                        row["tick"] = ticks[-1] if row["at"] in moments else row["tick"]
                case ("abandon", index) if index < len(ticks):
                    t.release(tx, ME, ticks[index])
                    for row in rows.values():
                        row["tick"] = None if row["tick"] == ticks[index] else row["tick"]
                case ("prune", before):
                    t.prune(tx, NOW + before)
                    rows = {key: row for key, row in rows.items() if row["tick"] is None or row["at"] >= before}
            expected = sorted(row["at"] for row in rows.values() if row["tick"] is None)
            assert waiting(tx, limit=100) == expected
            assert t.dropped(tx, ME) == turned_away
