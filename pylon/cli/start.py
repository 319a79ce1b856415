"""``pylon start``: the daemon in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from pylon.cli.output import State, home_passphrase_option, json_option, note, pass_state, warn
from pylon.cli.unlock import unlock
from pylon.errors import ConfigError, IdentityError


@click.command()
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
@home_passphrase_option
@json_option
@pass_state
def start(state: State, mode: str, foreground: bool, config_path: str | None, model_file: str | None) -> None:
    """Run the daemon in the foreground, until SIGTERM, SIGINT or the end of the terminal."""
    from pylon import config as configuration
    from pylon.daemon.serve import run_daemon

    if config_path is not None and not Path(config_path).is_file():
        raise ConfigError(f"there is no configuration {config_path}", "pylon init writes one into the home")
    if not state.home.mnemonic.exists():
        raise IdentityError(f"there is no identity in {state.home.data}", "pylon init --network simnet")
    if model_file is not None:
        from pylon.inference.models import from_file

        from_file(model_file)  # one that was named and cannot be served is an error, not a daemon that sells nothing
    flags = {} if model_file is None else {"provider.model_file": str(Path(model_file).absolute())}
    loaded = configuration.load(Path(config_path) if config_path else state.home.config, flags=flags)
    warn(loaded.warnings)
    run_daemon(state.home, loaded.config, mode, say=note, unlock=lambda: unlock(state))
