"""``pylon status``: what the daemon says of itself. Imports nothing heavy, for it is asked often."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from pylon.cli.output import State, emit, in_sats, json_option, note, pass_state
from pylon.cli.times import in_days, span, until
from pylon.errors import ControlError, NotRunning

if TYPE_CHECKING:
    from pylon.paths import Home

TIMEOUT = 2.0
"""Seconds for the daemon to answer."""


@click.command()
@click.option("-w", "--watch", is_flag=True, help="Go on showing it, until interrupted.")
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(0.1, 3_600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="With --watch: within how long a daemon that ends, hangs or comes back is noticed.",
)
@json_option
@pass_state
@click.pass_context
def status(context: click.Context, state: State, watch: bool, interval: float) -> None:
    """Show the daemon, what it sells, its relays, its agents and its wallet.

    It answers within a few seconds, whatever the daemon does. Exit code 3 if no daemon is running in this home, 1 if
    one does not answer. With --watch, what happens is shown as it happens; with --json, one JSON object a line.
    """
    if watch:
        from pylon.cli.watch import watch_status

        watch_status(state, interval)
    report = ask(state.home)
    if report is None:
        emit(state, stopped(), lambda: _stopped_text(state.home))
        if not state.json:
            note(f"hint: {'pylon start' if state.home.mnemonic.exists() else 'pylon init'}")
        context.exit(NotRunning.exit_code)
    silent = report.get("silent")
    if isinstance(silent, ControlError):
        told = {**report, "silent": silent.message}
        emit(state, told, lambda: render(told))
        raise silent
    emit(state, report, lambda: render(report))


def ask(home: Home) -> dict[str, Any] | None:
    """The daemon's own report; ``None`` if there is no daemon, which costs no more than a look for its files.

    Of one that does not answer, a report of what is known without it, with a ``ControlError`` in ``silent``.
    """
    from pylon.cli.client import call

    try:
        if home.may_answer:
            report: dict[str, Any] = call(home, "status", timeout=TIMEOUT)
            return report
        silent = None
    except NotRunning:
        silent = None
    except ControlError as error:
        silent = error
    pid = _holder(home)
    if pid is None and silent is None:
        return None
    silent = silent or ControlError("the daemon does not listen: it is starting, or ending", "pylon status once more")
    return {**stopped(), "daemon": {**stopped()["daemon"], "running": True, "pid": pid}, "silent": silent}


def _holder(home: Home) -> int | None:
    """The process that holds this home."""
    if not home.pid.exists():
        return None
    from pylon.daemon.holder import holder

    return holder(home.pid)


def stopped() -> dict[str, Any]:
    """The report of a home without a daemon: what only a daemon knows is null, never zero."""
    return {
        "daemon": {
            "running": False,
            "pid": None,
            "uptime_secs": None,
            "provider_active": None,
            "host_active": None,
        },
        "stats": {"jobs_completed": None, "earnings_msats": None},
        "backends": [],
        "default_backend": None,
        "relays": [],
        "agents": [],
        "wallet": {"settled_msats": None, "pending_msats": None, "known_at": None},
    }


def _stopped_text(home: Home) -> str:
    identity = "configured" if home.mnemonic.exists() else "not initialized"
    return f"Daemon:   stopped\nHome:     {home.root}\nIdentity: {identity}"


_REMARKS = {
    "simnet": "simnet sats are not money",
    "regtest": "Spark's regtest, whose sats are not money",
    "testnet": "this is Spark's regtest, whose sats are not money",
    "signet": "this is Spark's regtest, whose sats are not money",
}


def render(report: dict[str, Any]) -> str:
    """The report for people. Whatever is missing from it is left out."""
    daemon, stats, wallet = (_table(report.get(name)) for name in ("daemon", "stats", "wallet"))
    pid = f"pid {daemon['pid']}" if daemon.get("pid") is not None else "its pid is not known"
    if report.get("silent"):
        return f"Daemon:   running ({pid}), and silent: {report['silent']}"
    lines = [f"Daemon:   running ({pid})"]
    if isinstance(daemon.get("uptime_secs"), (int, float)):
        lines.append(f"Uptime:   {_duration(int(daemon['uptime_secs']))}")
    if _table(report.get("database")).get("damaged"):
        lines.append(f"DAMAGED:  nothing is sold or spent: {report['database']['damaged']} (pylon doctor)")
    modes = [name for name in ("provider", "host") if daemon.get(f"{name}_active")]
    lines.append(f"Modes:    {', '.join(modes) or 'none'}")
    if report.get("network"):
        remark = _REMARKS.get(str(report["network"]))
        lines.append(f"Network:  {report['network']}" + (f" ({remark})" if remark else ""))
    if wallet:
        lines.append(f"Wallet:   {_wallet(wallet)}")
        lines += _guard(wallet)
    lines.append(
        f"Jobs:     {stats.get('jobs_completed', 'unknown')} completed, {in_sats(stats.get('earnings_msats'))} earned"
    )
    lines += _selling(report.get("provider"))
    if daemon.get("provider_off"):
        lines.append(f"Selling:  nothing: {daemon['provider_off']}")
    default = report.get("default_backend")
    backends = [
        f"{_name(entry)} (default)" if _name(entry) == default else _name(entry) for entry in _list(report, "backends")
    ]
    lines.append(f"Backends: {', '.join(backends) or 'none'}")
    lines += _section("Relays", [_relay(entry) for entry in _list(report, "relays")])
    lines += _section("Agents", [_agent(entry) for entry in _list(report, "agents")] + _more_agents(report))
    trouble = [_child(entry) for entry in _list(report, "children") if _is_trouble(entry)]
    trouble += [_of_agent(entry) for entry in map(_table, _list(report, "quarantined")) if entry.get("agent")]
    trouble += [f"{name}  not told: {why}" for name, why in _table(report.get("incomplete")).items()]
    lines += _section("Trouble", trouble)
    return "\n".join(lines)


def _selling(value: Any) -> list[str]:
    """What is under way, what it has brought, and why nothing more is taken."""
    provider = _table(value)
    if not provider:
        return []
    under_way = ", ".join(f"{count} {state}" for state, count in _table(provider.get("open")).items()) or "none"
    lines = [
        f"Sales:    open: {under_way}; models: {provider.get('running', 0)} at work of {provider.get('slots', 1)},"
        f" {provider.get('waiting', 0)} waiting"
    ]
    earned = [
        f"{in_sats(provider[key])} {when}"
        for key, when in (("earned_today_msats", "today"), ("earned_week_msats", "this week"))
        if isinstance(provider.get(key), int)
    ]
    if provider.get("owed_msats"):
        earned.append(f"{in_sats(provider['owed_msats'])} owed to customers")
    if earned:
        lines.append(f"Earned:   {', '.join(earned)}")
    if provider.get("closed"):
        lines.append(f"CLOSED:   no paid work is taken: {provider['closed']}")
    return lines


def _of_agent(entry: dict[str, Any]) -> str:
    return f"{entry['agent']}: {_name(entry)}  quarantined: {entry.get('last_error') or 'ended'}"


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(report: dict[str, Any], name: str) -> list[Any]:
    value = report.get(name)
    return value if isinstance(value, list) else []


def _section(title: str, rows: list[str]) -> list[str]:
    return [f"{title}:", *(f"  {row}" for row in rows)] if rows else []


def _name(entry: Any) -> str:
    return str(entry.get("name") or entry.get("id") or entry) if isinstance(entry, dict) else str(entry)


def _wallet(wallet: dict[str, Any]) -> str:
    text = in_sats(wallet.get("settled_msats"))
    if wallet.get("pending_msats"):
        text += f", {in_sats(wallet['pending_msats'])} on its way out"
    known_at = wallet.get("known_at")
    if isinstance(known_at, (int, float)) and (age := int(time.time() - known_at)) >= 5:
        text += f" (known {_duration(age)} ago)"
    return text


def _guard(wallet: dict[str, Any]) -> list[str]:
    """The freeze, what waits for the operator, and budgets that are nearly gone."""
    lines = []
    if wallet.get("frozen") is not None:
        reason = _table(wallet["frozen"]).get("reason")
        lines.append(f"FROZEN:   nobody spends{f' ({reason})' if reason else ''}; pylon wallet thaw ends it")
    if wallet.get("approvals"):
        lines.append(f"Waiting:  {wallet['approvals']} payments, for your yes: pylon wallet approvals")
    for entry in map(_table, _list(wallet, "warnings")):
        used = f"{in_sats(entry.get('used_msats'))} of {in_sats(entry.get('bound_msats'))}"
        lines.append(f"Budget:   {entry.get('budget')} is nearly gone, {used}")
    return lines


def _relay(entry: Any) -> str:
    relay = _table(entry)
    state = relay.get("state") or ("connected" if relay.get("connected") else "not connected")
    if not relay:
        return str(entry)
    parts = [str(relay.get("url")), str(state)]
    if state == "connected" and isinstance(latency := relay.get("latency"), (int, float)):
        parts.append(f"{latency * 1_000:.0f} ms")
    if isinstance(since := relay.get("since"), (int, float)) and since > 0:
        parts.append(f"for {span(time.time() - since)}")
    if state != "connected" and relay.get("last_error"):
        said = " ".join(str(relay["last_error"]).split())
        parts.append(said.removeprefix(f"{relay.get('url')}: ")[:200])
    return "  ".join(parts)


def _agent(entry: Any) -> str:
    """An agent on one line; where it does not tick although its balance would carry it, why."""
    agent = _table(entry)
    held = "moved" if agent.get("moved") else agent.get("paused")
    state = f"{agent.get('state', 'unknown')}, {held}" if held else str(agent.get("state", "unknown"))
    if agent.get("reason") and agent.get("state") != "active":
        state = str(agent["reason"]) if not held else f"{state} ({agent['reason']})"
    parts = [_name(entry), state, in_sats(agent.get("balance_msats"))]
    if isinstance(days := agent.get("runway_days"), (int, float)):
        parts.append(f"runway {in_days(days)}")
    if not held and isinstance(at := agent.get("next_tick"), (int, float)):
        parts.append(f"next tick {until(at, time.time())}")
    if agent.get("last_error"):
        parts.append(f"last error: {' '.join(str(agent['last_error']).split())[:200]}")
    return "  ".join(parts)


def _more_agents(report: dict[str, Any]) -> list[str]:
    """Of many agents not each has a line here: how many there are more, and in which states all of them are."""
    states = {name: count for name, count in _table(report.get("agent_states")).items() if isinstance(count, int)}
    more = sum(states.values()) - len(_list(report, "agents"))
    if more <= 0:
        return []
    counts = ", ".join(f"{count:,} {name}" for name, count in states.items())
    return [f"and {more:,} more, in all {counts}: pylon agent list"]


def _is_trouble(entry: Any) -> bool:
    return _table(entry).get("state") in ("waiting", "quarantined")


def _child(entry: Any) -> str:
    child = _table(entry)
    return f"{_name(entry)}  {child.get('state')}: {child.get('last_error') or 'ended'}"


def _duration(seconds: int) -> str:
    hours, rest = divmod(max(0, seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return " ".join(
        f"{amount}{unit}" for amount, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if amount or unit == "s"
    )
