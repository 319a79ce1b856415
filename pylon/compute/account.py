"""With what, and how, an owner buys."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from protocols.keys import SecretKey
from pylon.wallets.port import Can, WalletInfo
from pylon.wallets.purse import Purse


@attrs.frozen
class Account:
    """What an owner buys with."""

    owner: str
    secret: SecretKey
    """Signs its requests; replies are sealed for it."""
    purse: Purse
    wallet: WalletInfo
    relays: tuple[str, ...] | None = None
    """Where it asks and listens; none: on all relays of the home. The pool must have them."""


Accounts = Callable[[str], Account]
"""The account of an owner, asked for anew at each step: keep it cheap. Raises ``NotFound`` for one that is gone."""


@attrs.frozen
class BuyerSettings:
    network: str
    """As providers announce it."""
    invoice_prefix: str
    """The network part of a payable invoice's prefix."""
    discovery_seconds: float = 3.0
    patience_seconds: float = 10.0
    """How long to go on looking while nobody announces anything at all."""
    quote_seconds: float = 10.0
    answer_seconds: float = 180.0
    window_seconds: float = 3.0
    """How long quotes for an open request are collected."""
    pay_on_delivery: bool = True
    """Whether to ask for hold invoices where the wallet knows those."""

    def holds(self, wallet: WalletInfo) -> bool:
        """Whether this wallet is to pay hold invoices."""
        return self.pay_on_delivery and Can.HOLD in wallet.can
