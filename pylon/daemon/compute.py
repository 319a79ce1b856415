"""What this home can think with: its backends, their health and their models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from pylon.config import Config
from pylon.daemon.control import Method, Notify
from pylon.inference.backends import Found, find_backends
from pylon.inference.router import Standing

if TYPE_CHECKING:
    from pylon.daemon.runtime import Runtime

_PATIENCE = 4.0
"""Seconds for a backend to say what it serves, where nobody has asked it before."""


@attrs.frozen
class ComputeVerbs:
    """Of ``runtime``, if it sells anything: the backends that answer there. Else they are looked for."""

    config: Config
    runtime: Runtime | None = None

    def table(self) -> dict[str, Method]:
        return {"compute": self.compute}

    async def compute(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """``local_backends``, by preference; what was looked for and is not there has ``available`` false."""
        if self.runtime is not None and self.runtime.provider is not None:
            return _report(self.config, await self.runtime.provider.router.standings(everyone=True))
        return await survey(self.config)


async def survey(config: Config) -> dict[str, Any]:
    """Look for the backends of ``config`` without starting any. Raises ``ConfigError``, ``ModelMissing``."""
    found = await find_backends(config)
    try:
        return _report(config, await found.router.standings(_PATIENCE, everyone=True), found=found)
    finally:
        await found.router.aclose()


def _report(config: Config, standings: list[Standing], *, found: Found | None = None) -> dict[str, Any]:
    rows = [_row(standing) for standing in standings]
    if found is not None and found.engine is not None:
        for row in rows:
            if row["endpoint"] == "embedded":
                row |= {"available": True, "detail": "starts with the daemon: pylon start"}
    wanted = config.default_model
    names = {model for row in rows if row["available"] for model in row["models"]}
    first = next((row["models"][0] for row in rows if row["available"] and row["models"]), None)
    return {
        "pylon": {"running": found is None},
        "local_backends": rows,
        "default_model": wanted,
        "default_model_used": next((name for name in (wanted, f"{wanted}:latest") if name in names), first),
        "embedded_missing": None
        if found is None or found.engine_missing is None
        else {"message": found.engine_missing.message, "hint": found.engine_missing.hint},
    }


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
