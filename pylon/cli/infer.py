"""``pylon infer``: one question, answered by this machine's own backend, or bought."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pylon.cli.amounts import AMOUNT
from pylon.cli.client import call, is_running
from pylon.cli.job import tell_what_goes_on
from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, home_passphrase_option, in_sats, json_option, note, pass_state, plain, warn
from pylon.errors import NotRunning, UsageError
from pylon.groups import cause

if TYPE_CHECKING:
    from pylon.cli.client import Progress

MAX_STDIN_BYTES = 1 << 20
"""More than any prompt that is read."""


@click.command()
@click.argument("prompt", required=False)
@click.option("--prompt", "said", metavar="TEXT", help="The prompt, where it is not an argument.")
@click.option("--model", help="The model that answers, instead of the default one.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 1_000_000),
    default=256,
    show_default=True,
    metavar="N",
    help="The longest answer, in tokens.",
)
@click.option("--temperature", type=click.FloatRange(0, 2), metavar="T", help="From 0 (sober) to 2 (wild).")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), metavar="P", help="Of the likeliest words only.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="The same seed, the same answer, mostly.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Where the answer ends; may be given often.")
@click.option("--system", metavar="TEXT", help="What the model is told before the prompt.")
@click.option("--no-stream", is_flag=True, help="Print the answer when it is there, and not word by word.")
@click.option("--market", is_flag=True, help="Buy the answer from the market.")
@click.option(
    "--open", "everybody", is_flag=True, help="With --market: ask everybody, in public, and pay the best quote."
)
@click.option(
    "--bid",
    type=AMOUNT,
    default="100",
    show_default=True,
    help="The most to pay with --market, in sats (25, 25sat, 1500msat); the network's fee comes on top.",
)
@home_passphrase_option
@json_option
@pass_state
def infer(
    state: State,
    prompt: str | None,
    said: str | None,
    model: str | None,
    max_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    system: str | None,
    no_stream: bool,
    market: bool,
    everybody: bool,
    bid: int,
) -> None:
    """Answer PROMPT ("-", or none, reads it from stdin), by the daemon if it runs, else here."""
    if prompt is not None and said is not None:
        raise click.UsageError("the prompt is given twice: as an argument and by --prompt")
    prompt = said if prompt is None else prompt
    if prompt is None and sys.stdin.isatty():
        raise UsageError("there is no prompt", 'pylon infer "why is the sky blue?", or pipe one in')
    if prompt in (None, "-"):
        prompt = sys.stdin.buffer.read(MAX_STDIN_BYTES).decode("utf-8", "surrogateescape").removesuffix("\n")
    streams = not (no_stream or state.json)
    params = {
        "prompt": prompt,
        "system": system,
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        **({} if top_p is None else {"top_p": top_p}),
        **({} if seed is None else {"seed": seed}),
        **({"stop": list(stop)} if stop else {}),
        "market": market,
        "bid_msats": bid,
        "whole": not streams,
    }

    if everybody:
        if not market:
            raise UsageError("--open asks the market, and is for --market", "pylon infer --market --open ...")
        params["open"] = True
    begun: list[str] = []

    def progress(method: str, data: Any) -> None:
        if method == "job":
            begun.append(data["id"])
        elif streams and method == "words":
            click.echo(plain(data["text"]), nl=False)

    if market:
        runs = is_running(state.home)
        try:
            done = run_verb(state, "infer", params, online=True, on_progress=progress, timeout=None)
        except BaseException as raised:
            if begun:
                tell_what_goes_on(cause(raised), begun[0], runs)
            raise
    else:
        done = _infer(state, params, progress)
    if streams:
        click.echo()
    else:
        emit(state, done, lambda: done["text"])
    if not state.json:
        _remark(done, max_tokens)


def _infer(state: State, params: dict[str, Any], progress: Progress) -> Any:
    try:
        return call(state.home, "infer", params, on_progress=progress, timeout=None)
    except NotRunning:
        pass
    import trio

    return trio.run(_infer_here, state, params, progress)


async def _infer_here(state: State, params: dict[str, Any], progress: Progress) -> Any:
    from pylon import config as configuration
    from pylon.daemon.answering import open_local
    from pylon.daemon.infer import answer, read_request

    request = read_request(params)
    loaded = configuration.load(state.home.config)
    warn(loaded.warnings)

    async def notify(method: str, data: Any) -> None:
        progress(method, data)

    async with open_local(state.home, loaded.config) as answerer:
        return await answer(answerer, request, notify)


def _remark(done: dict[str, Any], max_tokens: int) -> None:
    if done["finish_reason"] == "length":
        note(f"cut at {max_tokens} tokens: --max-tokens allows more")
    if done["job"] is not None and done["paid_msats"] is None:
        ident = done["job"][:16]
        note(f"{in_sats(done['price_msats'])} are paid once the answer is whole: pylon job status {ident}")
    elif done["job"] is not None:
        note(f"paid {in_sats(done['paid_msats'])} + {in_sats(done['fee_msats'])} fee; job {done['job'][:16]}")
