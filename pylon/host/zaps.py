"""Zaps (NIP-57), both halves, without HTTP: ``PayService`` takes sats for this home's agents, ``resolve`` asks others.

Rules of the service
--------------------
1. An invoice is a row before it is handed out; a receipt is signed in the transaction that marks its row paid, and
   stands in the outbox then. So each paid zap has one receipt, however often it is told and whenever we crash.
2. The wallet's invoice must commit to the request by its hash: a receipt for another one would prove nothing.
3. Strangers call it as they like: unpaid invoices are bounded for each agent and in all, and what has expired unpaid
   is forgotten, oldest first.
4. A receipt goes to those of the relays it was asked for that this home is connected to anyway; where there is none,
   to this home's own: nobody makes us connect anywhere, and the agent hears of the zap in any case.

``resolve`` never pays: it returns an invoice that is what was asked for, or raises.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import attrs
import trio

from protocols import bolt11, entropy, lnurl, nip57
from protocols.keys import SecretKey, is_hex
from protocols.lnurl import LnurlInvalid, PayRequest
from protocols.nip01 import Event, EventInvalid
from pylon.clock import Clock
from pylon.errors import WalletError, brief
from pylon.host.fetch import SECONDS, ServiceUnreachable, fetch
from pylon.money import MAX_MSAT, Msat, sats
from pylon.store import outbox
from pylon.store.database import Reads, Store, Tx
from pylon.wallets.port import Direction, IssuedInvoice, Payment, PaymentState, Wallet

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

RECEIPT_EFFECT = "zap.receipt"
"""What the outbox calls a receipt; the subject is its payment hash."""
_ABOUT_CHARS = 200
_LEAST_SECONDS_TO_PAY = 30.0
"""An invoice that expires sooner is not worth an attempt."""


@attrs.frozen
class Payee:
    """An agent, as far as its payers are concerned."""

    agent: str
    """Public key, hex."""
    name: str
    about: str
    wallet: Callable[[], Wallet] = attrs.field(repr=False)
    """Opens its wallet, or gives the one that is open. It is not closed here."""


class Payees(Protocol):
    """Who can be paid here. An agent that is deleted or has moved is nobody; one that sleeps is woken by sats."""

    def named(self, name: str) -> Payee | None: ...

    def keyed(self, agent: str) -> Payee | None:
        """By public key, hex."""
        ...


@attrs.frozen
class PayLimits:
    """What strangers may ask for."""

    least: Msat = sats(1)
    most: Msat = sats(1_000_000)
    """Of one payment."""
    comment_chars: int = attrs.field(default=280, validator=attrs.validators.le(lnurl.MAX_COMMENT_CHARS))
    open_per_agent: int = 100
    """Invoices that wait to be paid."""
    open_in_all: int = 1_000
    """Also how many that expired unpaid are remembered, in case their payment was under way."""
    seconds: int = 600
    """The life of an invoice."""


@attrs.frozen
class Unpaid:
    """An invoice that was handed out and not paid, as far as we know; it may have expired."""

    agent: str
    payment_hash: str
    amount: Msat
    created_at: float
    expires_at: float


class PayService:
    """See the module.

    :param signer: the home's key, which signs the receipts; the documents name it.
    :param relays: those that this home is connected to.
    :param issued: told of each invoice in the transaction that writes it down: whose it is (public key, hex), and the
        zap request that it is for, if it is for one.
    """

    def __init__(
        self,
        payees: Payees,
        *,
        signer: SecretKey,
        store: Store,
        relays: Callable[[], Collection[str]],
        clock: Clock,
        limits: PayLimits | None = None,
        issued: Callable[[Tx, str, IssuedInvoice, str | None], None] | None = None,
    ) -> None:
        self._payees = payees
        self._signer = signer
        self._store = store
        self._relays = relays
        self._clock = clock
        self._limits = limits or PayLimits()
        self._issued = issued
        self.address: str | None = None
        """What stands behind the @ of a lightning address; ``None``: nobody can be paid. Known once HTTP is served."""

    def lightning_address(self, name: str) -> str | None:
        """``name@address``, a profile's ``lud16``."""
        return None if self.address is None else f"{name}@{self.address}"

    # --- the two calls of LNURL-pay -------------------------------------------------------------------------------

    def document(self, name: str) -> PayRequest:
        """The answer to the first call. Raises ``LnurlInvalid``."""
        return self._document(self._payee(name))

    async def invoice(self, name: str, amount_msats: int, zap_request: str | None = None, comment: str = "") -> str:
        """The answer to the second call: an invoice of the agent's wallet, for a zap or a plain payment.

        ``zap_request``: the JSON text exactly as it came. Raises ``LnurlInvalid``, ``ZapInvalid`` for what the caller
        did wrong, ``WalletError`` or ``StoreError`` for what is wrong here.
        """
        payee = self._payee(name)
        document = self._document(payee)
        limits, now = self._limits, self._clock.now()
        if not limits.least <= amount_msats <= limits.most:
            raise LnurlInvalid(f"the amount must be from {limits.least} to {limits.most} msat")
        if len(comment) > limits.comment_chars:
            raise LnurlInvalid(f"a comment has at most {limits.comment_chars} characters")
        if zap_request is not None:
            nip57.check_request(
                zap_request,
                amount_msats=amount_msats,
                recipient=payee.agent,
                receipt_signer=self._signer.public.hex,
            )
        self._check_room(self._store, payee.agent, now)
        wallet = payee.wallet()
        if amount_msats % (await wallet.info()).unit_msats:
            raise LnurlInvalid("the amount must be whole sats")
        description = document.metadata if zap_request is None else zap_request
        issued = await wallet.receive(
            Msat(amount_msats),
            description,
            limits.seconds,
            f"zap:{entropy.random_bytes(16).hex()}",
            hash_description=True,
        )
        if bolt11.decode(issued.bolt11).description_hash != lnurl.description_hash(description):
            raise WalletError("the wallet makes no invoices that commit to a hash", "zaps need another wallet")

        def job(tx: Tx) -> None:
            self._check_room(tx, payee.agent, now)
            self._forget_expired(tx, now)
            seal, where = tx.vault.seal, issued.payment_hash
            tx.execute(
                "INSERT INTO zap_invoices (payment_hash, agent, amount_msats, invoice, request, comment, created_at,"
                " expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(where, payee.agent, amount_msats, seal(issued.bolt11, f"zap_invoices.invoice:{where}")),
                    None if zap_request is None else seal(zap_request, f"zap_invoices.request:{where}"),
                    seal(comment, f"zap_invoices.comment:{where}") if comment else None,
                    *(now, issued.expires_at),
                ),
            )
            if self._issued is not None:
                self._issued(tx, payee.agent, issued, zap_request)

        await self._store.write(job)
        return issued.bolt11

    # --- what was paid --------------------------------------------------------------------------------------------

    async def paid(self, agent: str, payment: Payment) -> bool:
        """Told of each payment that an agent's wallet has received; may be told again. True: a receipt was written.

        Raises ``StoreError``; then it is to be told once more.
        """
        await trio.lowlevel.checkpoint()
        if payment.direction is not Direction.RECEIVED or payment.state is not PaymentState.SETTLED:
            return False
        return await self._take(agent, payment.payment_hash, payment.amount, payment.settled_at, payment.preimage)

    def unpaid(self, agent: str | None = None) -> list[Unpaid]:
        """Of one agent, or of all, oldest first."""
        rows = self._store.read(
            "SELECT agent, payment_hash, amount_msats, created_at, expires_at FROM zap_invoices"
            " WHERE paid_at IS NULL AND (?1 IS NULL OR agent = ?1) ORDER BY expires_at, payment_hash",
            (agent,),
        )
        return [Unpaid(*row) for row in rows]

    async def catch_up(self) -> int:
        """Ask the wallets what became of the unpaid ones; returns how many receipts that made.

        For the start, and now and then: a wallet's events may miss some. A wallet that cannot tell is passed over.
        """
        written = 0
        for entry in self.unpaid():
            await trio.lowlevel.checkpoint()
            payee = self._payees.keyed(entry.agent)
            if payee is None:
                continue
            try:
                issued = await payee.wallet().lookup_invoice(entry.payment_hash)
            except Exception as error:
                log.warning("the wallet of %s cannot tell what it received: %s", payee.name, brief(error))
                continue
            if issued is not None and issued.received > 0:
                written += await self._take(entry.agent, entry.payment_hash, issued.received, issued.settled_at, None)
        return written

    def comment(self, payment_hash: str) -> str:
        """What a payer wrote with a payment (LUD-12), in a stranger's words; empty where there is nothing.

        A zap's own comment stands in its request.
        """
        row = self._store.one("SELECT comment FROM zap_invoices WHERE payment_hash = ?", (payment_hash,))
        if row is None or row["comment"] is None:
            return ""
        return self._store.vault.open(row["comment"], f"zap_invoices.comment:{payment_hash}")

    # --- within ---------------------------------------------------------------------------------------------------

    def _payee(self, name: str) -> Payee:
        payee = self._payees.named(name)
        if payee is None:
            raise LnurlInvalid("there is nobody of this name here")
        return payee

    def _document(self, payee: Payee) -> PayRequest:
        address = self.lightning_address(payee.name)
        if address is None:
            raise LnurlInvalid("nobody can be paid here: this Pylon has no public name")
        base = lnurl.lightning_address_url(address, allow_local=True).partition("/.well-known/")[0]
        about = " ".join(payee.about.split()).encode("utf-8", "replace").decode()[:_ABOUT_CHARS]
        return PayRequest(
            callback=f"{base}/lnurlp/{payee.name}/pay",
            min_msats=self._limits.least,
            max_msats=min(self._limits.most, MAX_MSAT),
            metadata=lnurl.build_metadata(f"{payee.name}: {about}" if about else payee.name, address),
            comment_chars=self._limits.comment_chars,
            allows_nostr=True,
            nostr_pubkey=self._signer.public.hex,
        )

    def _check_room(self, source: Reads, agent: str, now: float) -> None:
        row = source.one(
            "SELECT COUNT(*) AS everybody, COALESCE(SUM(agent = ?), 0) AS own FROM zap_invoices"
            " WHERE paid_at IS NULL AND expires_at > ?",
            (agent, now),
        )
        assert row is not None, "a count is always a row"
        if row["everybody"] >= self._limits.open_in_all or row["own"] >= self._limits.open_per_agent:
            raise LnurlInvalid("too many invoices wait to be paid; try again in a few minutes")

    def _forget_expired(self, tx: Tx, now: float) -> None:
        tx.execute(
            "DELETE FROM zap_invoices WHERE payment_hash IN (SELECT payment_hash FROM zap_invoices"
            " WHERE paid_at IS NULL AND expires_at <= ? ORDER BY expires_at DESC LIMIT -1 OFFSET ?)",
            (now, self._limits.open_in_all),
        )

    async def _take(
        self, agent: str, payment_hash: str, amount: Msat, settled_at: float | None, preimage: str | None
    ) -> bool:
        def waiting(source: Reads) -> bool:
            row = source.one(
                "SELECT amount_msats FROM zap_invoices WHERE payment_hash = ? AND agent = ? AND paid_at IS NULL",
                (payment_hash, agent),
            )
            return row is not None and amount >= row["amount_msats"]

        def job(tx: Tx) -> bool:
            return waiting(tx) and self._settle(tx, payment_hash, settled_at, preimage)

        return waiting(self._store) and await self._store.write(job)

    def _settle(self, tx: Tx, payment_hash: str, settled_at: float | None, preimage: str | None) -> bool:
        row = tx.one("SELECT invoice, request FROM zap_invoices WHERE payment_hash = ?", (payment_hash,))
        assert row is not None, "it was there a moment ago, in this transaction"
        now = tx.clock.now()
        paid_at = now if settled_at is None else settled_at
        receipt = None
        if row["request"] is not None:
            request = tx.vault.open(row["request"], f"zap_invoices.request:{payment_hash}")
            invoice = tx.vault.open(row["invoice"], f"zap_invoices.invoice:{payment_hash}")
            receipt = self._receipt(request, invoice, payment_hash, paid_at, preimage)
        if receipt is not None:
            outbox.add(tx, receipt, self._destinations(request), RECEIPT_EFFECT, payment_hash, at=now)
        tx.execute(
            "UPDATE zap_invoices SET paid_at = ?, receipt_id = ? WHERE payment_hash = ?",
            (paid_at, None if receipt is None else receipt.id, payment_hash),
        )
        tx.touch("zaps")
        return receipt is not None

    def _receipt(
        self, request: str, invoice: str, payment_hash: str, paid_at: float, preimage: str | None
    ) -> Event | None:
        if preimage is not None and not _proves(preimage, payment_hash):
            preimage = None
        try:
            return nip57.build_receipt(
                self._signer, request=request, invoice=invoice, paid_at=int(paid_at), preimage=preimage
            )
        except nip57.ZapInvalid as error:
            # The home has another identity now, and the request names the old one.
            log.warning("no receipt for the zap %s: %s", payment_hash[:16], error)
            return None

    def _destinations(self, request: str) -> list[str]:
        asked = {_plain(url) for url in nip57.check_request(request).relays}
        ours = list(self._relays())
        return [url for url in ours if _plain(url) in asked] or ours


def _proves(preimage: str, payment_hash: str) -> bool:
    return is_hex(preimage, 64) and hashlib.sha256(bytes.fromhex(preimage)).hexdigest() == payment_hash


def _plain(url: str) -> str:
    """A relay's address in one of the ways to write it."""
    try:
        parts = urlsplit(url)
        port = {"ws": 80, "wss": 443}.get(parts.scheme)
        netloc = f"{parts.hostname}:{parts.port or port}"
    except ValueError:
        return url
    return f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}?{parts.query}"


# --- the sender's half ----------------------------------------------------------------------------------------------


async def resolve(
    address: str,
    *,
    amount_msats: int,
    request_for: str,
    secret: SecretKey,
    relays: Sequence[str],
    network_prefix: str,
    client: httpx.AsyncClient,
    clock: Clock,
    comment: str = "",
    event: Event | None = None,
    allow_local: bool = False,
    seconds: float = SECONDS,
) -> tuple[str, Event]:
    """An invoice that zaps somebody, checked but not paid, and the zap request (kind 9734) that it commits to.

    :param address: lightning address, LNURL or ``lnurlp://``, as it stands in the recipient's profile.
    :param request_for: the recipient's public key, hex; ``event`` is what is zapped, if not the recipient as such.
    :param secret: the sender's key.
    :param relays: where the receipt is to go.
    :param network_prefix: of the invoices that can be paid, see ``bolt11``.
    :param client: from ``fetch.open_client``.
    :param allow_local: let an address that names the loopback lead there: for simnet.
    :param seconds: for each of the two answers.

    Raises ``LnurlInvalid`` (``LnurlRefused`` where the service says no) for a zap that cannot be made,
    ``ServiceUnreachable`` where it may be worth another attempt.
    """
    url = lnurl.pay_url(address, allow_local=allow_local)

    async def get(where: str) -> bytes:
        answer = await fetch(
            where, client=client, max_bytes=lnurl.MAX_DOCUMENT_BYTES, allow_local=allow_local, seconds=seconds
        )
        if answer.status == 429 or answer.status >= 500:
            raise ServiceUnreachable(f"the service answered with HTTP status {answer.status}", "try again later")
        # Some services say no in JSON, as they should, but not with status 200.
        if answer.status >= 400 and not answer.body.lstrip().startswith(b"{"):
            raise LnurlInvalid(f"the service answered with HTTP status {answer.status}")
        return answer.body

    document = PayRequest.parse(await get(url), allow_local=allow_local)
    named = lnurl.encode_lnurl(url)
    try:
        request = nip57.build_request(
            secret,
            recipient=request_for,
            relays=relays,
            amount_msats=amount_msats,
            created_at=int(clock.now()),
            comment=comment,
            lnurl=named,
            event=event,
        )
    except (nip57.ZapInvalid, EventInvalid) as error:
        raise LnurlInvalid(str(error)) from None
    text = request.to_json()
    answer = await get(document.invoice_url(amount_msats, zap_request=text, lnurl=named))
    invoice = lnurl.parse_invoice(answer)
    lnurl.check_invoice(
        invoice,
        description=text,
        amount_msats=amount_msats,
        prefix=network_prefix,
        now=clock.now(),
        min_seconds=_LEAST_SECONDS_TO_PAY,
    )
    return invoice, request
