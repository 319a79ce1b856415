"""``pylon relay``: the relays of a home, and how they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pylon.cli.output import State, emit, json_option, note, pass_state, warn
from pylon.errors import NotFound, NotRunning, PylonError

if TYPE_CHECKING:
    from pylon.config import Config
    from pylon.relays.probe import Probe

CHECK_SECONDS = 60.0
"""For the daemon to look at all relays."""
STATUS_SECONDS = 2.0


@click.group()
def relay() -> None:
    """List, add, remove and check the relays of a home."""


@relay.command(name="list")
@json_option
@pass_state
def list_(state: State) -> None:
    """The relays of this home; with a daemon running, how it stands with each."""
    config = _config(state)
    live = _live(state)
    configured = list(config.relays)
    own = _embedded(config)
    rows = []
    for url in dict.fromkeys([*(live or {}), *([] if live is not None else own), *configured]):
        status = (live or {}).get(url, {})
        source = "config" if url in configured else "embedded" if _is_own(url, own) else "agents and apps"
        rows.append(
            {
                "url": url,
                "source": source,
                "state": status.get("state"),
                "latency": status.get("latency"),
                "last_error": status.get("last_error") or None,
            }
        )
    report = {"running": live is not None, "relays": rows}
    emit(state, report, lambda: "\n".join(map(_row_text, rows)) or "none: pylon relay add wss://...")


@relay.command()
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@json_option
@pass_state
def add(state: State, urls: tuple[str, ...]) -> None:
    """Add relays to the configuration; a running daemon connects to them at once."""
    wanted = _urls(urls)
    relays = _written(state)
    known = {_same(url) for url in relays}
    _write(state, [*relays, *(url for url in wanted if _same(url) not in known)])


@relay.command()
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@json_option
@pass_state
def remove(state: State, urls: tuple[str, ...]) -> None:
    """Remove relays from the configuration; a running daemon leaves them at once.

    Relays that an agent, or an app that uses the wallet, is met on stay connected for their sake.
    """
    wanted = {_same(url) for url in _urls(urls)}
    relays = _written(state)
    missing = wanted - {_same(url) for url in relays}
    if missing:
        raise NotFound(f"{', '.join(sorted(missing))}: not among the relays of {state.home.config}", "pylon relay list")
    _write(state, [url for url in relays if _same(url) not in wanted])


@relay.command()
@click.argument("urls", metavar="[URL...]", nargs=-1)
@json_option
@pass_state
@click.pass_context
def check(context: click.Context, state: State, urls: tuple[str, ...]) -> None:
    """Look at each relay: connection, latency, reading, writing, its limits, and its clock against ours.

    Without a URL, at all relays of this home. What is written is an ephemeral event, which relays do not keep. Relays
    of this home may learn whose it is, where they ask; others do not. Exit code 1 if one cannot be read and written.
    """
    named = _urls(urls)
    rows = _look(state, named)
    emit(state, {"relays": rows}, lambda: "\n".join(line for row in rows for line in check_text(row)))
    if not rows:
        note("hint: this home has no relay that could be looked at without a daemon: pylon start")
    if not all(row["ok"] for row in rows):
        context.exit(1)


# --- looking ----------------------------------------------------------------------------------------------------------


def _look(state: State, named: list[str]) -> list[dict[str, Any]]:
    from pylon.cli.client import call

    if state.home.may_answer:
        try:
            answer: dict[str, Any] = call(state.home, "relay.check", {"relays": named}, timeout=CHECK_SECONDS)
            rows: list[dict[str, Any]] = answer["relays"]
            return rows
        except NotRunning:
            pass
    config = _config(state)
    own = list(config.relays)
    return [probe.to_json() for probe in look_here(state, named or own, own)]


def look_here(state: State, urls: list[str], own: list[str]) -> list[Probe]:
    """Look without a daemon. The identity answers the home's own relays where no passphrase guards it."""
    import trio

    from pylon import identity
    from pylon.clock import SystemClock
    from pylon.daemon.relay_check import look

    secret = None
    try:
        if not identity.is_protected(state.home):
            secret = identity.load(state.home).nostr
    except (PylonError, OSError):
        pass  # without an identity it can be looked at all the same

    async def go() -> list[Probe]:
        return await look(urls, known=own, clock=SystemClock(), identity=secret)

    return trio.run(go)


def check_text(row: dict[str, Any]) -> list[str]:
    """What was found of one relay, for people."""
    information = row["information"] or {}
    name = f"  {information['name']}" if information.get("name") else ""
    software = " ".join(information[key] for key in ("software", "version") if information.get(key))
    lines = [f"[{'OK' if row['ok'] else '--'}] {row['url']}{name}" + (f" ({software})" if software else "")]
    connected = _step("connect", row["connect"])
    if row["latency"] is not None:
        connected += f", latency {_milliseconds(row['latency'])}"
    lines.append(f"     {connected}")
    lines.extend(f"     {_step(title, row[title])}" for title in ("read", "write") if row[title] is not None)
    if row["auth"] != "not asked":
        lines.append(f"     auth: {row['auth']}")
    limits = _limits(information)
    if limits:
        lines.append(f"     limits: {limits}")
    elif row["information_error"] and row["connect"]["ok"]:
        lines.append(f"     says nothing of itself: {row['information_error']}")
    if row["clock_ahead"] is not None and abs(row["clock_ahead"]) >= 2:
        ahead = row["clock_ahead"]
        lines.append(f"     clock: {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} ours")
    return lines


def _step(title: str, step: dict[str, Any]) -> str:
    if step["ok"]:
        return f"{title} {_milliseconds(step['seconds'])}"
    return f"{title} FAILED: {step['detail']}"


def _milliseconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1_000:,.0f} ms"


def _limits(information: dict[str, Any]) -> str:
    told = []
    for name, value in information.get("limitation", {}).items():
        if value is True:
            told.append(name.replace("_", " "))
        elif value is not False:
            told.append(f"{name.replace('_', ' ')} {value:,}")
    return ", ".join(told)


# --- the configuration ------------------------------------------------------------------------------------------------


def _config(state: State) -> Config:
    from pylon import config as configuration

    loaded = configuration.load(state.home.config)
    warn(loaded.warnings)
    return loaded.config


def _urls(urls: tuple[str, ...]) -> list[str]:
    from pylon.config_values import relay_urls

    return relay_urls(urls)


def _same(url: str) -> str:
    """A relay's address as it is compared: a slash at the end, or capitals in the host, make no other relay."""
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path.rstrip("/"), parts.query, ""))


def _written(state: State) -> list[str]:
    """The relays that the file means: those it names, else the defaults of its network."""
    from pylon import config as configuration
    from pylon.config_edit import relays_in

    written = relays_in(state.home.config)
    return list(configuration.load(state.home.config, environ={}).config.relays) if written is None else written


def _write(state: State, relays: list[str]) -> None:
    from pylon.cli.config import report_change
    from pylon.config_edit import set_value

    report_change(state, ("relays",), set_value(state.home.config, ("relays",), relays), reload=True)


def _embedded(config: Config) -> list[str]:
    return [f"ws://{config.relay.bind}"] if config.relay.enabled else []


def _is_own(url: str, own: list[str]) -> bool:
    """Whether it is the embedded relay, whose port may have been chosen by the system."""
    return any(url == each or (each.endswith(":0") and url.startswith(each[:-1])) for each in own)


def _live(state: State) -> dict[str, dict[str, Any]] | None:
    """What the daemon says of its relays; ``None`` where none runs."""
    if not state.home.may_answer:
        return None
    from pylon.cli.client import call

    try:
        report = call(state.home, "status", timeout=STATUS_SECONDS)
    except NotRunning:
        return None
    return {str(entry.get("url")): entry for entry in report.get("relays", []) if isinstance(entry, dict)}


def _row_text(row: dict[str, Any]) -> str:
    state = row["state"] or ("" if row["source"] == "config" else "with a daemon")
    latency = f"  {_milliseconds(row['latency'])}" if row["latency"] is not None else ""
    error = f"  {row['last_error']}" if row["last_error"] and row["state"] != "connected" else ""
    return f"{row['url']}  ({row['source']})  {state}{latency}{error}".rstrip()
