"""Whose books these are: one identity's, on one network.

What stands in the ledger is in the wallet of the identity, on the network of that time. Simnet's sats are not money, so
no ledger may hold those and others; a debt of simnet's must not be paid with real ones, nor one wallet's books be held
against another. A home in which nothing has moved yet belongs to whoever opens it.
"""

from __future__ import annotations

import contextlib
import sqlite3

from protocols.keys import PublicKey
from protocols.nip19 import encode_npub
from pylon.errors import ConfigError, IdentityError, StoreError
from pylon.paths import Home
from pylon.store import settings
from pylon.store.damage import expect_sound
from pylon.store.database import Store, Tx

_NETWORK, _IDENTITY = "books.network", "books.identity"
_KINDS = {"mainnet": "mainnet", "simnet": "simnet"}
"""All others are Spark's regtest, under three names."""
_REGTEST = "testnet"
_MOVED = "SELECT EXISTS (SELECT 1 FROM entries) OR EXISTS (SELECT 1 FROM intents) AS moved"
_MOVED_HERE = (
    "SELECT EXISTS (SELECT 1 FROM entries WHERE owner = '')"
    " OR EXISTS (SELECT 1 FROM intents WHERE owner = '' AND state = 'pending') AS moved"
)
"""Of the home itself; agents have wallets of their own."""


async def claim(store: Store, network: str, pubkey: str) -> None:
    """Take the home's books for this network and identity (hex), or raise ``ConfigError``: they are another's."""
    mine = {_NETWORK: _KINDS.get(network, _REGTEST), _IDENTITY: pubkey}
    if any(settings.get(store, key) != value for key, value in mine.items()):
        await store.write(lambda tx: _claim(tx, mine))


def _claim(tx: Tx, mine: dict[str, str]) -> None:
    theirs = {key: settings.get(tx, key) for key in mine}
    if theirs[_NETWORK] not in (None, mine[_NETWORK]) and _has(tx, _MOVED):
        raise ConfigError(
            f"the books of this home are of {theirs[_NETWORK]}, and its network is {mine[_NETWORK]} now:"
            " they must not hold the sats of both",
            f"another home for {mine[_NETWORK]}: pylon --home DIR init --network {mine[_NETWORK]};"
            f' or network = "{theirs[_NETWORK]}" again',
        )
    if theirs[_IDENTITY] not in (None, mine[_IDENTITY]) and _has(tx, _MOVED_HERE):
        raise ConfigError(
            f"the books of this home are of {_name(str(theirs[_IDENTITY]))}, and its identity is another now",
            "bring that identity back (its phrase is kept as identity.mnemonic.TIME), or use another home:"
            " pylon --home DIR init",
        )
    for key, value in mine.items():
        settings.put(tx, key, value)


def expect_free(home: Home, pubkey: str) -> None:
    """Raise ``IdentityError`` where this home has books, and not of this identity (hex; empty: of a new one)."""
    if not home.database.exists():
        return
    try:
        expect_sound(home.database, check_bytes=0)  # nothing of a damaged one is to be written home
    except (StoreError, sqlite3.Error):
        return
    with contextlib.closing(sqlite3.connect(home.database)) as database:
        try:
            moved = database.execute(_MOVED_HERE).fetchone()[0]
            row = database.execute("SELECT value FROM settings WHERE key = ?", (_IDENTITY,)).fetchone()
        except sqlite3.Error:
            return  # no database of ours, or a damaged one: nothing in it can be parted from anything
    if moved and row is not None and row[0] != pubkey:
        raise IdentityError(
            f"the books of this home are of {_name(row[0])}, and another identity could not go on with them",
            "pylon --home DIR init makes one elsewhere; to begin anew here, move pylon.db away first",
        )


def _has(tx: Tx, question: str) -> bool:
    row = tx.one(question)
    return row is not None and bool(row["moved"])


def _name(pubkey: str) -> str:
    return encode_npub(PublicKey.from_hex(pubkey))
