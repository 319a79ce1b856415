"""How an agent gets an invoice for a zap: whom it zaps says in a profile where sats go, and that service is asked.

Profiles are strangers' words: of what they name only a lightning address is taken, and ``pylon.host.zaps`` looks at
where it leads before anything connects there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from protocols.keys import SecretKey
from protocols.lnurl import LnurlInvalid
from protocols.nip01 import Event, Filter
from protocols.nip_sa import PROFILE
from pylon.clock import Clock
from pylon.host.fetch import open_client
from pylon.host.publishing import METADATA
from pylon.host.registry import Agent
from pylon.host.zaps import resolve
from pylon.money import Msat
from pylon.relays.pool import RelayPool

if TYPE_CHECKING:
    import httpx

_PROFILE_SECONDS = 5.0


class Zapper:
    """See the module: ``pylon.host.deeds.ZapInvoice``.

    :param allow_local: let an address that names the loopback lead there: for simnet.
    """

    def __init__(
        self,
        pool: RelayPool | None,
        clock: Clock,
        *,
        network_prefix: str,
        allow_local: bool,
        relays: Callable[[Agent], Sequence[str]],
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._prefix = network_prefix
        self._allow_local = allow_local
        self._relays = relays
        self._client: httpx.AsyncClient | None = None

    async def __call__(
        self, agent: Agent, secret: SecretKey, to: str, amount: Msat, comment: str, note: Event | None
    ) -> str:
        """Raises ``LnurlInvalid``, ``WalletError``."""
        address = await self._address(to)
        if self._client is None:
            # One for all: making it reads the certificates of the machine, which keeps the loop for 50 ms.
            self._client = open_client()
        invoice, _ = await resolve(
            address,
            amount_msats=amount,
            request_for=to,
            secret=secret,
            relays=self._relays(agent),
            comment=comment,
            event=note,
            network_prefix=self._prefix,
            allow_local=self._allow_local,
            client=self._client,
            clock=self._clock,
        )
        return invoice

    async def _address(self, to: str) -> str:
        """Where somebody's sats go, by the newest profile that says so."""
        if self._pool is None:
            raise LnurlInvalid("no relay is asked for the profile: nothing runs here")
        wanted = Filter(authors=[to], kinds=[METADATA, PROFILE])
        for event in await self._pool.fetch([wanted], timeout=_PROFILE_SECONDS):
            address = event.tag("lud16") if event.kind == PROFILE else _named(event.content)
            if address:
                return address
        raise LnurlInvalid("the profile names no lightning address")


def _named(content: str) -> str | None:
    try:
        value: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    found = value.get("lud16") or value.get("lud06") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None
