"""``pylon doctor``: what a home works with: its books, agents and wallet, relays and clock, backends, models, ports.

A running daemon is asked, for it has all this open already; without one the same things are looked at from here.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from pylon.clock import Clock
from pylon.config import Config
from pylon.config_values import Bind
from pylon.daemon.compute import survey
from pylon.daemon.doctor import BOUND, Finding, Patient, failed, failure, passed, warned
from pylon.daemon.doctor_files import read_only
from pylon.daemon.embedded_relay import software_at
from pylon.daemon.nwc_home import load_uri
from pylon.daemon.process import hold_home
from pylon.daemon.relay_check import look
from pylon.daemon.wallets import open_wallets
from pylon.errors import AlreadyRunning, ModelMissing, PylonError
from pylon.inference.backends import EMBEDDED, IN_PROCESS
from pylon.money import Msat, format_msat
from pylon.relays.probe import Auth
from pylon.relays.server import SOFTWARE
from pylon.store import books as store_books
from pylon.store.database import open_store
from pylon.store.schema import MIGRATIONS

NO_CONFIG = "the configuration is wrong; see there"
LOCKED = "a passphrase guards it, and none was given"
UNLOCK = "PYLON_PASSPHRASE_FILE=FILE pylon doctor, or with the daemon running"
_STALE = 300.0
"""Seconds after which a balance is old."""
_OFF, _FAR_OFF = 30.0, 300.0
"""Seconds by which clocks differ; relays refuse what is dated some 900 s ahead, and expiries are off before."""
_MOST_TOLD = 5


# --- money and agents -------------------------------------------------------------------------------------------------


async def books(patient: Patient) -> Sequence[Finding]:
    """Whether ledger, records and wallet agree."""
    if not patient.home.database.exists():
        return [passed("books", "empty")]
    if patient.running:
        report = await patient.call("books")
        problems, remarks = [str(each) for each in report["problems"]], [str(each) for each in report["remarks"]]
    else:
        if patient.unlock is None:
            return [warned("books", f"not looked at: {LOCKED}", UNLOCK)]
        if not _is_current(patient):
            return [warned("books", "not looked at: the next start brings the database up first", "pylon start")]
        try:
            with hold_home(patient.home):
                keys = await trio.to_thread.run_sync(patient.unlock)
                opened = open_store(patient.home.database, vault=keys.vault, clock=patient.clock)
                async with opened as store:
                    problems = [str(each) for each in store_books.check(store)]
                    remarks = [str(each) for each in store_books.remarks(store)]
        except AlreadyRunning:
            return [warned("books", "not looked at: another command is at work in this home", "pylon doctor, later")]
    if problems:
        remedy = "pylon books --check; pylon wallet freeze until it is understood"
        return [failed("books", problem, remedy) for problem in problems[:_MOST_TOLD]]
    return [passed("books", "they agree" + (f"; {_count(len(remarks), 'remark')}: pylon books" if remarks else ""))]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _is_current(patient: Patient) -> bool:
    try:
        with contextlib.closing(read_only(patient.home.database)) as database:
            applied = {row[0] for row in database.execute("SELECT name FROM _sqlite_migrations")}
    except sqlite3.Error:
        return False
    return applied == {migration.name for migration in MIGRATIONS}


async def wallet(patient: Patient) -> Sequence[Finding]:
    """Whether it says what it holds."""
    if patient.loaded is None:
        return [warned("wallet", f"not looked at: {NO_CONFIG}", "pylon config check")]
    config = patient.loaded.config
    remark = " (simnet sats are not money)" if config.network == "simnet" else ""
    if patient.status is not None:
        return await _wallet_of_daemon(patient, patient.status, remark)
    if not patient.home.mnemonic.exists():
        return [warned("wallet", "there is no identity, and so no wallet", "pylon init")]
    if config.wallet.kind == "nwc":
        load_uri(patient.home, config)  # raises what is wrong with the string
        return [passed("wallet", "its connection string is there; whether it answers, a running daemon knows")]
    if patient.unlock is None:
        return [warned("wallet", f"not looked at: {LOCKED}", UNLOCK)]
    if config.network == "simnet" and not (config.simnet.ledger or patient.home.simnet).exists():
        return [passed("wallet", "simnet's ledger is made at the first start")]
    keys = await trio.to_thread.run_sync(patient.unlock)
    with trio.move_on_after(BOUND):
        async with open_wallets(patient.home, config, keys.identity, patient.clock) as wallets:
            balance = await wallets.own.balance()
            return [passed("wallet", f"{format_msat(balance.settled)}{remark}")]
    network = "this machine's simnet" if config.network == "simnet" else "Spark's servers"
    return [failed("wallet", f"{network} did not answer within {BOUND:g} s", "check the network; pylon doctor again")]


async def _wallet_of_daemon(patient: Patient, status: Mapping[str, Any], remark: str) -> Sequence[Finding]:
    told, now = status.get("wallet") or {}, patient.clock.now()
    findings = []
    if told.get("frozen") is not None:
        findings.append(warned("wallet", "spending is frozen", "pylon wallet thaw, once you know why"))
    if told.get("approvals"):
        findings.append(warned("wallet", f"{told['approvals']} payments wait for your yes", "pylon wallet approvals"))
    settled, known_at = told.get("settled_msats"), told.get("known_at")
    if settled is None:
        asked = await patient.call("wallet.status")
        why = asked["problem"] or "it has only just answered for the first time"
        findings.append(failed("wallet", why, "check the network; pylon wallet status"))
    elif known_at is not None and now - known_at > _STALE:
        age = f"its balance is {now - known_at:,.0f} s old"
        findings.append(warned("wallet", age, "check the network; pylon status"))
    else:
        findings.insert(0, passed("wallet", f"{format_msat(Msat(settled))}{remark}"))
    return findings


async def agents(patient: Patient) -> Sequence[Finding]:
    """Who lives here, who cannot, and whom somebody else runs, too."""
    path = patient.home.database
    if not path.exists():
        return [passed("agents", "none yet: pylon agent spawn NAME")]

    def read() -> tuple[list[sqlite3.Row], dict[str, int]]:
        with contextlib.closing(read_only(path)) as database:
            database.row_factory = sqlite3.Row
            rows = database.execute(
                "SELECT a.name, a.moved, a.paused, a.last_error, l.state FROM agents a"
                " LEFT JOIN lifecycles l ON l.id = a.id WHERE a.deleted_at IS NULL"
                " AND (a.moved <> '' OR a.last_error <> '') LIMIT 1000"
            ).fetchall()
            counted = database.execute(
                "SELECT COALESCE(l.state, 'unknown') AS state, COUNT(*) AS n FROM agents a"
                " LEFT JOIN lifecycles l ON l.id = a.id WHERE a.deleted_at IS NULL AND a.moved = '' GROUP BY 1"
            )
            return rows, {row["state"]: row["n"] for row in counted}

    rows, states = await trio.to_thread.run_sync(read, abandon_on_cancel=True)
    findings = []
    for row in rows:
        name = row["name"] or "an agent"
        if row["moved"].startswith("run by "):
            remedy = f"stop it there, or pylon agent delete {name} here; one seed has one home"
            findings.append(failed("agents", f"{name} is {row['moved']}, and parked here", remedy))
        elif row["moved"] == "" and row["last_error"]:
            told = " ".join(row["last_error"].split())[:200]
            findings.append(warned("agents", f"{name}: {told}", f"pylon agent info {name}"))
    dormant = states.get("dormant", 0)
    if dormant:
        are = "is 1 agent" if dormant == 1 else f"are {dormant} agents"
        findings.append(
            warned("agents", f"there {are} without funds (dormant)", "pylon agent list; pylon agent fund NAME")
        )
    told = (
        ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none yet: pylon agent spawn NAME"
    )
    rest = len(findings) - _MOST_TOLD
    more = [warned("agents", f"and {rest} more", "pylon agent list")] if rest > 0 else []
    return [passed("agents", told), *findings[:_MOST_TOLD], *more]


# --- the network ------------------------------------------------------------------------------------------------------


async def relays(patient: Patient) -> Sequence[Finding]:
    """Each relay as a client finds it, and by the way their clocks against ours."""
    if patient.loaded is None:
        return [warned("relays", f"not looked at: {NO_CONFIG}", "pylon config check")]
    config = patient.loaded.config
    if patient.running:
        rows = (await patient.call("relay.check", seconds=18.0))["relays"]
    else:
        secret = None
        if patient.unlock is not None and patient.home.mnemonic.exists():
            with contextlib.suppress(PylonError):  # a relay can be looked at by a stranger; what is wrong is told there
                secret = (await trio.to_thread.run_sync(patient.unlock)).identity.nostr
        own = list(config.relays)
        rows = [probe.to_json() for probe in await look(own, known=own, clock=patient.clock, identity=secret)]
    if not rows:
        if config.relay.enabled:
            return [passed("relays", "the embedded one, which starts with the daemon"), *_clock([], near=True)]
        return [failed("relays", "this home has none", "pylon relay add wss://...; or [relay] enabled = true")]
    # The embedded one is there as long as this machine is; a home that names others wants one of them, too.
    others = [row for row in rows if row["url"] in config.relays] or rows
    away = warned if any(row["ok"] for row in others) else failed
    findings = [finding for row in rows for finding in _relay(row, away)]
    ahead = [(row["clock_ahead"], row["url"]) for row in rows if row["clock_ahead"] is not None]
    return [*findings, *_clock(ahead, near=all("//127.0.0.1:" in row["url"] for row in rows))]


def _relay(row: dict[str, Any], away: Any) -> Sequence[Finding]:
    url = row["url"]
    replace = f"pylon relay remove {url}, and add another"
    limits = ((row["information"] or {}).get("limitation")) or {}
    if not row["connect"]["ok"]:
        return [away("relays", f"{url}: {row['connect']['detail']}", f"check the address and the network; {replace}")]
    findings = []
    pays = limits.get("payment_required") is True or limits.get("restricted_writes") is True
    for what, verb in (("read", "read from"), ("write", "written to")):
        step = row[what]
        if step is None or step["ok"]:
            continue
        detail, remedy = step["detail"], replace
        if row["auth"] == Auth.NO_KEY:
            remedy = "pylon init; or PYLON_PASSPHRASE_FILE=FILE pylon doctor"
        elif row["auth"] == Auth.REFUSED or detail.startswith(("restricted", "blocked")) or pays:
            remedy = f"it takes its members' events only: join it, or {replace}"
        findings.append(away("relays", f"{url} cannot be {verb}: {detail}", remedy))
    if findings:
        return findings
    told = f"{url}: connected in {row['connect']['seconds'] * 1_000:,.0f} ms"
    told += "" if row["latency"] is None else f", latency {row['latency'] * 1_000:,.0f} ms"
    return [passed("relays", told + (", authenticated" if row["auth"] == Auth.ACCEPTED else ""))]


def _clock(ahead: list[tuple[float, str]], *, near: bool) -> Sequence[Finding]:
    """Ours against theirs: the middle one of those that told the time."""
    if not ahead:
        return [passed("clock", "no relay has told its time" + (": all is on this machine" if near else ""))]
    middle, url = sorted(ahead)[len(ahead) // 2]
    if near:
        return [passed("clock", "compared with this machine's own only")]
    if abs(middle) < _OFF:
        return [passed("clock", f"within {max(abs(middle), 1):,.0f} s of {url}")]
    told = f"it is {abs(middle):,.0f} s {'behind' if middle > 0 else 'ahead of'} that of {url}"
    remedy = "set the clock: timedatectl set-ntp true"
    return [(failed if abs(middle) >= _FAR_OFF else warned)("clock", told, remedy)]


# --- the machine ------------------------------------------------------------------------------------------------------


async def backends(patient: Patient) -> Sequence[Finding]:
    """What can think here, and with which models."""
    if patient.loaded is None:
        return [warned("backends", f"not looked at: {NO_CONFIG}", "pylon config check")]
    config = patient.loaded.config
    try:
        report = await patient.call("compute") if patient.running else await survey(config)
    except ModelMissing as error:
        return [failure("backends", error, "pylon models pull")]
    there = [row for row in report["local_backends"] if row["available"]]
    if not there:
        ours = [row for row in report["local_backends"] if row["endpoint"] in (EMBEDDED, IN_PROCESS)]
        if ours:  # it has its model, and is loading it, or fails to
            told = f"the embedded {ours[0]['name']} does not answer yet: {ours[0]['detail']}"
            return [warned("backends", told, "wait until it is ready; if it never is, see logs/engine.log")]
        missing = report["embedded_missing"]
        remedy = missing["hint"] if missing else "pylon models pull; or start Ollama or a llama.cpp server"
        return [warned("backends", "none answers: nothing is sold, and pylon infer buys", remedy)]
    findings = [
        passed("backends", f"{row['name']} ({row['endpoint']}), {_count(len(row['models']), 'model')}") for row in there
    ]
    used, wanted = report["default_model_used"], report["default_model"]
    if used is None:
        findings.append(warned("models", "no backend has any", "pylon models pull; or ollama pull llama3.2"))
    elif used in (wanted, f"{wanted}:latest"):
        findings.append(passed("models", f"{used} answers where a job names none"))
    else:
        remedy = f"pylon config set default_model {used}"
        findings.append(warned("models", f"{wanted} is not there; {used} answers in its place", remedy))
    return findings


async def ports(patient: Patient) -> Sequence[Finding]:
    """Whether what is to be served can be."""
    if patient.loaded is None:
        return [warned("ports", f"not looked at: {NO_CONFIG}", "pylon config check")]
    config = patient.loaded.config
    if patient.running:
        api = patient.says().get("api")
        if api is None and config.api.enabled:
            return [warned("ports", "HTTP is not served", "see logs/pylon.log; pylon start")]
        moved = api is not None and config.api.bind.port and not api.endswith(f":{config.api.bind.port}")
        if moved:
            told = f"{config.api.bind} was taken: HTTP is served on {api}"
            return [warned("ports", told, "pylon config set api.bind 127.0.0.1:PORT; pylon api says where it is")]
        return [passed("ports", f"HTTP is served on {api}" if api else "HTTP is switched off")]
    findings = [*await _relay_port(config, patient.clock), *_api_port(config)]
    return findings or [passed("ports", "those of the relay and of HTTP are free")]


async def _relay_port(config: Config, clock: Clock) -> Sequence[Finding]:
    trouble = _taken(config.relay.bind) if config.relay.enabled else ""
    if not trouble:
        return []
    if trouble == "taken" and await software_at(config.relay.bind, clock) == SOFTWARE:
        return [passed("ports", f"{config.relay.bind} is served by another Pylon's relay, which this home uses")]
    remedy = "pylon config set relay.bind 127.0.0.1:PORT; or relay.enabled false"
    return [failed("ports", f"the relay's {config.relay.bind} is {trouble}", remedy)]


def _api_port(config: Config) -> Sequence[Finding]:
    trouble = _taken(config.api.bind) if config.api.enabled else ""
    if not trouble:
        return []
    remedy = "pylon config set api.bind 127.0.0.1:PORT; or api.enabled false"
    told = f"the API's {config.api.bind} is {trouble}"
    if config.api.bind_given or trouble != "taken":
        return [failed("ports", told, remedy)]
    return [warned("ports", f"{told}; a free port will be used", remedy)]


def _taken(bind: Bind) -> str:
    """Why nobody could listen there now; or nothing."""
    family = socket.AF_INET6 if ":" in bind.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind.host, bind.port))
        except OSError as error:
            return "taken" if error.errno == errno.EADDRINUSE else f"not to be had: {error.strerror or error}"
    return ""
