"""``pylon api``: OpenAI's API of this home: where the daemon serves it, or served here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pylon.cli.amounts import AMOUNT
from pylon.cli.client import call
from pylon.cli.output import State, emit, home_passphrase_option, json_option, note, pass_state, warn
from pylon.errors import ConfigError, IdentityError, NotRunning, UsageError

if TYPE_CHECKING:
    from pylon.config import Config
    from pylon.config_values import Bind
    from pylon.daemon.runtime import Runtime


class Address(click.ParamType["Bind"]):
    """``HOST:PORT`` -> what ``[api] bind`` takes."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Bind:
        from pylon.config_values import BIND

        try:
            found: Bind = BIND.check(value)
        except (TypeError, ValueError):
            raise UsageError(
                f"--bind: {str(value)[:80]!r} is no address to listen on",
                "give a host and a port, as in 127.0.0.1:9899 or [::1]:9899; port 0 takes a free one",
            ) from None
        return found


@click.command()
@click.option(
    "--bind",
    type=Address(),
    metavar="HOST:PORT",
    help="Where to listen, instead of [api] bind; port 0 takes a free one.",
)
@click.option("--market", is_flag=True, help="Buy the answers from the market, within the budgets of [api].")
@click.option("--budget-day", type=AMOUNT, help="What --market may spend in any 24 hours, fees included.")
@click.option("--budget-each", type=AMOUNT, help="What --market may pay for one answer, the fee not included.")
@click.option("--model-file", metavar="FILE.gguf", help="Answer with this model instead of an installed one.")
@home_passphrase_option
@json_option
@pass_state
def api(
    state: State,
    bind: Bind | None,
    market: bool,
    budget_day: int | None,
    budget_each: int | None,
    model_file: str | None,
) -> None:
    """Serve OpenAI's API, or say where the running daemon serves it, and where its token is.

    Without a daemon it serves here, until SIGTERM or SIGINT: answers of this machine's own backends, which want no
    identity and no wallet, or with --market answers that it buys.
    """
    from pathlib import Path

    given = {
        "api.bind": bind,
        "api.market": market or None,
        "api.budget_day_msats": budget_day,
        "api.budget_each_msats": budget_each,
        "provider.model_file": None if model_file is None else str(Path(model_file).absolute()),
    }
    flags = {name: value for name, value in given.items() if value is not None}
    try:
        status = call(state.home, "status")
    except NotRunning:
        _serve(state, flags)
        return
    if flags:
        raise UsageError(
            "a daemon is running, and serves as it is configured",
            "set [api] in config.toml and start it anew, or call pylon api without options",
        )
    if status["api"] is None:
        raise ConfigError("the daemon serves no HTTP", "set [api] enabled = true, and start it anew")
    _tell(state, status["api"])


def _serve(state: State, flags: dict[str, Any]) -> None:
    from pylon import config as configuration
    from pylon.daemon.serve import run_daemon

    loaded = configuration.load(state.home.config, flags=flags)
    warn(loaded.warnings)
    config = loaded.config
    if not config.api.market:
        _serve_alone(state, config)
        return
    from pylon.cli.unlock import unlock

    if not state.home.mnemonic.exists():
        raise IdentityError(f"there is no identity in {state.home.data}, and who buys has one", "pylon init")
    if not config.api.enabled:
        raise ConfigError("[api] enabled = false: nothing is served", "set it to true")

    def ready(runtime: Runtime) -> None:
        _tell(state, f"http://{runtime.api}")

    run_daemon(state.home, config, "buyer", say=note, unlock=lambda: unlock(state), on_ready=ready)


def _serve_alone(state: State, config: Config) -> None:
    import trio

    trio.run(_run_alone, state, config)


async def _run_alone(state: State, config: Config) -> None:
    import functools

    import trio

    from pylon.daemon.answering import open_local, serve_alone
    from pylon.daemon.process import until_signal

    state.home.prepare()
    note("loading the model")
    async with open_local(state.home, config) as answerer, trio.open_nursery() as nursery:
        bound = await nursery.start(functools.partial(serve_alone, state.home, config, answerer))

        def ready() -> None:
            _tell(state, f"http://{bound}")
            note("serving until SIGTERM or SIGINT")

        await until_signal(ready)
        nursery.cancel_scope.cancel()


def _tell(state: State, url: str) -> None:
    import os

    # pylon.api.token knows this too, and imports far more than a question is worth.
    path = None if os.environ.get("PYLON_API_TOKEN") else str(state.home.data / "api.token")
    emit(
        state,
        {"url": f"{url}/v1", "token_file": path},
        f"{url}/v1\ntoken: {'in PYLON_API_TOKEN' if path is None else path}",
    )
