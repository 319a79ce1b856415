"""``pylon compute``: what there is to think with, here, elsewhere and on the market."""

from __future__ import annotations

import time
from typing import Any

import click

from pylon.cli.output import State, emit, in_sats, json_option, note, pass_state, warn
from pylon.cli.times import ago

TIMEOUT = 10.0


MOST_SELLERS = 20
"""Providers of the swarm that are listed for people; ``--json`` has them all."""
_MOST_MODELS = 3


@click.command()
@click.option("--swarm/--no-swarm", default=True, help="Ask the relays who sells, too; some seconds at most.")
@json_option
@pass_state
def compute(state: State, swarm: bool) -> None:
    """Show what there is to think with: the backends of this machine, services elsewhere, and who sells.

    With a daemon, the backends that it uses; without one, those that it would find. Nothing is started, and no identity
    is needed: the relays are asked without saying who asks.
    """
    report = _ask(state, swarm)
    emit(state, report, lambda: _text(report))
    if not state.json and not any(row["available"] for row in report["local_backends"] + report["cloud_providers"]):
        missing = report["embedded_missing"]
        starting = any(row["detail"] == "starting" for row in report["local_backends"])
        otherwise = "it loads its model; in a moment it is there" if starting else "start Ollama or a llama.cpp server"
        note(f"hint: {missing['hint'] if missing else otherwise}")


def _ask(state: State, swarm: bool) -> dict[str, Any]:
    from pylon.cli.client import call
    from pylon.errors import NotRunning

    try:
        report: dict[str, Any] = call(state.home, "compute", {"swarm": swarm}, timeout=TIMEOUT)
        return report
    except NotRunning:
        pass
    import trio

    from pylon import config as configuration
    from pylon.daemon.compute import survey

    loaded = configuration.load(state.home.config)
    warn(loaded.warnings)
    return trio.run(survey, loaded.config, swarm)


def _text(report: dict[str, Any]) -> str:
    lines = ["Local backends:", *_backends(report["local_backends"])]
    used, wanted = report["default_model_used"], report["default_model"]
    if report["cloud_providers"]:
        lines += ["Cloud providers:", *_backends(report["cloud_providers"])]
    if used is not None:
        remark = "" if used in (wanted, f"{wanted}:latest") else f" ({wanted} is not there)"
        lines.append(f"Default model: {used}{remark}")
    if report["swarm_providers"] is not None:
        lines += _swarm(report, time.time())
    return "\n".join(lines)


def _backends(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        mark = "OK" if row["available"] else "--"
        work = f", {row['active']} under way" if row["active"] else ""
        work += f", {row['waiting']} waiting" if row["waiting"] else ""
        lines.append(f"  [{mark}] {row['name']} ({row['endpoint']})  {row['detail']}{work}")
        lines += [f"         {_model(row, model)}" for model in row["models"]]
    return lines or ["  none"]


def _model(row: dict[str, Any], model: str) -> str:
    context = row["context_lengths"].get(model)
    return model if context is None else f"{model}  {context:,} tokens"


def _swarm(report: dict[str, Any], now: float) -> list[str]:
    relays, network = report["swarm_relays"], report["network"]
    asked = sum(relay["connected"] for relay in relays)
    if not asked:
        tried = ", ".join(relay["url"] for relay in relays)
        return [f"Swarm providers: unknown, {f'no relay answers ({tried})' if tried else 'no relay is configured'}"]
    lines = [f"Swarm providers on {network}, at {asked} of {len(relays)} relay{'' if len(relays) == 1 else 's'}:"]
    here = [row for row in report["swarm_providers"] if row["payable"]]
    for row in here[:MOST_SELLERS]:
        own = "  (this home)" if row["own"] else ""
        mark = _MARKS.get(row["health"], "??")
        lines.append(f"  [{mark}] {_name(row)}  {_price(row)}  heard {ago(row['last_heard_at'], now)}{own}")
        if row["models"]:
            lines.append(f"         {_models(row['models'])}")
        if known := _known(row):
            lines.append(f"         {known}")
    if len(here) > MOST_SELLERS:
        lines.append(f"  and {len(here) - MOST_SELLERS} more: pylon compute --json")
    others = len(report["swarm_providers"]) - len(here)
    if others:
        lines.append(f"  {others} more on other networks")
    return lines if len(lines) > 1 else [*lines, "  none"]


_MARKS = {"alive": "OK", "silent": "--"}
"""Whoever never beats is neither: ``??``."""


def _name(row: dict[str, Any]) -> str:
    """What it calls itself, which is anybody's to say, and how its key begins, which is not."""
    name = " ".join(row["name"].split())[:40]
    return f"{name or 'unnamed'} ({row['npub'][:16]}…)"


def _price(row: dict[str, Any]) -> str:
    """The least that a job costs, and what goes on top of it."""
    if row["price_msats"] is None:
        return "no price"
    parts = [in_sats(row["price_msats"])]
    parts += [f"{in_sats(row[f'price_{way}_msats'])}/1k {way}" for way in ("in", "out") if row[f"price_{way}_msats"]]
    return " + ".join(parts)


def _known(row: dict[str, Any]) -> str:
    """What this home has learned of it by buying."""
    observed, words = row["observed"], []
    if observed is not None:
        words.append(f"answers {observed['reliability']:.0%}, in {observed['seconds']:.1f} s")
        if observed["distrusted"]:
            words.append("kept our money lately")
        elif observed["rests"]:
            words.append("has just failed")
    if row["owes_msats"]:
        words.append(f"owes us {in_sats(row['owes_msats'])}")
    return "; ".join(words)


def _models(models: list[str]) -> str:
    shown = ", ".join(" ".join(model.split())[:40] for model in models[:_MOST_MODELS])
    return shown + (f" and {len(models) - _MOST_MODELS} more" if len(models) > _MOST_MODELS else "")
