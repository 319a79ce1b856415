"""``pylon identity``: who a home is; its passphrase, its backups.

Phrases and passphrases come by stdin, by a file descriptor or from a terminal; stdout gets a secret only where the
command is named for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pylon.cli.agent_options import confirm
from pylon.cli.output import F, FileDescriptor, State, emit, home_passphrase_option, json_option, note, pass_state
from pylon.cli.unlock import OPEN, home_passphrase, typed, unlock
from pylon.errors import UsageError

if TYPE_CHECKING:
    from pylon.passphrase import Passphrase


def descriptor_option(name: str, words: str) -> Callable[[F], F]:
    """A passphrase from an open file."""
    return click.option(name, type=FileDescriptor(), metavar="N", help=words)


@click.group()
def identity() -> None:
    """Show, protect, back up and restore the identity of a home."""


@identity.command(short_help="Show who this home is; no secret.")
@json_option
@pass_state
def show(state: State) -> None:
    """Show who this home is, what protects it, and where its files are. No secret, and no passphrase is wanted."""
    from pylon import config as configuration
    from pylon.identity import find

    home, found = state.home, find(state.home)
    network = configuration.load(home.config).config.network
    spark = found.public.spark.get("mainnet" if network == "mainnet" else "regtest") if network != "simnet" else None
    report: dict[str, Any] = {
        "npub": found.public.npub,
        "pubkey": found.public.pubkey,
        "network": network,
        "simnet_node": found.public.simnet_node,
        "spark_identity": spark,
        "passphrase": found.protected,
        "phrase": "sealed" if found.sealed else "plain",
        "kept": [str(path) for path in found.kept],
        "paths": {
            "home": str(home.root),
            "config": str(home.config),
            "identity": str(home.mnemonic),
            "data_key": str(home.data_key),
            "database": str(home.database),
        },
    }
    emit(state, report, lambda: _shown(report))


def _shown(report: dict[str, Any]) -> str:
    paths = report["paths"]
    lines = [
        f"npub:       {report['npub']}",
        f"pubkey:     {report['pubkey']}",
        f"network:    {report['network']}",
        f"simnet:     {report['simnet_node']}",
    ]
    if report["spark_identity"] is not None:
        lines.append(f"spark:      {report['spark_identity']}")
    lines.append(f"passphrase: {'yes' if report['passphrase'] else OPEN}")
    if report["passphrase"] and report["phrase"] == "plain":
        lines.append(f"warning: {paths['identity']} holds the phrase in plain; pylon identity passphrase seals it")
    lines += [f"{name + ':':<11} {paths[name]}" for name in ("identity", "data_key", "database")]
    lines += [f"kept:       {path}" for path in report["kept"]]
    return "\n".join(lines)


@identity.command()
@click.option("--nsec", is_flag=True, help="The Nostr secret key (nsec) instead of the seed phrase.")
@click.option("--kept", is_flag=True, help="The phrases that were put aside, too.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask, on a terminal.")
@home_passphrase_option
@json_option
@pass_state
def reveal(state: State, nsec: bool, kept: bool, yes: bool) -> None:
    """Print the seed phrase of this home. Whoever has it has the identity and its money.

    Wants the passphrase, if there is one, also while a daemon runs.
    """
    from protocols.nip19 import encode_nsec
    from pylon import identity as identities
    from pylon.errors import IdentityError

    if nsec and kept:
        raise UsageError("--nsec and --kept exclude each other", "give one of them")
    what = "secret key" if nsec else "seed phrase"
    confirm(
        lambda: f"Whoever sees the {what} of this home has its identity{'' if nsec else ' and its money'}. Show it?",
        yes=yes,
        otherwise="nothing was shown",
    )
    unlocked = unlock(state)
    who = unlocked.identity
    if nsec:
        secret = encode_nsec(who.nostr)
        emit(state, {"npub": who.npub, "nsec": secret}, secret)
        return
    report: dict[str, Any] = {"npub": who.npub, "mnemonic": who.reveal_phrase()}
    lines = [who.reveal_phrase()]
    if kept:
        report["kept"] = {}
        for path in identities.kept_files(state.home):
            text = identities.read(path, state.home)
            try:
                text = identities.opened_text(text, path, unlocked.vault) if identities.is_sealed(text) else text
            except IdentityError as error:
                note(f"warning: {error.message}")
                continue
            report["kept"][path.name] = text.strip()
            lines.append(f"{path.name}: {text.strip()}")
    emit(state, report, "\n".join(lines))


@identity.command()
@click.option("--remove", is_flag=True, help="Remove the passphrase: key and phrase lie open afterwards.")
@descriptor_option(
    "--new-passphrase-fd", "Read the new passphrase from file descriptor N; else it is asked for, twice."
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask before removing, on a terminal.")
@home_passphrase_option
@json_option
@pass_state
def passphrase(state: State, remove: bool, new_passphrase_fd: int | None, yes: bool) -> None:
    """Set, change or remove the passphrase of this home.

    It is wanted whenever the home is opened, as by pylon start. Nobody can recover it: keep your seed phrase, or a
    backup, in a safe place first.
    """
    from pylon import identity as identities
    from pylon import protection
    from pylon.daemon.process import hold_home

    if remove and new_passphrase_fd is not None:
        raise UsageError("--remove and --new-passphrase-fd exclude each other", "give one of them")
    home = state.home
    identities.find(home)
    with hold_home(home):
        if remove:
            confirm(
                lambda: "Without a passphrase, whoever can read the files has identity and money. Remove it?",
                yes=yes,
                otherwise="the passphrase stays",
            )
            had = identities.is_protected(home)
            protection.unprotect(home, home_passphrase(state))
            told = "The passphrase is removed." if had else "There is no passphrase."
            report = {"passphrase": False, "before": had}
        else:
            old = home_passphrase(state)
            identities.unlock(home, old)  # a wrong one is told before anybody is asked for a new one
            new = _new(new_passphrase_fd, "New passphrase of this home")
            before = protection.protect(home, new, old)
            told = "The passphrase is changed." if before else "The passphrase is set; the seed phrase is sealed."
            report = {"passphrase": True, "before": before}
    emit(state, report, told)
    if not state.json:
        note(OPEN if remove else "hint: it is wanted at every start; unattended: see docs/keys.md")


@identity.command(short_help="Print the Nostr key, sealed with a password.")
@click.option("--ncryptsec", is_flag=True, help="The Nostr secret key under a password (NIP-49).")
@descriptor_option("--password-fd", "Read that password from file descriptor N, its first line; else it is asked for.")
@click.option(
    "--log-n",
    type=click.IntRange(16, 20),
    default=17,
    show_default=True,
    help="How hard guessing is: scrypt takes 2^N KiB of memory.",
)
@home_passphrase_option
@json_option
@pass_state
def export(state: State, ncryptsec: bool, password_fd: int | None, log_n: int) -> None:
    """Print the Nostr key for another client, sealed with a password of its own. The wallet is not in it."""
    from protocols import nip49
    from pylon.errors import IdentityError
    from pylon.identity import is_protected

    if not ncryptsec:
        raise UsageError("export what?", "pylon identity export --ncryptsec; the phrase: pylon identity reveal")
    unlocked = unlock(state)
    # The NIP wants to know whether the key ever lay unencrypted: here it does now, or it may have.
    known = nip49.KeySecurity.UNTRACKED if is_protected(state.home) else nip49.KeySecurity.INSECURE
    password = _password(password_fd)
    try:
        sealed = nip49.encrypt(unlocked.identity.nostr, password, security=known, log_n=log_n)
    except nip49.Nip49Error as error:
        raise IdentityError(
            f"the key cannot be sealed: {error}", "try another password, or a smaller --log-n"
        ) from None
    emit(state, {"npub": unlocked.identity.npub, "ncryptsec": sealed}, sealed)


@identity.command(short_help="The same as pylon backup --own-passphrase.")
@click.argument("file", metavar="FILE")
@descriptor_option(
    "--backup-passphrase-fd", "Read the backup's own passphrase from file descriptor N; else it is asked for, twice."
)
@home_passphrase_option
@json_option
@pass_state
def backup(state: State, file: str, backup_passphrase_fd: int | None) -> None:
    """Write all of this home to the new FILE, sealed with a passphrase of its own. See pylon backup."""
    from pylon.cli.backup import write_backup

    write_backup(state, file, keep=None, own=True, descriptor=backup_passphrase_fd)


@identity.command(short_help="The same as pylon restore.")
@click.argument("file", metavar="FILE")
@click.option("-f", "--force", is_flag=True, help="Replace the identity that is here; it is kept beside.")
@descriptor_option("--backup-passphrase-fd", "Read the backup's passphrase from file descriptor N.")
@json_option
@pass_state
def restore(state: State, file: str, force: bool, backup_passphrase_fd: int | None) -> None:
    """Make this home what a backup holds. See pylon restore."""
    from pylon.cli.backup import bring_back

    bring_back(state, file, force=force, stay_frozen=False, descriptor=backup_passphrase_fd)


# --- asking -------------------------------------------------------------------------------------------------------


def _from_fd(descriptor: int) -> Passphrase:
    from pylon.passphrase import from_descriptor

    return from_descriptor(descriptor)


def _new(descriptor: int | None, prompt: str) -> Passphrase:
    if descriptor is not None:
        return _from_fd(descriptor)
    option = "--backup-passphrase-fd" if "backup" in prompt else "--new-passphrase-fd"
    return typed(prompt, "", new=True, option=f"{option} 3 3< FILE")


def _password(descriptor: int | None) -> str:
    from pylon.cli.agent_options import _line_from, on_terminal

    if descriptor is not None:
        text = _line_from(descriptor)
    elif on_terminal():
        text = str(click.prompt("Password of the ncryptsec", hide_input=True, confirmation_prompt=True, err=True))
    else:
        raise UsageError("an ncryptsec wants a password, and there is no terminal", "--password-fd 3 3< FILE")
    if not text:
        raise UsageError("the password is empty", "it guards a key: give it a good one")
    return text
