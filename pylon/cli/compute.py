"""``pylon compute``: what this machine can think with."""

from __future__ import annotations

from typing import Any

import click

from pylon.cli.output import State, emit, json_option, note, pass_state, warn

TIMEOUT = 10.0


@click.command()
@json_option
@pass_state
def compute(state: State) -> None:
    """Show the backends of this machine, their health and their models.

    With a daemon, those that it uses; without one, those that it would find. Nothing is started, and no identity is
    needed.
    """
    report = _ask(state)
    emit(state, report, lambda: _text(report))
    if not state.json and not any(row["available"] for row in report["local_backends"]):
        missing = report["embedded_missing"]
        note(f"hint: {missing['hint'] if missing else 'start Ollama or a llama.cpp server'}")


def _ask(state: State) -> dict[str, Any]:
    from pylon.cli.client import call
    from pylon.errors import NotRunning

    try:
        report: dict[str, Any] = call(state.home, "compute", timeout=TIMEOUT)
        return report
    except NotRunning:
        pass
    import trio

    from pylon import config as configuration
    from pylon.daemon.compute import survey

    loaded = configuration.load(state.home.config)
    warn(loaded.warnings)
    return trio.run(survey, loaded.config)


def _text(report: dict[str, Any]) -> str:
    lines = ["Local backends:"]
    for row in report["local_backends"]:
        mark = "OK" if row["available"] else "--"
        work = f", {row['active']} under way" if row["active"] else ""
        work += f", {row['waiting']} waiting" if row["waiting"] else ""
        lines.append(f"  [{mark}] {row['name']} ({row['endpoint']})  {row['detail']}{work}")
        lines += [f"         {_model(row, model)}" for model in row["models"]]
    if not report["local_backends"]:
        lines.append("  none")
    used, wanted = report["default_model_used"], report["default_model"]
    if used is not None:
        remark = "" if used in (wanted, f"{wanted}:latest") else f" ({wanted} is not there)"
        lines.append(f"Default model: {used}{remark}")
    return "\n".join(lines)


def _model(row: dict[str, Any], model: str) -> str:
    context = row["context_lengths"].get(model)
    return model if context is None else f"{model}  {context:,} tokens"
