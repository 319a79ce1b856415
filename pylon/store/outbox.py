"""Nothing that was signed is lost: events wait here, one delivery for each relay, until the relay has answered.

Rules
-----
1. An event goes out as it was first written, byte for byte, however often: relays know it by its id.
2. Of several versions of one address (NIP-01, replaceable and addressable events) only the newest is delivered; the
   pending deliveries of the others are cancelled, in whatever order they arrive.
3. A refusal (NIP-01: OK false) is final, except where its prefix says that a later attempt may do better.
4. An event past its end is no longer sent: its NIP-40 expiration, the caller's ``expires_at``, and 30 s for
   ephemeral kinds, whichever comes first. Everything else is retried, ever slower, for as long as it takes.
5. Each attempt ends in exactly one ``acknowledge`` (the relay answered) or ``postpone`` (it did not).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable

import attrs
import orjson

from protocols.nip01 import Event, KindClass, kind_class
from protocols.nip40 import expiration
from pylon.store.database import Reads, Store, Tx

EPHEMERAL_SECONDS = 30.0
FIRST_BACKOFF = 5.0
LONGEST_BACKOFF = 900.0
RETRIED = ("rate-limited:", "auth-required:", "error:")
"""Prefixes of refusals after which the same event may be accepted later."""
_LONGEST_MESSAGE = 500
_LAST_SECOND = 2.0**53

_WAITING = (
    " FROM deliveries d JOIN outbox o ON o.event_id = d.event_id WHERE d.relay = ? AND d.state = 'pending'"
    " AND (o.expires_at IS NULL OR o.expires_at > ?) AND d.event_id NOT IN (SELECT value FROM json_each(?))"
)


class DeliveryState(enum.StrEnum):
    PENDING = "pending"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    """The relay said no, for good."""
    CANCELLED = "cancelled"
    """A newer version has taken its place."""
    EXPIRED = "expired"


@attrs.frozen
class Delivery:
    """One event that is due at one relay."""

    event_id: str
    relay: str
    event: str
    """The event's JSON, as signed."""
    kind: int
    attempts: int
    """Attempts so far."""
    effect: str
    subject: str


@attrs.frozen
class DeliveryStatus:
    """How far an event has come at one relay."""

    state: DeliveryState
    attempts: int
    message: str
    """The relay's own words, of the last attempt."""


def backoff(attempts: int) -> float:
    """Seconds to wait after so many attempts: 5, 10, 20 ... 900."""
    return float(min(FIRST_BACKOFF * 2 ** min(max(attempts - 1, 0), 30), LONGEST_BACKOFF))


def add(
    tx: Tx,
    event: Event,
    relays: Iterable[str],
    effect: str = "",
    subject: str = "",
    *,
    at: float,
    expires_at: float | None = None,
    urgent: bool = False,
) -> int:
    """Queue a signed event for these relays; returns how many deliveries are new and pending.

    One that is ``urgent`` goes out before all that is not and waits.

    An event that is here already gets the relays that are missing, and stays as it is otherwise. ``effect`` and
    ``subject`` say what it is for (``sale.publish_result``, the sale's id); ``acknowledge`` gives them back.
    """
    tx.execute(
        "INSERT INTO outbox (event_id, event, kind, address, created_at, effect, subject, queued_at, expires_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING",
        (
            event.id,
            event.to_json(),
            event.kind,
            event.address,
            event.created_at,
            effect,
            subject,
            at,
            _end(event, at, expires_at),
        ),
    )
    added = []
    for relay in dict.fromkeys(relays):
        done = tx.execute(
            "INSERT INTO deliveries (event_id, relay, state, attempts, next_at, message)"
            " VALUES (?, ?, 'pending', 0, ?, '') ON CONFLICT (event_id, relay) DO NOTHING",
            (event.id, relay, 0.0 if urgent else at),
        )
        if done.rowcount == 1:
            added.append(relay)
    if event.address is not None and not _supersede(tx, event.address, event.id, at):
        return 0
    if added:
        tx.touch("outbox")
    for relay in added:
        tx.touch(f"outbox:{relay}")
    return len(added)


def spread(tx: Tx, relay: str, effects: str, subjects: str, at: float) -> int:
    """Queue the newest versions of addresses for a relay that was never given them; returns how many.

    :param effects: how the events' effects begin.
    :param subjects: a query of ours that gives the subjects of those that are meant.
    """
    done = tx.execute(
        "INSERT INTO deliveries (event_id, relay, state, attempts, next_at, message)"
        " SELECT o.event_id, ?1, 'pending', 0, ?2, '' FROM outbox o WHERE o.address IS NOT NULL"
        " AND substr(o.effect, 1, length(?3)) = ?3"
        f" AND o.subject IN ({subjects}) AND NOT EXISTS (SELECT 1 FROM outbox n WHERE n.address = o.address"
        " AND (n.created_at > o.created_at OR (n.created_at = o.created_at AND n.event_id < o.event_id)))"
        " AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = o.event_id AND d.relay = ?1)",
        (relay, at, effects),
    )
    if done.rowcount:
        tx.touch("outbox")
        tx.touch(f"outbox:{relay}")
    return done.rowcount


def due(
    source: Store | Tx, relay: str, limit: int = 100, now: float | None = None, besides: Collection[str] = ()
) -> list[Delivery]:
    """What should be sent to ``relay`` now, what has waited longest first; without the events ``besides``."""
    now = source.clock.now() if now is None else now
    rows = source.read(
        # In the order of an index, so that it costs the same however much waits.
        f"SELECT d.event_id, d.relay, o.event, o.kind, d.attempts, o.effect, o.subject{_WAITING} AND d.next_at <= ?"
        " ORDER BY d.next_at, o.id LIMIT ?",
        (relay, now, _listed(besides), now, limit),
    )
    return [Delivery(**{name: row[name] for name in row.keys()}) for row in rows]  # noqa: SIM118


def next_due(source: Store | Tx, relay: str, now: float | None = None, besides: Collection[str] = ()) -> float | None:
    """When (wall time) the next delivery to ``relay`` is due; in the past if it is already; ``None`` if none waits."""
    now = source.clock.now() if now is None else now
    row = source.one(f"SELECT d.next_at{_WAITING} ORDER BY d.next_at LIMIT 1", (relay, now, _listed(besides)))
    return None if row is None else row["next_at"]


def acknowledge(tx: Tx, event_id: str, relay: str, accepted: bool, message: str, at: float) -> tuple[str, str] | None:
    """The relay has answered (NIP-01 OK). Returns the event's (effect, subject) if that settles this delivery now.

    ``None``: it is retried later, was settled before, or was never ours. An acceptance counts even after the delivery
    was cancelled, refused or had expired: the relay has the event. Touches ``delivered`` where it settles.
    """
    row = tx.one(
        "SELECT d.state, o.effect, o.subject FROM deliveries d JOIN outbox o ON o.event_id = d.event_id"
        " WHERE d.event_id = ? AND d.relay = ?",
        (event_id, relay),
    )
    if row is None:
        return None
    # A relay that refuses a duplicate has the event.
    accepted = accepted or message.startswith("duplicate:")
    state = DeliveryState(row["state"])
    if state is DeliveryState.ACCEPTED or (state is not DeliveryState.PENDING and not accepted):
        return None
    if not accepted and message.startswith(RETRIED):
        postpone(tx, event_id, relay, message, at)
        return None
    tx.execute(
        "UPDATE deliveries SET state = ?, attempts = attempts + 1, message = ?, done_at = ?"
        " WHERE event_id = ? AND relay = ?",
        ("accepted" if accepted else "refused", _clean(message), at, event_id, relay),
    )
    tx.touch("delivered")
    return row["effect"], row["subject"]


def postpone(tx: Tx, event_id: str, relay: str, message: str, at: float) -> None:
    """An attempt that came to nothing: no answer, no connection, or a refusal that may pass."""
    row = tx.one("SELECT attempts FROM deliveries WHERE event_id = ? AND relay = ?", (event_id, relay))
    attempts = 1 if row is None else row["attempts"] + 1
    tx.execute(
        "UPDATE deliveries SET attempts = ?, next_at = ?, message = ?"
        " WHERE event_id = ? AND relay = ? AND state = 'pending'",
        (attempts, at + backoff(attempts), _clean(message), event_id, relay),
    )


def hurry(tx: Tx, relay: str, at: float) -> int:
    """Make all that waits for ``relay`` due at once: it is connected again, or has authenticated us.

    As due as it was when it was queued: so it goes out in that order.
    """
    done = tx.execute(
        "UPDATE deliveries SET next_at = MIN(?1,"
        " (SELECT queued_at FROM outbox o WHERE o.event_id = deliveries.event_id))"
        " WHERE relay = ?2 AND state = 'pending' AND next_at > ?1",
        (at, relay),
    )
    if done.rowcount:
        tx.touch(f"outbox:{relay}")
    return done.rowcount


def cancel(tx: Tx, event_id: str, at: float) -> int:
    """Send this event to no further relay; returns how many deliveries were pending."""
    return _finish(tx, "cancelled", at, "event_id = :event_id", {"event_id": event_id})


def withdraw(tx: Tx, address: str, after: float) -> list[str]:
    """Forget the versions of an address that are dated later than ``after``, as if they had never been written.

    Returns their ids: what a relay has of them is for the caller to have deleted (NIP-09).
    """
    rows = tx.all("SELECT event_id FROM outbox WHERE address = ? AND created_at > ? ORDER BY id", (address, after))
    for row in rows:
        tx.execute("DELETE FROM outbox WHERE event_id = ?", (row["event_id"],))
    return [row["event_id"] for row in rows]


def expire(tx: Tx, at: float) -> int:
    """Give up what is past its end; returns how many deliveries. ``due`` leaves them out in any case."""
    return _finish(tx, "expired", at, "event_id IN (SELECT event_id FROM outbox WHERE expires_at <= :at)", {})


def prune(tx: Tx, before: float, limit: int = -1) -> int:
    """Forget events whose deliveries were all settled before this time, at most ``limit``; returns how many.

    The newest version of each address stays, so that ``last_created_at`` never goes back.
    """
    done = tx.execute(
        "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE queued_at < ?1"
        " AND NOT EXISTS (SELECT 1 FROM deliveries d"
        " WHERE d.event_id = outbox.event_id AND (d.state = 'pending' OR d.done_at >= ?1))"
        " AND (address IS NULL OR EXISTS (SELECT 1 FROM outbox n WHERE n.address = outbox.address"
        " AND (n.created_at > outbox.created_at"
        " OR (n.created_at = outbox.created_at AND n.event_id < outbox.event_id)))) LIMIT ?2)",
        (before, limit),
    )
    return done.rowcount


def last_created_at(source: Reads, address: str) -> int:
    """``created_at`` of the newest version of an address, 0 if there was none. The next one must be greater."""
    row = source.one("SELECT MAX(created_at) AS at FROM outbox WHERE address = ?", (address,))
    return 0 if row is None or row["at"] is None else int(row["at"])


def newest(source: Reads, address: str) -> Event | None:
    """The newest version of an address that was written here, if it is still remembered."""
    row = source.one(
        "SELECT event FROM outbox WHERE address = ? ORDER BY created_at DESC, event_id LIMIT 1", (address,)
    )
    return None if row is None else Event.from_json(row["event"])


def wrote(source: Reads, event_id: str) -> bool:
    """Whether an event is one of ours; of those that were pruned, only the newest of each address are known."""
    return source.one("SELECT 1 FROM outbox WHERE event_id = ?", (event_id,)) is not None


def pending_count(source: Reads, relay: str | None = None) -> int:
    """Deliveries that wait: for one relay, or for all."""
    condition, params = ("", ()) if relay is None else (" AND relay = ?", (relay,))
    row = source.one(f"SELECT COUNT(*) AS n FROM deliveries WHERE state = 'pending'{condition}", params)
    return 0 if row is None else int(row["n"])


def relays_waited_for(source: Reads) -> list[str]:
    """Relays that something waits for."""
    return [row["relay"] for row in source.read("SELECT DISTINCT relay FROM deliveries WHERE state = 'pending'")]


def progress(source: Reads, event_id: str) -> dict[str, DeliveryStatus]:
    """How far an event has come, by relay."""
    rows = source.read(
        "SELECT relay, state, attempts, message FROM deliveries WHERE event_id = ? ORDER BY relay", (event_id,)
    )
    return {row["relay"]: DeliveryStatus(DeliveryState(row["state"]), row["attempts"], row["message"]) for row in rows}


def _end(event: Event, at: float, expires_at: float | None) -> float | None:
    ends = [end for end in (expires_at, expiration(event)) if end is not None]
    if kind_class(event.kind) is KindClass.EPHEMERAL:
        ends.append(at + EPHEMERAL_SECONDS)
    return float(min(*ends, _LAST_SECOND)) if ends else None


def _supersede(tx: Tx, address: str, event_id: str, at: float) -> bool:
    """Cancel what waits of every version of ``address`` but the newest (NIP-01: of equal ones the lowest id).

    True if ``event_id`` is the newest.
    """
    newest = tx.one(
        "SELECT event_id FROM outbox WHERE address = ? ORDER BY created_at DESC, event_id LIMIT 1", (address,)
    )
    assert newest is not None, "the event itself was written before"
    _finish(
        tx,
        "cancelled",
        at,
        "event_id IN (SELECT event_id FROM outbox WHERE address = :address) AND event_id <> :newest",
        {"address": address, "newest": newest["event_id"]},
    )
    return bool(newest["event_id"] == event_id)


def _finish(tx: Tx, state: str, at: float, condition: str, params: dict[str, object]) -> int:
    """Settle pending deliveries without an answer."""
    done = tx.execute(
        f"UPDATE deliveries SET state = :state, done_at = :at WHERE state = 'pending' AND {condition}",
        {"state": state, "at": at, **params},
    )
    if done.rowcount:
        tx.touch("delivered")
    return done.rowcount


def _listed(event_ids: Collection[str]) -> str:
    return orjson.dumps(list(event_ids)).decode()


def _clean(message: str) -> str:
    """A relay's words are a stranger's: cut, and with nothing in them that SQLite cannot keep."""
    return message[:_LONGEST_MESSAGE].encode("utf-8", "replace").decode("utf-8")
