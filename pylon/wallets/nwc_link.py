"""Questions to a wallet by NWC, with answers and errors as the port has them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import attrs
import orjson
import trio

from protocols import nip47_methods
from protocols.nip47 import PAGE, ErrorCode, Failure, Nip47Invalid
from protocols.nip47_methods import (
    GET_BALANCE,
    GET_INFO,
    LIST_TRANSACTIONS,
    LOOKUP_INVOICE,
    PAY_INVOICE,
    ServiceInfo,
    Transaction,
)
from pylon import errors
from pylon.errors import (
    PAY_IN,
    BudgetExceeded,
    InsufficientFunds,
    NotSupported,
    PaymentFailed,
    PaymentUnknown,
    StoreError,
    WalletError,
    WalletUnreachable,
)
from pylon.money import Msat
from pylon.store import settings
from pylon.store.database import Store
from pylon.wallets.nwc_client import NoAnswer, NotAsked, NwcClient, Refused

log = logging.getLogger(__name__)

_CONFIRMED_SECONDS = 3_600.0
_ASK_AGAIN_SECONDS = 30.0
LOOK_SECONDS = 16.0
"""For an answer about one invoice."""


class NwcLink:
    """See the module. Every method raises ``WalletError``; one of ``nwc_client`` only where it says so."""

    def __init__(self, client: NwcClient, store: Store, wallet: str) -> None:
        """``wallet``: its name in the store, where what it has said of itself is remembered."""
        self._client = client
        self._store = store
        self._key = f"nwc:{wallet}"
        self._service: ServiceInfo | None = None

    @property
    def notifies(self) -> bool:
        """Whether the wallet tells of payments by itself, as far as is known."""
        return self._service is not None and bool(self._service.notifications)

    async def service(self) -> ServiceInfo:
        """Who it is; a wallet that was met before is taken for what it was then, until it says otherwise."""
        if self._service is None:
            self._service = self._remembered()
        if self._service is None:
            await self._confirm()
        assert self._service is not None
        return self._service

    async def keep_confirming(self) -> None:
        """Ask who it is now and then, and soon again while it does not answer. Until cancelled."""
        while True:
            try:
                await self._confirm()
                wait = _CONFIRMED_SECONDS
            except (WalletError, StoreError) as error:
                log.debug("the wallet does not say who it is: %s", error.message)
                wait = _ASK_AGAIN_SECONDS
            await trio.sleep(wait)

    async def _confirm(self) -> None:
        self._service = await self._ask_who()
        told = orjson.dumps(self._service.result()).decode()
        if settings.get(self._store, self._key) != told:
            await self._store.write(functools.partial(settings.put, key=self._key, value=told))

    def _remembered(self) -> ServiceInfo | None:
        text = settings.get(self._store, self._key)
        try:
            return None if text is None else ServiceInfo.read(orjson.loads(text))
        except (ValueError, TypeError, AttributeError):
            return None

    async def _ask_who(self) -> ServiceInfo:
        published = await self._client.info()
        listed = () if published is None else published.methods
        try:
            service = ServiceInfo.read(await self._client.ask(GET_INFO, {}))
        except Refused as error:
            if error.failure.code not in (ErrorCode.NOT_IMPLEMENTED, ErrorCode.RESTRICTED) or not listed:
                raise error_of(error.failure) from None
            service = ServiceInfo()
        except (NotAsked, NoAnswer):
            raise unreachable() from None
        except Nip47Invalid as error:
            raise WalletError(f"the wallet's answer cannot be read: {error}") from None
        told = () if published is None else published.notifications
        return attrs.evolve(service, methods=service.methods or listed, notifications=service.notifications or told)

    async def need(self, method: str, what: str) -> None:
        """Raises ``NotSupported`` where the wallet does not have a method."""
        methods = (await self.service()).methods
        if methods and method not in methods:
            raise NotSupported(f"this wallet does not offer {what} (NWC: {method})", "ask it for a wider connection")

    async def spendable(self) -> Msat:
        try:
            return Msat(nip47_methods.read_balance(await self.ask(GET_BALANCE, {})))
        except Nip47Invalid as error:
            raise WalletError(f"the wallet's balance cannot be read: {error}") from None

    async def ask(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask what may be asked twice. Raises ``WalletError``."""
        try:
            return await self._client.ask(method, params)
        except Refused as error:
            raise error_of(error.failure) from None
        except (NotAsked, NoAnswer):
            raise unreachable() from None

    async def find(self, payment_hash: str) -> Transaction | None:
        """What the wallet knows of an invoice or payment; ``None``: nothing. Raises ``WalletError``."""
        await self.need(LOOKUP_INVOICE, "looking up an invoice")
        try:
            result = await self._client.ask(LOOKUP_INVOICE, {"payment_hash": payment_hash}, LOOK_SECONDS)
            return Transaction.read({"payment_hash": payment_hash, **result})
        except Refused as error:
            if error.failure.code is ErrorCode.NOT_FOUND:
                return None
            raise error_of(error.failure) from None
        except (NotAsked, NoAnswer):
            raise unreachable() from None
        except Nip47Invalid as error:
            raise WalletError(f"the wallet's answer cannot be read: {error}") from None

    async def page(self, since: float, offset: int, *, unpaid: bool) -> tuple[list[Transaction], int]:
        """Some of what the wallet lists, newest first, and how many there were before what cannot be read was left out.

        Small pages, for relays bound the size of an answer.
        """
        asked = nip47_methods.ListTransactions(
            since=int(since) or None, limit=PAGE, offset=offset or None, unpaid=unpaid
        )
        try:
            return nip47_methods.read_transactions(await self.ask(LIST_TRANSACTIONS, asked.params()))
        except Nip47Invalid as error:
            raise WalletError(f"the wallet's list cannot be read: {error}") from None

    async def pay(self, asked: nip47_methods.PayInvoice, seconds: float) -> Mapping[str, Any]:
        """Ask once for a payment. Raises ``NotAsked``, ``NoAnswer``, ``Refused``."""
        return await self._client.ask_once(PAY_INVOICE, asked.params(), seconds)

    async def end_hold(self, method: str, params: Mapping[str, Any]) -> None:
        """What is done to a hold invoice may be asked for twice; no answer leaves it open whether it was done."""
        try:
            await self._client.ask(method, params)
        except Refused as error:
            if method == nip47_methods.SETTLE_HOLD_INVOICE and error.failure.code is ErrorCode.NOT_FOUND:
                raise PaymentFailed("nothing is held for this preimage") from None
            raise error_of(error.failure) from None
        except NotAsked:
            raise unreachable() from None
        except NoAnswer:
            raise PaymentUnknown("the wallet did not answer", "look the invoice up") from None

    def lapses(self, seconds: float) -> float:
        """When a request to pay lapses that is waited for so long, wall time."""
        return self._client.lapses(seconds)


_KINDS: dict[str, type[WalletError]] = {
    kind.code: kind
    for kind in (
        errors.AlreadyPaid,
        errors.FeeTooHigh,
        errors.InvoiceExpired,
        errors.InvoiceInvalid,
        errors.NoRoute,
        errors.NotSupported,
        errors.PaymentFailed,
        errors.WrongNetwork,
    )
}
"""What another Pylon says beyond the protocol (``Failure.detail``)."""


def unreachable() -> WalletUnreachable:
    """Nothing was sent, or nothing that matters."""
    return WalletUnreachable(
        "the wallet does not answer on any relay of its connection",
        "is it running, and is the connection still open?",
    )


def error_of(failure: Failure, *, required: int = 0, available: int | None = None) -> WalletError:
    """The exception for an error. The amounts are for ``InsufficientFunds``, msats; ``None``: it is not known."""
    said = failure.message or failure.code.value
    if failure.code is ErrorCode.INSUFFICIENT_BALANCE:
        return InsufficientFunds(required, available, PAY_IN)
    kind = _KINDS.get(failure.detail)
    if kind is not None:
        return kind(said)
    match failure.code:
        case ErrorCode.QUOTA_EXCEEDED:
            return BudgetExceeded(f"the wallet's connection does not allow it: {said}", "raise its budget there")
        case ErrorCode.NOT_IMPLEMENTED:
            return NotSupported(f"the wallet cannot do that: {said}")
        case ErrorCode.UNAUTHORIZED | ErrorCode.RESTRICTED:
            return WalletError(f"the wallet refuses this connection: {said}", "ask it for a new connection string")
        case ErrorCode.PAYMENT_FAILED:
            return PaymentFailed(said, "ask for a new invoice")
        case ErrorCode.RATE_LIMITED:
            return WalletError(f"the wallet is asked too often: {said}", "try again in a minute")
        case _:
            return WalletError(f"the wallet reports an error: {said}")
