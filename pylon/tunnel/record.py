"""What became of the tunnel's sessions, in the home's database: written before it takes effect.

A decision is committed before Claude hears of it, and a turn is marked as begun before its prompt is sent, or, where
Claude begins it, before anything of it is passed on: a session whose last turn nobody has seen the end of has cost what
is known, *at least*.
"""

from __future__ import annotations

import secrets
from typing import Any

import attrs

from pylon.store.database import Store, Tx
from pylon.tunnel.policy import Rules

KEPT_DAYS = 90
"""Sessions that ended longer ago are forgotten."""
_DIED = "pylon ended without a word"
_MAX_TEXT = 20_000
"""Characters that are kept of what was asked."""


@attrs.frozen(kw_only=True)
class Act:
    at: float
    kind: str
    """``prompt``, ``allowed`` (by the rules), ``approved`` and ``denied`` (by a person), ``refused`` (by the rules),
    ``timed_out``, ``withdrawn``, or ``turn``: the end of one."""
    tool: str
    text: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class SessionRow:
    id: str
    name: str
    server: str
    model: str
    autonomy: str
    cwd: str
    max_cost_usd: int | None
    cost_usd: int
    """Millionths of a dollar."""
    unsettled: bool
    """It has cost that at least: a turn's cost is not known."""
    turns: int
    started_at: float
    ended_at: float | None
    reason: str
    counts: dict[str, int]
    """How many acts of each kind."""


class Record:
    """The record of one session. ``open_record`` begins it."""

    def __init__(self, store: Store, session: str) -> None:
        self._store = store
        self._session = session
        self._count = 0

    async def act(self, kind: str, *, tool: str = "", text: str = "") -> None:
        """Note an act. Raises ``StoreError``: then it must not happen."""
        self._count += 1
        number, at = self._count, self._store.clock.now()

        def write(tx: Tx) -> None:
            _note(tx, self._session, number, at, kind, tool, text)
            if kind == "prompt":
                _unsettle(tx, self._session)

        await self._store.write(write)

    async def turn_begun(self) -> None:
        """Without a prompt: by Claude itself. Raises ``StoreError``."""
        await self._store.write(lambda tx: _unsettle(tx, self._session))

    async def turn(self, cost_usd: int, *, known: bool, outcome: str) -> None:
        """A turn has ended; ``cost_usd`` is the session's."""
        self._count += 1
        number, at = self._count, self._store.clock.now()

        def write(tx: Tx) -> None:
            _note(tx, self._session, number, at, "turn", "", outcome)
            tx.execute(
                "UPDATE tunnel_sessions SET turns = turns + 1, cost_usd = ?, unsettled = ? WHERE id = ?",
                (cost_usd, not known, self._session),
            )

        await self._store.write(write)

    async def end(self, reason: str, *, unsettled: bool = False) -> None:
        """``unsettled``: in the middle of a turn."""
        at = self._store.clock.now()
        await self._store.write(
            lambda tx: tx.execute(
                "UPDATE tunnel_sessions SET ended_at = ?, reason = ?, unsettled = unsettled OR ?"
                " WHERE id = ? AND ended_at IS NULL",
                (at, reason[:500], unsettled, self._session),
            )
        )


async def open_record(store: Store, *, name: str, server: str, rules: Rules) -> Record:
    """Begin a session's record. Raises ``StoreError``: then it must not begin."""
    session, at = secrets.token_hex(16), store.clock.now()

    def write(tx: Tx) -> None:
        tx.execute(
            "INSERT INTO tunnel_sessions (id, name, server, model, autonomy, cwd, max_cost_usd, started_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                session,
                name,
                server,
                rules.model,
                rules.autonomy,
                tx.vault.seal(str(rules.cwd), f"tunnel_sessions.cwd:{session}"),
                rules.max_cost_usd,
                at,
            ),
        )

    await store.write(write)
    return Record(store, session)


async def tidy(store: Store) -> None:
    """For whoever is alone with the home's sessions: end what a dead process has left open, forget what is old."""
    at = store.clock.now()

    def write(tx: Tx) -> None:
        tx.execute("UPDATE tunnel_sessions SET ended_at = ?, reason = ? WHERE ended_at IS NULL", (at, _DIED))
        tx.execute("DELETE FROM tunnel_sessions WHERE ended_at < ?", (at - KEPT_DAYS * 86_400,))

    await store.write(write)


def spent(store: Store, since: float) -> int:
    """What the sessions that have ended since then have cost, in millionths of a dollar.

    One whose cost was not told to the end counts with its cap.
    """
    row = store.one(
        "SELECT COALESCE(SUM(CASE WHEN unsettled THEN MAX(cost_usd, COALESCE(max_cost_usd, 0)) ELSE cost_usd END), 0)"
        " AS total FROM tunnel_sessions WHERE ended_at >= ?",
        (since,),
    )
    assert row is not None
    return int(row["total"])


def sessions(store: Store, limit: int = 20) -> list[SessionRow]:
    """The newest first."""
    rows = store.read("SELECT * FROM tunnel_sessions ORDER BY started_at DESC, id LIMIT ?", (limit,))
    return [_row(store, row) for row in rows]


def named(store: Store, beginning: str) -> list[SessionRow]:
    """Those whose id, ours or the page's, begins so; at most two. One whose id is that whole is the one."""
    rows = store.read(
        "SELECT * FROM tunnel_sessions WHERE substr(id, 1, ?1) = ?2 OR substr(name, 1, ?1) = ?2"
        " ORDER BY (id = ?2 OR name = ?2) DESC, started_at DESC LIMIT 2",
        (len(beginning), beginning),
    )
    if (
        len(rows) == 2
        and beginning in (rows[0]["id"], rows[0]["name"])
        and beginning not in (rows[1]["id"], rows[1]["name"])
    ):
        rows = rows[:1]
    return [_row(store, row) for row in rows]


def acts(store: Store, session: str) -> list[Act]:
    """All of one session, in order."""
    rows = store.read("SELECT * FROM tunnel_acts WHERE session = ? ORDER BY n", (session,))
    return [
        Act(
            at=row["at"],
            kind=row["kind"],
            tool=row["tool"],
            text="" if row["text"] is None else store.vault.open(row["text"], _place(session, row["n"])),
        )
        for row in rows
    ]


def _row(store: Store, row: Any) -> SessionRow:
    counted = store.read("SELECT kind, COUNT(*) AS n FROM tunnel_acts WHERE session = ? GROUP BY kind", (row["id"],))
    told = {field.name: row[field.name] for field in attrs.fields(SessionRow) if field.name in row.keys()}  # noqa: SIM118
    told["unsettled"] = bool(row["unsettled"])
    told["cwd"] = store.vault.open(row["cwd"], f"tunnel_sessions.cwd:{row['id']}")
    return SessionRow(**told, counts={entry["kind"]: entry["n"] for entry in counted})


def _unsettle(tx: Tx, session: str) -> None:
    tx.execute("UPDATE tunnel_sessions SET unsettled = 1 WHERE id = ?", (session,))


def _note(tx: Tx, session: str, number: int, at: float, kind: str, tool: str, text: str) -> None:
    if len(text) > _MAX_TEXT:
        text = f"{text[:_MAX_TEXT]} [{len(text) - _MAX_TEXT} more characters]"
    sealed = tx.vault.seal(text, _place(session, number)) if text else None
    tx.execute(
        "INSERT INTO tunnel_acts (session, n, at, kind, tool, text) VALUES (?, ?, ?, ?, ?, ?)",
        (session, number, at, kind, tool, sealed),
    )


def _place(session: str, number: int) -> str:
    return f"tunnel_acts.text:{session}:{number}"
