"""Looking at relays on behalf of a home: its own may learn whose home it is (NIP-42), others get a key of nobody.

The daemon has this as the verb ``relay.check``; a command does it by itself where no daemon runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from protocols.keys import SecretKey
from pylon.clock import Clock
from pylon.config_values import relay_urls
from pylon.daemon.control import Method, Notify
from pylon.errors import UsageError
from pylon.relays.probe import SECONDS, Probe, by_http, probe_all
from pylon.relays.websocket import connect

MOST = 50


async def look(urls: Iterable[str], *, known: Iterable[str], clock: Clock, identity: SecretKey | None) -> list[Probe]:
    """Each of ``urls``, within ``SECONDS`` together as far as they fit at once.

    :param known: the home's own relays, which may learn its ``identity``.
    """
    named, own = list(dict.fromkeys(urls)), set(known)
    stranger = SecretKey.generate()
    signer = {url: identity if identity is not None and url in own else stranger for url in named}
    if identity is None:
        signer = {url: key for url, key in signer.items() if url not in own}  # it says so where it is asked for
    return await probe_all(named, connect=connect, ask=by_http(clock), clock=clock, signer=signer, seconds=SECONDS)


def read_urls(value: object) -> list[str]:
    """Addresses that somebody has named. Raises ``UsageError``."""
    if not isinstance(value, list) or len(value) > MOST:
        raise UsageError(f"relays must be a list of at most {MOST}")
    return relay_urls(value)


@attrs.frozen
class RelayVerbs:
    """The verbs of a daemon."""

    clock: Clock
    identity: SecretKey
    urls: Any
    """``urls()``: the relays of the pool now."""

    def table(self) -> Mapping[str, Method]:
        return {"relay.check": self.check}

    async def check(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """Look at the relays that are named, else at all that the home has."""
        own = list(self.urls())
        named = read_urls(params["relays"]) if params.get("relays") else own
        found = await look(named, known=own, clock=self.clock, identity=self.identity)
        return {"relays": [probe.to_json() for probe in found]}
