"""What callers of the agents' verbs may say: JSON in, values out, ``UsageError`` for anything else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from protocols import bolt11
from protocols.nip01 import MAX_KIND
from protocols.nip19 import Nip19Error, decode_public_key
from protocols.nip_sa import Autonomy
from pylon.config_values import relay_url
from pylon.errors import NotFound, UsageError
from pylon.host.lifecycle import LifecycleSettings
from pylon.host.settings import ActionKind, AgentSettings, Grant
from pylon.money import MAX_MSAT, Msat, format_msat, sats

MAX_SATS = MAX_MSAT // 1_000
MAX_TEXT = 16_384
"""Bytes of any text but a bundle."""
MAX_BUNDLE = 1 << 24
MAX_ENTRIES = 256
_KIND = re.compile("kind:[0-9]{1,5}")
TRIGGERS = {"mention": "mentions", "dm": "dms", "zap": "zaps", "funds": "funds"}
"""As people name them, and the fields that they are."""


def settings(base: AgentSettings, params: Mapping[str, Any]) -> AgentSettings:
    """``base`` with what the parameters set. Raises ``UsageError``, ``ConfigError``."""
    changed: dict[str, Any] = {}
    for name in ("name", "about", "model"):
        if params.get(name) is not None:
            changed[name] = text(params, name)
    if changed.get("model") == "":
        changed["model"] = None
    for name in ("budget_day_sats", "budget_tick_sats"):
        if params.get(name) is not None:
            changed[name] = whole(params, name, 0, MAX_SATS)
    for name in ("payee_day_sats", "approve_above_sats"):
        if params.get(name) is not None:
            changed[name] = None if params[name] == "none" else whole(params, name, 0, MAX_SATS)
    for name, least, most in (("max_steps", 0, 64), ("thought_tokens", 16, 100_000)):
        if params.get(name) is not None:
            changed[name] = whole(params, name, least, most)
    if params.get("heartbeat") is not None:
        changed["heartbeat"] = whole(params, "heartbeat", 1, 30 * 86_400)
    if params.get("autonomy") is not None:
        changed["autonomy"] = Autonomy(one_of(params, "autonomy", [level.value for level in Autonomy]))
    if params.get("publish") is not None:
        changed["publish"] = flag(params, "publish")
    if relays := listed(params, "relays"):
        changed["relays"] = tuple(dict.fromkeys(map(_relay, relays)))
    if params.get("trusted") is not None:
        changed["trusted"] = tuple(dict.fromkeys(map(_key_hex, listed(params, "trusted"))))
    if params.get("triggers") is not None:
        changed |= _read_triggers(listed(params, "triggers"))
    if params.get("grants") is not None:
        changed["grants"] = _read_grants(params["grants"])
    lifecycle = dict(_object(params, "lifecycle"))
    if params.get("reserve_sats") is not None:
        lifecycle["reserve_sats"] = whole(params, "reserve_sats", 0, MAX_SATS)
    if lifecycle:
        changed["lifecycle"] = _evolved(base.lifecycle, lifecycle, LifecycleSettings)
    schedule = dict(_object(params, "schedule"))
    if params.get("stranger_budget_sats") is not None:
        schedule["stranger_budget_sats"] = whole(params, "stranger_budget_sats", 0, MAX_SATS)
    if schedule:
        changed["schedule"] = _evolved(base.schedule, schedule, type(base.schedule))
    return attrs.evolve(base, **changed)


def _evolved(base: Any, changes: Mapping[str, Any], kind: type) -> Any:
    """``base`` with numbers changed; whole ones where its are."""
    known = attrs.asdict(base)
    for name, value in changes.items():
        if not isinstance(name, str) or name not in known:
            raise UsageError(f"there is no setting {str(name)[:40]!r}", f"these are: {', '.join(sorted(known))}")
        whole_number = type(known[name]) is int
        if not isinstance(value, int | float) or isinstance(value, bool) or (whole_number and type(value) is not int):
            raise UsageError(f"{name} is not {_shown(value)}", f"give a {'whole ' * whole_number}number")
        if not -MAX_SATS <= value <= MAX_SATS:  # not a number is neither
            raise UsageError(f"{name} cannot be {_shown(value)}", "give a number that can be")
    try:
        return attrs.evolve(base, **changes)
    except ValueError as error:
        name = getattr(error.args[1], "name", "") if len(error.args) > 1 else ""
        raise UsageError(
            f"{name or 'one of these'} cannot be {_shown(changes.get(name))}", "is it too small, or too large?"
        ) from None


def _read_triggers(names: Iterable[str]) -> dict[str, Any]:
    wanted: dict[str, Any] = dict.fromkeys(TRIGGERS.values(), False)
    kinds = []
    for name in names:
        if name in TRIGGERS:
            wanted[TRIGGERS[name]] = True
        elif _KIND.fullmatch(name) and int(name[5:]) <= MAX_KIND:
            kinds.append(int(name[5:]))
        elif name != "none":
            raise UsageError(f"{name[:40]!r} is no trigger", "mention, dm, zap, funds, kind:<number> or none")
    return {**wanted, "kinds": tuple(dict.fromkeys(kinds))}


def _read_grants(value: object) -> tuple[Grant, ...]:
    if not isinstance(value, list | tuple):
        raise UsageError("grants must be a list", "each is an object with action, each_sats, day_sats")
    found = [read_grant(entry) for entry in value]
    if len({grant.action for grant in found}) < len(found):
        raise UsageError("two grants for one action", "give one for each, with the limits that shall hold")
    return tuple(found)


def read_grant(entry: object) -> Grant:
    if not isinstance(entry, Mapping):
        raise UsageError("a grant must be an object", "with action, and each_sats and day_sats for what costs sats")
    each = whole({"each_sats": 0, **_given(entry)}, "each_sats", 0, MAX_SATS)
    day = whole({"day_sats": 0, **_given(entry)}, "day_sats", 0, MAX_SATS)
    per_day = entry.get("per_day")
    return Grant(
        action=action_kind(entry.get("action")),
        each=sats(each),
        day=sats(day),
        per_day=None if per_day is None else whole(entry, "per_day", 0, 1_000_000),
        strangers=entry.get("strangers") is not None and flag(entry, "strangers"),
    )


def _given(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if value is not None}


def action_kind(value: object) -> ActionKind:
    kinds = [kind.value for kind in ActionKind if kind is not ActionKind.NOTHING]
    return ActionKind(one_of({"action": value}, "action", kinds))


def _relay(value: str) -> str:
    try:
        return relay_url(value)
    except ValueError:
        raise UsageError(f"{value[:80]!r} is no relay", "ws:// or wss:// and a host") from None


def _key_hex(value: str) -> str:
    try:
        return decode_public_key(value).hex
    except (Nip19Error, ValueError):
        raise UsageError(f"{value[:80]!r} is no public key", "give an npub or 64 hex digits") from None


def target(text: str, amount: Msat | None) -> tuple[str, str, Msat]:
    """An invoice to withdraw to."""
    try:
        invoice = bolt11.decode(text)
    except bolt11.Bolt11Invalid as error:
        raise UsageError(f"this is no Lightning invoice: {error}", "paste it whole, as the payee has made it") from None
    if invoice.amount_msats is None:
        raise UsageError("the invoice names no amount", "ask for one that does")
    if amount is not None and amount != invoice.amount_msats:
        raise UsageError(f"the invoice asks for {format_msat(Msat(invoice.amount_msats))}", "leave the amount out")
    return text, invoice.payment_hash, Msat(invoice.amount_msats)


def text(params: Mapping[str, Any], name: str, most: int = MAX_TEXT) -> str:
    value = params.get(name)
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text, not {_shown(value)}", f"say {name} in words")
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{name} is not Unicode text", "is the terminal's encoding right?") from None
    if length > most:
        raise UsageError(f"{name} is too long: {length:,} bytes", f"at most {most:,}")
    return value


def flag(params: Mapping[str, Any], name: str) -> bool:
    value = params.get(name)
    if not isinstance(value, bool):
        raise UsageError(f"{name} is not {_shown(value)}", "it is true or false")
    return value


def one_of(params: Mapping[str, Any], name: str, values: Sequence[str]) -> str:
    value = params.get(name)
    if not isinstance(value, str) or value not in values:
        raise UsageError(f"{name} cannot be {_shown(value)}", f"one of {', '.join(values)}")
    return value


def listed(params: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts; one that is not given is empty."""
    value = params.get(name)
    if value is None:
        return []
    if not isinstance(value, list | tuple) or len(value) > MAX_ENTRIES:
        raise UsageError(f"{name} must be a list", f"of at most {MAX_ENTRIES} texts")
    return [text({name: entry}, name) for entry in value]


def whole(params: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = params.get(name)
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"{name} cannot be {_shown(value)}", f"a whole number from {least:,} to {most:,}")
    return value


def number(params: Mapping[str, Any], name: str, least: float, most: float) -> float:
    value = params.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UsageError(f"{name} cannot be {_shown(value)}", f"a number from {least:g} to {most:g}")
    return float(value)


def _object(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = params.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} must be an object", "of settings and their numbers")
    return value


def _shown(value: object) -> str:
    """A value as it may stand in a message: short, and never a list or object of whatever size."""
    if isinstance(value, str):
        return repr(value[:40])
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**24 else "a number of that size"
    return f"{value:g}" if isinstance(value, float) else "a list or an object"


def by_prefix(entries: Iterable[Any], wanted: str, what: str, listed: str) -> Any:
    found = [entry for entry in entries if entry.id.startswith(wanted)] if wanted else []
    exact = [entry for entry in found if entry.id == wanted]
    if len(exact or found) != 1:
        hint = "give more of it" if found else f"{listed} shows them"
        raise NotFound(f"{'more than one' if found else 'no'} {what} begins with {wanted[:40]!r}", hint)
    return (exact or found)[0]
