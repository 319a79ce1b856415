"""The verbs ``provider.credits`` and ``provider.payout``: what is owed to customers, and paying it out.

Rules
-----
1. What is paid out is reserved by its intent, in the transaction that looks at what is owed: never more than that,
   however many ask at once, and a customer cannot use it meanwhile.
2. A payment that is not known to have settled stays reserved. Only what the wallet calls failed may be paid out again.
3. The fee is the home's own. An invoice is paid once; one more payment to an address is another payment, of what is
   still owed by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from protocols import bolt11, lnurl
from protocols.keys import PublicKey
from protocols.lnurl import LnurlInvalid, PayRequest
from protocols.nip19 import Nip19Error, decode_public_key, encode_npub
from pylon.clock import Clock
from pylon.daemon import agent_params as reading
from pylon.daemon.control import Method, Notify
from pylon.daemon.withdrawals import Withdrawals
from pylon.errors import BudgetExceeded, InvoiceInvalid, UsageError, WrongNetwork
from pylon.host.fetch import fetch, open_client
from pylon.money import MAX_MSAT, Msat, format_msat
from pylon.provider.sales import sale_records
from pylon.store import credits, intents
from pylon.store.database import Reads, Store, Tx
from pylon.wallets.port import Target, Wallet
from pylon.wallets.purse import Purse

_OWING = "SELECT cause FROM entries WHERE owner = '' AND credit = 'owed' AND kind LIKE 'owed:%'"
_LEAST_SECONDS = 10.0
"""An invoice that expires sooner is not worth an attempt."""


@attrs.frozen
class ProviderMoney:
    """The verbs. Without ``purse`` nothing is paid out."""

    store: Store
    clock: Clock
    purse: Purse | None = None
    withdrawals: Withdrawals | None = None
    simnet: bool = False
    """Whether a lightning address may lead to this machine."""

    def table(self) -> dict[str, Method]:
        return {"provider.credits": self.owed, "provider.payout": self.payout}

    async def owed(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """Who is owed what, since when, and for which jobs; the most first. ``customer``: of one alone."""
        wanted = None if params.get("customer") is None else customer_key(params["customer"])
        found = credits.listed(self.store, wanted)
        return {
            "total_msats": sum(entry.owed for entry in found),
            "credits": [self._told(entry) for entry in found],
        }

    def _told(self, entry: credits.Credit) -> dict[str, Any]:
        jobs = sale_records(self.store).where(
            self.store, f"customer = ? AND id IN ({_OWING}) ORDER BY created_at", (entry.customer,)
        )
        return {
            "customer": entry.customer,
            "npub": _npub(entry.customer),
            "owed_msats": entry.owed,
            "paying_msats": entry.paying,
            "available_msats": max(0, entry.owed - entry.paying),
            "since": entry.since,
            "jobs": [
                {
                    "id": sale.id,
                    "owed_msats": sale.owed,
                    "paid_msats": sale.paid,
                    "at": sale.created_at,
                    "state": sale.state.value,
                    "reason": sale.reason,
                }
                for sale in jobs
            ],
        }

    async def payout(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """Pay a customer what is owed: all of it, or ``amount_msats``, to an invoice, an address of the wallet's
        network, or a lightning address.

        Raises ``BudgetExceeded`` for more than is owed, and what ``Withdrawals.pay`` raises.
        """
        if self.purse is None or self.withdrawals is None:
            raise UsageError("no wallet is open", "this home sells for nothing; set enable_payments = true")
        customer = customer_key(params.get("customer"))
        wanted = None if params.get("amount_msats") is None else reading.whole(params, "amount_msats", 1, MAX_MSAT)
        wallet = self.purse.wallet
        target, amount = await self._target(wallet, customer, reading.text(params, "target").strip(), wanted)
        fee = await self.withdrawals.pay(
            self.purse,
            target.text,
            target.payment_hash,
            amount,
            # To an address one more is another payment.
            cause=None if target.payment_hash else f"{credits.payouts(self.store, customer):x}",
            kind=credits.payout_kind(customer),
            admit=lambda tx: self._admit(tx, customer, amount, target.payment_hash),
        )
        return {
            "customer": customer,
            "paid_out_msats": amount,
            "fee_msats": fee,
            "owed_msats": credits.owed(self.store, customer),
        }

    def _admit(self, tx: Tx, customer: str, amount: Msat, payment_hash: str | None) -> None:
        """What was begun is asked of its intent. Raises ``BudgetExceeded``."""
        if payment_hash is None or intents.find(tx, payment_hash) is None:
            self._check(tx, customer, amount)

    def _check(self, source: Reads, customer: str, amount: int) -> None:
        """Raises ``BudgetExceeded`` for more than is owed."""
        available = credits.available(source, customer)
        if 0 < amount <= available:
            return
        under_way = credits.paying(source, customer)
        if not available and not under_way:
            raise BudgetExceeded("nothing is owed to this customer", "pylon provider credits shows who is owed what")
        also = f", and {format_msat(under_way)} is being paid out" if under_way else ""
        raise BudgetExceeded(
            f"{format_msat(available)} can be paid out to this customer{also}",
            "pylon books shows what is under way" if under_way else "pay out less: --amount",
        )

    async def _target(self, wallet: Wallet, customer: str, text: str, wanted: int | None) -> tuple[Target, Msat]:
        """What is to be paid, and how much; what is not said is all that is owed, as the wallet can pay it."""
        info = await wallet.info()
        available = credits.available(self.store, customer)
        all_of_it = Msat(available // info.unit_msats * info.unit_msats)
        named = Msat(all_of_it if wanted is None else wanted)
        if text[:10].lower() == "lightning:":
            text = text[10:].removeprefix("//")
        if "@" in text or text.lower().startswith(("lnurl1", "lnurlp://")):
            self._check(self.store, customer, named)
            text = await self._invoice(text, named)
        target = await wallet.decode(text)
        if target.network != info.network:
            raise WrongNetwork(f"this is to be paid on {target.network}: this wallet is on {info.network}")
        if target.amount is not None and wanted not in (None, target.amount):
            raise InvoiceInvalid(f"the invoice is for {format_msat(target.amount)}", "leave --amount out")
        return target, named if target.amount is None else target.amount

    async def _invoice(self, address: str, amount: Msat) -> str:
        """An invoice of a lightning address or LNURL, checked and not paid. Raises ``WalletError``."""
        try:
            url = lnurl.pay_url(address, allow_local=self.simnet)
            async with open_client() as client:
                answer = await fetch(url, client=client, max_bytes=lnurl.MAX_DOCUMENT_BYTES, allow_local=self.simnet)
                document = PayRequest.parse(answer.body, allow_local=self.simnet)
                asked = document.invoice_url(amount)
                answer = await fetch(asked, client=client, max_bytes=lnurl.MAX_DOCUMENT_BYTES, allow_local=self.simnet)
            text = lnurl.parse_invoice(answer.body)
            lnurl.check_invoice(
                text,
                description=document.metadata,
                amount_msats=amount,
                prefix=bolt11.decode(text).prefix,  # its network is checked against the wallet's
                now=self.clock.now(),
                min_seconds=_LEAST_SECONDS,
            )
        except (LnurlInvalid, bolt11.Bolt11Invalid) as error:
            raise InvoiceInvalid(
                f"no invoice of this lightning address: {error}", "ask the customer for an invoice"
            ) from None
        return text


def customer_key(text: object) -> str:
    """A customer as npub or hex. Raises ``UsageError``."""
    try:
        return decode_public_key(str(text)).hex
    except (Nip19Error, ValueError):
        raise UsageError(f"{str(text)[:80]!r} is no public key", "give an npub or 64 hex digits") from None


def _npub(customer: str) -> str:
    try:
        return encode_npub(PublicKey.from_hex(customer))
    except ValueError:
        return ""
