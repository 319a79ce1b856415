"""What a test, or its operator, tells simnet to do: what it charges, and what shall go wrong."""

from __future__ import annotations

import enum

import attrs

from pylon.money import Msat
from pylon.wallets.port import PaymentState


class FaultKind(enum.StrEnum):
    NO_ROUTE = "no_route"
    """``NoRoute``; nothing is recorded."""
    FAIL = "fail"
    """``PaymentFailed``, with a failed payment in the history."""
    PENDING = "pending"
    """``pay`` returns it pending; it ends ``seconds`` later."""
    DELAY = "delay"
    """``pay`` waits ``seconds`` for the end."""
    TIMEOUT = "timeout"
    """``PaymentUnknown`` at once; the payment ends ``seconds`` later: with 0, it has settled already."""


class Side(enum.StrEnum):
    PAYER = "payer"
    PAYEE = "payee"


@attrs.frozen
class Fault:
    """What shall go wrong with the next payments. ``jitter`` adds up to so many seconds, drawn from the rng."""

    kind: FaultKind
    seconds: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    ends: PaymentState = attrs.field(
        default=PaymentState.SETTLED, validator=attrs.validators.in_((PaymentState.SETTLED, PaymentState.FAILED))
    )
    jitter: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))


@attrs.frozen
class FeeModel:
    """What a payer is charged beside the amount: a base and a share, rounded up to whole millisatoshi."""

    base: Msat = attrs.field(default=Msat(0), validator=attrs.validators.ge(Msat(0)))
    parts_per_million: int = attrs.field(default=5_000, validator=attrs.validators.ge(0))

    def fee(self, amount: Msat) -> Msat:
        return Msat(self.base - (-amount * self.parts_per_million // 1_000_000))
