"""NIP-47: what is inside requests and responses. Each value has ``params()`` or ``result()`` to write it, ``read`` to
read it from somebody else's JSON.

Amounts are millisatoshi, times Unix seconds, hashes and preimages lower-case hex. Reading takes whole numbers also
where they come as text or as floats without a fraction, hex in capitals, and ``null`` for what is left out; it raises
``Nip47Invalid`` for what is missing or cannot be. ``pay_keysend`` is only read: no wallet here can send it.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import orjson

from protocols.bolt11 import MAX_AMOUNT_MSATS
from protocols.keys import is_hex
from protocols.nip01 import MAX_TIME
from protocols.nip47 import MAX_METADATA_CHARS, Nip47Invalid

PAY_INVOICE = "pay_invoice"
PAY_KEYSEND = "pay_keysend"
MAKE_INVOICE = "make_invoice"
LOOKUP_INVOICE = "lookup_invoice"
LIST_TRANSACTIONS = "list_transactions"
GET_BALANCE = "get_balance"
GET_INFO = "get_info"
MAKE_HOLD_INVOICE = "make_hold_invoice"
CANCEL_HOLD_INVOICE = "cancel_hold_invoice"
SETTLE_HOLD_INVOICE = "settle_hold_invoice"
HOLD_METHODS = (MAKE_HOLD_INVOICE, CANCEL_HOLD_INVOICE, SETTLE_HOLD_INVOICE)

PAYMENT_RECEIVED = "payment_received"
PAYMENT_SENT = "payment_sent"
HOLD_INVOICE_ACCEPTED = "hold_invoice_accepted"

MAX_INVOICE_CHARS = 8_192
_LONGEST_TEXT = 10_000
_LONGEST_TLV = 100


class TransactionType(enum.StrEnum):
    INCOMING = "incoming"
    OUTGOING = "outgoing"


class TransactionState(enum.StrEnum):
    PENDING = "pending"
    SETTLED = "settled"
    ACCEPTED = "accepted"
    """A hold invoice that is paid, and waits."""
    EXPIRED = "expired"
    FAILED = "failed"


# --- requests -------------------------------------------------------------------------------------------------


@attrs.frozen
class PayInvoice:
    method: ClassVar[str] = PAY_INVOICE
    invoice: str
    amount: int | None = None
    """Of an invoice that names none."""
    metadata: Mapping[str, Any] | None = attrs.field(default=None, hash=False)

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> PayInvoice:
        amount = _amount(params, "amount")
        return cls(_invoice(params), amount, _metadata(params))

    def params(self) -> dict[str, Any]:
        return _without_none(invoice=self.invoice, amount=self.amount, metadata=self.metadata)


@attrs.frozen
class TlvRecord:
    type: int
    value: str


@attrs.frozen
class PayKeysend:
    """Read only."""

    method: ClassVar[str] = PAY_KEYSEND
    amount: int
    pubkey: str
    preimage: str | None = attrs.field(default=None, repr=False)
    tlv_records: tuple[TlvRecord, ...] = ()

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> PayKeysend:
        amount, pubkey, preimage = _amount(params, "amount"), _hex(params, "pubkey", 66), _hex(params, "preimage")
        if amount is None or pubkey is None:
            raise Nip47Invalid("a keysend has an amount and a payee's key")
        records = params.get("tlv_records")
        found = []
        for record in records[:_LONGEST_TLV] if isinstance(records, list) else ():
            if isinstance(record, dict):
                kind, value = _whole(record, "type", MAX_TIME), record.get("value")
                if kind is not None and isinstance(value, str):
                    found.append(TlvRecord(kind, value[:_LONGEST_TEXT]))
        return cls(amount, pubkey, preimage, tuple(found))


@attrs.frozen
class MakeInvoice:
    method: ClassVar[str] = MAKE_INVOICE
    amount: int
    description: str | None = None
    description_hash: str | None = None
    expiry: int | None = None
    """Seconds from its creation."""
    metadata: Mapping[str, Any] | None = attrs.field(default=None, hash=False)

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> MakeInvoice:
        amount = _amount(params, "amount")
        if amount is None:
            raise Nip47Invalid("an invoice wants an amount")
        return cls(
            amount,
            _text(params, "description"),
            _hex(params, "description_hash"),
            _whole(params, "expiry", MAX_TIME),
            _metadata(params),
        )

    def params(self) -> dict[str, Any]:
        return _without_none(**_shallow(self))


@attrs.frozen
class MakeHoldInvoice:
    method: ClassVar[str] = MAKE_HOLD_INVOICE
    amount: int
    payment_hash: str
    description: str | None = None
    description_hash: str | None = None
    expiry: int | None = None
    min_cltv_expiry_delta: int | None = None

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> MakeHoldInvoice:
        amount, payment_hash = _amount(params, "amount"), _hex(params, "payment_hash")
        if amount is None or payment_hash is None:
            raise Nip47Invalid("a hold invoice wants an amount and a payment hash")
        return cls(
            amount,
            payment_hash,
            _text(params, "description"),
            _hex(params, "description_hash"),
            _whole(params, "expiry", MAX_TIME),
            _whole(params, "min_cltv_expiry_delta", 10_000),
        )

    def params(self) -> dict[str, Any]:
        return _without_none(**_shallow(self))


@attrs.frozen
class CancelHoldInvoice:
    method: ClassVar[str] = CANCEL_HOLD_INVOICE
    payment_hash: str

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> CancelHoldInvoice:
        payment_hash = _hex(params, "payment_hash")
        if payment_hash is None:
            raise Nip47Invalid("a payment hash is wanted")
        return cls(payment_hash)

    def params(self) -> dict[str, Any]:
        return {"payment_hash": self.payment_hash}


@attrs.frozen
class SettleHoldInvoice:
    method: ClassVar[str] = SETTLE_HOLD_INVOICE
    preimage: str = attrs.field(repr=False)

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> SettleHoldInvoice:
        preimage = _hex(params, "preimage")
        if preimage is None:
            raise Nip47Invalid("a preimage is wanted")
        return cls(preimage)

    def params(self) -> dict[str, Any]:
        return {"preimage": self.preimage}


@attrs.frozen
class LookupInvoice:
    """By one of the two."""

    method: ClassVar[str] = LOOKUP_INVOICE
    payment_hash: str | None = None
    invoice: str | None = None

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> LookupInvoice:
        invoice = None if params.get("invoice") in (None, "") else _invoice(params)
        payment_hash = _hex(params, "payment_hash")
        if invoice is None and payment_hash is None:
            raise Nip47Invalid("a payment hash or an invoice is wanted")
        return cls(payment_hash, invoice)

    def params(self) -> dict[str, Any]:
        return _without_none(payment_hash=self.payment_hash, invoice=self.invoice)


@attrs.frozen
class ListTransactions:
    """Newest first; ``since`` and ``until`` (``from`` and ``until`` on the wire) are inclusive."""

    method: ClassVar[str] = LIST_TRANSACTIONS
    since: int | None = None
    until: int | None = None
    limit: int | None = None
    offset: int | None = None
    unpaid: bool = False
    """Unpaid invoices and pending or failed payments too."""
    type: TransactionType | None = None

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> ListTransactions:
        type = params.get("type")
        if type not in (None, "", *TransactionType):
            raise Nip47Invalid("a type is incoming or outgoing")
        return cls(
            _whole(params, "from", MAX_TIME),
            _whole(params, "until", MAX_TIME),
            _whole(params, "limit", MAX_TIME),
            _whole(params, "offset", MAX_TIME),
            params.get("unpaid") is True,
            TransactionType(type) if type else None,
        )

    def params(self) -> dict[str, Any]:
        return _without_none(
            **{"from": self.since},
            until=self.until,
            limit=self.limit,
            offset=self.offset,
            unpaid=self.unpaid or None,
            type=None if self.type is None else self.type.value,
        )


# --- results --------------------------------------------------------------------------------------------------


@attrs.frozen
class Paid:
    """Of ``pay_invoice``."""

    preimage: str | None = attrs.field(repr=False)
    """``None`` where the wallet does not tell it."""
    fees_paid: int | None = None

    @classmethod
    def read(cls, result: Mapping[str, Any], payment_hash: str | None = None) -> Paid:
        """A preimage that is not ``payment_hash``'s is no proof, and left out."""
        preimage = _preimage(result)
        if preimage is not None and payment_hash is not None and not is_preimage(preimage, payment_hash):
            preimage = None
        return cls(preimage, _fee(result))

    def result(self) -> dict[str, Any]:
        if self.preimage is None:
            raise Nip47Invalid("a payment is answered by its preimage")
        return _without_none(preimage=self.preimage, fees_paid=self.fees_paid)


@attrs.frozen
class Transaction:
    """An invoice or a payment: of ``make_invoice``, ``lookup_invoice``, ``list_transactions`` and notifications."""

    type: TransactionType
    payment_hash: str
    amount: int
    """Without the fee; 0 for an invoice that names none."""
    fees_paid: int = 0
    created_at: int = 0
    state: TransactionState | None = None
    """``None`` where the service does not say and nothing tells."""
    invoice: str | None = None
    description: str | None = None
    description_hash: str | None = None
    preimage: str | None = attrs.field(default=None, repr=False)
    expires_at: int | None = None
    settled_at: int | None = None
    settle_deadline: int | None = None
    """Block height up to which a held payment can be settled."""
    metadata: Mapping[str, Any] | None = attrs.field(default=None, hash=False)

    @classmethod
    def read(cls, result: Mapping[str, Any], default: TransactionType = TransactionType.INCOMING) -> Transaction:
        """``default`` where the type is missing. Older services have no ``state``: what is settled has a time."""
        payment_hash = _hex(result, "payment_hash")
        if payment_hash is None:
            raise Nip47Invalid("a transaction has a payment hash")
        type, state = _cut(result, "type", 20), (_cut(result, "state", 20) or "").lower()
        settled_at = _time(result, "settled_at")
        preimage = _preimage(result)
        known = TransactionState(state) if state in set(TransactionState) else None
        if known is None and settled_at is not None:
            known = TransactionState.SETTLED
        return cls(
            type=TransactionType(type) if type in set(TransactionType) else default,
            payment_hash=payment_hash,
            amount=_amount(result, "amount", least=0) or 0,
            fees_paid=_fee(result) or 0,
            created_at=_time(result, "created_at") or 0,
            state=known,
            invoice=_cut(result, "invoice", MAX_INVOICE_CHARS),
            description=_cut(result, "description", _LONGEST_TEXT),
            description_hash=_cut(result, "description_hash", 64),
            preimage=preimage if preimage and is_preimage(preimage, payment_hash) else None,
            expires_at=_time(result, "expires_at"),
            settled_at=settled_at,
            settle_deadline=_time(result, "settle_deadline"),
            metadata=_metadata(result),
        )

    def result(self) -> dict[str, Any]:
        values = _shallow(self) | {"type": self.type.value, "state": None if self.state is None else self.state.value}
        return _without_none(**values)


@attrs.frozen
class ServiceInfo:
    """Of ``get_info``."""

    alias: str = ""
    network: str = ""
    """``mainnet``, ``testnet``, ``signet`` or ``regtest``; whatever else it says, or nothing."""
    pubkey: str = ""
    """Of the node; empty where it is not told."""
    methods: tuple[str, ...] = ()
    notifications: tuple[str, ...] = ()
    color: str = ""
    block_height: int | None = None
    block_hash: str = ""

    @classmethod
    def read(cls, result: Mapping[str, Any]) -> ServiceInfo:
        network = (_cut(result, "network", 50) or "").lower()
        return cls(
            alias=_cut(result, "alias", 200) or "",
            network=_NETWORKS.get(network, network),
            pubkey=(_cut(result, "pubkey", 66) or "").lower(),
            methods=_names(result, "methods"),
            notifications=_names(result, "notifications"),
            color=_cut(result, "color", 20) or "",
            block_height=_time(result, "block_height"),
            block_hash=_cut(result, "block_hash", 64) or "",
        )

    def result(self) -> dict[str, Any]:
        told = _without_none(**_shallow(self))
        told = {name: value for name, value in told.items() if value != ""}
        return told | {"methods": list(self.methods), "notifications": list(self.notifications)}


_NETWORKS = {"bitcoin": "mainnet", "main": "mainnet", "livenet": "mainnet", "test": "testnet", "testnet3": "testnet"}


def read_balance(result: Mapping[str, Any]) -> int:
    """Of ``get_balance``. A balance below zero is none; raises ``Nip47Invalid``."""
    balance = _amount(result, "balance", least=0)
    if balance is None:
        raise Nip47Invalid("a balance has an amount")
    return balance


def read_transactions(result: Mapping[str, Any]) -> tuple[list[Transaction], int]:
    """Of ``list_transactions``: what can be read, and how many there were in all, those that cannot be read too."""
    entries = result.get("transactions")
    if not isinstance(entries, list):
        raise Nip47Invalid("a list of transactions is wanted")
    found = []
    for entry in entries:
        try:
            found.append(Transaction.read(entry if isinstance(entry, dict) else {}))
        except Nip47Invalid:
            continue
    return found, len(entries)


def is_preimage(preimage: str, payment_hash: str) -> bool:
    return is_hex(preimage, 64) and hashlib.sha256(bytes.fromhex(preimage)).hexdigest() == payment_hash


# --- within ---------------------------------------------------------------------------------------------------


def _shallow(value: Any) -> dict[str, Any]:
    return attrs.asdict(value, recurse=False)


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _whole(source: Mapping[str, Any], name: str, most: int, least: int = 0) -> int | None:
    value = source.get(name)
    if value is None or value == "":
        return None
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20
    if digits or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if type(value) is not int or not least <= value <= most:
        raise Nip47Invalid(f"{name}: a whole number is wanted, {least} or more")
    return value


def _amount(source: Mapping[str, Any], name: str, least: int = 1) -> int | None:
    """``None`` or 0 where an amount may be missing is no amount."""
    if least and source.get(name) in (0, "0"):
        return None
    return _whole(source, name, MAX_AMOUNT_MSATS, least)


def _text(source: Mapping[str, Any], name: str) -> str | None:
    value = source.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise Nip47Invalid(f"{name}: a text of at most {_LONGEST_TEXT} characters is wanted")
    return value


def _cut(source: Mapping[str, Any], name: str, most: int) -> str | None:
    """A text that nothing depends on; what is none, or empty, is missing."""
    value = source.get(name)
    return value[:most] if isinstance(value, str) and value else None


def _time(source: Mapping[str, Any], name: str) -> int | None:
    """A number that nothing depends on; 0, as some write for "never", is missing."""
    try:
        return _whole(source, name, MAX_TIME) or None
    except Nip47Invalid:
        return None


def _fee(source: Mapping[str, Any]) -> int | None:
    try:
        return _amount(source, "fees_paid", least=0)
    except Nip47Invalid:
        return None


def _preimage(source: Mapping[str, Any]) -> str | None:
    try:
        return _hex(source, "preimage")
    except Nip47Invalid:
        return None


def _invoice(source: Mapping[str, Any]) -> str:
    value = source.get("invoice")
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_INVOICE_CHARS:
        raise Nip47Invalid("an invoice is wanted")
    return value.strip().lower().removeprefix("lightning:")


def _hex(source: Mapping[str, Any], name: str, length: int = 64) -> str | None:
    value = source.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and is_hex(value.lower(), length):
        return value.lower()
    raise Nip47Invalid(f"{name}: {length} hex digits are wanted")


def _metadata(source: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """An object that is not too long; anything else is dropped, as the NIP says."""
    value = source.get("metadata")
    if not isinstance(value, dict):
        return None
    try:
        return value if len(orjson.dumps(value).decode()) <= MAX_METADATA_CHARS else None
    except (orjson.JSONEncodeError, TypeError):
        return None


def _names(source: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = source.get(name)
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(dict.fromkeys(word[:100] for word in words[:100] if isinstance(word, str)))
