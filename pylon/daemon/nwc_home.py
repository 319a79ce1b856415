"""The home's own wallet by Nostr Wallet Connect: ``[wallet] kind = "nwc"``. Agents keep the network's own wallets.

The connection string is a secret: it comes from a file that only the user can read, or from the environment, and never
from a command line.
"""

from __future__ import annotations

import logging
import os
import random
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from protocols.nip47 import MAX_URI_CHARS, ConnectionUri, Nip47Invalid
from pylon.clock import Clock
from pylon.config import Config
from pylon.daemon.wallets import Wallets
from pylon.errors import ConfigError, PylonError
from pylon.files import NONBLOCK, others
from pylon.paths import Home
from pylon.relays.websocket import connect
from pylon.store.database import Store
from pylon.wallets.nwc import open_nwc
from pylon.wallets.port import Balance

log = logging.getLogger(__name__)

VARIABLE = "PYLON_NWC_URI"
_EVERY = 30.0
"""Seconds between two looks at the balance, for whoever must not wait for it."""
_NETWORKS = {"testnet": "regtest", "signet": "regtest"}
"""What Spark makes of these; a wallet of one's own may be on the network itself as well."""


def uri_file(home: Home, config: Config) -> Path:
    """Where the string is, if it is not in the environment."""
    return config.wallet.uri_file or home.keys / "wallet.nwc"


def load_uri(home: Home, config: Config, environ: Mapping[str, str] = os.environ) -> ConnectionUri:
    """The connection string of this home. Raises ``ConfigError``, which never repeats it."""
    path = uri_file(home, config)
    if environ.get(VARIABLE):
        text, place = environ[VARIABLE], VARIABLE
    else:
        text, place = _read(path), str(path)
    try:
        return ConnectionUri.parse(text)
    except Nip47Invalid as error:
        raise ConfigError(f"{place}: {error}", "copy the whole string from your wallet") from None


def _read(path: Path) -> str:
    hint = f"write your wallet's connection string into it (chmod 600), or set {VARIABLE}"
    try:
        # Without O_NONBLOCK, a pipe at this place would keep us waiting for a writer.
        descriptor = os.open(path, os.O_RDONLY | NONBLOCK)
    except FileNotFoundError:
        raise ConfigError(f'[wallet] kind = "nwc", but there is no {path}', hint) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint) from None
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path} is not a file", hint)
        if others(mode):
            raise ConfigError(f"{path} is open to others (mode {stat.S_IMODE(mode):04o})", f"chmod 600 {path}")
        return file.read(MAX_URI_CHARS + 1).decode("ascii", "replace")


@asynccontextmanager
async def open_nwc_wallet(
    wallets: Wallets, home: Home, config: Config, store: Store, clock: Clock, rng: random.Random, *, check: bool = True
) -> AsyncIterator[Wallets]:
    """The same wallets, but the home's own is the user's, by NWC.

    ``check``: ask the wallet which network it is on; without, nobody is asked. Raises ``ConfigError`` for a missing
    string, and for a wallet of another network than the home's; ``WalletError`` for one that was never reached and
    cannot be now.
    """
    uri = load_uri(home, config)
    async with open_nwc(uri, store=store, connect=connect, clock=clock, rng=rng, network=config.network) as own:
        if check:
            info = await own.info()
            if info.network not in (config.network, _NETWORKS.get(config.network)):
                raise ConfigError(
                    f"the wallet behind NWC is on {info.network}, this home on {config.network}",
                    "connect a wallet of this network, or set network in config.toml",
                )

        last: list[Balance] = []

        async def known() -> Balance | None:
            return last[-1] if last else None

        async def watch() -> None:
            while True:
                try:
                    last[:] = [await own.balance()]
                except PylonError as error:
                    log.debug("the wallet's balance is not known: %s", error.message)
                await trio.sleep(_EVERY)

        async def look_after() -> None:
            async with trio.open_nursery() as nursery:
                if wallets.look_after is not None:
                    nursery.start_soon(wallets.look_after)
                nursery.start_soon(watch)

        yield attrs.evolve(wallets, own=own, known=known, look_after=look_after)
