"""What callers of the agents' verbs may say: JSON in, values out, ``UsageError`` for anything else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from protocols import bolt11
from protocols.nip19 import Nip19Error, decode_public_key
from protocols.nip_sa import Autonomy
from pylon.config import relay_url
from pylon.errors import NotFound, UsageError
from pylon.host.lifecycle import LifecycleSettings
from pylon.host.settings import ActionKind, AgentSettings, Grant
from pylon.money import MAX_MSAT, Msat, format_msat, sats

MAX_SATS = MAX_MSAT // 1_000
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
    for name, least, most in (("max_steps", 0, 64), ("thought_tokens", 16, 100_000)):
        if params.get(name) is not None:
            changed[name] = whole(params, name, least, most)
    if params.get("heartbeat") is not None:
        changed["heartbeat"] = whole(params, "heartbeat", 1, 30 * 86_400)
    if params.get("autonomy") is not None:
        if params["autonomy"] not in set(Autonomy):
            raise UsageError("autonomy is supervised, bounded or autonomous")
        changed["autonomy"] = Autonomy(params["autonomy"])
    if params.get("publish") is not None:
        changed["publish"] = params["publish"] is True
    if params.get("relays"):
        changed["relays"] = tuple(_relay(entry) for entry in listed(params, "relays"))
    if params.get("trusted") is not None:
        changed["trusted"] = tuple(_key_hex(entry) for entry in listed(params, "trusted"))
    if params.get("triggers") is not None:
        changed |= _read_triggers(listed(params, "triggers"))
    if params.get("grants") is not None:
        changed["grants"] = tuple(read_grant(entry) for entry in params["grants"])
    lifecycle = dict(params.get("lifecycle") or {})
    if params.get("reserve_sats") is not None:
        lifecycle["reserve_sats"] = whole(params, "reserve_sats", 0, MAX_SATS)
    if lifecycle:
        changed["lifecycle"] = _evolved(base.lifecycle, lifecycle, LifecycleSettings)
    schedule = dict(params.get("schedule") or {})
    if params.get("stranger_budget_sats") is not None:
        schedule["stranger_budget_sats"] = whole(params, "stranger_budget_sats", 0, MAX_SATS)
    if schedule:
        changed["schedule"] = _evolved(base.schedule, schedule, type(base.schedule))
    return attrs.evolve(base, **changed)


def _evolved(base: Any, changes: Mapping[str, Any], kind: type) -> Any:
    known = {field.name for field in attrs.fields(kind)}
    for name, value in changes.items():
        if (
            name not in known
            or isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise UsageError(f"{name} cannot be {value!r}")
    try:
        return attrs.evolve(base, **changes)
    except ValueError:
        raise UsageError(f"these cannot be: {dict(changes)}") from None


def _read_triggers(names: Iterable[str]) -> dict[str, Any]:
    wanted: dict[str, Any] = dict.fromkeys(TRIGGERS.values(), False)
    kinds = []
    for name in names:
        if name in TRIGGERS:
            wanted[TRIGGERS[name]] = True
        elif name.startswith("kind:") and name[5:].isdecimal() and int(name[5:]) <= 65_535:
            kinds.append(int(name[5:]))
        elif name != "none":
            raise UsageError(f"{name[:40]!r} is no trigger", "mention, dm, zap, funds, kind:<number> or none")
    return {**wanted, "kinds": tuple(dict.fromkeys(kinds))}


def read_grant(entry: Mapping[str, Any]) -> Grant:
    each = whole({"each_sats": 0, **_given(entry)}, "each_sats", 0, MAX_SATS)
    day = whole({"day_sats": 0, **_given(entry)}, "day_sats", 0, MAX_SATS)
    per_day = entry.get("per_day")
    return Grant(
        action=action_kind(entry.get("action")),
        each=sats(each),
        day=sats(day),
        per_day=None if per_day is None else whole(entry, "per_day", 0, 1_000_000),
        strangers=entry.get("strangers") is True,
    )


def _given(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if value is not None}


def action_kind(value: object) -> ActionKind:
    try:
        return ActionKind(str(value))
    except ValueError:
        raise UsageError(f"{str(value)[:40]!r} is no action", ", ".join(kind.value for kind in ActionKind)) from None


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
        raise UsageError(f"this is no Lightning invoice: {error}") from None
    if invoice.amount_msats is None:
        raise UsageError("the invoice names no amount", "ask for one that does")
    if amount is not None and amount != invoice.amount_msats:
        raise UsageError(f"the invoice asks for {format_msat(Msat(invoice.amount_msats))}", "leave the amount out")
    return text, invoice.payment_hash, Msat(invoice.amount_msats)


def text(params: Mapping[str, Any], name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} is not Unicode text", "is the terminal's encoding right?") from None
    return value


def listed(params: Mapping[str, Any], name: str) -> Any:
    value = params.get(name) or []
    if not isinstance(value, list | tuple):
        raise UsageError(f"{name} must be a list")
    return [text({name: entry}, name) for entry in value]


def whole(params: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = params.get(name)
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"{name} must be a whole number from {least:,} to {most:,}")
    return value


def by_prefix(entries: Iterable[Any], wanted: str, what: str) -> Any:
    found = [entry for entry in entries if entry.id.startswith(wanted)] if wanted else []
    exact = [entry for entry in found if entry.id == wanted]
    if len(exact or found) != 1:
        raise NotFound(f"{'more than one' if found else 'no'} {what} begins with {wanted[:40]!r}", "give more of it")
    return (exact or found)[0]
