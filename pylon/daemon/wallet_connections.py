"""Letting others use the home's wallet: connections made, shown and closed. The service itself is in ``pylon.wallets``.

Parameters and results are JSON; amounts are ``*_msats``, ids hex, times Unix seconds. They need the store alone: what
is made while nothing runs is served by the next daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from pylon.clock import Clock
from pylon.config import Config
from pylon.config_values import relay_urls
from pylon.daemon.agent_params import text, whole
from pylon.daemon.control import Method, Notify
from pylon.daemon.hosting import usual_relays
from pylon.errors import UsageError
from pylon.money import MAX_MSAT, Msat
from pylon.store import wallet_connections as connections
from pylon.store.database import Store
from pylon.store.wallet_connections import DAY, Connection
from pylon.wallets.nwc_connect import connect

_LONGEST_SECONDS = 10 * 365 * 86_400
_MOST_RELAYS = 10


@attrs.frozen
class ConnectVerbs:
    config: Config
    store: Store
    clock: Clock
    relays: Callable[[], Sequence[str] | None] = lambda: None
    """Those of the pool, where something runs."""

    def table(self) -> dict[str, Method]:
        """The verbs by their names."""
        return {
            "wallet.connect": self.connect,
            "wallet.connections": self.connections,
            "wallet.disconnect": self.disconnect,
        }

    async def connect(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """A new connection. ``uri`` is its string, with its secret: told here, and never again."""
        per_day = _msats(params, "day_msats", least=0)
        each = None if params.get("each_msats") is None else _msats(params, "each_msats", least=1)
        seconds = params.get("expires_seconds")
        if seconds is not None and (type(seconds) is not int or not 0 < seconds <= _LONGEST_SECONDS):
            raise UsageError(f"expires_seconds must be a whole number from 1 to {_LONGEST_SECONDS}")
        now = self.clock.now()
        made, uri = await connect(
            self.store,
            name=text(params, "name").strip(),
            relays=self._relays(params.get("relays")),
            per_day=per_day,
            each=each,
            expires_at=None if seconds is None else now + seconds,
            at=now,
        )
        return {**self._view(made), "uri": uri.reveal()}

    async def connections(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """The open ones; ``closed``: those that were closed, too."""
        since = 0.0 if params.get("closed") is True else float("inf")
        found = connections.known(self.store, closed_since=since)
        return {"connections": [self._view(connection) for connection in found]}

    async def disconnect(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """Close a connection by its name. What it has under way is seen to its end."""
        name = text(params, "name").strip()
        return self._view(await self.store.write(lambda tx: connections.close(tx, name, self.clock.now())))

    def _relays(self, wanted: object) -> tuple[str, ...]:
        """Where the two ends meet: what was named, else the relays of the configuration, else those that we have."""
        if wanted:
            if not isinstance(wanted, list) or len(wanted) > _MOST_RELAYS:
                raise UsageError(f"relays must be a list of at most {_MOST_RELAYS}")
            return tuple(relay_urls(wanted))
        found = tuple(self.relays() or self.config.relays or usual_relays(self.config))
        found = tuple(url for url in found if not url.endswith(":0"))[:_MOST_RELAYS]
        if not found:
            raise UsageError("nobody knows yet where the wallet can be reached", "name a relay: --relay wss://...")
        return found

    def _view(self, connection: Connection) -> dict[str, Any]:
        now = self.clock.now()
        return {
            "name": connection.name,
            "client": connection.client,
            "service": connection.service,
            "relays": list(connection.relays),
            "open": connection.is_open(now),
            "day_msats": connection.per_day,
            "each_msats": connection.each,
            "spent_msats": connections.spent(self.store, connection.scope, now - DAY),
            "left_msats": connections.left(self.store, connection, now),
            "payments": connections.payments_made(self.store, connection),
            "created_at": connection.created_at,
            "expires_at": connection.expires_at,
            "closed_at": connection.closed_at,
        }


def _msats(params: Mapping[str, Any], name: str, *, least: int) -> Msat:
    return Msat(whole(params, name, least, MAX_MSAT))
