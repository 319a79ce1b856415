"""The wallet service over Electrum, asked by nostr-sdk's client: neither end is ours, so what differs is Pylon's."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import time

import bolt11
import nostr_sdk as nostr
import pytest

from tests.lightning.conftest import CAPACITY_SATS, PUSHED_SATS
from tests.lightning.processes import channel_msats, until

pytestmark = [pytest.mark.deep, pytest.mark.lightning]


class Client:
    """nostr-sdk's client of NIP-47, blocking."""

    def __init__(self, connection, seconds=20):
        self.connection = connection
        self.seconds = seconds

    def __getattr__(self, method):
        async def ask(*request):
            nostr.uniffi_set_event_loop(asyncio.get_running_loop())
            uri = nostr.NostrWalletConnectUri.parse(self.connection)
            patience = datetime.timedelta(seconds=self.seconds)
            client = nostr.NostrWalletConnectBuilder(uri).timeout(patience).build()
            try:
                return await getattr(client, method)(*request)
            finally:
                await client.client().shutdown()

        return lambda *request: asyncio.run(ask(*request))

    def balance(self):
        return self.get_balance().balance

    def invoice(self, msats, description="a job", expiry=600, description_hash=None):
        asked = nostr.MakeInvoiceRequest(
            amount=msats, description=description, description_hash=description_hash, expiry=expiry
        )
        return self.make_invoice(asked)

    def pay(self, invoice, msats=None):
        return self.pay_invoice(nostr.PayInvoiceRequest(id=None, invoice=invoice, amount=msats))

    def look(self, *, payment_hash=None, invoice=None):
        return self.lookup_invoice(nostr.LookupInvoiceRequest(payment_hash=payment_hash, invoice=invoice))

    def list(self, **wanted):
        asked = {"_from": None, "until": None, "limit": None, "offset": None, "unpaid": None, "transaction_type": None}
        return self.list_transactions(nostr.ListTransactionsRequest(**{**asked, **wanted}))


def sha256(preimage):
    return hashlib.sha256(bytes.fromhex(preimage)).hexdigest()


@pytest.fixture
def payer(lightning, connect):
    return Client(connect(lightning.payer).connection)


@pytest.fixture
def payee(lightning, connect):
    return Client(connect(lightning.payee).connection)


def test_it_says_what_it_is(lightning, payer):
    info = payer.get_info()
    assert (info.network, info.pubkey) == ("regtest", lightning.payer.node)
    assert info.block_height == lightning.payer.height()
    assert payer.balance() == channel_msats(lightning.payer)[0]


def test_a_payment_over_a_channel(lightning, payer, payee):
    before = channel_msats(lightning.payer, lightning.payee)
    made = payee.invoice(7_000, "seven sats")
    read = bolt11.decode(made.invoice)
    assert (read.payment_hash, read.amount_msat, read.payee) == (made.payment_hash, 7_000, lightning.payee.node)
    assert (read.currency, read.description) == ("bcrt", "seven sats")
    assert payee.look(payment_hash=made.payment_hash).state == nostr.TransactionState.PENDING
    with pytest.raises(nostr.NostrSdkError, match="NotFound"):
        payer.look(payment_hash=made.payment_hash)
    paid = payer.pay(made.invoice)
    assert sha256(paid.preimage) == made.payment_hash
    assert paid.fees_paid == 0
    until(lambda: channel_msats(lightning.payee) == [before[1] + 7_000], 10, "the payee has it")
    assert channel_msats(lightning.payer) == [before[0] - 7_000]
    assert [payer.balance(), payee.balance()] == channel_msats(lightning.payer, lightning.payee)
    for client, direction in ((payer, nostr.TransactionType.OUTGOING), (payee, nostr.TransactionType.INCOMING)):
        found = client.look(invoice=made.invoice)
        assert (found.state, found.transaction_type) == (nostr.TransactionState.SETTLED, direction)
        assert (found.amount, found.fees_paid, found.payment_hash) == (7_000, 0, made.payment_hash)
        assert sha256(found.preimage) == made.payment_hash
        assert found.settled_at.as_secs() >= found.created_at.as_secs()
        assert [entry.payment_hash for entry in client.list(limit=1, transaction_type=direction)] == [made.payment_hash]


def test_a_forwarded_payment_costs_its_sender_what_the_node_between_earns(lightning, connect, payee):
    distant = Client(connect(lightning.distant).connection)
    before = channel_msats(lightning.distant, lightning.payer, lightning.payee)
    made = payee.invoice(5_123_000)
    paid = distant.pay(made.invoice)
    assert sha256(paid.preimage) == made.payment_hash
    fee = paid.fees_paid
    assert fee == 1_000 + 5_123_000 // 1_000_000  # what an Electrum asks for: 1 sat and a millionth
    expected = [before[0] - 5_123_000 - fee, before[1] + fee, before[2] + 5_123_000]
    daemons = (lightning.distant, lightning.payer, lightning.payee)
    until(lambda: channel_msats(*daemons) == expected, 10, "all three have what is theirs")
    assert distant.look(payment_hash=made.payment_hash).fees_paid == fee


def test_what_it_refuses(lightning, payer, payee):
    before = channel_msats(lightning.payer, lightning.payee)
    made = payee.invoice(1_000)
    payer.pay(made.invoice)
    with pytest.raises(nostr.NostrSdkError, match="has been paid already"):
        payer.pay(made.invoice)
    with pytest.raises(nostr.NostrSdkError, match="checksum"):
        payer.pay(made.invoice[:-1] + ("q" if made.invoice[-1] != "q" else "p"))
    with pytest.raises(nostr.NostrSdkError, match="what the invoice says"):
        payer.pay(payee.invoice(1_000).invoice, msats=2_000)
    with pytest.raises(nostr.NostrSdkError, match="whole sats"):
        payee.invoice(1_500)
    with pytest.raises(nostr.NostrSdkError, match="NotImplemented"):
        payee.invoice(1_000, None, description_hash="ab" * 32)
    with pytest.raises(nostr.NostrSdkError, match="PaymentFailed"):
        payer.pay(payee.invoice(CAPACITY_SATS * 1_000).invoice)  # the channel that leads there keeps a reserve
    with pytest.raises(nostr.NostrSdkError, match="InsufficientBalance"):
        payer.pay(payee.invoice((CAPACITY_SATS + PUSHED_SATS) * 1_000).invoice)
    lost = payee.invoice(1_000, expiry=1)
    time.sleep(2.1)
    with pytest.raises(nostr.NostrSdkError, match="expired"):
        payer.pay(lost.invoice)
    assert payee.look(payment_hash=lost.payment_hash).state == nostr.TransactionState.EXPIRED
    with pytest.raises(nostr.NostrSdkError, match="NotFound"):
        payer.look(payment_hash="00" * 32)
    expected = [before[0] - 1_000, before[1] + 1_000]
    until(lambda: channel_msats(lightning.payer, lightning.payee) == expected, 10, "one payment, and no more")


def test_a_payment_that_is_held_is_pending_and_then_settles(lightning, connect, payee):
    service = connect(lightning.payer)
    before = channel_msats(lightning.payer, lightning.payee)
    made = payee.invoice(3_000)
    lightning.payee.settle(False)
    try:
        with pytest.raises(nostr.NostrSdkError, match="response not received"):
            Client(service.connection, seconds=2).pay(made.invoice)
        payer = Client(service.connection)
        for client in (payer, payee):
            assert client.look(payment_hash=made.payment_hash).state == nostr.TransactionState.PENDING
        with pytest.raises(nostr.NostrSdkError, match="did not clear"):
            payer.pay(made.invoice)
        assert channel_msats(lightning.payer, lightning.payee) == before
        assert made.payment_hash not in [entry.payment_hash for entry in payer.list()]
        assert made.payment_hash in [entry.payment_hash for entry in payer.list(unpaid=True)]
    finally:
        lightning.payee.settle(True)
    expected = [before[0] - 3_000, before[1] + 3_000]
    until(lambda: channel_msats(lightning.payer, lightning.payee) == expected, 10, "it settles")
    for client in (payer, payee):
        assert client.look(payment_hash=made.payment_hash).state == nostr.TransactionState.SETTLED


def test_an_answer_that_is_lost_has_been_paid_all_the_same(lightning, connect, payee):
    service = connect(lightning.payer, pay_invoice=1)
    made = payee.invoice(2_000)
    with pytest.raises(nostr.NostrSdkError, match="response not received"):
        Client(service.connection, seconds=2).pay(made.invoice)
    found = Client(service.connection).look(payment_hash=made.payment_hash)
    assert found.state == nostr.TransactionState.SETTLED
    assert sha256(found.preimage) == made.payment_hash
