"""What is to be paid: a row that is committed before a wallet is called, and that is the budget's reservation.

Rules
-----
1. An intent belongs to an *owner*: '' is the home itself, else an agent's public key (hex). A cause is its owner's own,
   and has one intent that is not finally failed; a payment hash has one intent, ever, whoever's it is.
2. Reserving the same again gives the row that is there: nothing is paid twice by asking twice. A failed intent is
   not taken up again, since nothing would be reserved for it: ask for another invoice.
3. *Pending* covers "on its way" and "not known"; both count against budgets. Only the wallet makes it *failed*.
4. *Settled* is the end: a wallet that says later that it failed is not believed, the audit names it. A wallet that
   first said "failed" and later "settled" is believed the second time, as the money is gone: it is booked, under a
   cause of its own, for what it was meant to pay may have gone on and paid another.
5. A *withdrawal* is the operator's: no budget counts it.
6. An address has no payment hash: its intent has the SHA-256 of its idempotency key instead.
7. An intent that *waits* for the operator's yes is pending, and is not sent (``pylon.store.approvals``).
"""

from __future__ import annotations

import enum
import hashlib
import sqlite3
import uuid
from typing import NoReturn

import attrs

from protocols.keys import is_hex
from pylon import events
from pylon.errors import AlreadyPaid, InvoiceInvalid, NotFound, PaymentFailed, StoreError
from pylon.money import MAX_MSAT, Msat
from pylon.store.database import Reads, Tx
from pylon.store.vault import Vault

_NAMESPACE = uuid.UUID("6f0d6a86-6a1c-5a0e-9d29-8f0b6d6f5c11")
_LONGEST_ERROR = 500
_COLUMNS = (
    "id, owner, cause, scope, purpose, payment_hash, state, amount_msats, max_fee_msats, fee_msats, idempotency_key,"
    " error, created_at, updated_at, payee, target, approval, lapses_at"
)
_RESERVED = (
    "CASE state WHEN 'settled' THEN amount_msats + fee_msats WHEN 'pending' THEN amount_msats + max_fee_msats"
    " ELSE 0 END"
)
_LATE = ":late:"
"""Between the cause and the hash of a payment that settled after it had failed."""
PURCHASE = "purchase"
ZAP = "zap"
INVOICE = "invoice"
WITHDRAWAL = "withdrawal"
PURPOSES = (PURCHASE, ZAP, INVOICE, WITHDRAWAL)
"""What an intent may be for."""


class IntentState(enum.StrEnum):
    PENDING = "pending"
    SETTLED = "settled"
    FAILED = "failed"


class TargetForm(enum.StrEnum):
    """What an intent pays."""

    INVOICE = "invoice"
    OPEN = "open"
    """An invoice that names no amount: the payer does."""
    ADDRESS = "address"


class Approval(enum.StrEnum):
    """What the operator says to a payment that needs a yes."""

    NONE = ""
    """It needs none."""
    WAITING = "waiting"
    GIVEN = "given"
    DENIED = "denied"


@attrs.frozen
class Intent:
    """One payment that was decided on. Invoice and preimage stay sealed: see ``invoice`` and ``preimage``."""

    id: str
    owner: str
    """Whose money it is."""
    cause: str
    """The purchase or action that it pays for."""
    scope: str
    """What it is a part of, as the tick that pays; empty: of nothing."""
    purpose: str
    """One of ``PURPOSES``."""
    payment_hash: str
    state: IntentState
    amount_msats: Msat
    """Without the fee. What was reserved; once settled, what moved."""
    max_fee_msats: Msat
    fee_msats: Msat | None
    """Known once settled."""
    idempotency_key: str
    """A UUID made of cause and hash: the same after any restart, in any copy of this home."""
    error: str | None
    created_at: float
    updated_at: float
    payee: str = ""
    """Node key (hex) or address; empty where it is not known."""
    target: TargetForm = TargetForm.INVOICE
    approval: Approval = Approval.NONE
    lapses_at: float | None = None
    """When the question to the operator lapses, Unix seconds."""

    @property
    def waits(self) -> bool:
        """Whether it is not to be sent before the operator has said yes."""
        return self.state is IntentState.PENDING and self.approval is Approval.WAITING

    def lapsed(self, now: float) -> bool:
        """Whether it waits, and nobody has said anything in time."""
        return self.waits and self.lapses_at is not None and now >= self.lapses_at

    @property
    def reserved(self) -> Msat:
        """What it takes from a budget: all that was spent, or all that may be."""
        match self.state:
            case IntentState.PENDING:
                return Msat(self.amount_msats + self.max_fee_msats)
            case IntentState.SETTLED:
                return Msat(self.amount_msats + (self.fee_msats or 0))
            case IntentState.FAILED:
                return Msat(0)


def standing(source: Reads, *, owner: str, cause: str, payment_hash: str, amount: Msat) -> Intent | None:
    """What ``reserve`` would return without writing anything; ``None`` where it would write a new intent.

    Raises what ``reserve`` raises.
    """
    if not (is_hex(payment_hash, 64) and 0 < amount <= MAX_MSAT):
        _refuse(payment_hash, amount)
    there = find(source, payment_hash)
    if there is not None:
        return _same(there, owner, cause, amount)
    other = source.one("SELECT state FROM intents WHERE owner = ? AND cause = ? AND state <> 'failed'", (owner, cause))
    if other is not None:
        raise AlreadyPaid(
            f"{cause} is paid for already" if other["state"] == "settled" else f"a payment for {cause} is under way"
        )
    return None


def reserve(
    tx: Tx,
    vault: Vault,
    *,
    cause: str,
    payment_hash: str,
    invoice: str,
    amount: Msat,
    max_fee: Msat,
    at: float,
    owner: str = "",
    scope: str = "",
    purpose: str = PURCHASE,
    payee: str = "",
    target: TargetForm = TargetForm.INVOICE,
    asks_until: float | None = None,
) -> Intent:
    """Write the intent to pay ``invoice``, or return the one of this cause and hash, pending or settled.

    :param invoice: or an address; then ``payment_hash`` is that of ``address_key``.
    :param asks_until: it waits for the operator's yes, until then; ``None``: it needs none.

    Raises ``AlreadyPaid`` where the cause has another intent that is open or settled, or the invoice was paid for
    another cause; ``PaymentFailed`` where this payment has failed; ``InvoiceInvalid`` where the hash is used by
    another cause's intent, stands for another amount, or is none. Causes of other owners are other causes.
    """
    if not 0 <= max_fee <= MAX_MSAT:
        _refuse(payment_hash, amount)
    there = standing(tx, owner=owner, cause=cause, payment_hash=payment_hash, amount=amount)
    if there is not None:
        return there
    intent = Intent(
        id=str(uuid.uuid5(_NAMESPACE, payment_hash)),
        owner=owner,
        cause=cause,
        scope=scope,
        purpose=purpose,
        payment_hash=payment_hash,
        state=IntentState.PENDING,
        amount_msats=amount,
        max_fee_msats=max_fee,
        fee_msats=None,
        idempotency_key=_key(owner, cause, payment_hash, invoice, target),
        error=None,
        created_at=at,
        updated_at=at,
        payee=payee,
        target=target,
        approval=Approval.NONE if asks_until is None else Approval.WAITING,
        lapses_at=asks_until,
    )
    tx.execute(
        "INSERT INTO intents (id, owner, cause, scope, purpose, payment_hash, state, amount_msats, max_fee_msats,"
        " idempotency_key, invoice, created_at, updated_at, payee, target, approval, lapses_at)"
        " VALUES (?, ?, ?, ?, ?, ?, 'pending', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(intent.id, owner, cause, scope, purpose, payment_hash, amount, max_fee, intent.idempotency_key),
            *(vault.seal(invoice, f"intents.invoice:{intent.id}"), at, at),
            *(payee, target.value, intent.approval.value, asks_until),
        ),
    )
    touch(tx, intent)
    return intent


def address_key(owner: str, cause: str, address: str) -> str:
    """The idempotency key of a payment to an address: a UUID in text."""
    return str(uuid.uuid5(_NAMESPACE, f"{owner}\0{cause}\0{address}"))


def hash_of_key(key: str) -> str:
    """What an intent for an address has instead of a payment hash: SHA-256 of its idempotency key, hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def _late_cause(intent: Intent) -> str:
    """The cause of a payment that had failed and has not: its own alone."""
    return intent.cause if _LATE in intent.cause else f"{intent.cause}{_LATE}{intent.payment_hash[:16]}"


def _key(owner: str, cause: str, payment_hash: str, text: str, target: TargetForm) -> str:
    if target is not TargetForm.ADDRESS:
        return str(uuid.uuid5(_NAMESPACE, f"{cause}:{payment_hash}"))
    key = address_key(owner, cause, text)
    if hash_of_key(key) != payment_hash:
        raise InvoiceInvalid("a payment to an address has the hash of its key")
    return key


def settle(tx: Tx, vault: Vault, intent_id: str, *, amount: Msat, fee: Msat, preimage: str | None, at: float) -> Intent:
    """The wallet says: settled, ``amount`` and ``fee`` have left. Again: nothing changes, and the first word counts
    (only a preimage that was missing is added). So book with the returned intent's amounts, and its cause: one that
    had failed before has a cause of its own from now on, for another may have been paid in its stead.
    """
    intent = get(tx, intent_id)
    if amount <= 0 or fee < 0:
        raise StoreError(f"payment {intent.payment_hash[:16]} cannot have settled with {amount} + {fee} msat")
    sealed = None if preimage is None else vault.seal(preimage, f"intents.preimage:{intent_id}")
    if intent.state is IntentState.SETTLED:
        if sealed is not None:
            tx.execute("UPDATE intents SET preimage = ? WHERE id = ? AND preimage IS NULL", (sealed, intent_id))
        return intent
    cause, remark = intent.cause, None
    if intent.state is IntentState.FAILED:
        cause, remark = _late_cause(intent), "settled after it was reported as failed"
    tx.execute(
        "UPDATE intents SET state = 'settled', cause = ?, amount_msats = ?, fee_msats = ?, preimage = ?, error = ?,"
        " updated_at = ? WHERE id = ?",
        (cause, amount, fee, sealed, remark, at, intent_id),
    )
    touch(tx, intent)
    return get(tx, intent_id)


def fail(tx: Tx, intent_id: str, *, error: str, at: float) -> Intent:
    """The wallet says: failed for good. Again: nothing changes. Raises ``StoreError`` for a settled intent."""
    intent = get(tx, intent_id)
    if intent.state is IntentState.SETTLED:
        raise StoreError(f"payment {intent.payment_hash[:16]} has settled, it cannot fail any more")
    if intent.state is IntentState.PENDING:
        tx.execute(
            "UPDATE intents SET state = 'failed', error = ?, updated_at = ? WHERE id = ?",
            (error[:_LONGEST_ERROR], at, intent_id),
        )
        touch(tx, intent)
        tx.tell(
            events.PaymentFailed(
                agent=intent.owner,
                cause=intent.cause,
                purpose=intent.purpose,
                payment_hash=intent.payment_hash,
                amount_msats=intent.amount_msats,
            )
        )
    return get(tx, intent_id)


def reopen(tx: Tx, intent_id: str, *, at: float) -> Intent:
    """The wallet says of a failed payment: on its way after all. It counts again, under a cause of its own.

    Anything but a failed one stays as it is.
    """
    intent = get(tx, intent_id)
    if intent.state is IntentState.FAILED:
        tx.execute(
            "UPDATE intents SET state = 'pending', cause = ?, error = ?, updated_at = ? WHERE id = ?",
            (_late_cause(intent), "on its way after it was reported as failed", at, intent_id),
        )
        touch(tx, intent)
    return get(tx, intent_id)


def mark_unknown(tx: Tx, intent_id: str, *, error: str, at: float) -> Intent:
    """The wallet did not say. The intent stays pending; ``error`` notes why we do not know."""
    tx.execute(
        "UPDATE intents SET error = ?, updated_at = ? WHERE id = ? AND state = 'pending'",
        (error[:_LONGEST_ERROR], at, intent_id),
    )
    return get(tx, intent_id)


# --- questions ------------------------------------------------------------------------------------------------------


def get(source: Reads, intent_id: str) -> Intent:
    """The intent with this id. Raises ``NotFound``."""
    row = source.one(f"SELECT {_COLUMNS} FROM intents WHERE id = ?", (intent_id,))
    if row is None:
        raise NotFound(f"there is no payment intent {intent_id}")
    return _intent(row)


def find(source: Reads, payment_hash: str) -> Intent | None:
    """The intent for this payment hash, if any."""
    row = source.one(f"SELECT {_COLUMNS} FROM intents WHERE payment_hash = ?", (payment_hash,))
    return None if row is None else _intent(row)


def by_hash(source: Reads, payment_hash: str) -> Intent:
    """The intent for this payment hash. Raises ``NotFound``."""
    found = find(source, payment_hash)
    if found is None:
        raise NotFound(f"there is no payment intent for {payment_hash[:16]}")
    return found


def spent_in(source: Reads, scope: str) -> Msat:
    """What a scope has spent or may still spend, fees included: of pending intents all that is reserved.

    Withdrawals do not count. Nothing is spent in the empty scope.
    """
    return _sum(
        source,
        f"SELECT SUM({_RESERVED}) AS n FROM intents WHERE scope = ? AND scope <> '' AND purpose <> ?",
        (scope, WITHDRAWAL),
    )


def committed(
    source: Reads,
    owner: str,
    *,
    since: float,
    purpose: str | None = None,
    payee: str | None = None,
    scope: str | None = None,
) -> Msat:
    """What a rolling budget has to count: settled after ``since`` with fees, and all that is pending, however old.

    Of one ``purpose``, or of all but withdrawals; to one ``payee``, or to anybody; of one ``scope``, or of any.
    """
    which, named = ("purpose <> ?", [WITHDRAWAL]) if purpose is None else ("purpose = ?", [purpose])
    if payee is not None:
        which, named = f"payee = ? AND payee <> '' AND {which}", [payee, *named]
    if scope is not None:
        which, named = f"scope = ? AND {which}", [scope, *named]
    settled = _sum(
        source,
        f"SELECT SUM({_RESERVED}) AS n FROM intents"
        f" WHERE owner = ? AND state = 'settled' AND updated_at > ? AND {which}",
        (owner, since, *named),
    )
    pending = _sum(
        source,
        f"SELECT SUM({_RESERVED}) AS n FROM intents WHERE owner = ? AND state = 'pending' AND {which}",
        (owner, *named),
    )
    return Msat(settled + pending)


def reserved(source: Reads, owner: str) -> Msat:
    """What may still leave an owner's wallet: all that is pending, with fees, whatever it is for."""
    return _sum(
        source,
        f"SELECT SUM({_RESERVED}) AS n FROM intents WHERE owner = ? AND state = 'pending'",
        (owner,),
    )


def pending(source: Reads, owner: str | None = None) -> list[Intent]:
    """What is under way or not known, oldest first: of one owner, or of all."""
    condition, params = ("", ()) if owner is None else (" AND owner = ?", (owner,))
    rows = source.read(
        f"SELECT {_COLUMNS} FROM intents WHERE state = 'pending'{condition} ORDER BY created_at, id", params
    )
    return [_intent(row) for row in rows]


def failed(source: Reads, since: float, limit: int = 1_000) -> list[Intent]:
    """What has failed after ``since``, the latest first."""
    rows = source.read(
        f"SELECT {_COLUMNS} FROM intents WHERE state = 'failed' AND updated_at > ? ORDER BY updated_at DESC LIMIT ?",
        (since, limit),
    )
    return [_intent(row) for row in rows]


def invoice(source: Reads, vault: Vault, intent_id: str) -> str:
    """The invoice of an intent, or its address. Raises ``NotFound``, ``SealError``."""
    row = source.one("SELECT invoice FROM intents WHERE id = ?", (intent_id,))
    if row is None:
        raise NotFound(f"there is no payment intent {intent_id}")
    return vault.open(row["invoice"], f"intents.invoice:{intent_id}")


def preimage(source: Reads, vault: Vault, intent_id: str) -> str | None:
    """The proof of payment (hex), where the wallet has told it. Raises ``NotFound``, ``SealError``."""
    row = source.one("SELECT preimage FROM intents WHERE id = ?", (intent_id,))
    if row is None:
        raise NotFound(f"there is no payment intent {intent_id}")
    return None if row["preimage"] is None else vault.open(row["preimage"], f"intents.preimage:{intent_id}")


def _sum(source: Reads, sql: str, params: tuple[object, ...]) -> Msat:
    row = source.one(sql, params)
    return Msat(0 if row is None or row["n"] is None else row["n"])


def touch(tx: Tx, intent: Intent) -> None:
    """Wake who listens for changes: of any intent, of its owner's, of this very one."""
    tx.touch("intents")
    tx.touch(f"intent:{intent.id}")
    if intent.owner:
        tx.touch(f"intents:{intent.owner}")


def _refuse(payment_hash: str, amount: int) -> NoReturn:
    if not is_hex(payment_hash, 64):
        raise InvoiceInvalid("the payment hash is not 64 lowercase hex digits")
    raise InvoiceInvalid(f"an invoice of {amount} msat cannot be paid")


def _same(there: Intent, owner: str, cause: str, amount: int) -> Intent:
    if (there.owner, there.cause) != (owner, cause):
        if there.state is IntentState.SETTLED:
            raise AlreadyPaid(f"invoice {there.payment_hash[:16]} was paid already, for {there.cause}")
        raise InvoiceInvalid(f"invoice {there.payment_hash[:16]} was offered already, for {there.cause}")
    if there.state is not IntentState.SETTLED and there.amount_msats != amount:
        raise InvoiceInvalid(f"invoice {there.payment_hash[:16]} had another amount before")
    if there.state is IntentState.FAILED:
        raise PaymentFailed(
            f"the payment of invoice {there.payment_hash[:16]} has failed for good", "ask for another invoice"
        )
    return there


def _intent(row: sqlite3.Row) -> Intent:
    return Intent(
        id=row["id"],
        owner=row["owner"],
        cause=row["cause"],
        scope=row["scope"],
        purpose=row["purpose"],
        payment_hash=row["payment_hash"],
        state=IntentState(row["state"]),
        amount_msats=Msat(row["amount_msats"]),
        max_fee_msats=Msat(row["max_fee_msats"]),
        fee_msats=None if row["fee_msats"] is None else Msat(row["fee_msats"]),
        idempotency_key=row["idempotency_key"],
        error=row["error"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        payee=row["payee"],
        target=TargetForm(row["target"]),
        approval=Approval(row["approval"]),
        lapses_at=row["lapses_at"],
    )
