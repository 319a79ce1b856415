"""Whom a buyer asks, and in which order. Pure.

An *expected cost* ranks those that fit (the model asked for, this network, within the bid): what they ask beyond what
they owe us already, with the fee for it, divided by how likely they answer, and more by as much again for each minute
that their answers take. So a debt is used before anything is paid, and a provider that is a little dearer but never
failed us comes before one that does. Of equal ones, that comes first which says that it is on our network, and then
the newest announcement.

Before that, three things count, whatever is asked:

1. One that has kept our money lately (``distrusted``) comes last.
2. One that has just failed us, or fails more often than it answers, comes behind those that do not. This fades
   (``pylon.compute.standing``): nobody is excluded for ever, and where there is nobody else it is asked all the same.
3. One purchase takes the risk of ``MOST_STRANGERS`` providers that have never answered us; then those come first that
   have. Names cost nothing: a crowd of new ones that ask less must not keep a purchase from whoever serves it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import attrs

from protocols.nip89 import Announcement
from pylon.compute.purchase import Quote
from pylon.compute.standing import UNKNOWN, Standing
from pylon.money import Msat, format_msat, max_fee

MOST_STRANGERS = 3
"""Providers without a good answer yet that a purchase asks before it turns to those with one."""
_PATIENT_SECONDS = 60.0
"""An answer that takes so long is worth half of one that comes at once."""
_SAT = 1_000
_MOST_NAMES = 5
_LONGEST_NAME = 60


@attrs.frozen
class Offer:
    """A provider that fits, with the most that it may ask."""

    provider: str
    ceiling: Msat
    announced: bool


@attrs.frozen
class Experience:
    """What one buyer knows of providers, by their public keys (hex)."""

    standings: Mapping[str, Standing] = attrs.field(factory=dict)
    debts: Mapping[str, Msat] = attrs.field(factory=dict)
    """What they owe to this buyer."""
    distrusted: Collection[str] = ()
    """Those that have kept money lately."""
    now: float = 0.0

    def of(self, provider: str) -> Standing:
        """What was observed of it."""
        return self.standings.get(provider, UNKNOWN)

    def tier(self, provider: str, *, proven_first: bool = False) -> tuple[bool, bool, bool]:
        """What counts before any price; smaller is better."""
        standing = self.of(provider)
        return provider in self.distrusted, standing.rests(self.now), proven_first and not standing.proven

    def cost(self, provider: str, price: Msat) -> float:
        """What an answer for ``price`` is expected to cost, in msats of patience and money."""
        standing = self.of(provider)
        left = Msat(max(price - self.debts.get(provider, 0), 0))
        out = left + max_fee(left) if left else 0
        return out / standing.reliability * (1 + standing.latency / _PATIENT_SECONDS)

    def wary(self, tried: Collection[str]) -> bool:
        """Whether a purchase that has tried these has met enough strangers."""
        return sum(not self.of(provider).proven for provider in tried) >= MOST_STRANGERS


NOTHING_KNOWN = Experience()


def rank(
    found: Iterable[Announcement],
    *,
    bid: Msat,
    model: str | None,
    network: str,
    excluded: Iterable[str],
    wanted: str | None,
    tokens: tuple[int, int] = (1, 1),
    experience: Experience = NOTHING_KNOWN,
    proven_first: bool = False,
) -> list[Offer]:
    """Providers that fit, best first. See the module.

    An announcement without a price may ask up to the bid and ranks as if it did. A provider that was named
    (``wanted``) is asked even if it announced nothing.

    :param tokens: of the prompt, and of the longest answer.
    :param proven_first: those that have answered us come before those that never have.
    """
    barred = set(excluded)
    best: dict[str, tuple[tuple[bool, bool, bool], float, bool, int, Offer]] = {}
    heard = False
    for announcement in found:
        provider = announcement.provider
        if provider in barred or (wanted is not None and provider != wanted):
            continue
        heard = True
        if announcement.network and announcement.network != network:
            continue
        if model is not None and model not in announcement.models:
            continue
        asked = price_of(announcement, model, tokens)
        price = bid if asked is None else asked
        if price > bid:
            continue
        tier = experience.tier(provider, proven_first=proven_first)
        key = (tier, experience.cost(provider, price), not announcement.network, -announcement.created_at)
        if provider not in best or key < best[provider][:4]:
            best[provider] = (*key, Offer(provider, price, announced=True))
    if wanted is not None and not heard and wanted not in barred:
        return [Offer(wanted, bid, announced=False)]
    return [entry[4] for entry in sorted(best.values(), key=lambda entry: (*entry[:4], entry[4].provider))]


def price_of(announcement: Announcement, model: str | None, tokens: tuple[int, int]) -> Msat | None:
    """The most that it may ask for a job by what it announces; ``None``: it does not say.

    What is reckoned by tokens is rounded up to whole sats: a wallet may know no smaller amount.
    """
    tariff = announcement.tariff(model)
    if tariff is None:
        return None
    price = tariff.price(*tokens)
    return Msat(-(-price // _SAT) * _SAT if price > tariff.minimum else price)


def choose(
    quotes: Iterable[Quote], experience: Experience = NOTHING_KNOWN, *, proven_first: bool = False
) -> list[Quote]:
    """Quotes for an open request, best first, as providers are ranked.

    What a quote takes off for a debt is in its amount already; of equal ones, that comes first which is paid on
    delivery.
    """
    owing = attrs.evolve(experience, debts={})
    return sorted(
        quotes,
        key=lambda quote: (
            experience.tier(quote.provider, proven_first=proven_first),
            owing.cost(quote.provider, quote.amount),
            quote.hold_until is None,
            quote.provider,
        ),
    )


def why_none(
    found: Iterable[Announcement],
    *,
    bid: Msat,
    model: str | None,
    network: str,
    tried: Collection[str],
    own: str,
    wanted: str | None,
    tokens: tuple[int, int] = (1, 1),
) -> str:
    """Why ``rank`` has nobody to offer, in words for the buyer: what would have to be otherwise."""
    theirs = [announcement for announcement in found if announcement.provider != own]
    if wanted is not None:
        if wanted == own:
            return "the provider that was named is the buyer, and nobody buys from itself"
        theirs = [announcement for announcement in theirs if announcement.provider == wanted]
        if not theirs:
            return f"the provider that was named{' was tried, and' if wanted in tried else ''} announces nothing"
    if not theirs:
        return _all_tried(tried) if tried else "no provider announces itself on the relays"
    here = [announcement for announcement in theirs if announcement.network in ("", network)]
    if not here:
        return f"nobody sells on {network} (announced: {_listing(announcement.network for announcement in theirs)})"
    fitting = [announcement for announcement in here if model is None or model in announcement.models]
    if not fitting:
        served = _listing(name for announcement in here for name in announcement.models)
        return f"nobody serves model {model!r} (served: {served or 'none'})"
    fresh = [announcement for announcement in fitting if announcement.provider not in tried]
    asked_by = (price_of(announcement, model, tokens) for announcement in fresh)
    prices = [price for price in asked_by if price is not None]
    if not prices:
        return _all_tried(tried)
    asked = (
        f"the cheapest{' other' if tried else ''} asks {format_msat(Msat(min(prices)))}, the bid is {format_msat(bid)}"
    )
    return f"{_all_tried(tried)}; {asked}" if tried else asked


def _all_tried(tried: Collection[str]) -> str:
    return f"all {len(tried)} that fit were tried" if len(tried) > 1 else "the only one that fits was tried"


def _listing(names: Iterable[str]) -> str:
    """A few of these names, which are strangers' words: cut, and with nothing that a terminal obeys."""
    every = sorted(set(names))
    shown = ", ".join(repr(name[:_LONGEST_NAME]) for name in every[:_MOST_NAMES])
    return f"{shown} and {len(every) - _MOST_NAMES} more" if len(every) > _MOST_NAMES else shown
