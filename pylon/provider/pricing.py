"""What a job costs and which jobs are taken. Pure.

A price is a fixed ceiling, quoted up front: what the prompt's tokens cost, plus what the longest answer would cost that
the customer allows (``max_tokens``), times the model's multiplier; never less than the minimum, and rounded up to what
the wallet can settle (DESIGN 4.1). Tokens are estimated by one rule for all models, so that a customer can reckon the
price beforehand. All arithmetic is in whole numbers and fractions: nothing overflows, and nothing is rounded twice.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction

import attrs

from protocols.job_price import PRICED_TOKENS, Tariff, estimate_tokens
from protocols.nip90 import JobRequest
from pylon.money import MAX_MSAT, Msat
from pylon.provider.sale import Free, OnTrust, Priced, Refused

_ONCE = Fraction(1)


class Standing(enum.StrEnum):
    """Whom a customer is to us."""

    STRANGER = "stranger"
    TRUSTED = "trusted"
    """No cap holds it back."""
    FREE = "free"
    """Trusted, and served free."""
    BLOCKED = "blocked"
    """Not heard."""


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
    price_in: Msat = Msat(0)
    """Of 1,000 tokens of a prompt."""
    price_out: Msat = Msat(0)
    """Of 1,000 tokens of an answer."""
    multipliers: Mapping[str, Fraction] = attrs.field(factory=dict, hash=False)
    """Of models; one that is not named costs once."""
    free_per_day: int = 0
    """Jobs a day (UTC) that each key has free of charge."""
    standings: Mapping[str, Standing] = attrs.field(factory=dict, hash=False, repr=False)
    """Of customers (public keys, hex), as the configuration has them. What was said since wins (``desk``)."""
    max_tokens: int = 1_024
    """The longest answer that is sold; a job that names none gets ``default_tokens``."""
    default_tokens: int = 256
    max_prompt_chars: int = 32_000
    fetch_urls: bool = False
    """Whether inputs that are addresses are fetched."""
    max_age: float = 3_600.0
    """Seconds after which an unserved request is stale."""
    max_ahead: float = 900.0
    """Seconds that a customer's clock may be ahead of ours."""
    max_request_chars: int = 131_072
    """Of a request as it came, tags and content; a longer one is not heard."""
    max_request_tags: int = 256
    max_open: int = 10_000
    """Sales at a time that are quoted or worked on and not paid (``pylon.provider.book``)."""
    max_open_per_customer: int = 100
    refusals_per_minute: int = 60
    """Every refusal is an event and a row: beyond this, a refused request gets silence."""
    invoice_seconds: int = 600
    unit: Msat = Msat(1)
    """The wallet's smallest amount."""

    @property
    def price(self) -> Msat:
        """The minimum, rounded up to the wallet's unit."""
        return self._whole(Fraction(self.min_price))

    def cost(self, model: str, tokens_in: int, tokens_out: int) -> Msat:
        """Of a job with so many tokens of prompt, and at most so many of answer. Nothing where nothing is sold."""
        if not self.payments:
            return Msat(0)
        tokens = Fraction(self.price_in * tokens_in + self.price_out * tokens_out, PRICED_TOKENS)
        return self._whole(
            max(Fraction(self.min_price), max(Fraction(self.min_price), tokens) * self.multiplier(model))
        )

    def cheapest(self, models: Iterable[str]) -> Msat:
        """What the cheapest job costs that any of these models can do: a token in, a token out."""
        return min((self.cost(model, 1, 1) for model in models), default=self.cost("", 1, 1))

    def tariff(self, model: str) -> Tariff:
        """As it is announced: ``cost`` is what it says, or less, up to the rounding to the wallet's unit."""
        if not self.payments:
            return Tariff(0)
        times = self.multiplier(model)
        prices = (-(-price * times // 1) for price in (self.price_in, self.price_out))
        return Tariff(self._whole(Fraction(self.min_price) * max(times, _ONCE)), *map(int, prices))

    def multiplier(self, model: str) -> Fraction:
        """Of a model by whatever name: Ollama calls ``llama3.2`` by its full name, ``llama3.2:latest``."""
        names = (model, f"{model}:latest", model.removesuffix(":latest"))
        return next((self.multipliers[name] for name in names if name in self.multipliers), _ONCE)

    def _whole(self, msats: Fraction) -> Msat:
        return Msat(-(-msats // self.unit) * self.unit)


def served_as(model: str | None, models: Collection[str], default: str = "") -> str | None:
    """The name under which a model is served here; ``None``: it is not. No name asks for ``default``."""
    if model is None:
        return default if default in models else next(iter(models), None)
    return next((name for name in (model, f"{model}:latest") if name in models), None)


def appraise(
    job: JobRequest,
    terms: Terms,
    *,
    prompt: str | None,
    models: Collection[str],
    default: str = "",
    context: int | None = None,
    now: float,
) -> Priced | OnTrust | Free | Refused:
    """Take a job at a price, take it free, or say why not: in words that anybody may read, for a refusal is open.

    :param default: the model that answers a job which names none.
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
    model = served_as(job.model, models, default)
    if model is None:
        named = "the model that was asked for" if job.encrypted else f"model {(job.model or '')[:80]!r}"
        return Refused(f"{named} is not served here; served: {', '.join(sorted(models))}")
    if job.max_tokens is not None and job.max_tokens > terms.max_tokens:
        wish = "what was asked for" if job.encrypted else str(job.max_tokens)
        return Refused(f"max_tokens: {wish} is above {terms.max_tokens}")
    tokens_in, tokens_out = estimate_tokens(prompt), job.max_tokens or terms.default_tokens
    if context is not None and tokens_in + tokens_out > context:
        return Refused(f"prompt and answer together are longer than the {context:,} tokens that the model can hold")
    price = terms.cost(model, tokens_in, tokens_out)
    if price == 0:
        return Free()
    if price > MAX_MSAT:
        return Refused("the job would cost more than there is")
    if job.bid_msats is not None and job.bid_msats < price:
        return Refused(f"the bid of {job.bid_msats} msats is below the price of {price} msats")
    return OnTrust(price) if terms.on_trust else Priced(price)
