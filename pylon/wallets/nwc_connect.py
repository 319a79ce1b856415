"""Make a connection: the keys of both ends, its row, and the string that is shown once."""

from __future__ import annotations

from collections.abc import Sequence

from protocols.keys import SecretKey
from protocols.nip47 import ConnectionUri
from pylon.errors import UsageError
from pylon.money import Msat
from pylon.store import wallet_connections as connections
from pylon.store.database import Store, Tx
from pylon.store.wallet_connections import Connection

LONGEST_NAME = 64
MOST_CONNECTIONS = 100
"""Open at once: each is two filters' worth of keys at every relay."""


async def connect(
    store: Store,
    *,
    name: str,
    relays: Sequence[str],
    per_day: Msat,
    each: Msat | None = None,
    expires_at: float | None = None,
    at: float,
) -> tuple[Connection, ConnectionUri]:
    """A new connection, and what to hand out. The client's secret is in the string alone: nothing here keeps it.

    Raises ``UsageError`` for a name that is taken or none.
    """
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise UsageError(f"a connection's name has 1 to {LONGEST_NAME} printable characters")
    service, client = SecretKey.generate(), SecretKey.generate()
    uri = ConnectionUri(service.public, tuple(relays), client)

    def write(tx: Tx) -> Connection:
        open_ones = [c for c in connections.known(tx, closed_since=at) if c.closed_at is None]
        if len(open_ones) >= MOST_CONNECTIONS:
            raise UsageError(f"there are {MOST_CONNECTIONS} wallet connections already", "pylon wallet connections")
        return connections.add(
            tx,
            client=client.public.hex,
            service=service,
            name=name,
            relays=uri.relays,
            per_day=per_day,
            each=each,
            at=at,
            expires_at=expires_at,
        )

    return await store.write(write), uri
