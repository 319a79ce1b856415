"""The real daemon over somebody else's wallet: ``python -m tests.lightning.daemon_process --home DIR -m MODE``.

Everything is what ``pylon start`` runs, but for the words, which come from a script, and for the home's own wallet:
that is the one whose connection string (NIP-47) stands in ``DIR/connection``. Agents' wallets are the network's.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import click

from protocols.nip47 import ConnectionUri
from pylon import config as configuration
from pylon.clock import Clock
from pylon.config import Config
from pylon.daemon import runtime
from pylon.daemon.serve import run_daemon
from pylon.daemon.wallets import Wallets, open_wallets
from pylon.identity import Identity
from pylon.paths import Home, find_home
from pylon.relays.websocket import connect
from pylon.store.database import open_store
from pylon.store.vault import Vault
from pylon.testing.backend import ScriptedBackend
from pylon.testing.provider_process import answer
from pylon.wallets.nwc import open_nwc


@asynccontextmanager
async def open_connected(home: Home, config: Config, identity: Identity, clock: Clock) -> AsyncIterator[Wallets]:
    """``open_wallets``, with another wallet as the home's own."""
    uri = ConnectionUri.parse((home.root / "connection").read_text())
    async with (
        open_wallets(home, config, identity, clock) as wallets,
        open_store(home.root / "connection.db", vault=Vault(bytes(range(32))), clock=clock) as store,
        open_nwc(uri, store=store, connect=connect, clock=clock, rng=random.Random()) as wallet,
    ):
        yield attrs.evolve(wallets, own=wallet, own_id=uri.wallet.hex, known=wallet.balance, look_after=None)


@click.command()
@click.option("--home", "directory", required=True, metavar="DIR")
@click.option("-m", "--mode", type=click.Choice(["host", "provider"]), required=True)
def main(directory: str, mode: str) -> None:
    runtime.open_wallets = open_connected
    home = find_home(directory)
    backend = ScriptedBackend(lambda request: answer(request.messages[-1].content)) if mode == "provider" else None
    loaded = configuration.load(home.config)
    run_daemon(home, loaded.config, mode, say=lambda line: click.echo(line, err=True), backend=backend)


if __name__ == "__main__":
    main()
