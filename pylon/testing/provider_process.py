"""The real daemon with a fake backend: ``python -m pylon.testing.provider_process --home DIR``.

Everything but the words is what ``pylon start`` runs; the words come from a ``ScriptedBackend``, and no model is
needed. It says so on stderr and in its answers. The answer to a prompt is the prompt backwards, so that a
test can tell it from the prompt without either standing in argv.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pylon import config as configuration
from pylon.daemon.serve import run_daemon
from pylon.errors import InferenceError, PylonError
from pylon.inference.port import InferenceRequest
from pylon.paths import find_home
from pylon.relays import connection, pool
from pylon.testing.backend import Reply, ScriptedBackend
from pylon.testing.clock import JumpingClock

PREFACE = "A fake answer: "


def answer(prompt: str) -> str:
    """What this fake says to ``prompt``."""
    return PREFACE + prompt[::-1]


@click.command()
@click.option("--home", required=True, metavar="DIR")
@click.option("-m", "--mode", type=click.Choice(["provider", "both", "host"]), default="provider", show_default=True)
@click.option("--seconds", type=float, default=0.0, help="How long it thinks before its first word.")
@click.option("--fails", is_flag=True, help="Every attempt fails.")
@click.option("--says", metavar="FILE", help="Answer everything with what FILE holds when it is asked.")
@click.option("--clock", metavar="FILE", help="Let its clock be off by the seconds that FILE holds at the moment.")
@click.option("--silence", type=float, help="How long a relay may be silent before it is taken for dead (90 s).")
def main(
    home: str, mode: str, seconds: float, fails: bool, says: str | None, clock: str | None, silence: float | None
) -> None:
    """Sell fake answers until SIGTERM or SIGINT; as a host, run agents."""

    def script(request: InferenceRequest) -> Reply:
        error = InferenceError("this fake was told to fail") if fails else None
        words = answer(request.messages[-1].content) if says is None else Path(says).read_text(encoding="utf-8")
        return Reply(words, first=seconds, error=error)

    if silence is not None:
        connection.SILENCE_SECONDS, connection.PING_SECONDS = silence, silence / 3
    if clock is not None:
        pool.CLOCK_SECONDS = 1.0

    def say(line: str) -> None:
        click.echo(line, err=True)

    say("FAKE BACKEND: the answers of this provider come from a script, no model is running. For tests only.")
    try:
        found = find_home(home)
        loaded = configuration.load(found.config)
        run_daemon(
            found,
            loaded.config,
            mode,
            say=say,
            backend=ScriptedBackend(script),
            clock=None if clock is None else JumpingClock(Path(clock)),
        )
    except PylonError as error:
        say(f"error: {error.message}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
