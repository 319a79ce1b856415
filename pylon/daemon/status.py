"""``status``: what the daemon says of itself, in time, whatever else hangs.

Each part that may have to wait gets a deadline; one that misses it is named in ``incomplete``, and what it would have
told is null or empty. Amounts are ``*_msats``, times Unix seconds; unknown is null, never zero.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import attrs
import trio

from pylon import __version__
from pylon.daemon.agents import AgentVerbs
from pylon.daemon.control import to_nobody
from pylon.daemon.runtime import Runtime
from pylon.daemon.wallet_verbs import WalletGuard
from pylon.errors import PylonError, brief
from pylon.host import registry
from pylon.provider.earnings import Earnings, earnings
from pylon.provider.sale import SALE
from pylon.supervision import ChildState, ChildStatus

T = TypeVar("T")

STATUS_AGENTS = 100
"""Agents that ``status`` tells of, one by one; of the others it tells how many there are."""
PATIENCE = 0.8
"""Seconds for a part. ``pylon status`` waits for two."""


async def report(runtime: Runtime, agents: AgentVerbs | None) -> dict[str, Any]:
    """The whole of it."""
    parts = _Parts()

    async def balance() -> Any:
        # Whoever asks for the status does not wait for the internet: what is known, and since when.
        return None if runtime.wallets is None else await runtime.wallets.known()

    async def backends() -> Any:
        return [] if runtime.provider is None else await runtime.provider.router.standings(PATIENCE / 2)

    async def everybody() -> Any:
        return {} if agents is None else await agents.list({"limit": STATUS_AGENTS}, to_nobody)

    async with trio.open_nursery() as nursery:
        for name, ask in (("wallet", balance), ("backends", backends), ("agents", everybody)):
            nursery.start_soon(parts.fill, name, ask)
    held, standings, hosted = parts.got("wallet"), parts.got("backends") or [], parts.got("agents") or {}
    found: Earnings | None = parts.read("stats", lambda: earnings(runtime.store, runtime.clock.now()))
    selling = None if found is None else parts.read("provider", lambda: _provider(runtime, found, standings))
    listed = hosted.get("agents", [])
    children = [_child(child) for child in runtime.supervisor.statuses()]
    return {
        "daemon": {
            "running": True,
            "pid": os.getpid(),
            "uptime_secs": int(runtime.clock.now() - runtime.started_at),
            "provider_active": runtime.provider is not None,
            "host_active": runtime.host is not None,
            "provider_off": runtime.provider_off,
            "mode": runtime.mode,
            "version": __version__,
        },
        "network": runtime.config.network,
        "npub": runtime.identity.npub,
        "stats": {
            "jobs_completed": None if found is None else found.jobs,
            "earnings_msats": None if found is None else found.total,
        },
        "provider": selling,
        "backends": [{"name": b.name, "ok": b.health.ok, "detail": b.health.detail} for b in standings],
        "default_backend": next((b.name for b in standings if b.health.ok), standings[0].name if standings else None),
        "relays": [attrs.asdict(status) for status in runtime.pool.statuses()],
        "agents": listed,
        "agent_states": hosted.get("states", {}),
        "api": None if runtime.api is None else f"http://{runtime.api}",
        "wallet": {
            "settled_msats": None if held is None else held.settled,
            "pending_msats": None if held is None else held.pending_out,
            "known_at": None if held is None else held.known_at,
            **(parts.read("guard", WalletGuard(runtime.store, runtime.clock).summary) or {}),
        },
        "database": {"damaged": "" if runtime.store.damaged is None else runtime.store.damaged.message},
        "children": children,
        "quarantined": parts.read("quarantined", lambda: _quarantined(runtime, children)) or [],
        "incomplete": parts.incomplete,
    }


class _Parts:
    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self.incomplete: dict[str, str] = {}
        """Part -> why it is not told."""

    async def fill(self, name: str, ask: Callable[[], Awaitable[Any]]) -> None:
        with trio.move_on_after(PATIENCE) as scope:
            try:
                self._values[name] = await ask()
            except Exception as error:
                self.incomplete[name] = brief(error)
        if scope.cancelled_caught:
            self.incomplete[name] = f"no answer within {PATIENCE:g} s"

    def read(self, name: str, ask: Callable[[], T]) -> T | None:
        """What the database knows; ``None`` where it cannot be read."""
        try:
            return ask()
        except PylonError as error:
            self.incomplete[name] = brief(error)
            return None

    def got(self, name: str) -> Any:
        return self._values.get(name)


def _provider(runtime: Runtime, found: Earnings, standings: list[Any]) -> dict[str, Any] | None:
    """What is sold, and how much of it is under way; ``None`` where nothing is."""
    if runtime.provider is None:
        return None
    closed = "" if runtime.guard is None else runtime.guard.reason
    terms = runtime.provider.terms
    final = [state.value for state in SALE.final]
    rows = runtime.store.read(
        f"SELECT state, COUNT(*) AS n FROM sales WHERE state NOT IN ({','.join('?' * len(final))}) GROUP BY state",
        final,
    )
    return {
        "closed": closed,
        "price_msats": terms.price if terms.payments else 0,
        "open": {row["state"]: row["n"] for row in rows},
        "running": sum(each.active for each in standings),
        "waiting": sum(each.waiting for each in standings),
        "slots": runtime.provider.router.slots,
        "jobs_completed": found.jobs,
        "earned_today_msats": found.today,
        "earned_week_msats": found.week,
        "earned_msats": found.total,
        "owed_msats": found.owed,
        "unearned_msats": found.unearned,
    }


def _child(child: ChildStatus) -> dict[str, Any]:
    return {"name": child.name, "state": child.state, "starts": child.starts, "last_error": child.last_error}


def _quarantined(runtime: Runtime, children: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is not started again by itself, of the daemon and of all its agents, told of one by one or not."""
    told = [
        {"agent": None, "name": child["name"], "last_error": child["last_error"]}
        for child in children
        if child["state"] == ChildState.QUARANTINED
    ]
    for agent, part in [] if runtime.host is None else runtime.host.quarantined()[:STATUS_AGENTS]:
        name = registry.load(runtime.store, agent).name or agent[:16]
        told.append({"agent": name, "name": part.name, "last_error": part.last_error})
    return told
