"""One job of this machine by its id, and the end of one that is no longer wanted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import attrs
import trio

from protocols.json_schema import SchemaInvalid, read_schema
from protocols.nip90 import MAX_PARAM_CHARS
from pylon.compute.buyer import Buyer
from pylon.compute.purchase import PURCHASE, Purchase, PurchaseEffect, PurchaseState
from pylon.compute.purchases import purchase_records
from pylon.daemon.control import Notify
from pylon.errors import AlreadyPaid, MarketError, NotFound, UsageError
from pylon.money import format_msat
from pylon.store.database import Store

CANCELLED = "cancelled by its owner"
_TELL_SECONDS = 5.0
"""How long a command without a daemon waits for a relay to take the cancellation; a daemon sends it later."""
_TOLD = f"purchase.{PurchaseEffect.PUBLISH_CANCELLATION.value}"


BEGINS = "{0} >= ?1 AND {0} < ?1 || 'g'"
"""As LIKE, for hex, by the index."""


def hex_prefix(value: object) -> str:
    """The beginning of an id, in lower case. Raises ``UsageError``."""
    if not isinstance(value, str):
        raise UsageError("id must be a text")
    wanted = value.lower()
    if len(wanted) < 4 or not set(wanted) <= set("0123456789abcdef"):
        raise UsageError(f"{wanted[:80]!r} is no job id", "an id is hex; its first 4 digits or more will do")
    return wanted


MOST_PARAMS = 32
_SAID_OTHERWISE = {
    "model": "--model",
    "max_tokens": "--max-tokens",
    "pay_on_delivery": "nothing: the wallets agree on it",
}
"""Parameters of a request that are said in another way."""


def read_params(value: object) -> tuple[tuple[str, str], ...]:
    """What else a request asks for (NIP-90 ``param`` tags): pairs of texts. Raises ``UsageError``."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or len(value) > MOST_PARAMS:
        raise UsageError(f"params must be a list of at most {MOST_PARAMS} pairs")
    read: dict[str, str] = {}
    for pair in value:
        match pair:
            case [str() as name, str() as text] if _is_param(name, text):
                pass
            case _:
                raise UsageError(
                    "a parameter is a name of 1 to 64 letters, digits, - _ or ., and a text of at most"
                    f" {MAX_PARAM_CHARS:,} characters",
                    "as in --param temperature=0.5",
                )
        if name in _SAID_OTHERWISE:
            raise UsageError(f"the parameter {name!r} is not said like this", f"use {_SAID_OTHERWISE[name]}")
        if name in read:
            raise UsageError(f"the parameter {name!r} is said twice", "say it once")
        if name == "json_schema":
            try:
                read_schema(text)
            except SchemaInvalid as error:
                raise UsageError(f"json_schema: {error}", "see docs/api.md") from None
        read[name] = text
    return tuple(read.items())


def _is_param(name: str, text: str) -> bool:
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) is None or len(text) > MAX_PARAM_CHARS:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_seconds(value: object, name: str) -> float:
    """A time to wait; ``None`` is for ever. Raises ``UsageError``."""
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UsageError(f"{name} must be a number of seconds")
    return float(value)


def listed(store: Store, params: Mapping[str, Any]) -> list[Purchase]:
    """Those that were submitted by hand, newest first. Raises ``UsageError``.

    ``limit``; ``agents``: the thoughts of agents too; ``states``, ``provider`` (hex), ``since`` (Unix seconds): only
    those.
    """
    limit, states = params.get("limit", 20), params.get("states")
    provider, since = params.get("provider"), params.get("since")
    if type(limit) is not int or not 1 <= limit <= 10_000:
        raise UsageError("limit must be a whole number from 1 to 10,000")
    where, values = ["1 = 1" if params.get("agents") is True else "owner = ''"], list[Any]()
    if states is not None:
        known = [state.value for state in PurchaseState]
        if not isinstance(states, list) or not states or not all(state in known for state in states):
            raise UsageError(f"states must be some of {', '.join(known)}")
        where.append(f"state IN ({','.join('?' * len(states))})")
        values += states
    if provider is not None:
        where.append("provider = ?")
        values.append(provider)
    if since is not None:
        where.append("created_at >= ?")
        values.append(read_seconds(since, "since"))
    condition = f"{' AND '.join(where)} ORDER BY created_at DESC LIMIT ?"
    return list(purchase_records(store).where(store, condition, (*values, limit)))


async def ended(store: Store, ident: str, seconds: float) -> None:
    """Wait for the end of a purchase, at most so long."""
    final = [state.value for state in PURCHASE.final]
    with store.listen(f"purchases:{ident}") as changed, trio.move_on_after(seconds):
        while True:
            row = store.one("SELECT state FROM purchases WHERE id = ?", (ident,))
            if row is None or row["state"] in final:
                return
            await changed.receive()


def find_purchase(store: Store, value: object) -> Purchase:
    """A purchase by its id, its request's id, or the beginning of either. Raises ``NotFound``, ``UsageError``."""
    wanted = hex_prefix(value)
    rows = store.read(
        f"SELECT id FROM purchases WHERE {BEGINS.format('id')} UNION SELECT purchase_id FROM purchase_requests"
        f" WHERE {BEGINS.format('request_id')} LIMIT 3",
        (wanted,),
    )
    if len(rows) > 1:
        raise NotFound(f"more than one job has an id that begins with {wanted}", "give more digits of it")
    if not rows:
        raise NotFound(f"no job has an id that begins with {wanted}", "pylon job list")
    record = purchase_records(store).load(store, rows[0]["id"])
    assert record is not None, "nothing deletes a purchase"
    return record


@attrs.frozen
class Cancelling:
    """The verb ``job.cancel``."""

    store: Store
    buyer: Buyer | None

    async def cancel(self, params: Mapping[str, Any], notify: Notify) -> Purchase:
        """Give up a job that is not being paid yet, or whose payment is held; one that has failed stays as it is.

        ``wait``: until a relay has taken the cancellation, for some seconds. Raises ``AlreadyPaid`` where money is on
        its way or gone, ``MarketError`` for a job that was answered for nothing.
        """
        record = find_purchase(self.store, params.get("id"))
        if record.state is not PurchaseState.FAILED:
            if self.buyer is None:
                raise UsageError("this daemon does not buy", "start it with -m host or -m both")
            await self.buyer.give_up(record.id, CANCELLED)
            record = find_purchase(self.store, record.id)
        _check_over(record)
        if params.get("wait") is True:
            with trio.move_on_after(_TELL_SECONDS):
                await self._told(record.id)
        return record

    async def _told(self, subject: str) -> None:
        with self.store.listen("delivered") as changed:
            while self._untold(subject):
                await changed.receive()

    def _untold(self, subject: str) -> bool:
        """Whether the cancellation waits for all of its relays."""
        row = self.store.one(
            "SELECT COUNT(*) AS n, SUM(d.state = 'pending') AS waiting FROM outbox o"
            " JOIN deliveries d ON d.event_id = o.event_id WHERE o.subject = ? AND o.effect = ?",
            (subject, _TOLD),
        )
        return row is not None and row["n"] > 0 and row["waiting"] == row["n"]


def _check_over(record: Purchase) -> None:
    """What can be said of a job that is not given up."""
    ident, hint = record.id[:16], f"pylon job status {record.id[:16]}"
    if record.state is PurchaseState.FAILED:
        return
    if record.state is PurchaseState.PAYING:
        if record.unwanted:
            return  # its provider was told, and lets go of what its invoice holds
        raise AlreadyPaid(f"job {ident} is being paid, and cannot be cancelled", hint)
    if record.paid:
        raise AlreadyPaid(f"job {ident} was paid with {format_msat(record.paid)}, and cannot be cancelled", hint)
    raise MarketError(f"job {ident} is {record.state.value}, and cannot be cancelled", hint)
