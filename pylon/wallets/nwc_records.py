"""What we know of a foreign wallet's invoices and payments: rows that are written before it is asked.

NWC has no idempotency keys. The payment hash is the wallet's key; ours are kept here: a key pays one invoice, and an
invoice is paid under one key.
"""

from __future__ import annotations

import sqlite3

import attrs

from protocols import bolt11
from pylon.money import Msat
from pylon.store.database import Reads, Tx
from pylon.store.vault import Vault
from pylon.wallets.port import Direction, IssuedInvoice, Payment, PaymentState

LATE = 3_600.0
"""Seconds after an invoice's expiry from which what no wallet knows as paid is taken for not paid."""


@attrs.frozen
class SentRow:
    """A payment that we have asked for, or are about to."""

    key: str
    payment_hash: str
    state: PaymentState
    amount: Msat
    fee: Msat
    """While it is pending: what it may cost, or what the wallet says that it will."""
    bolt11: str = attrs.field(repr=False)
    preimage: str | None = attrs.field(repr=False)
    asked_until: float
    """When the request lapses by which the wallet was asked last; 0 once the wallet has shown it as under way."""
    created_at: float
    settled_at: float | None

    @property
    def doubted_until(self) -> float:
        """When nobody can pay its invoice any more, whatever was on its way by then; wall time."""
        return float(bolt11.decode(self.bolt11).expires_at) + LATE

    @property
    def is_doubted(self) -> bool:
        """Whether the wallet has answered that it failed, and has not shown it (``Records.doubt``)."""
        return self.state is PaymentState.PENDING and self.asked_until >= self.doubted_until

    def payment(self) -> Payment:
        """As the port tells it."""
        return Payment(
            payment_id=sent_id(self.payment_hash),
            payment_hash=self.payment_hash,
            direction=Direction.SENT,
            state=self.state,
            amount=self.amount,
            fee=Msat(0) if self.state is PaymentState.FAILED else self.fee,
            created_at=self.created_at,
            settled_at=self.settled_at,
            preimage=self.preimage,
            bolt11=self.bolt11,
            description=bolt11.decode(self.bolt11).description or "",
            key=self.key,
        )


@attrs.frozen
class InvoiceRow:
    """An invoice that the wallet made for us."""

    payment_hash: str
    bolt11: str
    amount: Msat
    hold: bool
    cancelled: bool

    def issued(self) -> IssuedInvoice:
        """As it was when it was made."""
        return IssuedInvoice(
            bolt11=self.bolt11,
            payment_hash=self.payment_hash,
            amount=self.amount,
            expires_at=float(bolt11.decode(self.bolt11).expires_at),
            cancelled=self.cancelled,
        )


def sent_id(payment_hash: str) -> str:
    return f"sent:{payment_hash}"


def received_id(payment_hash: str) -> str:
    return f"received:{payment_hash}"


class Records:
    """The rows of one wallet. ``wallet`` is the client's public key, hex."""

    def __init__(self, wallet: str, vault: Vault) -> None:
        self._wallet = wallet
        self._vault = vault

    # --- payments ---------------------------------------------------------------------------------------------

    def begin(
        self,
        tx: Tx,
        *,
        key: str,
        payment_hash: str,
        amount: Msat,
        fee: Msat,
        text: str,
        asked_until: float,
        at: float,
    ) -> tuple[SentRow, bool]:
        """Note that a payment is about to be asked for, and return it and true; or what stands in the way and false.

        That is the row of this key, or the one of this hash that has not failed. A key that has failed pays no more.
        """
        there = self.by_key(tx, key) or self.open_of(tx, payment_hash)
        if there is not None:
            return there, False
        tx.execute(
            "INSERT INTO nwc_payments (wallet, key, payment_hash, state, amount_msats, fee_msats, invoice, asked_until,"
            " created_at) VALUES (?, ?, ?, 'pending', ?, ?, ?, ?, ?)",
            (
                *(self._wallet, key, payment_hash, amount, fee),
                *(self._vault.seal(text, self._place("invoice", key)), asked_until, at),
            ),
        )
        row = self.by_key(tx, key)
        assert row is not None, "it was written just now"
        return row, True

    def ask_again(self, tx: Tx, key: str, asked_until: float) -> None:
        tx.execute(
            "UPDATE nwc_payments SET asked_until = ? WHERE wallet = ? AND key = ? AND state = 'pending'",
            (asked_until, self._wallet, key),
        )

    def doubt(self, tx: Tx, row: SentRow) -> None:
        """It may have failed: it is not asked for again, and is not known before its invoice has long expired."""
        self.ask_again(tx, row.key, row.doubted_until)

    def withdraw(self, tx: Tx, key: str) -> None:
        """It was not asked for, or was refused before anything happened: the key is free again."""
        tx.execute("DELETE FROM nwc_payments WHERE wallet = ? AND key = ? AND state = 'pending'", (self._wallet, key))

    def note(
        self,
        tx: Tx,
        key: str,
        state: PaymentState,
        *,
        fee: Msat | None = None,
        preimage: str | None = None,
        created_at: float | None = None,
        settled_at: float | None = None,
    ) -> bool:
        """What the wallet says of a payment; whether its state is another now. Settled is the end.

        Settled, or on its way, is believed also of what was said to have failed, unless its invoice is paid under
        another key.
        """
        row = self.by_key(tx, key)
        if row is None or row.state is PaymentState.SETTLED:
            return False
        if row.state is PaymentState.FAILED and (
            state is PaymentState.FAILED or self.open_of(tx, row.payment_hash) is not None
        ):
            return False
        sealed = None if preimage is None else self._vault.seal(preimage, self._place("preimage", key))
        tx.execute(
            "UPDATE nwc_payments SET state = ?, fee_msats = COALESCE(?, fee_msats), preimage = ?,"
            " created_at = COALESCE(?, created_at), settled_at = ?"
            " WHERE wallet = ? AND key = ?",
            (
                *(state.value, fee, sealed, created_at),
                *(settled_at if state is PaymentState.SETTLED else None, self._wallet, key),
            ),
        )
        return row.state is not state

    def by_key(self, source: Reads, key: str) -> SentRow | None:
        row = source.one("SELECT * FROM nwc_payments WHERE wallet = ? AND key = ?", (self._wallet, key))
        return None if row is None else self._sent(row)

    def open_of(self, source: Reads, payment_hash: str) -> SentRow | None:
        """The payment of an invoice that is pending or settled."""
        row = source.one(
            "SELECT * FROM nwc_payments WHERE wallet = ? AND payment_hash = ? AND state <> 'failed'",
            (self._wallet, payment_hash),
        )
        return None if row is None else self._sent(row)

    def of_hash(self, source: Reads, payment_hash: str) -> SentRow | None:
        """The one that counts: pending or settled before failed, else the newest."""
        row = source.one(
            "SELECT * FROM nwc_payments WHERE wallet = ? AND payment_hash = ?"
            " ORDER BY state = 'failed', created_at DESC LIMIT 1",
            (self._wallet, payment_hash),
        )
        return None if row is None else self._sent(row)

    def pending(self, source: Reads) -> list[SentRow]:
        """Oldest first."""
        rows = source.read(
            "SELECT * FROM nwc_payments WHERE wallet = ? AND state = 'pending' ORDER BY created_at, key",
            (self._wallet,),
        )
        return [self._sent(row) for row in rows]

    def since(self, source: Reads, since: float) -> list[SentRow]:
        rows = source.read(
            "SELECT * FROM nwc_payments WHERE wallet = ? AND created_at >= ? ORDER BY created_at, rowid",
            (self._wallet, since),
        )
        return [self._sent(row) for row in rows]

    def _sent(self, row: sqlite3.Row) -> SentRow:
        key = row["key"]
        preimage = row["preimage"]
        return SentRow(
            key=key,
            payment_hash=row["payment_hash"],
            state=PaymentState(row["state"]),
            amount=Msat(row["amount_msats"]),
            fee=Msat(row["fee_msats"]),
            bolt11=self._vault.open(row["invoice"], self._place("invoice", key)),
            preimage=None if preimage is None else self._vault.open(preimage, self._place("preimage", key)),
            asked_until=row["asked_until"],
            created_at=row["created_at"],
            settled_at=row["settled_at"],
        )

    def _place(self, column: str, key: str) -> str:
        return f"nwc_payments.{column}:{self._wallet}:{key}"

    # --- invoices ---------------------------------------------------------------------------------------------

    def keep(
        self, tx: Tx, *, key: str, payment_hash: str, amount: Msat, text: str, hold: bool, at: float
    ) -> InvoiceRow:
        """Note an invoice that the wallet made; the first one of a key stays."""
        sealed = self._vault.seal(text, f"nwc_invoices.invoice:{self._wallet}:{key}")
        tx.execute(
            "INSERT INTO nwc_invoices (wallet, key, payment_hash, amount_msats, invoice, hold, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (self._wallet, key, payment_hash, amount, sealed, int(hold), at),
        )
        row = self.invoice_by_key(tx, key)
        assert row is not None, "it was written just now, or before"
        return row

    def cancel(self, tx: Tx, payment_hash: str) -> None:
        tx.execute(
            "UPDATE nwc_invoices SET cancelled = 1 WHERE wallet = ? AND payment_hash = ?", (self._wallet, payment_hash)
        )

    def invoice_by_key(self, source: Reads, key: str) -> InvoiceRow | None:
        row = source.one("SELECT * FROM nwc_invoices WHERE wallet = ? AND key = ?", (self._wallet, key))
        return None if row is None else self._invoice(row)

    def invoice(self, source: Reads, payment_hash: str) -> InvoiceRow | None:
        row = source.one(
            "SELECT * FROM nwc_invoices WHERE wallet = ? AND payment_hash = ? LIMIT 1", (self._wallet, payment_hash)
        )
        return None if row is None else self._invoice(row)

    def _invoice(self, row: sqlite3.Row) -> InvoiceRow:
        return InvoiceRow(
            payment_hash=row["payment_hash"],
            bolt11=self._vault.open(row["invoice"], f"nwc_invoices.invoice:{self._wallet}:{row['key']}"),
            amount=Msat(row["amount_msats"]),
            hold=bool(row["hold"]),
            cancelled=bool(row["cancelled"]),
        )
