"""``pylon connect sessions``: the record of the Claude tunnel."""

from __future__ import annotations

from typing import Any

import click

from pylon.cli.output import State, emit, home_passphrase_option, json_option, pass_state


@click.command(short_help="What was asked, allowed, denied, and what it cost.")
@click.argument("session", required=False)
@click.option("-l", "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@home_passphrase_option
@json_option
@pass_state
def sessions(state: State, session: str | None, limit: int) -> None:
    """Show the tunnel's sessions, the newest first; or of one, all that was asked of it and decided.

    SESSION is its id here, or the page's, or the beginning of one. Costs are what Claude Code told, in dollars; with
    --json in millionths of a dollar.
    """
    import trio

    found = trio.run(_read, state, session, limit)
    if session is None:
        emit(state, {"sessions": found}, lambda: "\n".join(map(_line, found)) or "no session was ever begun")
    else:
        emit(state, found[0], lambda: _whole(found[0]))


async def _read(state: State, session: str | None, limit: int) -> list[dict[str, Any]]:
    import attrs

    from pylon.cli.unlock import unlock
    from pylon.clock import SystemClock
    from pylon.errors import NotFound, UsageError
    from pylon.store.database import open_store
    from pylon.tunnel import record

    keys = unlock(state)
    async with open_store(state.home.database, vault=keys.vault, clock=SystemClock()) as store:
        if session is None:
            return [attrs.asdict(row) for row in record.sessions(store, limit)]
        rows = record.named(store, session)
        if not rows:
            raise NotFound(f"no session has an id that begins with {session[:40]!r}", "pylon connect sessions")
        if len(rows) > 1:
            raise UsageError(f"more than one session has an id that begins with {session[:40]!r}", "give more of it")
        acts = [attrs.asdict(act) for act in record.acts(store, rows[0].id)]
        return [{**attrs.asdict(rows[0]), "acts": acts}]


def _line(row: dict[str, Any]) -> str:
    counts = row["counts"]
    told = [f"{counts[kind]} {kind.replace('_', ' ')}" for kind in _KINDS if counts.get(kind)]
    state = "runs" if row["ended_at"] is None else row["reason"]
    turns = f"{row['turns']} turn{'s' if row['turns'] != 1 else ''}"
    first = "  ".join(
        (row["id"][:8], _when(row["started_at"]), _cost(row), turns, row["model"], row["autonomy"].replace("_", "-"))
    )
    return f"{first}\n          {'; '.join([*told, state])}"


def _whole(row: dict[str, Any]) -> str:
    lines = [_line(row), f"          id {row['name']}, of {row['server']}, in {row['cwd']}"]
    for act in row["acts"]:
        what = " ".join(filter(None, (act["kind"].replace("_", " "), act["tool"])))
        lines.append(f"{_when(act['at'])}  {what}{': ' if act['text'] else ''}{act['text']}")
    return "\n".join(lines)


def _when(at: float) -> str:
    from pylon.cli.times import utc

    return utc(at, "%Y-%m-%d %H:%M:%S")


_KINDS = ("prompt", "allowed", "approved", "denied", "refused", "timed_out", "withdrawn")


def _cost(row: dict[str, Any]) -> str:
    from pylon.tunnel.session import dollars

    return f"{'at least ' if row['unsettled'] else ''}{dollars(row['cost_usd'])}"
