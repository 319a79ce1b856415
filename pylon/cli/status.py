"""``pylon status``: what the daemon says of itself. Imports nothing heavy, for it is asked often."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from pylon.cli.output import State, emit, in_sats, json_option, note, pass_state
from pylon.cli.times import in_days, until
from pylon.errors import NotRunning

if TYPE_CHECKING:
    from pylon.paths import Home

TIMEOUT = 2.0
"""Seconds for the daemon to answer."""


@click.command()
@json_option
@pass_state
@click.pass_context
def status(context: click.Context, state: State) -> None:
    """Show the daemon, its relays, its agents and its wallet.

    Exit code 3 if no daemon is running in this home.
    """
    report = ask(state.home)
    if report is None:
        emit(state, stopped(), lambda: _stopped_text(state.home))
        if not state.json:
            note(f"hint: {'pylon start' if state.home.mnemonic.exists() else 'pylon init'}")
        context.exit(NotRunning.exit_code)
    emit(state, report, lambda: render(report))


def ask(home: Home) -> dict[str, Any] | None:
    """The daemon's own report; ``None`` if there is no daemon, which costs no more than a look for its socket."""
    if not home.socket.exists():
        return None
    from pylon.cli.client import call

    try:
        report: dict[str, Any] = call(home, "status", timeout=TIMEOUT)
    except NotRunning:
        return None
    return report


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
    lines = [f"Daemon:   running (pid {daemon.get('pid')})"]
    if isinstance(daemon.get("uptime_secs"), (int, float)):
        lines.append(f"Uptime:   {_duration(int(daemon['uptime_secs']))}")
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
    default = report.get("default_backend")
    backends = [
        f"{_name(entry)} (default)" if _name(entry) == default else _name(entry) for entry in _list(report, "backends")
    ]
    lines.append(f"Backends: {', '.join(backends) or 'none'}")
    lines += _section("Relays", [_relay(entry) for entry in _list(report, "relays")])
    lines += _section("Agents", [_agent(entry) for entry in _list(report, "agents")])
    lines += _section("Trouble", [_child(entry) for entry in _list(report, "children") if _is_trouble(entry)])
    return "\n".join(lines)


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
    return f"{relay.get('url')}  {state}" if relay else str(entry)


def _agent(entry: Any) -> str:
    """An agent on one line; where it does not tick although its balance would carry it, why."""
    agent = _table(entry)
    held = "moved" if agent.get("moved") else agent.get("paused")
    state = f"{agent.get('state', 'unknown')}, {held}" if held else str(agent.get("state", "unknown"))
    parts = [_name(entry), state, in_sats(agent.get("balance_msats"))]
    if isinstance(days := agent.get("runway_days"), (int, float)):
        parts.append(f"runway {in_days(days)}")
    if not held and isinstance(at := agent.get("next_tick"), (int, float)):
        parts.append(f"next tick {until(at, time.time())}")
    if agent.get("last_error"):
        parts.append(f"last error: {' '.join(str(agent['last_error']).split())[:200]}")
    return "  ".join(parts)


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
