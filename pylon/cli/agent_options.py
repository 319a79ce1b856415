"""What the commands of ``pylon agent`` have in common: how an agent is named, set, and read from a terminal or a pipe.

A phrase or a passphrase never stands on a command line, where every process of the machine can read it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from pylon.cli.amounts import BOUND, SATS
from pylon.cli.completion import complete_agents
from pylon.cli.output import FileDescriptor, note, plain
from pylon.cli.times import DURATION
from pylon.errors import PylonError, UsageError

F = TypeVar("F", bound=Callable[..., Any])

NETWORKS = ("mainnet", "testnet", "signet", "regtest", "simnet")
AUTONOMIES = ("supervised", "bounded", "autonomous")
ACTIONS = (
    "post",
    "reply",
    "react",
    "dm",
    "request_payment",
    "zap",
    "pay_invoice",
    "update_goal",
    "add_memory",
    "set_heartbeat",
)
"""What can be granted (``pylon.host.settings.ActionKind``, which this module does not import, for its weight)."""
MONEY = ("zap", "pay_invoice")

MAX_PHRASE_CHARS = 4_096
MAX_PASSPHRASE_BYTES = 4_096

name_argument = click.argument("name", metavar="NAME", shell_complete=complete_agents)


def given(**params: Any) -> dict[str, Any]:
    """The parameters that were given: what is ``None`` was not."""
    return {name: value for name, value in params.items() if value is not None}


class Trigger(click.ParamType[str]):
    """``mention``, ``dm``, ``zap``, ``funds``, ``kind:30023`` or ``none``."""

    name = "trigger"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip().lower()
        kind = re.fullmatch(r"kind:([0-9]{1,5})", text)
        if kind is not None and int(kind[1]) <= 65_535:
            return f"kind:{int(kind[1])}"
        if text not in ("mention", "dm", "zap", "funds", "none"):
            self.fail(f"{value!r} is no trigger: mention, dm, zap, funds, kind:N (0 to 65535), or none", param, ctx)
        return text


class Days(click.ParamType[float]):
    """``7`` or ``0.5``."""

    name = "days"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,6})?", str(value).strip()) is None:
            self.fail(f"{value!r} is no number of days: write 7, or 0.5", param, ctx)
        return float(str(value))


class GrantSpec(click.ParamType[dict[str, Any]]):
    """``post``, ``zap:21`` or ``zap:21:100`` -> what the daemon's verbs call a grant."""

    name = "grant"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        action, *limits = str(value).strip().lower().split(":")
        action = action.replace("-", "_")
        if action not in ACTIONS:
            self.fail(f"{action!r} is no action: {', '.join(ACTIONS)}", param, ctx)
        if len(limits) > 2:
            self.fail(f"{value!r} has more than two limits: write ACTION, ACTION:EACH or ACTION:EACH:DAY", param, ctx)
        if not limits and action in MONEY:
            self.fail(f"{action} spends sats: write how many at a time, and in a day: {action}:21:100", param, ctx)
        if limits and action not in MONEY:
            self.fail(f"{action} spends no sats, so that it has no limits in sats: write {action} alone", param, ctx)
        amounts = [SATS.convert(limit, param, ctx) for limit in limits]
        return {"action": action, **dict(zip(("each_sats", "day_sats"), amounts, strict=False))}


def settings_options(*, spawning: bool) -> Callable[[F], F]:
    """The options that an agent is spawned with, and that ``set`` changes; when ``spawning``, with their defaults."""

    def decorate(command: F) -> F:
        for name, kind, metavar, text in reversed(_SETTINGS):
            default = f" Default: {DEFAULTS[name]}." if spawning and name in DEFAULTS else ""
            command = click.option(f"--{name}", type=kind, metavar=metavar, help=text + default)(command)
        for name, variable, kind, metavar, text in reversed(_REPEATED):
            default = f" Default: {DEFAULTS[name]}." if spawning else ""
            command = click.option(
                f"--{name}", variable, multiple=True, type=kind, metavar=metavar, help=text + default
            )(command)
        return command

    return decorate


DAY_BUDGET = 1_000
DEFAULTS = {
    "heartbeat": "15m",
    "trigger": "mention, dm and zap",
    "relay": "the home's relays",
    "trusted": "nobody but its operator",
    "model": "any",
    "autonomy": "bounded",
    "budget-day": f"{DAY_BUDGET:,}",
    "budget-tick": "100",
    "payee-day": "none",
    "approve-above": "none",
    "reserve": "0",
    "stranger-budget": "100",
    "low-balance-days": "7",
    "hibernate-below": "500",
    "assumed-burn": "1,000",
}
"""What ``pylon.host.settings`` makes of an option that is not given, in words."""

_REPEATED: tuple[tuple[str, str, click.ParamType[Any], str, str], ...] = (
    (
        "trigger",
        "triggers",
        Trigger(),
        "TRIGGER",
        "What wakes it between heartbeats; repeat for several: mention, dm, zap, funds, kind:N (an event of that kind "
        "that names it), or none.",
    ),
    ("relay", "relays", click.STRING, "URL", "Where it publishes and listens; repeat for several."),
    (
        "trusted",
        "trusted",
        click.STRING,
        "NPUB",
        "Whose words are not a stranger's; repeat for several, or none.",
    ),
)
_SETTINGS: tuple[tuple[str, click.ParamType[Any], str | None, str], ...] = (
    ("about", click.STRING, "TEXT", "What its profile says of it."),
    ("heartbeat", DURATION, "TIME", "Time between two ticks: seconds (900), or 15m, 1h, 1d."),
    ("model", click.STRING, "TEXT", "Buy its thoughts from this model only."),
    (
        "autonomy",
        click.Choice(AUTONOMIES),
        None,
        "supervised: whatever others would notice waits for pylon agent approve. bounded: it acts, so many times a "
        "day, and speaks to whoever woke it, to its operator and to those it trusts. autonomous: it speaks to anybody. "
        "None of them spends more than budgets and grants allow.",
    ),
    ("budget-day", SATS, "SATS", "The most that it may spend in any 24 hours; 0 means nothing."),
    ("budget-tick", SATS, "SATS", "The most that one tick may spend."),
    ("payee-day", BOUND, "SATS", "The most that it may pay to one payee in any 24 hours, or none: no such bound."),
    ("approve-above", BOUND, "SATS", "A larger payment waits for pylon wallet approve, or none: none does."),
    ("reserve", SATS, "SATS", "What it may never spend of its balance."),
    ("stranger-budget", SATS, "SATS", "The most for thoughts that strangers cause, in any 24 hours."),
    (
        "low-balance-days",
        Days(),
        "DAYS",
        "With a balance for fewer days than this it saves: its heartbeat slows down.",
    ),
    ("hibernate-below", SATS, "SATS", "With less than this it ticks no more."),
    ("assumed-burn", SATS, "SATS", "What a day is taken to cost, until there is a day of its own to go by."),
)


def settings_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``settings_options``, as the verbs name them; only those that were given."""
    lifecycle = given(
        low_balance_days=options["low_balance_days"],
        hibernate_threshold_sats=options["hibernate_below"],
        assumed_daily_burn_sats=options["assumed_burn"],
    )
    return given(
        heartbeat=options["heartbeat"],
        triggers=_some("trigger", options["triggers"]),
        trusted=_some("trusted", options["trusted"]),
        model=options["model"],
        autonomy=options["autonomy"],
        budget_day_sats=options["budget_day"],
        budget_tick_sats=options["budget_tick"],
        payee_day_sats=options["payee_day"],
        approve_above_sats=options["approve_above"],
        reserve_sats=options["reserve"],
        stranger_budget_sats=options["stranger_budget"],
        about=options["about"],
        relays=list(dict.fromkeys(options["relays"])) or None,
        lifecycle=lifecycle or None,
    )


def _some(option: str, values: Sequence[str]) -> list[str] | None:
    """The values of an option that may be repeated: ``None`` if it was not given, ``[]`` if it was given as none."""
    if "none" in values and len(values) > 1:
        raise UsageError(f"--{option} none stands alone", "leave it out, or the others")
    return None if not values else [value for value in dict.fromkeys(values) if value != "none"]


# --- asking ---------------------------------------------------------------------------------------------------


def on_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin is not None and sys.stdin.isatty()


def confirm(question: Callable[[], str], *, yes: bool, otherwise: str) -> None:
    """Ask on a terminal, unless ``yes``; where nobody can be asked, the command line is the answer.

    Raises ``PylonError`` with ``otherwise`` if the answer is no.
    """
    if not yes and on_terminal() and not click.confirm(plain(question()), err=True):
        raise PylonError(otherwise)


def read_phrase(example: str) -> str:
    """A seed phrase, one line of stdin. ``example`` shows how it gets there."""
    if on_terminal():
        phrase = str(click.prompt("BIP-39 seed phrase (12 or 24 words)", hide_input=True, err=True)).strip()
    else:
        phrase = sys.stdin.readline(MAX_PHRASE_CHARS).strip()
    if not phrase:
        raise UsageError("no seed phrase on stdin", example)
    return phrase


def passphrase(descriptor: int | None, *, new: bool) -> str:
    """The passphrase of a bundle: one line from an open file descriptor, or typed; a ``new`` one is typed twice."""
    if descriptor is not None:
        text = _line_from(descriptor)
    elif on_terminal():
        text = str(click.prompt("Passphrase of the bundle", hide_input=True, confirmation_prompt=new, err=True))
    else:
        raise UsageError(
            "a bundle wants a passphrase, and there is no terminal to ask on",
            "--passphrase-fd 3 3< FILE reads it from an open file",
        )
    if not text:
        raise UsageError("the passphrase is empty", "a bundle holds the keys to money: give it a good one")
    return text


def _line_from(descriptor: int) -> str:
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            line = file.readline(MAX_PASSPHRASE_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"no passphrase can be read from file descriptor {descriptor}: {error.strerror or error}",
            "--passphrase-fd 3 3< FILE",
        ) from None
    if len(line) > MAX_PASSPHRASE_BYTES:
        raise UsageError(f"the passphrase has more than {MAX_PASSPHRASE_BYTES:,} bytes", "it is the first line alone")
    try:
        return line.rstrip(b"\r\n").decode()
    except UnicodeDecodeError:
        raise UsageError("the passphrase is not UTF-8 text", "write the file in UTF-8") from None


def daemon_note(running: bool, what: str) -> None:
    """Say that ``what`` waits for a daemon, if there is none."""
    if not running:
        note(f"no daemon is running here: {what} once there is one (pylon start)")


passphrase_option = click.option(
    "--passphrase-fd",
    type=FileDescriptor(),
    metavar="N",
    help="Read the bundle's passphrase from file descriptor N, its first line; else it is asked for.",
)
