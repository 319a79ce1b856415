"""``pylon connect``: the Claude tunnel."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from pylon.cli.lazy import LazyGroup
from pylon.cli.output import State, home_passphrase_option, json_option, pass_state
from pylon.errors import UsageError

SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("pylon.cli.connect_serve:serve", "Run a tunnel server of your own, with its page."),
    "sessions": ("pylon.cli.connect_sessions:sessions", "What was asked, allowed, denied, and what it cost."),
}
"""Name -> where the command is, and its line in ``pylon connect --help``. Imported when called."""


class MicroUsd(click.ParamType[int]):
    """``250000`` or ``$0.25`` -> 250000, millionths of a dollar."""

    name = "amount"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        if re.fullmatch(r"[0-9]{1,13}", text):
            return int(text)
        if match := re.fullmatch(r"\$([0-9]{1,6})(?:\.([0-9]{1,6}))?", text):
            return int(match[1]) * 1_000_000 + int((match[2] or "").ljust(6, "0"))
        self.fail(f"{text[:40]!r} is no cost: write millionths of a dollar (250000) or dollars ('$0.25')", param, ctx)


@click.group(cls=LazyGroup, table=SUBCOMMANDS, invoke_without_command=True)
@click.option(
    "--tunnel-url",
    metavar="URL",
    envvar="PYLON_TUNNEL_URL",
    help="The address that the tunnel server gave: wss://..., with its token. -: the first line of stdin.",
)
@click.option("--model", metavar="NAME", help="The model, instead of [claude] model.")
@click.option(
    "--autonomy",
    type=click.Choice(["full", "supervised", "restricted", "read-only"]),
    help="How much a session may do unasked, instead of [claude] autonomy.",
)
@click.option(
    "--max-cost-usd",
    type=MicroUsd(),
    metavar="AMOUNT",
    help="The most that one session may cost: millionths of a dollar (250000), or dollars ('$0.25').",
)
@click.option("--cwd", metavar="DIR", help="The directory that sessions work in, instead of [claude] cwd, or this one.")
@click.option("--executable-path", metavar="FILE", help="The claude executable, where it is not on the PATH.")
@click.option(
    "-c", "--config", "config_path", metavar="FILE", help="Another configuration than the home's config.toml."
)
@click.option("--insecure", is_flag=True, help="Allow ws:// to another machine: whoever is between reads everything.")
@home_passphrase_option
@json_option
@pass_state
@click.pass_context
def connect(
    ctx: click.Context,
    state: State,
    tunnel_url: str | None,
    model: str | None,
    autonomy: str | None,
    max_cost_usd: int | None,
    cwd: str | None,
    executable_path: str | None,
    config_path: str | None,
    insecure: bool,
) -> None:
    """Let a web page drive Claude sessions on this machine, under the rules of [claude] (docs/tunnel.md).

    Runs until Ctrl-C or SIGTERM, with a daemon or without. What the page asks for can tighten the rules, never loosen
    them. An option of this command wins over the configuration. The address holds a token: PYLON_TUNNEL_URL or stdin
    keep it from those who list this machine's processes.
    """
    if ctx.invoked_subcommand is not None:
        return
    if tunnel_url is None:
        raise UsageError("--tunnel-url is wanted", "pylon connect serve runs a tunnel server of your own, and names it")
    if tunnel_url == "-":
        tunnel_url = sys.stdin.readline(8_192)
    flags: dict[str, Any] = {
        "claude.model": model,
        "claude.autonomy": None if autonomy is None else autonomy.replace("-", "_"),
        "claude.max_cost_usd": max_cost_usd,
        "claude.cwd": _absolute(cwd),
        "claude.executable_path": _absolute(executable_path),
    }
    from pylon.cli.connect_run import run

    run(
        state,
        tunnel_url,
        {key: value for key, value in flags.items() if value is not None},
        Path(config_path) if config_path else None,
        insecure=insecure,
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())
