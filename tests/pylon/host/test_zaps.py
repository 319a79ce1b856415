"""The pay service: documents, invoices and receipts, each once, whatever strangers and crashes do."""

from __future__ import annotations

import hashlib
import types

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import bolt11, lnurl, nip57
from protocols.keys import SecretKey
from protocols.lnurl import LnurlInvalid
from protocols.nip57 import ZapInvalid
from pylon.clock import VirtualClock
from pylon.errors import StoreError, WalletError
from pylon.host.zaps import Payee, PayLimits, PayService
from pylon.money import Msat, sats
from pylon.wallets.port import Direction, Payment, PaymentState
from tests.pylon.payees import RELAYS, SENDER, open_ledger, open_village, pay

AMOUNT = 21_000
EVE = SecretKey(b"\x52" * 32)


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
async def ledger(tmp_path, clock):
    async with open_ledger(tmp_path, clock) as ledger:
        yield ledger


@pytest.fixture
async def village(tmp_path, ledger, clock):
    async with open_village(tmp_path, ledger, clock) as village:
        yield village


@pytest.fixture
async def payer(ledger):
    wallet = ledger.wallet("payer", b"\x61" * 32)
    await wallet.fund(sats(1_000_000))
    return wallet


async def received(village, name: str = "alice") -> list[Payment]:
    return [p for p in await village.wallets[name].payments() if p.direction is Direction.RECEIVED]


# --- the document -----------------------------------------------------------------------------------------------------


async def test_the_document_is_one_that_the_codec_reads(village):
    service = village.service(PayLimits(most=sats(5_000)))
    document = lnurl.PayRequest.parse(service.document("alice").to_json())
    assert document.callback == "https://agents.example.com/lnurlp/alice/pay"
    assert (document.min_msats, document.max_msats) == (1_000, 5_000_000)
    assert document.zappable
    assert document.nostr_pubkey == village.signer.public.hex
    assert document.description == "alice: An agent of tests"
    assert '["text/identifier","alice@agents.example.com"]' in document.metadata
    assert service.lightning_address("alice") == "alice@agents.example.com"


@pytest.mark.parametrize(
    ("address", "callback"),
    [
        ("127.0.0.1:9899", "http://127.0.0.1:9899/lnurlp/alice/pay"),
        ("localhost:9899", "http://localhost:9899/lnurlp/alice/pay"),
        ("abcdef.onion", "http://abcdef.onion/lnurlp/alice/pay"),
        ("agents.example.com:8443", "https://agents.example.com:8443/lnurlp/alice/pay"),
    ],
)
async def test_the_callback_is_where_the_address_leads(village, address, callback):
    service = village.service(address=address)
    document = service.document("alice").to_json()
    assert lnurl.PayRequest.parse(document, allow_local=True).callback == callback
    where = lnurl.pay_url(service.lightning_address("alice"), allow_local=True)
    assert where.partition("/.well")[0] == callback.partition("/lnurlp")[0]


async def test_nobody_is_paid_without_an_address_or_a_name(village):
    service = village.service(address=None)
    assert service.lightning_address("alice") is None
    with pytest.raises(LnurlInvalid, match="public name"):
        service.document("alice")
    with pytest.raises(LnurlInvalid, match="nobody"):
        village.service().document("mallory")
    with pytest.raises(LnurlInvalid, match="nobody"):
        await village.service().invoice("mallory", AMOUNT)
    assert village.service().unpaid() == []


@given(about=st.text(st.characters(), max_size=400))
def test_whatever_an_agent_says_of_itself_makes_a_document(about):
    payee = Payee("ab" * 32, "alice", about, lambda: None)
    payees = types.SimpleNamespace(named=lambda name: payee)
    service = PayService(payees, signer=EVE, store=None, relays=lambda: RELAYS, clock=None)
    service.address = "agents.example.com"
    document = lnurl.PayRequest.parse(service.document("alice").to_json())
    assert len(document.description) <= 300
    assert document.description.startswith("alice")


# --- invoices ---------------------------------------------------------------------------------------------------------


async def test_an_invoice_of_a_zap_commits_to_its_request_and_is_a_row_first(village):
    request = village.request()
    service = village.service()
    invoice = await service.invoice("alice", AMOUNT, request)
    lnurl.check_invoice(
        invoice, description=request, amount_msats=AMOUNT, prefix="sb", now=village.clock.now(), min_seconds=500
    )
    decoded = bolt11.decode(invoice)
    assert decoded.description_hash == hashlib.sha256(request.encode()).hexdigest()
    assert decoded.payee == village.wallets["alice"].node_pubkey
    (row,) = service.unpaid()
    assert (row.agent, row.payment_hash, row.amount) == (village.hex("alice"), decoded.payment_hash, AMOUNT)
    assert row.expires_at == decoded.expires_at
    assert service.unpaid(village.hex("bob")) == []
    assert service.unpaid(village.hex("alice")) == [row]


async def test_a_plain_payment_commits_to_the_metadata_and_its_comment_is_kept_sealed(village, payer):
    service = village.service()
    invoice = await service.invoice("alice", AMOUNT, comment="for the road")
    metadata = service.document("alice").metadata
    lnurl.check_invoice(invoice, description=metadata, amount_msats=AMOUNT, prefix="sb", now=village.clock.now())
    await pay(payer, invoice)
    (payment,) = await received(village)
    assert await service.paid(village.hex("alice"), payment) is False
    assert service.unpaid() == []
    assert village.receipts() == []
    assert service.comment(payment.payment_hash) == "for the road"
    assert service.comment("00" * 32) == ""
    row = village.store.one("SELECT invoice, request, comment FROM zap_invoices")
    assert row["request"] is None
    assert b"road" not in row["comment"]
    assert b"lnsb" not in row["invoice"]


async def test_what_a_stranger_does_wrong_makes_no_row_and_no_invoice(village):
    service = village.service(PayLimits(most=Msat(50_000), comment_chars=5))
    wrong = [
        (AMOUNT, "", ""),
        (AMOUNT, "{}", ""),
        (AMOUNT, "\ud800", ""),
        (AMOUNT, village.request(amount=22_000), ""),
        (AMOUNT, village.request("bob"), ""),
        (AMOUNT, village.request().replace("nice", "evil"), ""),
        (AMOUNT, village.request().replace('"kind":9734', '"kind":1'), ""),
        (999, None, ""),
        (0, None, ""),
        (-1_000, None, ""),
        (50_001, None, ""),
        (AMOUNT, None, "123456"),
    ]
    for amount, request, comment in wrong:
        with pytest.raises((LnurlInvalid, ZapInvalid)):
            await service.invoice("alice", amount, request, comment)
    assert village.store.one("SELECT COUNT(*) AS n FROM zap_invoices")["n"] == 0
    ledger = village.ledger._file._db
    assert ledger.execute("SELECT COUNT(*) FROM invoices").fetchone()[0] == 0


async def test_a_request_that_wants_another_signer_of_its_receipt_is_refused(village):
    service = village.service()
    event = nip57.build_request(
        SENDER, recipient=village.hex("alice"), relays=RELAYS[:1], amount_msats=AMOUNT, created_at=1
    )
    tags = [*event.tags, ["P", EVE.public.hex]]
    other = nip57.sign_event(SENDER, kind=9734, tags=tags, created_at=1).to_json()
    with pytest.raises(ZapInvalid, match="signer"):
        await service.invoice("alice", AMOUNT, other)
    tags[-1] = ["P", village.signer.public.hex]
    assert await service.invoice(
        "alice", AMOUNT, nip57.sign_event(SENDER, kind=9734, tags=tags, created_at=1).to_json()
    )


@attrs.define
class Stubborn:
    """A wallet that settles whole sats, or ignores that the description is to be hashed."""

    wallet: object
    unit: int = 1
    ignores: bool = False

    async def info(self):
        return attrs.evolve(await self.wallet.info(), unit_msats=self.unit)

    async def receive(self, *args, hash_description: bool = False):
        return await self.wallet.receive(*args, hash_description=hash_description and not self.ignores)


async def test_a_wallet_that_cannot_commit_to_a_hash_gives_no_zaps(village):
    village.wallets["alice"] = Stubborn(village.wallets["alice"], ignores=True)
    with pytest.raises(WalletError, match="hash"):
        await village.service().invoice("alice", AMOUNT)
    assert village.service().unpaid() == []


async def test_a_wallet_of_whole_sats_is_asked_for_whole_sats(village):
    village.wallets["alice"] = Stubborn(village.wallets["alice"], unit=1_000)
    with pytest.raises(LnurlInvalid, match="whole sats"):
        await village.service().invoice("alice", 21_001)
    assert await village.service().invoice("alice", 21_000)


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_invoices_that_wait_are_bounded_for_each_agent_and_in_all(village, payer, autojump_clock):
    service = village.service(PayLimits(open_per_agent=3, open_in_all=5))
    first = [await service.invoice("alice", AMOUNT, village.request()) for _ in range(3)]
    with pytest.raises(LnurlInvalid, match="too many"):
        await service.invoice("alice", AMOUNT)
    for _ in range(2):
        await service.invoice("bob", AMOUNT)
    with pytest.raises(LnurlInvalid, match="too many"):
        await service.invoice("bob", AMOUNT)
    # One that is paid waits no longer.
    await pay(payer, first[0])
    await service.paid(village.hex("alice"), (await received(village))[0])
    await service.invoice("alice", AMOUNT)
    # What has expired waits no longer, and is remembered for a while.
    await trio.sleep(601)
    for _ in range(3):
        await service.invoice("alice", AMOUNT)
    kept = service.unpaid()
    assert len(kept) == 8
    assert sum(row.expires_at <= village.clock.now() for row in kept) == 5
    await trio.sleep(601)
    await service.invoice("alice", AMOUNT)
    assert len(service.unpaid()) == 6


async def test_the_bounds_hold_where_all_ask_at_once(village):
    service = village.service(PayLimits(open_per_agent=4, open_in_all=6))
    made = []

    async def ask(name):
        try:
            made.append(await service.invoice(name, AMOUNT))
        except LnurlInvalid:
            pass

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask, "alice")
            nursery.start_soon(ask, "bob")
    assert len(made) == len(service.unpaid()) == 6
    assert len(service.unpaid(village.hex("alice"))) <= 4


# --- receipts ---------------------------------------------------------------------------------------------------------


async def test_a_zap_that_is_paid_has_a_receipt_that_proves_it(village, payer):
    service = village.service()
    request = village.request()
    await pay(payer, await service.invoice("alice", AMOUNT, request))
    (payment,) = await received(village)
    assert await service.paid(village.hex("alice"), payment) is True
    ((receipt, relays),) = village.receipts()
    receipt.check()
    zap = nip57.check_receipt(
        receipt, nostr_pubkey=village.signer.public.hex, recipient=village.hex("alice"), prefix="sb"
    )
    assert (zap.sender, zap.comment, zap.amount_msats) == (SENDER.public.hex, "nice", AMOUNT)
    assert zap.preimage == payment.preimage
    assert zap.payment_hash == payment.payment_hash
    assert receipt.created_at == int(payment.settled_at)
    assert relays == [RELAYS[0]]
    row = village.store.one("SELECT paid_at, receipt_id FROM zap_invoices")
    assert (row["paid_at"], row["receipt_id"]) == (payment.settled_at, receipt.id)
    subject = village.store.one("SELECT subject FROM outbox")["subject"]
    assert subject == payment.payment_hash


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (["ws://relay.test"], ["ws://relay.test"]),
        (["WS://Relay.test:80/", "wss://elsewhere.example"], list(RELAYS)),
        (["ws://Relay.test:80/", "wss://elsewhere.example"], ["ws://relay.test"]),
        (["wss://other.test:443/inbox/", "ws://relay.test/"], list(RELAYS)),
        (["wss://relay.test"], list(RELAYS)),
        (["wss://elsewhere.example", "ws://127.0.0.1:1", "ws://10.0.0.1"], list(RELAYS)),
        (["ws://relay.test:notaport", "ws://[::1"], list(RELAYS)),
    ],
)
async def test_a_receipt_goes_to_relays_of_ours_and_nowhere_else(village, payer, asked, sent):
    service = village.service()
    event = nip57.sign_event(SENDER, kind=9734, tags=[["relays", *asked], ["p", village.hex("alice")]], created_at=1)
    await pay(payer, await service.invoice("alice", AMOUNT, event.to_json()))
    (payment,) = await received(village)
    assert await service.paid(village.hex("alice"), payment)
    ((_, relays),) = village.receipts()
    assert relays == sorted(sent)


async def test_what_is_no_payment_of_a_zap_writes_nothing(village, payer):
    service = village.service()
    invoice = await service.invoice("alice", AMOUNT, village.request())
    await village.wallets["alice"].fund(sats(5))
    other = (await village.wallets["alice"].receive(Msat(1_000), "a job", 600, "k")).bolt11
    await pay(payer, other)
    alice = village.hex("alice")
    for payment in await received(village):
        assert await service.paid(alice, payment) is False
    decoded = bolt11.decode(invoice)
    good = Payment("1", decoded.payment_hash, Direction.RECEIVED, PaymentState.SETTLED, Msat(AMOUNT), Msat(0), 1.0)
    for changed in (
        {"direction": Direction.SENT},
        {"state": PaymentState.PENDING},
        {"state": PaymentState.FAILED},
        {"amount": Msat(AMOUNT - 1)},
        {"payment_hash": "11" * 32},
        {"payment_hash": ""},
    ):
        assert await service.paid(alice, attrs.evolve(good, **changed)) is False
    assert await service.paid(village.hex("bob"), good) is False
    assert village.receipts() == []
    assert len(service.unpaid()) == 1
    # A wallet that tells neither when nor by which preimage will do.
    assert await service.paid(alice, attrs.evolve(good, preimage="zz")) is True


async def test_a_home_with_another_identity_still_marks_it_paid(village, payer):
    tags = [["relays", RELAYS[0]], ["p", village.hex("alice")], ["P", village.signer.public.hex]]
    request = nip57.sign_event(SENDER, kind=9734, tags=tags, created_at=1).to_json()
    await pay(payer, await village.service().invoice("alice", AMOUNT, request))
    village.signer = EVE
    (payment,) = await received(village)
    service = village.service()
    assert await service.paid(village.hex("alice"), payment) is False
    assert service.unpaid() == []
    assert village.receipts() == []


async def test_told_many_times_at_once_it_writes_one_receipt(village, payer):
    service = village.service()
    await pay(payer, await service.invoice("alice", AMOUNT, village.request()))
    (payment,) = await received(village)
    said = []

    async def tell():
        said.append(await service.paid(village.hex("alice"), payment))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(tell)
    assert sorted(said) == [False] * 19 + [True]
    assert len(village.receipts()) == 1
    assert await service.catch_up() == 0


async def test_what_was_paid_while_the_home_was_down_is_found(tmp_path, ledger, clock, payer, autojump_clock):
    async with open_village(tmp_path, ledger, clock) as village:
        service = village.service()
        for name in ("alice", "bob", "alice"):
            await pay(payer, await service.invoice(name, AMOUNT, village.request(name)))
        unpaid = await service.invoice("alice", AMOUNT, village.request())
    await trio.sleep(3_600)
    async with open_village(tmp_path, ledger, clock) as village:
        service = village.service()
        assert len(service.unpaid()) == 4
        # An agent that is gone, and a wallet that is away, do not stand in the way of the others.
        alice, wallet = village.keys.pop("alice"), village.wallets["bob"]
        village.wallets["bob"] = None
        assert await service.catch_up() == 0
        village.wallets["bob"] = wallet
        assert await service.catch_up() == 1
        village.keys["alice"] = alice
        assert await service.catch_up() == 2
        assert await service.catch_up() == 0
        assert {receipt.created_at for receipt, _ in village.receipts()} == {int(clock.now()) - 3_600}
        assert [row.payment_hash for row in service.unpaid()] == [bolt11.decode(unpaid).payment_hash]


class Killed(BaseException):
    """The process dies here."""


@settings(max_examples=40)
@given(data=st.data())
def test_one_receipt_for_each_paid_zap_whenever_it_is_told_and_whenever_we_die(tmp_path_factory, data):
    """Zaps are asked for, paid, told and told again; the store dies before, within or after any of its writes."""

    async def run():
        directory, clock = tmp_path_factory.mktemp("zaps"), VirtualClock()
        paid: dict[str, str] = {}
        handed: list[tuple[str, str, str]] = []
        async with open_ledger(directory, clock) as ledger:
            payer = ledger.wallet("payer", b"\x61" * 32)
            await payer.fund(sats(1_000_000))

            async def live(village, service):
                for _ in range(data.draw(st.integers(1, 6), label="steps")):
                    match data.draw(st.sampled_from(["ask", "ask", "pay", "tell", "tell", "catch up", "wait"])):
                        case "ask":
                            name = data.draw(st.sampled_from(["alice", "bob"]))
                            request = village.request(name, comment=str(len(handed)))
                            handed.append((name, request, await service.invoice(name, AMOUNT, request)))
                        case "pay" if handed:
                            name, request, invoice = data.draw(st.sampled_from(handed))
                            if invoice not in paid and not bolt11.decode(invoice).is_expired(clock.now()):
                                await pay(payer, invoice)
                                paid[invoice] = request
                        case "tell":
                            for name in ("alice", "bob"):
                                for payment in await received(village, name):
                                    await service.paid(village.hex(name), payment)
                        case "catch up":
                            await service.catch_up()
                        case "wait":
                            await trio.sleep(data.draw(st.sampled_from([1, 400, 700])))

            for _ in range(data.draw(st.integers(1, 4), label="lives")):
                async with open_village(directory, ledger, clock) as village:
                    service, deadly = village.service(), data.draw(st.integers(0, 8), label="deadly write")
                    _die_at(village.store, deadly, data.draw(st.sampled_from(["before", "within", "after"])))
                    try:
                        await live(village, service)
                    except (Killed, StoreError):
                        pass
            async with open_village(directory, ledger, clock) as village:
                await village.service().catch_up()
                receipts = [
                    nip57.check_receipt(r, nostr_pubkey=village.signer.public.hex) for r, _ in village.receipts()
                ]
                assert sorted(receipt.bolt11 for receipt in receipts) == sorted(paid)
                for receipt, (event, _) in zip(receipts, village.receipts(), strict=True):
                    assert event.tag("description") == paid[receipt.bolt11]
                # Nothing was handed out that is not a row.
                rows = {row.payment_hash for row in village.service().unpaid()}
                assert {bolt11.decode(invoice).payment_hash for *_, invoice in handed if invoice not in paid} <= rows

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def _die_at(store, number: int, when: str) -> None:
    """The store dies at its write of this number."""
    write, count = store.write, 0

    async def deadly(fn):
        nonlocal count
        count += 1
        if count != number:
            return await write(fn)
        if when == "after":
            await write(fn)
            store.kill()
            raise Killed
        if when == "before":
            store.kill()

        def within(tx):
            fn(tx)
            store.kill()

        await write(within)
        raise Killed

    store.write = deadly


async def test_reprs_tell_nothing(village):
    request = village.request()
    assert "nice" not in repr(village.service().unpaid())
    await village.service().invoice("alice", AMOUNT, request)
    assert "lnsb" not in repr(village.service().unpaid())
