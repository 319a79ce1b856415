"""What a wallet's error means, as one of ours."""

from __future__ import annotations

from protocols.nip47 import ErrorCode, Failure
from pylon import errors
from pylon.errors import BudgetExceeded, InsufficientFunds, NotSupported, PaymentFailed, WalletError

_KINDS: dict[str, type[WalletError]] = {
    kind.code: kind
    for kind in (
        errors.AlreadyPaid,
        errors.FeeTooHigh,
        errors.InvoiceExpired,
        errors.InvoiceInvalid,
        errors.NoRoute,
        errors.NotSupported,
        errors.PaymentFailed,
        errors.WrongNetwork,
    )
}
"""What another Pylon says beyond the protocol (``Failure.detail``)."""


def unreachable() -> WalletError:
    """Nothing was sent, or nothing that matters."""
    return WalletError(
        "the wallet does not answer on any relay of its connection",
        "is it running, and is the connection still open? pylon wallet status",
    )


def error_of(failure: Failure, *, required: int = 0, available: int = 0) -> WalletError:
    """The exception for an error. The amounts are for ``InsufficientFunds``, msats."""
    said = failure.message or failure.code.value
    if failure.code is ErrorCode.INSUFFICIENT_BALANCE:
        return InsufficientFunds(required, available)
    kind = _KINDS.get(failure.detail)
    if kind is not None:
        return kind(said)
    match failure.code:
        case ErrorCode.QUOTA_EXCEEDED:
            return BudgetExceeded(f"the wallet's connection does not allow it: {said}", "raise its budget there")
        case ErrorCode.NOT_IMPLEMENTED:
            return NotSupported(f"the wallet cannot do that: {said}")
        case ErrorCode.UNAUTHORIZED | ErrorCode.RESTRICTED:
            return WalletError(f"the wallet refuses this connection: {said}", "ask it for a new connection string")
        case ErrorCode.PAYMENT_FAILED:
            return PaymentFailed(said, "ask for a new invoice")
        case ErrorCode.RATE_LIMITED:
            return WalletError(f"the wallet is asked too often: {said}", "try again in a minute")
        case _:
            return WalletError(f"the wallet reports an error: {said}")
