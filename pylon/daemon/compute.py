"""What this home can think with: its backends, services elsewhere, and who sells on its relays.

Local backends are those of this machine and its network; *cloud* is an OpenAI-compatible service elsewhere; the *swarm*
are the providers of the market. The swarm is asked for only if wanted, and what nobody has asked is ``None``.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from pylon.clock import SystemClock
from pylon.compute import swarm
from pylon.compute.experience import gather
from pylon.compute.ranking import Experience
from pylon.config import Config
from pylon.daemon.control import Method, Notify
from pylon.inference.backends import EMBEDDED, IN_PROCESS, Found, find_backends
from pylon.inference.http import is_loopback, parse_url
from pylon.inference.router import Standing
from pylon.provider.earnings import earnings
from pylon.relays.pool import RelayPool
from pylon.relays.websocket import connect

if TYPE_CHECKING:
    from pylon.daemon.runtime import Runtime

_PATIENCE = 4.0
"""Seconds for a backend to say what it serves, where nobody has asked it before."""
SWARM_SECONDS = 4.0
"""For the relays, from connecting to the last answer."""


@attrs.frozen
class ComputeVerbs:
    """Of ``runtime``, if it sells anything: the backends that answer there. Else they are looked for."""

    config: Config
    runtime: Runtime | None = None

    def table(self) -> dict[str, Method]:
        return {"compute": self.compute}

    async def compute(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """``local_backends`` and ``cloud_providers`` by preference; what was looked for and is not there has
        ``available`` false. ``swarm``: ``swarm_providers`` as well, those who are alive first, then the cheapest.
        """
        runtime, wanted = self.runtime, params.get("swarm") is True
        if runtime is None:
            return await survey(self.config, wanted)
        told: dict[str, Any] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_put, told, _swarm(self.config, runtime.pool if wanted else None, runtime))
            if runtime.provider is not None:
                standings = await runtime.provider.router.standings(everyone=True)
                report = _report(self.config, standings)
            else:
                report = await _backends(self.config)
        return report | told | {"pylon": {"running": True, "status": _status(runtime)}}


async def survey(config: Config, wanted: bool = False) -> dict[str, Any]:
    """Look for the backends of ``config`` without starting any, and if ``wanted`` for the swarm.

    Raises ``ConfigError``, ``ModelMissing``.
    """
    told: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_put, told, _ask_relays(config) if wanted else _swarm(config, None))
        report = await _backends(config)
    return report | told


async def _put(told: dict[str, Any], found: Awaitable[dict[str, Any]]) -> None:
    told |= await found


async def _backends(config: Config) -> dict[str, Any]:
    found = await find_backends(config)
    try:
        return _report(config, await found.router.standings(_PATIENCE, everyone=True), found=found)
    finally:
        await found.router.aclose()


async def _ask_relays(config: Config) -> dict[str, Any]:
    """Of the relays where a daemon would ask; nobody signs anything for it."""
    from pylon.daemon.hosting import usual_relays

    pool = RelayPool(usual_relays(config), connect=connect, clock=SystemClock(), rng=random.Random())
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        told = await _swarm(config, pool)
        nursery.cancel_scope.cancel()
    return told


async def _swarm(config: Config, pool: RelayPool | None, runtime: Runtime | None = None) -> dict[str, Any]:
    if pool is None:
        return {"swarm_providers": None, "swarm_relays": None}
    clock = SystemClock() if runtime is None else runtime.clock
    found = await swarm.look(pool, clock, seconds=SWARM_SECONDS)
    own = None if runtime is None else runtime.identity.pubkey
    known = None if runtime is None else gather(runtime.store, "", clock.now())
    return {
        "swarm_providers": [_seller(seller, config.network, own, known) for seller in found.sellers],
        "swarm_relays": [{"url": url, "connected": connected} for url, connected in found.relays.items()],
    }


def _seller(seller: swarm.Seller, network: str, own: str | None, known: Experience | None) -> dict[str, Any]:
    """``payable``: whether it is paid on this home's network, as far as it says. ``own``, ``owes_msats``, ``observed``:
    ``None`` is not known. ``price_in_msats`` and ``price_out_msats`` are of 1,000 tokens.
    """
    said = seller.announcement
    standing = None if known is None else known.standings.get(said.provider)
    return {
        "name": said.name,
        "npub": seller.npub,
        "pubkey": said.provider,
        "models": list(said.models),
        "price_msats": said.price_msats,
        "price_in_msats": said.price_in_msats,
        "price_out_msats": said.price_out_msats,
        "network": said.network,
        "payable": said.network in ("", network),
        "announced_at": said.created_at,
        "last_heard_at": seller.last_heard,
        "health": seller.pulse.value,
        "own": None if own is None else said.provider == own,
        "owes_msats": None if known is None else known.debts.get(said.provider, 0),
        "observed": None
        if known is None or standing is None
        else {
            "reliability": round(standing.reliability, 3),
            "seconds": round(standing.latency, 3),
            "rests": standing.rests(known.now),
            "distrusted": said.provider in known.distrusted,
        },
    }


def _status(runtime: Runtime) -> dict[str, Any]:
    return {
        "uptime_secs": int(runtime.clock.now() - runtime.started_at),
        "jobs_completed": earnings(runtime.store, runtime.clock.now()).jobs,
        "provider_active": runtime.provider is not None,
        "host_active": runtime.host is not None,
    }


def _report(config: Config, standings: list[Standing], *, found: Found | None = None) -> dict[str, Any]:
    rows = [_row(standing) for standing in standings]
    if found is not None and found.engine is not None:
        for row in rows:
            if row["endpoint"] in (EMBEDDED, IN_PROCESS):
                row |= {"available": True, "detail": "starts with the daemon: pylon start"}
    wanted = config.default_model
    cloud = [row for row, standing in zip(rows, standings, strict=True) if _is_elsewhere(standing)]
    names = {model for row in rows if row["available"] for model in row["models"]}
    first = next((row["models"][0] for row in rows if row["available"] and row["models"]), None)
    return {
        "pylon": {"running": False, "status": None},
        "network": config.network,
        "local_backends": [row for row in rows if row not in cloud],
        "cloud_providers": cloud,
        "default_model": wanted,
        "default_model_used": next((name for name in (wanted, f"{wanted}:latest") if name in names), first),
        "embedded_missing": None
        if found is None or found.engine_missing is None
        else {"message": found.engine_missing.message, "hint": found.engine_missing.hint},
    }


def _is_elsewhere(standing: Standing) -> bool:
    """Whether it is somebody else's service, as far as one can see."""
    place = standing.place
    return place.kind == "openai" and not is_loopback(parse_url(place.backend.name, place.address).host)


def _row(standing: Standing) -> dict[str, Any]:
    return {
        "name": standing.name,
        "kind": standing.place.kind,
        "available": standing.health.ok,
        "detail": standing.health.detail,
        "endpoint": standing.place.address,
        "models": [model.id for model in standing.models],
        "context_lengths": {
            model.id: model.context_length for model in standing.models if model.context_length is not None
        },
        "active": standing.active,
        "waiting": standing.waiting,
        "max_concurrent": standing.place.most,
    }
