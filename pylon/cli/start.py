"""``pylon start``: the daemon, in the foreground or in the background."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pylon.cli.output import FileDescriptor, State, emit, home_passphrase_option, json_option, note, pass_state, warn
from pylon.cli.unlock import unlock
from pylon.errors import ConfigError, IdentityError, UsageError

if TYPE_CHECKING:
    from pylon.daemon.runtime import Runtime


@click.command()
@click.option("-d", "--daemon", "--detach", "detach", is_flag=True, help="Go to the background, and return when ready.")
@click.option(
    "-m",
    "--mode",
    type=click.Choice(["host", "provider", "both"]),
    default="both",
    show_default=True,
    help="What to run: agents, a provider that sells to others, or both.",
)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground (the default).")
@click.option(
    "-c", "--config", "config_path", metavar="FILE", help="Another configuration than the home's config.toml."
)
@click.option("--model-file", metavar="FILE.gguf", help="Serve this model instead of an installed one.")
@click.option("--ready-fd", type=FileDescriptor(), hidden=True)
@home_passphrase_option
@json_option
@pass_state
def start(
    state: State,
    detach: bool,
    mode: str,
    foreground: bool,
    config_path: str | None,
    model_file: str | None,
    ready_fd: int | None,
) -> None:
    """Run the daemon until `pylon stop`, SIGTERM, SIGINT, or the end of its terminal.

    In the background (-d), it writes to logs/pylon.log of the home, and the command returns when the daemon is ready;
    where it cannot start, the command says why and fails.
    """
    if detach and foreground:
        raise UsageError("-d and -f exclude each other", "-f, the foreground, is the default")
    if config_path is not None and not Path(config_path).is_file():
        raise ConfigError(f"there is no configuration {config_path}", "pylon init writes one into the home")
    if not state.home.mnemonic.exists():
        raise IdentityError(f"there is no identity in {state.home.data}", "pylon init --network simnet")
    if detach:
        _detach(state, mode, config_path, model_file)
    elif ready_fd is not None:
        from pylon.cli.detach import telling

        def on_ready(runtime: Runtime) -> None:
            from pylon.daemon.serve import facts

            teller.ready(facts(runtime))

        with telling(ready_fd) as teller:
            _run(state, mode, config_path, model_file, teller.say, on_ready, background=True)
    else:
        _run(state, mode, config_path, model_file, note, lambda runtime: None)


def _detach(state: State, mode: str, config_path: str | None, model_file: str | None) -> None:
    from pylon.cli.detach import start_detached

    arguments = ["-m", mode]
    for option, path in (("-c", config_path), ("--model-file", model_file)):
        if path is not None:
            arguments += [option, os.path.abspath(path)]
    facts = start_detached(state, arguments)
    emit(state, facts, lambda: f"started in the background (pid {facts.get('pid')}); its log: {facts.get('log')}")


@contextlib.contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """For imports: what they make stays for good, and looking for garbage in it takes a tenth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _run(
    state: State,
    mode: str,
    config_path: str | None,
    model_file: str | None,
    say: Callable[[str], None],
    on_ready: Callable[[Runtime], None],
    *,
    background: bool = False,
) -> None:
    with _nothing_to_collect():
        from pylon import config as configuration
        from pylon.daemon.serve import run_daemon

    if model_file is not None:
        from pylon.inference.models import from_file

        from_file(model_file)  # one that was named and cannot be served is an error, not a daemon that sells nothing
    flags = {} if model_file is None else {"provider.model_file": str(Path(model_file).absolute())}
    loaded = configuration.load(Path(config_path) if config_path else state.home.config, flags=flags)
    if background:
        from pylon.cli.detach import leave_directory

        for warning in loaded.warnings:
            say(f"warning: {warning}")
        leave_directory(state.home.data)
    else:
        warn(loaded.warnings)
    run_daemon(
        state.home, loaded.config, mode, say=say, unlock=lambda: unlock(state), on_ready=on_ready, background=background
    )
