"""What a pretended Spark network is made of: money on its way, invoices, accounts, and what goes wrong."""

from __future__ import annotations

import hashlib
from typing import Any

import attrs
import trio

SERVICE_SECRET = hashlib.sha256(b"the Lightning service of the pretended Spark").digest()
DNS = (
    'Operator RPC error: Transport error: Connection error: status: Unavailable, message: "dns error", details: [],'
    " metadata: MetadataMap { headers: {} }"
)


@attrs.define
class Fault:
    """What happens to the next payment of a wallet."""

    kind: str
    """``slow`` (not made before so long), ``delay`` (waited for), ``pend`` (comes back pending), ``fail``,
    ``no_route``, ``lost`` (made, and not told), ``silent`` (made, and the call never returns), ``dropped`` (not made,
    and not told)."""
    seconds: float = 0.0
    settles: bool = True


@attrs.define
class Transfer:
    """Money on its way from one wallet to another, or from outside."""

    id: str
    sender: str
    receiver: str
    sats: int
    fee: int
    at: float
    method: str
    state: str = "PENDING"
    bolt11: str = ""
    hash: str = ""
    preimage: str | None = None
    description: str | None = None
    expires_at: float = 0.0
    waits: bool = False
    """For the receiver's preimage."""
    claimed: bool = False
    """The receiver has taken it."""
    ended: trio.Event = attrs.field(factory=trio.Event)


@attrs.define
class Invoice:
    bolt11: str
    receiver: str
    sats: int
    hash: str
    preimage: str | None
    description: str
    paid_by: str = ""


@attrs.define
class Storage:
    """What a wallet has on disk."""

    balance: int = 0
    payments: dict[str, Any] = attrs.field(factory=dict)


@attrs.define
class Account:
    balance: int = 0
    """What the operators say it has."""
    private: bool = False
    faults: list[Fault] = attrs.field(factory=list)


def bitcoin_address(identity: str) -> str:
    """Where a wallet is sent coins: text that nobody else has, and no address of a real chain."""
    return "bcrt1p" + hashlib.sha256(identity.encode()).hexdigest()[:58]
