"""``pylon connect serve``: a tunnel server of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pylon.cli.api import Address
from pylon.cli.output import State, emit, json_option, note, pass_state, warn

if TYPE_CHECKING:
    from pylon.api.token import ApiToken
    from pylon.config_values import Bind

DEFAULT_BIND = "127.0.0.1:9898"
TOKEN_FILE = "tunnel.token"


@click.command()
@click.option(
    "--bind",
    type=Address(),
    default=DEFAULT_BIND,
    metavar="HOST:PORT",
    show_default=True,
    help="Where to listen; port 0 takes a free one.",
)
@click.option(
    "--public-url",
    metavar="URL",
    help="Where others reach it, as https://tunnel.example.org, if something in front of it speaks TLS.",
)
@json_option
@pass_state
def serve(state: State, bind: Bind, public_url: str | None) -> None:
    """Run a tunnel server: it prints the page's address, and the command that connects a machine to it.

    Both are good for a day, and across restarts on the same address. Further sessions are registered with the token
    in tunnel.token of this home (docs/tunnel.md). Runs until SIGTERM or SIGINT.
    """
    import trio

    from pylon.api.token import keep_token

    state.home.prepare()
    trio.run(_serve, state, bind, public_url, keep_token(state.home.data / TOKEN_FILE))


async def _serve(state: State, bind: Bind, public_url: str | None, owner: ApiToken) -> None:
    import shlex

    import trio

    from pylon.clock import SystemClock
    from pylon.daemon.process import until_signal
    from pylon.tunnel.server import TunnelServer

    server = TunnelServer(owner, owner.reveal().encode(), clock=SystemClock(), public_url=public_url)
    url = await server.listen(bind)
    made = server.register()
    if server.is_plain:
        warn([f"{url} has no TLS: whoever is between reads and changes everything; put TLS in front (--public-url)"])
    connect = f"pylon connect --tunnel-url {shlex.quote(made.tunnel_url)}{' --insecure' if server.is_plain else ''}"
    told = {
        "url": url,
        "session_id": made.session_id,
        "page_url": made.page_url,
        "tunnel_url": made.tunnel_url,
        "connect": connect,
        "expires_at": made.expires_at,
        "token_file": str(state.home.data / TOKEN_FILE),
    }

    def ready() -> None:
        emit(state, told, f"page:    {made.page_url}\nmachine: {connect}")
        note("serving until SIGTERM or SIGINT; who has these lines can use this session, for a day")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve)
        await until_signal(ready)
        nursery.cancel_scope.cancel()
