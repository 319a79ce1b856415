"""Those who use our wallet by NWC, as the service has them: how much each may ask, and what each may spend."""

from __future__ import annotations

from typing import Any

import attrs

from protocols.keys import SecretKey
from pylon.clock import Clock
from pylon.errors import BudgetExceeded, PaymentUnknown, WalletError
from pylon.money import Msat, format_msat
from pylon.store import wallet_connections as connections
from pylon.store.database import Reads
from pylon.store.wallet_connections import Connection
from pylon.wallets.budgets import UNBOUNDED, Budget, Limits, Spend
from pylon.wallets.port import Payment, Wallet

BURST = 60
PER_SECOND = 2.0
"""How often a connection may ask: so many at once, and then so many a second."""
AT_ONCE = 16
"""Requests of one connection that are worked at."""


def connection_limits(clock: Clock, home: Limits | None = None) -> Limits:
    """The budget of a connection's payment: its own, checked here, and what bounds every program of the home."""

    def limits(source: Reads, spend: Spend) -> Budget:
        check_budget(source, connections.by_scope(source, spend.scope), spend.amount, spend.most, clock.now())
        return UNBOUNDED if home is None else home(source, spend)

    return limits


def check_budget(source: Reads, connection: Connection, amount: Msat, most: Msat, now: float) -> None:
    """``most`` is the amount with its highest fee. Raises ``BudgetExceeded``."""
    left = connections.left(source, connection, now)
    if most > left or (connection.each is not None and amount > connection.each):
        each = "" if connection.each is None else f", {format_msat(connection.each)} for one invoice"
        raise BudgetExceeded(
            f"more than this connection may spend: {format_msat(left)} are left of its day, fees included{each}"
        )


@attrs.define(eq=False)
class Guest:
    """A connection while it is served: how much it may ask."""

    connection: Connection
    secret: SecretKey = attrs.field(repr=False)
    tokens: float = BURST
    refilled_at: float = 0.0
    working: int = 0

    def may_ask(self, now: float) -> bool:
        self.tokens = min(self.tokens + (now - self.refilled_at) * PER_SECOND, BURST)
        self.refilled_at = now
        if self.tokens < 1 or self.working >= AT_ONCE:
            return False
        self.tokens -= 1
        return True


class Witness:
    """The wallet as the purse uses it; notes why it refused to pay, which the purse tells in words only."""

    def __init__(self, wallet: Wallet, why: dict[str, str]) -> None:
        self._wallet = wallet
        self._why = why

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wallet, name)

    async def pay(self, target: str, *, amount: Msat | None = None, max_fee: Msat, idempotency_key: str) -> Payment:
        named = {} if amount is None else {"amount": amount}
        try:
            return await self._wallet.pay(target, max_fee=max_fee, idempotency_key=idempotency_key, **named)
        except PaymentUnknown:
            raise
        except WalletError as error:
            self._why[idempotency_key] = error.code
            raise
