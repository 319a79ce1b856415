"""The simnet ledger: one SQLite file in which play money moves. **None of it is money.**

``LedgerFile`` is synchronous and holds the rules; ``pylon.wallets.simnet`` makes wallets of it. Every process that
opens the file is a peer: nobody owns it. What happens later (a payment kept pending) is written down with its moment,
and done by whoever looks next; so all processes see the same past.

Double entry over ``accounts``: one account per wallet, ``fees``, and ``outside``, which is negative by what the faucet
has given. They sum to zero, always. What is pending, held by a hold invoice included, has not left the payer's account.
Amounts are millisatoshi, times are Unix seconds.
"""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
from collections.abc import Callable, Collection
from pathlib import Path

import attrs

from pylon.errors import (
    AlreadyPaid,
    FeeTooHigh,
    InsufficientFunds,
    InvoiceExpired,
    InvoiceInvalid,
    NoRoute,
    PaymentFailed,
    PaymentUnknown,
    WalletError,
)
from pylon.money import MAX_MSAT, Msat, format_msat
from pylon.wallets.port import Direction, IssuedInvoice, Payment, PaymentState, Target, TargetKind
from pylon.wallets.simnet_file import LedgerConnection
from pylon.wallets.simnet_model import Fault, FaultKind, FeeModel, Side

__all__ = ["Attempt", "Course", "Fault", "FaultKind", "FeeModel", "LedgerFile", "Side"]

FEES = "fees"
OUTSIDE = "outside"

HOLD_SECONDS = 6 * 3_600.0
"""How long a payment waits at a hold invoice before it goes back to the payer: 36 blocks, as its CLTV would say."""


@attrs.frozen
class Attempt:
    """What ``LedgerFile.pay`` did or found."""

    payment: Payment | None
    waits_until: float | None = None
    """When the payment ends, if ``pay`` is to wait for that."""
    error: WalletError | None = None
    """What to raise although the transaction was committed."""


@attrs.frozen
class Course:
    """What a payment would do: whom it pays, how much, for what fee."""

    payee: str
    amount: Msat
    fee: Msat
    invoice: sqlite3.Row | None
    """``None`` for an address."""

    @property
    def of_invoice(self) -> tuple[str, str | None, str]:
        """Payment hash, invoice and description, as they are written down."""
        invoice = self.invoice
        return (
            ("", None, "") if invoice is None else tuple(invoice[k] for k in ("payment_hash", "bolt11", "description"))
        )


class LedgerFile(LedgerConnection):
    """An open ledger. See ``LedgerConnection``. ``rng`` draws the jitter of faults."""

    def __init__(
        self, path: Path, *, rng: random.Random, durable: bool = True, on_commit: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(path, durable=durable, on_commit=on_commit)
        self._rng = rng

    # --- wallets and the faucet -------------------------------------------------------------------------------

    def register(self, wallet: str, name: str, label: str, now: float) -> None:
        """Open an account for a node key, if there is none. One that is there costs a look and no write."""
        with self._errors():
            if self._db.execute("SELECT 1 FROM accounts WHERE account = ?", (wallet,)).fetchone() is not None:
                return
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO accounts VALUES (?, ?, ?, ?, 0)", (wallet, name, label, now))

    def accounts(self) -> dict[str, Msat]:
        """All balances, pending payments not deducted; they sum to zero."""
        with self._errors():
            return {row["account"]: Msat(row["msats"]) for row in self._db.execute("SELECT * FROM accounts")}

    def balance(self, wallet: str) -> tuple[Msat, Msat]:
        """Settled, and on its way out with fees."""
        with self._errors():
            row = self._db.execute(
                # The `+` has it look through what is pending, which is little, and not through a wallet's history.
                "SELECT msats, (SELECT coalesce(sum(msats + fee_msats), 0) FROM payments"
                " WHERE +wallet = account AND state = 'pending') FROM accounts WHERE account = ?",
                (wallet,),
            ).fetchone()
        return Msat(row[0]), Msat(row[1])

    def balances(self, wallets: Collection[str] | None = None) -> dict[str, tuple[Msat, Msat]]:
        """``balance`` of these wallets, or of all, in one look; those that the ledger does not know are left out."""
        wanted = "" if wallets is None else " AND account IN (SELECT value FROM json_each(?))"
        with self._errors():
            rows = self._db.execute(
                "SELECT account, msats, coalesce(leaving, 0) AS leaving FROM accounts LEFT JOIN"
                # The `+` as in `balance`: through what is pending, and not through all that was ever paid.
                " (SELECT wallet, sum(msats + fee_msats) AS leaving FROM payments"
                " WHERE state = 'pending' GROUP BY +wallet)"
                f" ON wallet = account WHERE account NOT IN ('{FEES}', '{OUTSIDE}'){wanted}",
                () if wallets is None else (json.dumps(list(wallets)),),
            ).fetchall()
        return {row["account"]: (Msat(row["msats"]), Msat(row["leaving"])) for row in rows}

    def deposit(self, wallet: str, amount: Msat, now: float, what: str = "faucet") -> Payment:
        """The faucet: play money from nowhere, recorded as from outside."""
        with self._transaction():
            self._check_account(wallet)
            given = -self.balance(OUTSIDE)[0]
            if amount <= 0 or given + amount > MAX_MSAT:
                raise WalletError(
                    f"the simnet faucet cannot give {format_msat(amount)}", "ask for an amount that exists"
                )
            self._transfer(OUTSIDE, wallet, amount)
            return self._record_received(wallet, amount, now, what, None)

    # --- invoices ---------------------------------------------------------------------------------------------

    def invoice_by_key(self, wallet: str, key: str) -> IssuedInvoice | None:
        return self._issued("wallet = ? AND key = ?", wallet, key)

    def invoice(self, wallet: str, payment_hash: str) -> IssuedInvoice | None:
        return self._issued("wallet = ? AND payment_hash = ?", wallet, payment_hash)

    def add_invoice(
        self, wallet: str, key: str, invoice: IssuedInvoice, preimage: str | None, description: str, now: float
    ) -> IssuedInvoice:
        """The invoice of this key: the one given, or the one that was there first.

        One without a preimage is a hold invoice. Raises ``InvoiceInvalid`` where another has its payment hash.
        """
        row = (
            *(invoice.payment_hash, wallet, key, invoice.bolt11, preimage, invoice.amount),
            *(description, now, invoice.expires_at, preimage is None),
        )
        with self._transaction():
            known = self.invoice_by_key(wallet, key)
            if known is not None:
                return known
            if self._db.execute("SELECT 1 FROM invoices WHERE payment_hash = ?", row[:1]).fetchone() is not None:
                raise InvoiceInvalid("another invoice has this payment hash", "take a new preimage")
            self._db.execute(
                "INSERT INTO invoices (payment_hash, wallet, key, bolt11, preimage, msats, description, created_at,"
                " expires_at, hold) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        return invoice

    def settle(self, wallet: str, preimage: bytes, now: float) -> None:
        """Let the payee have what its hold invoice holds. ``PaymentFailed`` where it holds nothing."""
        self.resolve_due(now)
        payment_hash = hashlib.sha256(preimage).hexdigest()
        with self._transaction():
            invoice = self._hold_invoice(wallet, payment_hash)
            if invoice is not None and invoice["settled_at"] is not None:
                return
            sent = None if invoice is None else self._held(payment_hash)
            if sent is None:
                raise PaymentFailed("nothing is held for this preimage", "it was not paid, or it was given back")
            self._db.execute(
                "UPDATE invoices SET preimage = ?, held_msats = 0 WHERE payment_hash = ?",
                (preimage.hex(), payment_hash),
            )
            self._settle(sent, now)

    def cancel(self, wallet: str, payment_hash: str, now: float) -> None:
        """Let nobody pay a hold invoice any more, and give back what it holds. ``AlreadyPaid`` once it is settled."""
        self.resolve_due(now)
        with self._transaction():
            invoice = self._hold_invoice(wallet, payment_hash)
            if invoice is None:
                raise InvoiceInvalid("this wallet has no hold invoice with this payment hash")
            if invoice["settled_at"] is not None:
                raise AlreadyPaid("the hold invoice is settled")
            if invoice["cancelled_at"] is not None:
                return
            sent = self._held(payment_hash)
            if sent is not None:
                self._give_back(sent, now)
            else:
                self._db.execute("UPDATE invoices SET cancelled_at = ? WHERE payment_hash = ?", (now, payment_hash))

    # --- fees and faults --------------------------------------------------------------------------------------

    def fees(self) -> FeeModel:
        with self._errors():
            return FeeModel(*self._db.execute("SELECT base_msats, parts_per_million FROM fee_model").fetchone())

    def set_fees(self, fees: FeeModel) -> None:
        with self._transaction():
            self._db.execute(
                "UPDATE fee_model SET base_msats = ?, parts_per_million = ?", (fees.base, fees.parts_per_million)
            )

    def inject(self, fault: Fault, wallet: str | None, side: Side, count: int) -> None:
        with self._transaction():
            self._db.execute(
                "INSERT INTO faults (wallet, side, kind, seconds, jitter, ends, remaining)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (wallet, side, fault.kind, fault.seconds, fault.jitter, fault.ends, count),
            )

    def clear_faults(self) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM faults")

    # --- payments ---------------------------------------------------------------------------------------------

    def course(self, wallet: str, target: Target, amount: Msat | None) -> Course:
        """Where a payment of this target goes. ``target`` is one of simnet.

        ``InvoiceInvalid`` for an amount that is missing, or another than is named; ``NoRoute`` where none of this
        ledger issued just this invoice, or has this address, or it is this wallet itself.
        """
        if amount is None:
            amount = target.amount
        if amount is None:
            raise InvoiceInvalid("it names no amount", "say how much to pay")
        if target.amount not in (None, amount):
            raise InvoiceInvalid(f"it names {format_msat(target.amount or Msat(0))}, not {format_msat(amount)}")
        if not 0 < amount <= MAX_MSAT:
            raise InvoiceInvalid("the amount must be positive, and not more than exists")
        invoice: sqlite3.Row | None = None
        if target.kind is TargetKind.BOLT11:
            with self._errors():
                invoice = self._db.execute(
                    "SELECT * FROM invoices WHERE payment_hash = ? AND bolt11 = ?", (target.payment_hash, target.text)
                ).fetchone()
            if invoice is None:
                raise NoRoute("no wallet of this simnet ledger issued this invoice", "do both sides share one ledger?")
            payee, fee = invoice["wallet"], self.fees().fee(amount)
        else:
            # As on Spark: what stays within costs nothing.
            payee, fee = target.payee, Msat(0)
            self._check_account(payee)
        if payee == wallet:
            raise NoRoute("a simnet wallet cannot pay itself", "pay from another wallet")
        return Course(payee, amount, fee, invoice)

    def pay(self, wallet: str, target: Target, *, amount: Msat | None, max_fee: Msat, key: str, now: float) -> Attempt:
        """Pay, or report what became of it, in one transaction. Raises ``WalletError`` where nothing has moved."""
        self.resolve_due(now)
        with self._transaction():
            known = self._known(wallet, target.payment_hash, key)
            if known is not None:
                return known
            course = self.course(wallet, target, amount)
            if course.invoice is not None and course.invoice["cancelled_at"] is not None:
                raise PaymentFailed(
                    "the payee takes no payment of this invoice any more", "ask the payee for a new one"
                )
            if course.invoice is not None and now >= course.invoice["expires_at"]:
                raise InvoiceExpired("the invoice has expired", "ask the payee for a new one")
            needed = Msat(course.amount + course.fee)
            if course.fee > max_fee:
                raise FeeTooHigh(f"the fee is {format_msat(course.fee)}, at most {format_msat(max_fee)} were allowed")
            settled, pending = self.balance(wallet)
            if settled - pending < needed:
                raise InsufficientFunds(needed, settled - pending)
            fault = self._take_fault(wallet, course.payee)
            if fault is None:
                return Attempt(self._send(wallet, course, key, now, now, PaymentState.SETTLED))
            ends_at = now + fault.seconds + (self._rng.uniform(0.0, fault.jitter) if fault.jitter else 0.0)
            match fault.kind:
                case FaultKind.NO_ROUTE:
                    return Attempt(None, error=NoRoute("no route to the payee (injected fault)"))
                case FaultKind.FAIL:
                    return Attempt(self._send(wallet, course, key, now, now, PaymentState.FAILED))
                case FaultKind.TIMEOUT:
                    payment = self._send(wallet, course, key, now, ends_at, fault.ends)
                    return Attempt(payment, error=PaymentUnknown("the payment timed out (injected fault)"))
                case FaultKind.PENDING:
                    return Attempt(self._send(wallet, course, key, now, ends_at, fault.ends))
                case FaultKind.DELAY:
                    payment = self._send(wallet, course, key, now, ends_at, fault.ends, waits=True)
                    return Attempt(payment, waits_until=ends_at)

    def payment(self, payment_id: str) -> Payment:
        with self._errors():
            return _payment(self._db.execute("SELECT * FROM payments WHERE id = ?", (payment_id,)).fetchone())

    def sent(self, wallet: str, payment_hash: str) -> Payment | None:
        """The last payment of this invoice by this wallet; one that has not failed comes first."""
        if not payment_hash:
            return None
        with self._errors():
            row = self._db.execute(
                "SELECT * FROM payments WHERE wallet = ? AND payment_hash = ? AND direction = 'sent'"
                " ORDER BY state = 'failed', id DESC LIMIT 1",
                (wallet, payment_hash),
            ).fetchone()
        return None if row is None else _payment(row)

    def sent_under(self, wallet: str, key: str) -> Payment | None:
        with self._errors():
            row = self._sent_under(wallet, key)
        return None if row is None else _payment(row)

    def payments(self, wallet: str, since: float, limit: int, *, completed: bool, newest: bool) -> list[Payment]:
        wanted, order = " AND state = 'settled'" if completed else "", "DESC" if newest else "ASC"
        with self._errors():
            rows = self._db.execute(
                f"SELECT * FROM payments WHERE wallet = ? AND created_at >= ?{wanted}"
                f" ORDER BY created_at {order}, id {order} LIMIT ?",
                (wallet, since, limit),
            ).fetchall()
        return [_payment(row) for row in rows]

    def last_news(self) -> int:
        with self._errors():
            return int(self._db.execute("SELECT coalesce(max(seq), 0) FROM news").fetchone()[0])

    def news(self, wallet: str, after: int) -> list[tuple[int, Payment]]:
        """Payments of this wallet that have settled or failed after the news of that number.

        And those of others that wait at a hold invoice of it, or were given back from there: as received ones.
        """
        with self._errors():
            rows = self._db.execute(
                "SELECT max(n.seq) AS seq, p.wallet <> n.wallet AS incoming, p.* FROM news n"
                " JOIN payments p ON p.id = n.payment WHERE n.wallet = ? AND n.seq > ?"
                " AND iif(p.wallet = n.wallet, p.state <> 'pending', p.held OR p.state = 'failed')"
                " GROUP BY p.id ORDER BY 1",
                (wallet, after),
            ).fetchall()
        return [
            (row["seq"], attrs.evolve(_payment(row), direction=Direction.RECEIVED, fee=Msat(0), key=""))
            if row["incoming"]
            else (row["seq"], _payment(row))
            for row in rows
        ]

    def changed_wallets(self, after: int) -> tuple[int, list[str]]:
        """Wallets that the news after that number are about, in order of their last, and the number of the last news.

        A payment that is sent and stays pending is news here, for it changes what can be spent; and so is what arrives
        at a wallet's hold invoice, or is given back from there.
        """
        with self._errors():
            rows = self._db.execute(
                "SELECT wallet, max(seq) AS seq FROM news WHERE seq > ? GROUP BY wallet ORDER BY 2", (after,)
            ).fetchall()
        return (rows[-1]["seq"], [row["wallet"] for row in rows]) if rows else (after, [])

    def next_due(self) -> float | None:
        """When the next pending payment ends."""
        with self._errors():
            row = self._db.execute("SELECT min(resolves_at) FROM payments WHERE state = 'pending'").fetchone()
        return None if row[0] is None else float(row[0])

    def resolve_due(self, now: float) -> None:
        """End the pending payments whose moment has come, whoever has made them."""
        # Again: what arrived at a hold invoice may have been given back since.
        while (due := self.next_due()) is not None and due <= now:
            with self._transaction():
                for row in self._db.execute(
                    "SELECT * FROM payments WHERE state = 'pending' AND resolves_at <= ? ORDER BY resolves_at, id",
                    (now,),
                ).fetchall():
                    self._end(row)

    # --- within a transaction ---------------------------------------------------------------------------------

    def _known(self, wallet: str, payment_hash: str | None, key: str) -> Attempt | None:
        mine = self._sent_under(wallet, key)
        if mine is not None:
            return Attempt(_payment(mine), waits_until=mine["resolves_at"] if mine["waits"] else None)
        other = self._paying(payment_hash or "")
        if other is not None:
            raise AlreadyPaid("the invoice is paid" if other["state"] == "settled" else "the invoice is being paid")
        return None

    def _sent_under(self, wallet: str, key: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute(
            "SELECT * FROM payments WHERE wallet = ? AND key = ? AND direction = 'sent'", (wallet, key)
        ).fetchone()
        return row

    def _paying(self, payment_hash: str) -> sqlite3.Row | None:
        """The one payment of an invoice that has not failed."""
        row: sqlite3.Row | None = self._db.execute(
            "SELECT * FROM payments WHERE payment_hash = ? AND payment_hash <> '' AND direction = 'sent'"
            " AND state <> 'failed'",
            (payment_hash,),
        ).fetchone()
        return row

    def _held(self, payment_hash: str) -> sqlite3.Row | None:
        row = self._paying(payment_hash)
        return row if row is not None and row["held"] else None

    def _hold_invoice(self, wallet: str, payment_hash: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute(
            "SELECT * FROM invoices WHERE payment_hash = ? AND wallet = ? AND hold", (payment_hash, wallet)
        ).fetchone()
        return row

    def _check_account(self, wallet: str) -> None:
        with self._errors():
            row = self._db.execute("SELECT 1 FROM accounts WHERE account = ?", (wallet,)).fetchone()
        if row is None or wallet in (FEES, OUTSIDE):
            raise NoRoute("no wallet of this simnet ledger has this address", "do both sides share one ledger?")

    def _take_fault(self, payer: str, payee: str) -> Fault | None:
        row = self._db.execute(
            "SELECT * FROM faults WHERE wallet IS NULL OR wallet = iif(side = 'payer', ?, ?) ORDER BY id LIMIT 1",
            (payer, payee),
        ).fetchone()
        if row is None:
            return None
        self._db.execute("UPDATE faults SET remaining = remaining - 1 WHERE id = ?", (row["id"],))
        self._db.execute("DELETE FROM faults WHERE remaining <= 0")
        return Fault(FaultKind(row["kind"]), row["seconds"], PaymentState(row["ends"]), row["jitter"])

    def _send(
        self,
        wallet: str,
        course: Course,
        key: str,
        now: float,
        ends_at: float,
        ends: PaymentState,
        *,
        waits: bool = False,
    ) -> Payment:
        """Reserve the money; move it, or let it go, if the end has come already."""
        inserted = self._db.execute(
            "INSERT INTO payments (wallet, direction, state, payee, key, msats, fee_msats, created_at, payment_hash,"
            " bolt11, description, waits, resolves_at, resolves_to)"
            " VALUES (?, 'sent', 'pending', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING *",
            (wallet, course.payee, key, course.amount, course.fee, now, *course.of_invoice, waits, ends_at, ends),
        ).fetchone()
        if ends_at <= now:
            self._end(inserted)
        else:
            self._announce(wallet, inserted["id"])
        return self.payment(inserted["id"])

    def _end(self, sent: sqlite3.Row) -> None:
        """What was written down to happen to a pending payment happens, at the moment that was written down."""
        at = sent["resolves_at"]
        if sent["resolves_to"] == PaymentState.FAILED:
            self._give_back(sent, at)
            return
        invoice = self._db.execute(
            "SELECT hold, cancelled_at FROM invoices WHERE payment_hash = ?", (sent["payment_hash"],)
        ).fetchone()
        if invoice is None or not invoice["hold"]:
            self._settle(sent, at)
        elif invoice["cancelled_at"] is not None:
            self._give_back(sent, at)
        else:
            self._hold(sent, at)

    def _hold(self, sent: sqlite3.Row, at: float) -> None:
        """It has arrived at a hold invoice, and waits; some time it goes back by itself."""
        self._db.execute(
            "UPDATE payments SET held = 1, waits = 0, resolves_at = ?, resolves_to = 'failed' WHERE id = ?",
            (at + HOLD_SECONDS, sent["id"]),
        )
        self._db.execute(
            "UPDATE invoices SET held_msats = ? WHERE payment_hash = ?", (sent["msats"], sent["payment_hash"])
        )
        self._announce(sent["wallet"], sent["id"])
        self._announce(sent["payee"], sent["id"])

    def _give_back(self, sent: sqlite3.Row, at: float) -> None:
        """The payment has failed. A hold invoice that it was held by is cancelled by that."""
        self._db.execute(
            "UPDATE payments SET state = 'failed', fee_msats = 0, resolves_at = NULL, held = 0 WHERE id = ?",
            (sent["id"],),
        )
        self._announce(sent["wallet"], sent["id"])
        if sent["held"]:
            self._db.execute(
                "UPDATE invoices SET held_msats = 0, cancelled_at = ? WHERE payment_hash = ?",
                (at, sent["payment_hash"]),
            )
            self._announce(sent["payee"], sent["id"])

    def _settle(self, sent: sqlite3.Row, at: float) -> None:
        """Move the money; the payer learns the preimage, if there is one."""
        invoice = self._db.execute(
            "UPDATE invoices SET received_msats = ?, settled_at = ? WHERE payment_hash = ? RETURNING *",
            (sent["msats"], at, sent["payment_hash"]),
        ).fetchone()
        payee = sent["payee"] if invoice is None else invoice["wallet"]
        self._transfer(sent["wallet"], payee, sent["msats"])
        self._transfer(sent["wallet"], FEES, sent["fee_msats"])
        self._db.execute(
            "UPDATE payments SET state = 'settled', settled_at = ?, preimage = ?, resolves_at = NULL, held = 0"
            " WHERE id = ?",
            (at, None if invoice is None else invoice["preimage"], sent["id"]),
        )
        self._announce(sent["wallet"], sent["id"])
        description = "" if invoice is None else invoice["description"]
        self._record_received(payee, sent["msats"], at, description, invoice)

    def _record_received(
        self, wallet: str, amount: Msat, at: float, description: str, invoice: sqlite3.Row | None
    ) -> Payment:
        paid = (
            ("", None, None) if invoice is None else tuple(invoice[k] for k in ("payment_hash", "preimage", "bolt11"))
        )
        row = self._db.execute(
            "INSERT INTO payments (wallet, direction, state, msats, fee_msats, created_at, settled_at, description,"
            " payment_hash, preimage, bolt11, outside) VALUES (?, 'received', 'settled', ?, 0, ?, ?, ?, ?, ?, ?, ?)"
            " RETURNING *",
            (wallet, amount, at, at, description, *paid, invoice is None),
        ).fetchone()
        self._announce(wallet, row["id"])
        return _payment(row)

    def _announce(self, wallet: str, payment: int) -> None:
        self._db.execute("INSERT INTO news (wallet, payment) VALUES (?, ?)", (wallet, payment))

    def _transfer(self, debit: str, credit: str, msats: int) -> None:
        self._db.execute("UPDATE accounts SET msats = msats - ? WHERE account = ?", (msats, debit))
        self._db.execute("UPDATE accounts SET msats = msats + ? WHERE account = ?", (msats, credit))

    # --- SQLite -----------------------------------------------------------------------------------------------

    def _issued(self, where: str, *parameters: str) -> IssuedInvoice | None:
        with self._errors():
            row = self._db.execute(f"SELECT * FROM invoices WHERE {where}", parameters).fetchone()
        if row is None:
            return None
        return IssuedInvoice(
            bolt11=row["bolt11"],
            payment_hash=row["payment_hash"],
            amount=Msat(row["msats"]),
            expires_at=row["expires_at"],
            received=Msat(row["received_msats"]),
            settled_at=row["settled_at"],
            held=Msat(row["held_msats"]),
            cancelled=row["cancelled_at"] is not None,
        )


def _payment(row: sqlite3.Row) -> Payment:
    return Payment(
        payment_id=str(row["id"]),
        payment_hash=row["payment_hash"],
        direction=Direction(row["direction"]),
        state=PaymentState(row["state"]),
        amount=Msat(row["msats"]),
        fee=Msat(row["fee_msats"]),
        created_at=row["created_at"],
        settled_at=row["settled_at"],
        preimage=row["preimage"],
        bolt11=row["bolt11"],
        description=row["description"],
        outside=bool(row["outside"]),
        key=row["key"] or "",
    )
