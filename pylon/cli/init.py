"""``pylon init``: an identity and a configuration for a home."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from pylon import config as configuration
from pylon import identity
from pylon.cli.output import State, emit, home_passphrase_option, json_option, note, pass_state, warn
from pylon.cli.unlock import OPEN, home_passphrase
from pylon.clock import SystemClock
from pylon.config_default import render_default
from pylon.errors import UsageError


@click.command()
@click.option(
    "--network",
    type=click.Choice(configuration.NETWORKS),
    help=f"Written to a new config.toml; {configuration.DEFAULT_NETWORK} unless named. simnet works offline.",
)
@click.option("--import", "import_", is_flag=True, help="Read a BIP-39 seed phrase of 12 or 24 words from stdin.")
@click.option(
    "--words", type=click.Choice(["12", "24"]), default="12", show_default=True, help="Words of a new phrase."
)
@click.option("-f", "--force", is_flag=True, help="Replace an identity; the old one is kept beside it.")
@click.option("--show-mnemonic", is_flag=True, help="Print a new phrase even where stdout is no terminal, and in JSON.")
@home_passphrase_option
@json_option
@pass_state
def init(state: State, network: str | None, import_: bool, words: str, force: bool, show_mnemonic: bool) -> None:
    """Make the identity and the configuration of a home.

    A new seed phrase is shown once, if stdout is a terminal. An identity that is there already is left as it is.
    """
    from pylon.daemon.ownership import expect_free
    from pylon.daemon.process import hold_home

    home = state.home
    loaded = configuration.load(home.config, flags={} if network is None else {"network": network})
    warn(loaded.warnings)
    phrase = _read_phrase() if import_ else None
    with hold_home(home):
        writes = force or not os.path.lexists(home.mnemonic)
        if force:
            expect_free(home, "" if phrase is None else identity.from_phrase(phrase).pubkey)
        created = identity.create(
            home,
            phrase,
            words=int(words),
            force=force,
            now=SystemClock().now(),
            passphrase=home_passphrase(state) if writes else None,
        )
        protected = identity.is_protected(home)
        configured = _write_config(home.config, loaded.config.network)
    if not configured:
        loaded = configuration.load(home.config)
        if network is not None and loaded.config.network != network:
            note(f"warning: {home.config} was there already, and says network {loaded.config.network!r}: edit it there")
    if import_ and not created.new:
        note("warning: there was an identity already; nothing was imported (--force replaces it)")
    if protected and created.identity is not None and not created.new:
        note(f"warning: {home.mnemonic} holds the phrase in plain; pylon identity passphrase seals it")

    who = created.public
    report: dict[str, Any] = {
        "created": created.new,
        "npub": who.npub,
        "pubkey": who.pubkey,
        "network": loaded.config.network,
        "passphrase": protected,
        "paths": {
            "home": str(home.root),
            "config": str(home.config),
            "identity": str(home.mnemonic),
            "data_key": str(home.data_key),
        },
        "kept": str(created.kept) if created.kept else None,
    }
    shown = None
    if created.new and not import_ and (show_mnemonic or (not state.json and sys.stdout.isatty())):
        assert created.identity is not None, "it was made just now"
        shown = created.identity.reveal_phrase()
    if shown is not None and state.json:
        report["mnemonic"] = shown
    emit(state, report, lambda: _text(report, shown))


def _read_phrase() -> str:
    if sys.stdin.isatty():
        click.echo("Enter your BIP-39 seed phrase (12 or 24 words): ", err=True, nl=False)
    line = sys.stdin.readline(4_096).strip()
    if not line:
        raise UsageError("no seed phrase on stdin", "pylon init --import < file, or type it when asked")
    return line


def _write_config(path: Path, network: str) -> bool:
    """Write the default configuration, unless there is one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(render_default(network))
    return True


def _text(report: dict[str, Any], phrase: str | None) -> str:
    paths = report["paths"]
    lines = ["A new identity." if report["created"] else "There is an identity already; it was left as it is."]
    lines += [
        f"npub:     {report['npub']}",
        f"pubkey:   {report['pubkey']}",
        f"network:  {report['network']}" + (" (simnet sats are not money)" if report["network"] == "simnet" else ""),
        f"config:   {paths['config']}",
        f"identity: {paths['identity']}",
    ]
    if report["kept"]:
        lines.append(f"The identity that was here before is kept in {report['kept']}: money may hang on it.")
    if phrase is not None:
        lines += [
            "",
            "Write these words down, in this order. Whoever has them has the identity and its money;",
            "they are shown once.",
            "",
            f"    {phrase}",
            "",
        ]
    if report["created"]:
        lines.append(
            f"Back up {paths['identity']} and {paths['data_key']}, out of reach of others: "
            "without the first, identity and money are lost; without the second, the records of this home. "
            "pylon backup --own-passphrase FILE does it in one sealed file."
        )
    lines.append(f"passphrase: {'yes' if report['passphrase'] else OPEN}")
    if report["network"] == "mainnet":
        lines.append("Next: an API key of Breez' for the wallet, see [spark] in the configuration; then pylon start")
    else:
        lines.append("Next: pylon start")
    if report["network"] not in ("simnet", "mainnet"):
        lines.append(
            "Its wallet is on Spark's regtest and wants the internet; what works without: "
            "pylon --home DIR init --network simnet"
        )
    return "\n".join(lines)
