"""The ``pylon`` command. Its subcommands are named in a table and imported when they are called.

``pylon --help`` and ``pylon --version`` import nothing but click: the table carries the help texts.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NoReturn

import click

from pylon import __version__
from pylon.cli.lazy import LazyGroup
from pylon.cli.output import State, home_passphrase_option, json_option, note, pass_state, print_error
from pylon.errors import PylonError, UsageError
from pylon.groups import cause

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("pylon.cli.init:init", "Make the identity and the configuration of a home."),
    "identity": ("pylon.cli.identity:identity", "Show, protect, back up and restore the identity of a home."),
    "backup": ("pylon.cli.backup:backup", "Write all of a home into one file; the daemon may run."),
    "restore": ("pylon.cli.backup:restore", "Bring a home back from a backup."),
    "config": ("pylon.cli.config:config", "Show, check and change the configuration of a home."),
    "relay": ("pylon.cli.relay:relay", "List, add, remove and check the relays of a home."),
    "doctor": ("pylon.cli.doctor:doctor", "Find out what is wrong, and what to do about it."),
    "start": ("pylon.cli.start:start", "Run the daemon, in the foreground or in the background (-d)."),
    "stop": ("pylon.cli.stop:stop", "Stop the daemon."),
    "status": ("pylon.cli.status:status", "Show the daemon, its relays, its agents and its wallet."),
    "events": ("pylon.cli.events:events", "Show what happens, as it happens."),
    "logs": ("pylon.cli.logs:logs", "Show the log of the daemon."),
    "service": ("pylon.cli.service:service", "Have systemd or launchd keep the daemon."),
    "agent": ("pylon.cli.agent:agent", "Spawn, fund, watch and steer agents."),
    "infer": ("pylon.cli.infer:infer", "Ask this machine's own model, or buy an answer."),
    "api": ("pylon.cli.api:api", "OpenAI's API: serve it, or say where it is served."),
    "connect": ("pylon.cli.connect:connect", "Let a web page drive Claude on this machine, under your rules."),
    "job": ("pylon.cli.job:job", "Buy inference on the market."),
    "trace": ("pylon.cli.trace:trace", "One job's whole life on this machine."),
    "compute": (
        "pylon.cli.compute:compute",
        "What there is to think with, here, elsewhere and for sale.",
    ),
    "wallet": ("pylon.cli.wallet:wallet", "Balance, invoices and payments."),
    "provider": ("pylon.cli.provider_desk:provider", "What is sold, to whom, and what is owed."),
    "earnings": ("pylon.cli.earnings:earnings", "What the provider has earned."),
    "models": ("pylon.cli.models:models", "List and fetch models."),
    "books": ("pylon.cli.books:books", "The double-entry books, and their check."),
    "completion": ("pylon.cli.completion:completion", "Print the completion script for bash, zsh or fish."),
    "demo": ("pylon.cli.demo:demo", "Let an agent live on this machine, with pretended sats."),
}
"""Name -> where the command is, and its line in ``pylon --help``."""

INTERRUPTED = 130


class Commands(LazyGroup):
    """All of them; for what is none of them, the nearest is named."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not ctx.resilient_parsing and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            advice = f"did you mean pylon {close[0]}?" if close else "see pylon --help"
            raise UsageError(f"there is no command {args[0]!r}", advice)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--home", metavar="DIR", help="The home to use, instead of $PYLON_HOME or ~/.openagents/pylon.")
@home_passphrase_option
@json_option
@click.version_option(__version__, prog_name="pylon", message="%(prog)s %(version)s")
@pass_state
def cli(state: State, home: str | None) -> None:
    """The local runtime for sovereign AI agents: host your own, and sell inference to others."""
    state.home_option = home


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and leave with its exit code: 0, 1 error, 2 usage, 3 not running, 4 money refused."""
    os.umask(0o077)  # whatever a command writes is its owner's alone
    code = run(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and "breez_sdk_spark" in sys.modules:  # the process is this command's, and ends with it
        _leave_at_once(code)
    sys.exit(code)


def _leave_at_once(code: int) -> NoReturn:
    """End without taking the interpreter down.

    Threads of the Spark SDK's own may still call into it, and one that does while it is taken down aborts the process.
    All that is to be closed is closed by now.
    """
    import logging

    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def run(arguments: list[str]) -> int:
    """The exit code of one command line; everything that it raises has been said on stderr."""
    state = State()
    try:
        result: Any = cli.main(arguments, prog_name="pylon", standalone_mode=False, obj=state)
        return result if isinstance(result, int) else 0
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as raised:
        as_json = state.json or "--json" in arguments
        match cause(raised):
            case PylonError() as error:
                print_error(error, as_json)
                return error.exit_code
            case click.Abort(__context__=context) if not isinstance(context, KeyboardInterrupt):
                return 1
            case click.Abort() | KeyboardInterrupt():
                note("interrupted")
                return INTERRUPTED
            case click.UsageError() as error:
                _print_usage(error, as_json)
                return error.exit_code
            case click.ClickException() as error:
                print_error(PylonError(error.format_message()), as_json)
                return error.exit_code
            case error:
                _print_unexpected(error, state, as_json)
                return 1


_BEFORE = {"--home": "--home DIR", "--passphrase-fd": "--passphrase-fd N"}
"""Options of ``pylon`` itself that people look for after the command."""


def _print_usage(error: click.UsageError, as_json: bool) -> None:
    command = error.ctx.command_path if error.ctx else "pylon"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        if not as_json:
            error.show()
            return
        print_error(UsageError(f"{command} wants a command", f"see {command} --help"), as_json)
        return
    hint = f"see {command} --help"
    if isinstance(error, click.NoSuchOption) and error.option_name in _BEFORE:
        hint = f"it stands before the command: pylon {_BEFORE[error.option_name]} {command.removeprefix('pylon ')}"
        error = click.UsageError(error.message)
    print_error(UsageError(error.format_message(), hint), as_json)


def _print_unexpected(error: BaseException, state: State, as_json: bool) -> None:
    """One line for what should not have happened; its traceback goes to the log, or to stderr if asked for."""
    import traceback

    trace = "".join(traceback.format_exception(error))
    if os.environ.get("PYLON_DEBUG") == "1":
        note(trace.rstrip())
    place = _log(trace, state)
    hint = f"the traceback is in {place}" if place else "PYLON_DEBUG=1 shows the traceback"
    print_error(PylonError(f"unexpected {type(error).__name__}: {error}", hint), as_json)


def _log(trace: str, state: State) -> str | None:
    """Append to the home's log, if there is a home. Returns its path."""
    try:
        path = state.home.log
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except (OSError, PylonError):
        return None
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
        file.write(trace)
    return str(path)


if __name__ == "__main__":
    main()
