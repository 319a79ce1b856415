"""NIP-89: announcements of handlers, kind 31990, as NIP-90 providers use them. Read leniently, written strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import orjson

from protocols.job_price import Tariff
from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event

KIND = 31990
_MAX_KINDS = 64
_MAX_MODELS = 256
_MAX_TEXT = 500
_MAX_MSATS = 21_000_000 * 100_000_000 * 1_000
"""More than exists is no price, and would not fit into a database either."""
_MSATS_OF_UNIT = {"msat": 1, "msats": 1, "sat": 1_000, "sats": 1_000}


class AnnouncementInvalid(ValueError):
    """An event that announces nothing."""


@attrs.frozen
class Announcement:
    """What a provider says it serves. Nothing in it is proven but who says it."""

    provider: str
    """Public key, hex."""
    d: str
    kinds: tuple[int, ...]
    models: tuple[str, ...]
    price_msats: int | None
    """Of one job, at least; ``None``: not said."""
    network: str
    """Where it is paid; empty: not said."""
    name: str
    about: str
    created_at: int
    price_in_msats: int = 0
    """Of 1,000 tokens of the prompt (``price_in`` tag)."""
    price_out_msats: int = 0
    """Of 1,000 tokens of the longest answer that is asked for (``price_out`` tag)."""
    tariffs: Mapping[str, Tariff] = attrs.field(factory=dict, hash=False)
    """Of models that are priced by themselves (``model`` tags with three prices behind the name)."""
    lud16: str = ""
    """The lightning address that it can be zapped at."""

    def tariff(self, model: str | None) -> Tariff | None:
        """What a job costs with this model; with none, with the dearest. ``None``: it does not say."""
        if self.price_msats is None:
            return None
        usual = Tariff(self.price_msats, self.price_in_msats, self.price_out_msats)
        if model is not None:
            return self.tariffs.get(model, usual)
        every = (usual, *self.tariffs.values())
        return Tariff(
            max(one.minimum for one in every), max(one.prompt for one in every), max(one.answer for one in every)
        )


def build_announcement(
    secret: SecretKey,
    *,
    d: str,
    kinds: Sequence[int],
    models: Sequence[str],
    price_msats: int,
    network: str,
    name: str,
    about: str,
    created_at: int,
    price_in_msats: int = 0,
    price_out_msats: int = 0,
    tariffs: Mapping[str, Tariff] | None = None,
    lud16: str = "",
) -> Event:
    """A kind 31990 event. ``d`` names this instance for its life; ``created_at`` is in Unix seconds.

    ``price_msats`` is what the cheapest job costs; prices by 1,000 tokens are said where there are any, and those of
    models that have prices of their own behind their names.
    """
    tags = [["d", d], *(["k", str(kind)] for kind in kinds)]
    for model in models:
        own = (tariffs or {}).get(model)
        tags.append(["model", model, *(() if own is None else map(str, (own.minimum, own.prompt, own.answer)))])
    tags += [["price", str(price_msats), "msats"], ["network", network]]
    for tag, price in (("price_in", price_in_msats), ("price_out", price_out_msats)):
        if price:
            tags.append([tag, str(price), "msats", "1000 tokens"])
    profile = {"name": name, "about": about, "models": list(models), **({"lud16": lud16} if lud16 else {})}
    content = orjson.dumps(profile).decode()
    return sign_event(secret, kind=KIND, content=content, tags=tags, created_at=created_at)


def parse_announcement(event: Event) -> Announcement:
    """From a verified event. Raises ``AnnouncementInvalid`` if it is of another kind or names no job kind."""
    if event.kind != KIND:
        raise AnnouncementInvalid("another kind of event")
    kinds = [int(tag[1]) for tag in event.tags_named("k") if len(tag) > 1 and _is_small_number(tag[1])]
    if not kinds:
        raise AnnouncementInvalid("it names no kind of job")
    profile = _profile(event.content)
    models = [tag[1][:_MAX_TEXT] for tag in event.tags_named("model") if len(tag) > 1 and tag[1]]
    if not models and isinstance(profile.get("models"), list):
        models = [model[:_MAX_TEXT] for model in profile["models"] if isinstance(model, str) and model]
    return Announcement(
        provider=event.pubkey,
        d=event.d,
        kinds=tuple(dict.fromkeys(kinds[:_MAX_KINDS])),
        models=tuple(dict.fromkeys(models[:_MAX_MODELS])),
        price_msats=_price(event, "price"),
        price_in_msats=_price(event, "price_in") or 0,
        price_out_msats=_price(event, "price_out") or 0,
        tariffs=_tariffs(event),
        lud16=_text(profile.get("lud16")),
        network=(event.tag("network") or "")[:32],
        name=_text(profile.get("name")),
        about=_text(profile.get("about")),
        created_at=event.created_at,
    )


def _tariffs(event: Event) -> dict[str, Tariff]:
    """Others may write what they like behind a model's name: only three prices count."""
    found: dict[str, Tariff] = {}
    for tag in event.tags_named("model")[:_MAX_MODELS]:
        prices = [int(text) for text in tag[2:5] if text.isascii() and text.isdigit() and len(text) <= 19]
        if len(tag) == 5 and len(prices) == 3 and max(prices) <= _MAX_MSATS:
            found.setdefault(tag[1][:_MAX_TEXT], Tariff(*prices))
    return found


def _is_small_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5


def _price(event: Event, name: str) -> int | None:
    """Whole msats, or ``None``: other software writes ranges and prose there. Underscores are seen in amounts."""
    for tag in event.tags_named(name):
        digits = tag[1].replace("_", "") if len(tag) > 1 else ""
        unit = _MSATS_OF_UNIT.get(tag[2].lower() if len(tag) > 2 else "msats")
        if unit is not None and digits.isascii() and digits.isdigit() and len(digits) <= 19:
            price = int(digits) * unit
            if price <= _MAX_MSATS:
                return price
    return None


def _profile(content: str) -> dict[str, Any]:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value[:_MAX_TEXT] if isinstance(value, str) else ""
