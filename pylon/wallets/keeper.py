"""The WalletKeeper port: the wallets of many owners on one network, as their host sees them.

A host of ten thousand agents does not ask ten thousand wallets, nor listen to each: it asks for all balances at once,
and hears whose may have changed. A wallet is opened for the moment in which something is to be done with it.

Rules that all implementations keep (``tests/pylon/wallets/test_keeper.py`` checks them):

* A wallet has a public id that follows from its secret, whether it was ever opened or not.
* ``balances`` leaves out what it does not know; unknown is never zero.
* ``changes`` misses nothing that happens between entering and leaving; it may repeat itself, and may name wallets of
  which nobody here has heard. Whoever it names is asked anew: it says "look", and not what has happened.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from protocols import bolt11
from pylon.wallets.port import Balance, Wallet
from pylon.wallets.simnet import NETWORK, PREFIX, SimnetLedger, SimnetWallet


class WalletKeeper(Protocol):
    @property
    def kind(self) -> str:
        """As ``WalletInfo.kind``."""
        ...

    @property
    def network(self) -> str: ...

    @property
    def invoice_prefix(self) -> str:
        """Of invoices of this network."""
        ...

    @property
    def seeded(self) -> bool:
        """What a wallet comes from: the whole BIP-39 seed (64 bytes), or else the key at ``SIMNET_PATH`` of it."""
        ...

    def wallet(self, secret: bytes, name: str) -> Wallet:
        """The wallet of this secret, made when it is new. ``name`` says to people whose it is. The caller closes it."""
        ...

    def wallet_id(self, secret: bytes) -> str:
        """The public id of the wallet of this secret: on simnet the node key in hex, as ``WalletInfo.node_pubkey``."""
        ...

    async def balances(self, ids: Collection[str] | None = None) -> dict[str, Balance]:
        """What these wallets hold, or all that there are, as of one moment. Raises where it cannot tell."""
        ...

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Ids of wallets whose balance or payments may have changed since the moment of entering.

        ``async with keeper.changes() as changed: async for wallet_id in changed``; ends with the keeper's network.
        """
        ...


class SimnetKeeper:
    """The wallets of a simnet ledger: ``WalletKeeper``. Closing the ledger is its owner's business."""

    kind = "simnet"
    network = NETWORK
    invoice_prefix = PREFIX
    seeded = False

    def __init__(self, ledger: SimnetLedger) -> None:
        self._ledger = ledger

    def wallet(self, secret: bytes, name: str) -> SimnetWallet:
        return self._ledger.wallet(name, secret)

    def wallet_id(self, secret: bytes) -> str:
        return bolt11.node_public_key(secret).hex()

    async def balances(self, ids: Collection[str] | None = None) -> dict[str, Balance]:
        return await self._ledger.balances(ids)

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        return self._ledger.changes()
