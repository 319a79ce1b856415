"""What the Spark SDK raises, as the port's errors.

The SDK's errors carry words, and few kinds: most of what an operator or the Lightning service says arrives as
``SparkError`` with a sentence. What those sentences are is not documented; they are recognised here, in one place, and
whatever is not recognised is told as it is, shortened.

Where an error arises decides what it means for money. Until a payment is *sent* nothing has moved, whatever was said.
While it is sent, only what the SDK checks before it asks anybody is certain (``REFUSED_UNSENT``): everything else,
"cannot connect" too, may come after the operators have taken the money into a transfer, and is *unknown*.
"""

from __future__ import annotations

import re

from pylon.errors import (
    PAY_IN,
    AlreadyPaid,
    FeeTooHigh,
    InsufficientFunds,
    InvoiceExpired,
    InvoiceInvalid,
    NoRoute,
    PaymentUnknown,
    WalletError,
    WalletUnreachable,
    WrongNetwork,
)
from pylon.money import Msat

SERVERS = "Spark's servers (api.lightspark.com and the Spark operators)"
_REMEDY = (
    "look at the connection to the internet, then try again; what works without it is a home with pretended sats:"
    " pylon --home DIR init --network simnet"
)
_LONGEST = 200

_UNREACHED = re.compile(
    r"dns error|transport error|connection error|error sending request|client error \(connect\)|unavailable"
    r"|connection refused|connection reset|timed? ?out|broken pipe|network is unreachable|tls",
    re.IGNORECASE,
)
_WORDS: tuple[tuple[str, type[WalletError]], ...] = (
    (r"already (been )?paid|invoice_already_paid|already exists.*invoice", AlreadyPaid),
    (r"self payment", NoRoute),
    (r"no[ _]route|route[ _]not[ _]found|unable to find (a )?(route|path)|no path", NoRoute),
    (r"expired", InvoiceExpired),
    (r"network does not match|invalid network", WrongNetwork),
    (r"fee exceeds maximum", FeeTooHigh),
)
REFUSED_UNSENT = re.compile(
    r"self payment not allowed|fee exceeds maximum allowed fee|network does not match|invalid network", re.IGNORECASE
)
"""What the SDK finds wrong on its own, before it asks anybody to move anything."""


def unreachable(doing: str, detail: str = "") -> WalletUnreachable:
    """Spark did not answer while ``doing``."""
    why = f" ({detail})" if detail else ""
    return WalletUnreachable(f"{doing}: {SERVERS} cannot be reached{why}", _REMEDY)


def kind(error: BaseException) -> str:
    """The variant of an error of the SDK: ``SparkError``, ``InsufficientFunds``, ...; of others the class."""
    return type(error).__name__


def words(error: BaseException) -> str:
    """What it says, in one short line."""
    values = getattr(error, "_values", None)
    text = str(values[0]) if values else str(error)
    # gRPC statuses trail their metadata, which says nothing to people and may carry tokens.
    text = re.sub(r",? details: \[.*|,? metadata: .*", "", text, flags=re.DOTALL)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def is_unreached(error: BaseException) -> bool:
    """Whether it says that nobody was reached."""
    return kind(error) in ("NetworkError", "ChainServiceError") or _UNREACHED.search(words(error)) is not None


def before_sending(error: BaseException, doing: str) -> WalletError:
    """An error of a call that moves nothing. ``doing`` says which, in words: "asking what a payment costs"."""
    text, name = words(error), kind(error)
    for pattern, cls in _WORDS:
        if re.search(pattern, text, re.IGNORECASE):
            return cls(f"{doing}: {text}")
    if is_unreached(error):
        return unreachable(doing, _cause(text))
    if name == "InvalidInput":
        return InvoiceInvalid(f"{doing}: {text}")
    return WalletError(f"{doing}: Spark refuses: {name}: {text}")


def while_sending(error: BaseException, *, required: Msat, available: Msat) -> WalletError:
    """An error of ``send_payment``. See the module for what is certain."""
    text, name = words(error), kind(error)
    if name == "InsufficientFunds":
        return InsufficientFunds(required, available, f"{PAY_IN}; on Spark's regtest there is pylon wallet fund")
    if name == "InvalidUuid":
        return WalletError(f"paying: Spark refuses the idempotency key: {text}")
    if REFUSED_UNSENT.search(text):
        return before_sending(error, "paying")
    return PaymentUnknown(
        f"Spark did not say what became of the payment: {name}: {text}", "it is looked up again; do not pay again"
    )


def _cause(text: str) -> str:
    if "dns error" in text.lower():
        return "their names do not resolve"
    found = _UNREACHED.search(text)
    return found[0].lower() if found else text
