"""Who may use the home's wallet from elsewhere (NIP-47), for how much, and what each has asked for.

Rules
-----
1. A connection is known by its client's public key. Its payments are intents of the home whose *scope* is
   ``connection:<client>``; its invoices have rows of their own. It sees these, and no others.
2. A request to pay is taken once, ever: its row is written together with its inbox row and its intent, or with the
   error that it is answered. It is *answered* when the outcome is known, and not before.
3. What a connection may spend is a rolling day: settled in the last 24 hours with fees, and all that is pending with
   the highest fee.
"""

from __future__ import annotations

import sqlite3

import attrs
import orjson

from protocols.keys import SecretKey
from protocols.nip47 import Encryption, ErrorCode, Failure
from pylon.errors import NotFound, SealError, UsageError
from pylon.money import Msat
from pylon.store import intents
from pylon.store.database import Reads, Tx
from pylon.store.intents import Intent, IntentState
from pylon.store.vault import Vault

DAY = 86_400.0
TOPIC = "wallet_connections"
"""Touched when a connection is made or closed."""
_SCOPE = "connection:"


@attrs.frozen
class Connection:
    """One who may use the wallet."""

    client: str
    """Public key, hex."""
    service: str
    """The key that answers it."""
    name: str
    relays: tuple[str, ...]
    per_day: Msat
    each: Msat | None
    created_at: float
    expires_at: float | None
    closed_at: float | None

    @property
    def scope(self) -> str:
        return _SCOPE + self.client

    def is_open(self, now: float) -> bool:
        return self.closed_at is None and (self.expires_at is None or now < self.expires_at)


@attrs.frozen
class PayRequest:
    """A request to pay that was taken."""

    id: str
    client: str
    payment_hash: str | None
    encryption: Encryption
    created_at: float
    expires_at: float | None
    answered_at: float | None
    error: Failure | None


@attrs.frozen
class MadeInvoice:
    """An invoice that a connection asked for. Its text stays sealed: see ``invoice_text``."""

    payment_hash: str
    client: str
    request_id: str
    amount: Msat
    hold: bool
    created_at: float
    expires_at: float
    settled_at: float | None
    told: str


# --- connections ----------------------------------------------------------------------------------------------


def add(
    tx: Tx,
    *,
    client: str,
    service: SecretKey,
    name: str,
    relays: tuple[str, ...],
    per_day: Msat,
    each: Msat | None,
    at: float,
    expires_at: float | None,
) -> Connection:
    """Raises ``UsageError`` where an open connection has this name."""
    if tx.one("SELECT 1 FROM wallet_connections WHERE name = ? AND closed_at IS NULL", (name,)):
        raise UsageError(f"there is a wallet connection called {name!r} already", f"pylon wallet disconnect {name}")
    sealed = tx.vault.seal(service.reveal().hex(), f"wallet_connections.secret:{client}")
    tx.execute(
        "INSERT INTO wallet_connections (client, service, name, secret, relays, day_msats, each_msats, created_at,"
        " expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*(client, service.public.hex, name, sealed, orjson.dumps(relays).decode(), per_day, each, at, expires_at),),
    )
    tx.touch(TOPIC)
    return get(tx, client)


def close(tx: Tx, name: str, at: float) -> Connection:
    """Let it do nothing more. What it has under way is seen to its end. Raises ``NotFound``."""
    row = tx.one("SELECT * FROM wallet_connections WHERE name = ? AND closed_at IS NULL", (name,))
    if row is None:
        raise NotFound(f"there is no wallet connection called {name!r}", "pylon wallet connections")
    tx.execute("UPDATE wallet_connections SET closed_at = ? WHERE client = ?", (at, row["client"]))
    tx.touch(TOPIC)
    return get(tx, row["client"])


def get(source: Reads, client: str) -> Connection:
    """Raises ``NotFound``."""
    row = source.one("SELECT * FROM wallet_connections WHERE client = ?", (client,))
    if row is None:
        raise NotFound(f"there is no wallet connection {client[:16]}", "pylon wallet connections")
    return _connection(row)


def is_scope(scope: str) -> bool:
    """Whether payments of this scope are some connection's."""
    return scope.startswith(_SCOPE)


def by_scope(source: Reads, scope: str) -> Connection:
    """Whose payments have this scope. Raises ``NotFound``."""
    return get(source, scope.removeprefix(_SCOPE))


def known(source: Reads, *, closed_since: float) -> list[Connection]:
    """The open ones, and those that were closed after this time; oldest first."""
    rows = source.read(
        "SELECT * FROM wallet_connections WHERE closed_at IS NULL OR closed_at > ? ORDER BY created_at, client",
        (closed_since,),
    )
    return [_connection(row) for row in rows]


def secret(source: Reads, vault: Vault, client: str) -> SecretKey:
    """The key that answers a client. Raises ``NotFound``, ``SealError``."""
    row = source.one("SELECT secret FROM wallet_connections WHERE client = ?", (client,))
    if row is None:
        raise NotFound(f"there is no wallet connection {client[:16]}", "pylon wallet connections")
    place = f"wallet_connections.secret:{client}"
    try:
        return SecretKey.from_hex(vault.open(row["secret"], place))
    except ValueError:
        raise SealError(f"the sealed value at {place} is no key", "restore a backup of the home") from None


def spent(source: Reads, scope: str, since: float) -> Msat:
    """What a connection has spent after ``since`` with fees, and all that it may still spend, however old."""
    row = source.one(
        "SELECT (SELECT COALESCE(SUM(amount_msats + fee_msats), 0) FROM intents"
        " WHERE scope = ?1 AND state = 'settled' AND updated_at > ?2)"
        " + (SELECT COALESCE(SUM(amount_msats + max_fee_msats), 0) FROM intents"
        " WHERE scope = ?1 AND state = 'pending') AS n",
        (scope, since),
    )
    return Msat(0 if row is None else row["n"])


def left(source: Reads, connection: Connection, now: float) -> Msat:
    """What its budget leaves it now, fees included; 0 where it is closed."""
    if not connection.is_open(now):
        return Msat(0)
    return Msat(max(connection.per_day - spent(source, connection.scope, now - DAY), 0))


def _connection(row: sqlite3.Row) -> Connection:
    return Connection(
        client=row["client"],
        service=row["service"],
        name=row["name"],
        relays=tuple(orjson.loads(row["relays"])),
        per_day=Msat(row["day_msats"]),
        each=None if row["each_msats"] is None else Msat(row["each_msats"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        closed_at=row["closed_at"],
    )


# --- requests to pay ------------------------------------------------------------------------------------------


def add_request(
    tx: Tx,
    *,
    request_id: str,
    client: str,
    encryption: Encryption,
    created_at: float,
    expires_at: float | None,
    at: float,
    payment_hash: str | None = None,
    error: Failure | None = None,
) -> None:
    """Write a request that was taken; one with an ``error`` is answered by that."""
    tx.execute(
        "INSERT INTO connection_requests (id, client, payment_hash, encryption, created_at, expires_at, taken_at,"
        " answered_at, error) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(request_id, client, payment_hash, encryption.value, created_at, expires_at, at),
            *(
                (None, None)
                if error is None
                else (at, orjson.dumps([error.code, error.message, error.detail]).decode())
            ),
        ),
    )


def find_request(source: Reads, request_id: str) -> PayRequest | None:
    row = source.one("SELECT * FROM connection_requests WHERE id = ?", (request_id,))
    return None if row is None else _request(row)


def open_requests(source: Reads, payment_hash: str | None = None) -> list[PayRequest]:
    """Those that wait for an outcome, oldest first: of one payment, or all."""
    which, params = ("", ()) if payment_hash is None else (" AND payment_hash = ?", (payment_hash,))
    rows = source.read(
        "SELECT * FROM connection_requests WHERE answered_at IS NULL AND payment_hash IS NOT NULL"
        f"{which} ORDER BY taken_at, id",
        params,
    )
    return [_request(row) for row in rows]


def answered(tx: Tx, request_id: str, at: float) -> None:
    tx.execute("UPDATE connection_requests SET answered_at = ? WHERE id = ?", (at, request_id))


def prune(tx: Tx, before: float, limit: int = -1) -> int:
    """Forget requests that were answered and taken before this time, at most ``limit``; returns how many.

    Keep them longer than any could be taken.
    """
    return tx.execute(
        "DELETE FROM connection_requests WHERE rowid IN (SELECT rowid FROM connection_requests"
        " WHERE taken_at < ? AND answered_at IS NOT NULL LIMIT ?)",
        (before, limit),
    ).rowcount


def _request(row: sqlite3.Row) -> PayRequest:
    error = None
    if row["error"] is not None:
        code, message, detail = orjson.loads(row["error"])
        error = Failure(ErrorCode(code), message, detail)
    return PayRequest(
        id=row["id"],
        client=row["client"],
        payment_hash=row["payment_hash"],
        encryption=Encryption(row["encryption"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        answered_at=row["answered_at"],
        error=error,
    )


# --- invoices -------------------------------------------------------------------------------------------------


def add_invoice(
    tx: Tx,
    *,
    payment_hash: str,
    client: str,
    request_id: str,
    amount: Msat,
    bolt11: str,
    hold: bool,
    at: float,
    expires_at: float,
) -> None:
    """Write an invoice that was made for a connection; the same again changes nothing."""
    tx.execute(
        "INSERT INTO connection_invoices (payment_hash, client, request_id, amount_msats, invoice, hold, created_at,"
        " expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            *(payment_hash, client, request_id, amount),
            *(tx.vault.seal(bolt11, f"connection_invoices.invoice:{payment_hash}"), int(hold), at, expires_at),
        ),
    )


def find_invoice(source: Reads, payment_hash: str) -> MadeInvoice | None:
    row = source.one("SELECT * FROM connection_invoices WHERE payment_hash = ?", (payment_hash,))
    return None if row is None else _invoice(row)


def invoice_of(source: Reads, request_id: str) -> MadeInvoice | None:
    """What a request was answered with."""
    row = source.one("SELECT * FROM connection_invoices WHERE request_id = ?", (request_id,))
    return None if row is None else _invoice(row)


def invoice_text(source: Reads, vault: Vault, payment_hash: str) -> str:
    """Raises ``NotFound``, ``SealError``."""
    row = source.one("SELECT invoice FROM connection_invoices WHERE payment_hash = ?", (payment_hash,))
    if row is None:
        raise NotFound(f"no connection has made an invoice {payment_hash[:16]}")
    return vault.open(row["invoice"], f"connection_invoices.invoice:{payment_hash}")


def unpaid_invoices(source: Reads, since: float, client: str | None = None) -> list[MadeInvoice]:
    """Those that were not paid, as far as we know, and expire after ``since``; soonest first."""
    which, params = ("", ()) if client is None else (" AND client = ?", (client,))
    rows = source.read(
        f"SELECT * FROM connection_invoices WHERE settled_at IS NULL AND expires_at > ?{which}"
        " ORDER BY expires_at LIMIT 1000",
        (since, *params),
    )
    return [_invoice(row) for row in rows]


def mark_told(tx: Tx, payment_hash: str, told: str, settled_at: float | None) -> bool:
    """Note what a connection is notified of; false where it was told of that, or more, already."""
    steps = ("", "accepted", "settled")
    row = tx.one("SELECT told FROM connection_invoices WHERE payment_hash = ?", (payment_hash,))
    if row is None or steps.index(row["told"]) >= steps.index(told):
        return False
    tx.execute(
        "UPDATE connection_invoices SET told = ?, settled_at = COALESCE(?, settled_at) WHERE payment_hash = ?",
        (told, settled_at, payment_hash),
    )
    return True


def _invoice(row: sqlite3.Row) -> MadeInvoice:
    return MadeInvoice(
        payment_hash=row["payment_hash"],
        client=row["client"],
        request_id=row["request_id"],
        amount=Msat(row["amount_msats"]),
        hold=bool(row["hold"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        settled_at=row["settled_at"],
        told=row["told"],
    )


# --- all that a connection sees -------------------------------------------------------------------------------


def history(
    source: Reads,
    connection: Connection,
    *,
    since: int,
    until: int,
    limit: int,
    offset: int,
    unpaid: bool,
    incoming: bool,
    outgoing: bool,
) -> list[Intent | MadeInvoice]:
    """Its payments and invoices created from ``since`` to ``until`` (whole seconds, inclusive), newest first."""
    rows = source.read(
        "SELECT payment_hash, 1 AS sent, created_at FROM intents WHERE ?1 AND scope = ?2 AND (?3 OR state = 'settled')"
        " AND created_at >= ?4 AND created_at < ?5 UNION ALL"
        " SELECT payment_hash, 0, created_at FROM connection_invoices WHERE ?6 AND client = ?7"
        " AND (?3 OR settled_at IS NOT NULL) AND created_at >= ?4 AND created_at < ?5"
        " ORDER BY created_at DESC, payment_hash LIMIT ?8 OFFSET ?9",
        (outgoing, connection.scope, unpaid, since, until + 1, incoming, connection.client, limit, offset),
    )
    found: list[Intent | MadeInvoice] = []
    for row in rows:
        entry = intents.find(source, row["payment_hash"]) if row["sent"] else find_invoice(source, row["payment_hash"])
        if entry is not None:
            found.append(entry)
    return found


def payments_made(source: Reads, connection: Connection) -> int:
    """How many of its payments have settled."""
    row = source.one(
        "SELECT COUNT(*) AS n FROM intents WHERE scope = ? AND state = ?",
        (connection.scope, IntentState.SETTLED.value),
    )
    return 0 if row is None else int(row["n"])
