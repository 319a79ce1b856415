"""Opening a home: its passphrase from a file descriptor, a file, systemd's credential, or a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pylon.cli.output import State, note
from pylon.errors import PassphraseError

if TYPE_CHECKING:
    from pylon.identity import Unlocked
    from pylon.passphrase import Passphrase

OPEN = "none: whoever can read these files has the identity and its money (pylon identity passphrase sets one)"
"""What is said of a home without a passphrase."""


def home_passphrase(state: State) -> Passphrase | None:
    """The passphrase of the home, if it has one; asked for where nothing gives it. Raises ``PassphraseError``."""
    from pylon import identity, passphrase

    if not identity.is_protected(state.home):
        if state.passphrase_fd is not None:
            note(f"warning: a passphrase was given, but {state.home.data} has none: pylon identity passphrase sets one")
        return None
    if state.passphrase is None:
        if state.passphrase_fd is not None:
            state.passphrase = passphrase.from_descriptor(state.passphrase_fd)
        else:
            given = passphrase.from_environment()
            state.passphrase = given or typed("Passphrase of this home", str(state.home.data))
    return state.passphrase


def unlock(state: State) -> Unlocked:
    """Identity and data key of the home. Raises ``IdentityError``, ``PassphraseError``."""
    from pylon import identity

    identity.read(state.home.mnemonic, state.home)  # nobody is asked for the passphrase of a home that is none
    return identity.unlock(state.home, home_passphrase(state))


def typed(prompt: str, what: str, *, new: bool = False, option: str = "") -> Passphrase:
    """A passphrase that somebody types; a ``new`` one twice.

    Where there is no terminal, raises ``PassphraseError`` that names ``what`` is protected, or the ``option`` to give.
    """
    from pylon.cli.agent_options import on_terminal
    from pylon.passphrase import Passphrase, wanted

    if not on_terminal():
        raise PassphraseError("a passphrase is wanted, and there is no terminal", option) if option else wanted(what)
    return Passphrase(str(click.prompt(prompt, hide_input=True, confirmation_prompt=new, err=True)))
