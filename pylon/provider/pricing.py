"""What a job costs and which jobs are taken. Pure.

A price is a fixed ceiling, quoted up front, rounded up to what the wallet can settle (DESIGN 4.1).
"""

from __future__ import annotations

from collections.abc import Collection

import attrs

from protocols.nip90 import JobRequest
from pylon.money import Msat
from pylon.provider.sale import Free, OnTrust, Priced, Refused


@attrs.frozen
class Terms:
    """How this provider sells."""

    min_price: Msat
    payments: bool = True
    """``False``: every job is served free (``enable_payments = false``)."""
    on_trust: bool = False
    """A job is served at once, and its result carries the invoice (``require_payment = false``)."""
    pay_on_delivery: bool = True
    """Hold what is paid until the job is done, where the customer and the wallet can."""
    hold_seconds: int = 1_800
    """How long a payment may be held after its invoice has expired, until the job is done."""
    max_tokens: int = 1_024
    """The longest answer that is sold; a job that names none gets ``default_tokens``."""
    default_tokens: int = 256
    max_prompt_chars: int = 32_000
    max_age: float = 3_600.0
    """Seconds after which an unserved request is stale."""
    max_ahead: float = 900.0
    """Seconds that a customer's clock may be ahead of ours."""
    max_open: int = 1_000
    """Sales that are quoted or worked on at a time; requests beyond that are not heard."""
    max_open_per_customer: int = 100
    refusals_per_minute: int = 60
    """Every refusal is an event and a row: beyond this, a refused request gets silence."""
    invoice_seconds: int = 600
    unit: Msat = Msat(1)
    """The wallet's smallest amount."""

    @property
    def price(self) -> Msat:
        """Of any job, for now: the minimum, rounded up to the wallet's unit."""
        return Msat(-(-self.min_price // self.unit) * self.unit)


def estimate_tokens(text: str) -> int:
    """About how many tokens a text is, for any model: four ASCII characters a token, three bytes of anything else.

    Good enough to refuse before the money is taken what no context can hold.
    """
    size = len(text.encode("utf-8", "replace"))
    plain = sum(1 for char in text if char.isascii())
    return plain // 4 + (size - plain) // 3


def appraise(
    job: JobRequest,
    terms: Terms,
    *,
    prompt: str | None,
    models: Collection[str],
    context: int | None = None,
    now: float,
) -> Priced | OnTrust | Free | Refused:
    """Take a job at a price, take it free, or say why not: in words that anybody may read, for a refusal is open.

    :param context: tokens that the model can hold, prompt and answer together; ``None`` where it does not say.
    """
    if prompt is None or not prompt.strip():
        return Refused("the request has no input")
    if len(prompt) > terms.max_prompt_chars:
        return Refused(f"the prompt is longer than {terms.max_prompt_chars:,} characters")
    if not models:
        return Refused("no model is running here at the moment")
    if job.expiration is not None and job.expiration <= now:
        return Refused("the request has expired")
    if job.model is not None and job.model not in models:
        named = "the model that was asked for" if job.encrypted else f"model {job.model[:80]!r}"
        return Refused(f"{named} is not served here; served: {', '.join(sorted(models))}")
    if job.max_tokens is not None and job.max_tokens > terms.max_tokens:
        wish = "what was asked for" if job.encrypted else str(job.max_tokens)
        return Refused(f"max_tokens: {wish} is above {terms.max_tokens}")
    if context is not None and estimate_tokens(prompt) + (job.max_tokens or terms.default_tokens) > context:
        return Refused(f"prompt and answer together are longer than the {context:,} tokens that the model can hold")
    if not terms.payments or terms.price == 0:
        return Free()
    if job.bid_msats is not None and job.bid_msats < terms.price:
        return Refused(f"the bid of {job.bid_msats} msats is below the price of {terms.price} msats")
    return OnTrust(terms.price) if terms.on_trust else Priced(terms.price)
