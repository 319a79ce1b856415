"""The simnet ledger: one SQLite file in which play money moves. **None of it is money.**

``LedgerFile`` is synchronous and holds the rules; ``pylon.wallets.simnet`` makes wallets of it. Every process that
opens the file is a peer: nobody owns it. What happens later (a payment kept pending) is written down with its moment,
and done by whoever looks next; so all processes see the same past.

Double entry over ``accounts``: one account per wallet, ``fees``, and ``outside``, which is negative by what the faucet
has given. They sum to zero, always. Amounts are millisatoshi, times are Unix seconds.
"""

from __future__ import annotations

import enum
import json
import os
import random
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import attrs

from pylon.errors import (
    AlreadyPaid,
    FeeTooHigh,
    InsufficientFunds,
    InvoiceExpired,
    NoRoute,
    PaymentUnknown,
    StoreError,
    WalletError,
)
from pylon.money import MAX_MSAT, Msat, format_msat
from pylon.wallets.port import Direction, IssuedInvoice, Payment, PaymentState

APPLICATION_ID = 0x50795349
"""``PRAGMA application_id`` of a simnet ledger."""
SCHEMA_VERSION = 1
BUSY_SECONDS = 10.0
FEES = "fees"
OUTSIDE = "outside"

_SCHEMA = """
CREATE TABLE accounts (
    account TEXT PRIMARY KEY, name TEXT NOT NULL, label TEXT NOT NULL, opened_at REAL NOT NULL,
    msats INTEGER NOT NULL, CHECK (msats >= 0 OR account = 'outside')
) STRICT, WITHOUT ROWID;
CREATE TABLE invoices (
    payment_hash TEXT PRIMARY KEY, wallet TEXT NOT NULL REFERENCES accounts, key TEXT NOT NULL,
    bolt11 TEXT NOT NULL, preimage TEXT NOT NULL, msats INTEGER NOT NULL CHECK (msats > 0),
    description TEXT NOT NULL, created_at REAL NOT NULL, expires_at REAL NOT NULL,
    received_msats INTEGER NOT NULL DEFAULT 0, settled_at REAL, UNIQUE (wallet, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE payments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, wallet TEXT NOT NULL REFERENCES accounts, direction TEXT NOT NULL,
    state TEXT NOT NULL, payment_hash TEXT NOT NULL, key TEXT, msats INTEGER NOT NULL, fee_msats INTEGER NOT NULL,
    created_at REAL NOT NULL, settled_at REAL, preimage TEXT, bolt11 TEXT, description TEXT NOT NULL,
    outside INTEGER NOT NULL DEFAULT 0, waits INTEGER NOT NULL DEFAULT 0, resolves_at REAL, resolves_to TEXT,
    CHECK ((state = 'settled') = (settled_at IS NOT NULL)), CHECK ((state = 'pending') = (resolves_at IS NOT NULL))
) STRICT;
CREATE UNIQUE INDEX payments_once ON payments (payment_hash) WHERE direction = 'sent' AND state <> 'failed';
CREATE UNIQUE INDEX payments_key ON payments (wallet, key) WHERE direction = 'sent';
CREATE INDEX payments_time ON payments (wallet, created_at, id);
CREATE INDEX payments_due ON payments (resolves_at) WHERE state = 'pending';
CREATE TABLE news (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, wallet TEXT NOT NULL, payment INTEGER NOT NULL REFERENCES payments
) STRICT;
CREATE INDEX news_wallet ON news (wallet, seq);
CREATE TABLE faults (
    id INTEGER PRIMARY KEY AUTOINCREMENT, wallet TEXT, side TEXT NOT NULL, kind TEXT NOT NULL,
    seconds REAL NOT NULL, jitter REAL NOT NULL, ends TEXT NOT NULL, remaining INTEGER NOT NULL
) STRICT;
CREATE TABLE fee_model (base_msats INTEGER NOT NULL, parts_per_million INTEGER NOT NULL) STRICT;
INSERT INTO fee_model VALUES (0, 5000);
INSERT INTO accounts VALUES ('fees', 'fees', '', 0, 0), ('outside', 'outside', '', 0, 0);
"""


class FaultKind(enum.StrEnum):
    NO_ROUTE = "no_route"
    """``NoRoute``; nothing is recorded."""
    FAIL = "fail"
    """``PaymentFailed``, with a failed payment in the history."""
    PENDING = "pending"
    """``pay`` returns it pending; it ends ``seconds`` later."""
    DELAY = "delay"
    """``pay`` waits ``seconds`` for the end."""
    TIMEOUT = "timeout"
    """``PaymentUnknown`` at once; the payment ends ``seconds`` later: with 0, it has settled already."""


class Side(enum.StrEnum):
    PAYER = "payer"
    PAYEE = "payee"


@attrs.frozen
class Fault:
    """What shall go wrong with the next payments. ``jitter`` adds up to so many seconds, drawn from the rng."""

    kind: FaultKind
    seconds: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    ends: PaymentState = attrs.field(
        default=PaymentState.SETTLED, validator=attrs.validators.in_((PaymentState.SETTLED, PaymentState.FAILED))
    )
    jitter: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))


@attrs.frozen
class FeeModel:
    """What a payer is charged beside the amount: a base and a share, rounded up to whole millisatoshi."""

    base: Msat = attrs.field(default=Msat(0), validator=attrs.validators.ge(Msat(0)))
    parts_per_million: int = attrs.field(default=5_000, validator=attrs.validators.ge(0))

    def fee(self, amount: Msat) -> Msat:
        return Msat(self.base - (-amount * self.parts_per_million // 1_000_000))


@attrs.frozen
class Attempt:
    """What ``LedgerFile.pay`` did or found."""

    payment: Payment | None
    waits_until: float | None = None
    """When the payment ends, if ``pay`` is to wait for that."""
    error: WalletError | None = None
    """What to raise although the transaction was committed."""


class LedgerFile:
    """An open ledger. Raises ``StoreError`` for a file that is none, and where SQLite does.

    ``on_commit`` is called after each change made through this object.
    """

    def __init__(
        self, path: Path, *, rng: random.Random, durable: bool = True, on_commit: Callable[[], None] = lambda: None
    ) -> None:
        self.path = path
        self._rng = rng
        self._on_commit = on_commit
        try:
            if not path.exists():
                _create(path)
            # `rw`: should the file vanish meanwhile, no empty one takes its place.
            uri = f"{path.absolute().as_uri()}?mode=rw"
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot open the simnet ledger {path}: {error}") from error
        try:
            with self._errors():
                self._check_kind()
                self._db.row_factory = sqlite3.Row
                self._db.execute("PRAGMA foreign_keys = ON")
                self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
                self._seen = self._data_version()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def changed_elsewhere(self) -> bool:
        """Has another connection committed since this was asked last? Costs microseconds."""
        with self._errors():
            version = self._data_version()
        changed, self._seen = version != self._seen, version
        return changed

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

    def deposit(self, wallet: str, amount: Msat, now: float) -> Payment:
        """The faucet: play money from nowhere, recorded as from outside."""
        with self._transaction():
            given = -self.balance(OUTSIDE)[0]
            if amount <= 0 or given + amount > MAX_MSAT:
                raise WalletError(
                    f"the simnet faucet cannot give {format_msat(amount)}", "ask for an amount that exists"
                )
            self._transfer(OUTSIDE, wallet, amount)
            return self._record_received(wallet, amount, now, "faucet", None)

    # --- invoices ---------------------------------------------------------------------------------------------

    def invoice_by_key(self, wallet: str, key: str) -> IssuedInvoice | None:
        return self._issued("wallet = ? AND key = ?", wallet, key)

    def invoice(self, wallet: str, payment_hash: str) -> IssuedInvoice | None:
        return self._issued("wallet = ? AND payment_hash = ?", wallet, payment_hash)

    def add_invoice(
        self, wallet: str, key: str, invoice: IssuedInvoice, preimage: str, description: str, now: float
    ) -> IssuedInvoice:
        """The invoice of this key: the one given, or the one that was there first."""
        row = (
            *(invoice.payment_hash, wallet, key, invoice.bolt11, preimage, invoice.amount),
            *(description, now, invoice.expires_at),
        )
        with self._transaction():
            self._db.execute(
                "INSERT INTO invoices VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, NULL) ON CONFLICT (wallet, key) DO NOTHING",
                row,
            )
            issued = self.invoice_by_key(wallet, key)
        return issued or invoice

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

    def route(self, wallet: str, payment_hash: str, bolt11: str) -> sqlite3.Row:
        """The payee's invoice. ``NoRoute`` where none of this ledger issued just this text, or this wallet itself."""
        with self._errors():
            row: sqlite3.Row | None = self._db.execute(
                "SELECT * FROM invoices WHERE payment_hash = ? AND bolt11 = ?", (payment_hash, bolt11.lower())
            ).fetchone()
        if row is None:
            raise NoRoute("no wallet of this simnet ledger issued this invoice", "do both sides share one ledger?")
        if row["wallet"] == wallet:
            raise NoRoute("a simnet wallet cannot pay itself", "pay from another wallet")
        return row

    def pay(self, wallet: str, payment_hash: str, bolt11: str, *, max_fee: Msat, key: str, now: float) -> Attempt:
        """Pay, or report what became of it, in one transaction. Raises ``WalletError`` where nothing has moved."""
        self.resolve_due(now)
        with self._transaction():
            known = self._known(wallet, payment_hash, key)
            if known is not None:
                return known
            invoice = self.route(wallet, payment_hash, bolt11)
            if now >= invoice["expires_at"]:
                raise InvoiceExpired("the invoice has expired", "ask the payee for a new one")
            amount = Msat(invoice["msats"])
            fee = self.fees().fee(amount)
            if fee > max_fee:
                raise FeeTooHigh(f"the fee is {format_msat(fee)}, at most {format_msat(max_fee)} were allowed")
            settled, pending = self.balance(wallet)
            if settled - pending < amount + fee:
                raise InsufficientFunds(amount + fee, settled - pending)
            fault = self._take_fault(wallet, invoice["wallet"])
            if fault is None:
                return Attempt(self._send(wallet, invoice, fee, key, now, now, PaymentState.SETTLED))
            ends_at = now + fault.seconds + (self._rng.uniform(0.0, fault.jitter) if fault.jitter else 0.0)
            match fault.kind:
                case FaultKind.NO_ROUTE:
                    return Attempt(None, error=NoRoute("no route to the payee (injected fault)"))
                case FaultKind.FAIL:
                    return Attempt(self._send(wallet, invoice, fee, key, now, now, PaymentState.FAILED))
                case FaultKind.TIMEOUT:
                    payment = self._send(wallet, invoice, fee, key, now, ends_at, fault.ends)
                    return Attempt(payment, error=PaymentUnknown("the payment timed out (injected fault)"))
                case FaultKind.PENDING:
                    return Attempt(self._send(wallet, invoice, fee, key, now, ends_at, fault.ends))
                case FaultKind.DELAY:
                    payment = self._send(wallet, invoice, fee, key, now, ends_at, fault.ends, waits=True)
                    return Attempt(payment, waits_until=ends_at)

    def payment(self, payment_id: str) -> Payment:
        with self._errors():
            return _payment(self._db.execute("SELECT * FROM payments WHERE id = ?", (payment_id,)).fetchone())

    def sent(self, wallet: str, payment_hash: str) -> Payment | None:
        """The last payment of this invoice by this wallet; one that has not failed comes first."""
        with self._errors():
            row = self._db.execute(
                "SELECT * FROM payments WHERE wallet = ? AND payment_hash = ? AND direction = 'sent'"
                " ORDER BY state = 'failed', id DESC LIMIT 1",
                (wallet, payment_hash),
            ).fetchone()
        return None if row is None else _payment(row)

    def payments(self, wallet: str, since: float, limit: int) -> list[Payment]:
        with self._errors():
            rows = self._db.execute(
                "SELECT * FROM payments WHERE wallet = ? AND created_at >= ? ORDER BY created_at, id LIMIT ?",
                (wallet, since, limit),
            ).fetchall()
        return [_payment(row) for row in rows]

    def last_news(self) -> int:
        with self._errors():
            return int(self._db.execute("SELECT coalesce(max(seq), 0) FROM news").fetchone()[0])

    def news(self, wallet: str, after: int) -> list[tuple[int, Payment]]:
        """Payments of this wallet that have settled or failed after the news of that number."""
        with self._errors():
            rows = self._db.execute(
                "SELECT max(n.seq) AS seq, p.* FROM news n JOIN payments p ON p.id = n.payment"
                " WHERE n.wallet = ? AND n.seq > ? AND p.state <> 'pending' GROUP BY p.id ORDER BY 1",
                (wallet, after),
            ).fetchall()
        return [(row["seq"], _payment(row)) for row in rows]

    def changed_wallets(self, after: int) -> tuple[int, list[str]]:
        """Wallets that the news after that number are about, in order of their last, and the number of the last news.

        A payment that is sent and stays pending is news here, for it changes what can be spent.
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
        due = self.next_due()
        if due is None or due > now:
            return
        with self._transaction():
            for row in self._db.execute(
                "SELECT * FROM payments WHERE state = 'pending' AND resolves_at <= ? ORDER BY resolves_at, id", (now,)
            ).fetchall():
                self._end(row)

    # --- within a transaction ---------------------------------------------------------------------------------

    def _known(self, wallet: str, payment_hash: str, key: str) -> Attempt | None:
        mine = self._db.execute(
            "SELECT * FROM payments WHERE wallet = ? AND key = ? AND direction = 'sent'", (wallet, key)
        ).fetchone()
        if mine is not None:
            return Attempt(_payment(mine), waits_until=mine["resolves_at"] if mine["waits"] else None)
        other = self._db.execute(
            "SELECT state FROM payments WHERE payment_hash = ? AND direction = 'sent' AND state <> 'failed'",
            (payment_hash,),
        ).fetchone()
        if other is not None:
            raise AlreadyPaid("the invoice is paid" if other["state"] == "settled" else "the invoice is being paid")
        return None

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
        invoice: sqlite3.Row,
        fee: Msat,
        key: str,
        now: float,
        ends_at: float,
        ends: PaymentState,
        *,
        waits: bool = False,
    ) -> Payment:
        """Reserve the money; move it, or let it go, if the end has come already."""
        inserted = self._db.execute(
            "INSERT INTO payments (wallet, direction, state, payment_hash, key, msats, fee_msats, created_at, bolt11,"
            " description, waits, resolves_at, resolves_to) VALUES (?, 'sent', 'pending', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " RETURNING *",
            (
                *(wallet, invoice["payment_hash"], key, invoice["msats"], fee, now, invoice["bolt11"]),
                *(invoice["description"], waits, ends_at, ends),
            ),
        ).fetchone()
        if ends_at <= now:
            self._end(inserted)
        else:
            self._announce(wallet, inserted["id"])
        return self.payment(inserted["id"])

    def _end(self, sent: sqlite3.Row) -> None:
        at = sent["resolves_at"]
        if sent["resolves_to"] == PaymentState.FAILED:
            self._db.execute(
                "UPDATE payments SET state = 'failed', fee_msats = 0, resolves_at = NULL WHERE id = ?", (sent["id"],)
            )
            self._announce(sent["wallet"], sent["id"])
            return
        invoice = self._db.execute(
            "UPDATE invoices SET received_msats = msats, settled_at = ? WHERE payment_hash = ? RETURNING *",
            (at, sent["payment_hash"]),
        ).fetchone()
        self._transfer(sent["wallet"], invoice["wallet"], sent["msats"])
        self._transfer(sent["wallet"], FEES, sent["fee_msats"])
        self._db.execute(
            "UPDATE payments SET state = 'settled', settled_at = ?, preimage = ?, resolves_at = NULL WHERE id = ?",
            (at, invoice["preimage"], sent["id"]),
        )
        self._announce(sent["wallet"], sent["id"])
        self._record_received(invoice["wallet"], sent["msats"], at, invoice["description"], invoice)

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
        )

    def _check_kind(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            raise StoreError(f"{self.path} is not a simnet ledger", "name another file in [simnet] ledger")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"the simnet ledger {self.path} has schema version {version}, this Pylon reads {SCHEMA_VERSION}",
                "run the Pylon that made it, or move the file away: it holds no real money",
            )

    def _data_version(self) -> int:
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        self._on_commit()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"simnet ledger {self.path}: {error}") from error


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
    )


def _create(path: Path) -> None:
    """Make a whole ledger beside ``path``, then link it there: whoever opens the path sees all of it or nothing.

    That also spares two processes, starting at once, the switch to WAL mode, which waits for no lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        with closing(sqlite3.connect(beside, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID};"
                f" PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        os.link(beside, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(beside)
