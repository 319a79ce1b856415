"""One family of exceptions. A message names the thing; the hint names the remedy.

``code`` is stable and part of the JSON interface: ``{"error": {"code", "message", "hint"}}``.
``exit_code`` is the process's: 1 error, 2 usage, 3 not running, 4 money refused.
"""

from __future__ import annotations

from typing import ClassVar


class PylonError(Exception):
    """Base of everything that Pylon raises on purpose."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_json(self) -> dict[str, dict[str, str]]:
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class UsageError(PylonError):
    """A command line, or a verb's parameters, that make no sense."""

    code = "usage"
    exit_code = 2


class ConfigError(PylonError):
    """A configuration key with a value that cannot be: names key, value, line and what is allowed."""

    code = "config"


class IdentityError(PylonError):
    """The seed phrase or the data key is missing, unreadable, or readable by others."""

    code = "identity"


class PassphraseError(IdentityError):
    """A passphrase that is wanted and was not given, is another one, or is none."""

    code = "passphrase"


class NotRunning(PylonError):
    """No daemon answers in this home."""

    code = "not_running"
    exit_code = 3


class AlreadyRunning(PylonError):
    """Another process holds this home."""

    code = "already_running"


class ControlError(PylonError):
    """The daemon did not answer, or answered with something that is no reply."""

    code = "control"


class NotFound(PylonError):
    """Nothing here has this id."""

    code = "not_found"


class StoreError(PylonError):
    """The database cannot be read or written; no paid work may be taken while it lasts."""

    code = "store"


class SealError(StoreError):
    """A sealed value does not open: wrong key or damaged row."""

    code = "seal"


class BundleError(PylonError):
    """A sealed bundle that does not open, or a payload that cannot be sealed into one."""

    code = "bundle"


class BackupError(PylonError):
    """A home's backup that cannot be written, or does not open; or a home that cannot take one."""

    code = "backup"


class RelayError(PylonError):
    """A relay cannot be reached, or did not answer."""

    code = "relay"


class NetworkUnsupported(PylonError):
    """A Lightning network whose wallet is not built."""

    code = "network"


class WalletError(PylonError):
    """Base of what wallets raise. Anything else that a wallet call raises means *unknown*."""

    code = "wallet"
    exit_code = 4


FUND = "fund the wallet: pylon wallet fund"
"""Where there is a faucet."""
PAY_IN = "pay some in: pylon wallet invoice AMOUNT makes an invoice for it"
"""Where there is none, or it is not ours to know."""


class InsufficientFunds(WalletError):
    """Amount and fee are more than can be spent."""

    code = "insufficient_funds"

    def __init__(self, required_msats: int, available_msats: int | None, hint: str = FUND) -> None:
        """``available_msats``: ``None`` where nobody could tell. ``hint``: how more gets into this wallet."""
        there = "and the wallet does not say how much there is"
        if available_msats is not None:
            there = f"{available_msats / 1000:,.3f} sat are available"
        super().__init__(f"needs {required_msats / 1000:,.3f} sat with fees, {there}", hint)
        self.required_msats = required_msats
        self.available_msats = available_msats


class BudgetExceeded(WalletError):
    """A budget does not carry this payment, or cannot be read; nothing was reserved, nothing will be sent."""

    code = "over_budget"


class InvoiceInvalid(WalletError):
    """No invoice, or none that can be paid or made."""

    code = "invoice_invalid"


class InvoiceExpired(WalletError):
    code = "invoice_expired"


class AlreadyPaid(WalletError):
    """Under another key or for another cause; it is not paid again."""

    code = "already_paid"


class WrongNetwork(WalletError):
    """An invoice of another Lightning network than the wallet's."""

    code = "wrong_network"


class NoRoute(WalletError):
    code = "no_route"


class FeeTooHigh(WalletError):
    """The fee is more than was allowed; nothing was sent."""

    code = "fee_too_high"


class PaymentFailed(WalletError):
    """The wallet says that the payment has failed for good."""

    code = "payment_failed"


class NotSupported(WalletError):
    """What this wallet cannot do by its nature; another could."""

    code = "not_supported"


class WalletFrozen(WalletError):
    """The operator has frozen spending; nothing was reserved, nothing will be sent."""

    code = "frozen"


class WalletUnreachable(WalletError):
    """The wallet's network did not answer, before anything was asked of it that moves money."""

    code = "wallet_unreachable"
    exit_code = 1


class PaymentUnknown(WalletError):
    """The wallet did not say: the payment may still settle. Never pay again; look it up.

    Nothing was refused: who takes exit code 4 for "nothing was sent" must not get it for this.
    """

    code = "payment_unknown"
    exit_code = 1


class InferenceError(PylonError):
    """A backend could not answer."""

    code = "inference"


class BackendUnavailable(InferenceError):
    """It does not run, or broke off."""

    code = "backend_unavailable"


class BackendBusy(BackendUnavailable):
    """It works, and has no room for one more request."""

    code = "backend_busy"


class BackendTimeout(InferenceError):
    """One of ``Deadlines`` has passed; the message names it."""

    code = "backend_timeout"


class ModelMissing(InferenceError):
    """No backend, or no directory, has this model."""

    code = "model_missing"


class MarketError(PylonError):
    """A purchase that found no provider, or was refused by all of them."""

    code = "market"


class TunnelError(PylonError):
    """The Claude tunnel cannot be opened, or was closed for good."""

    code = "tunnel"


class ClaudeError(TunnelError):
    """The ``claude`` executable is missing, too old, or has failed."""

    code = "claude"


def brief(error: BaseException) -> str:
    """An unexpected exception for a log: its class and where it arose.

    Its text is told only where it is ours: that of a foreign one may quote a prompt, a reply or a key.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, PylonError):
        return f"{type(error).__name__}: {error.message}"
    frames, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    way = " > ".join(frames[-4:])
    return f"{type(error).__name__} at {way}" if way else type(error).__name__
