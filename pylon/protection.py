"""A home's passphrase: setting, changing and removing it, safely against a crash at any point.

The data key and what it seals never change. Setting seals every phrase with the key first, while the key still lies
open, and then wraps the key: that one rename is the moment from which the passphrase is wanted. Removing goes the other
way round. So whatever was done when the machine dies, the home opens: with the old state of things or with the new one;
and doing the same again completes it.

Whoever calls holds the home (``pylon.daemon.process.hold_home``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pylon import identity
from pylon.errors import IdentityError
from pylon.files import put_private, sweep_drafts
from pylon.passphrase import Passphrase
from pylon.paths import Home
from pylon.store import datakey
from pylon.store.vault import Vault


def protect(home: Home, new: Passphrase, old: Passphrase | None = None) -> bool:
    """Set the passphrase, or change it from ``old``. Whether there was one before.

    Raises ``IdentityError``, ``PassphraseError``; then nothing has changed.
    """
    changed = identity.is_protected(home)
    unlocked = identity.unlock(home, old)
    content = datakey.content(unlocked.key, new)
    with _telling(home):
        _sweep(home)
        for path, text in _phrases(home):
            if not identity.is_sealed(text):
                put_private(path, identity.sealed_text(text, unlocked.vault), replace=True)
        put_private(home.data_key, content, replace=True)
    return changed


def unprotect(home: Home, old: Passphrase | None) -> None:
    """Remove the passphrase: key and phrases lie open to whoever can read the files.

    Raises ``IdentityError``, ``PassphraseError``; then nothing has changed.
    """
    unlocked = identity.unlock(home, old)
    with _telling(home):
        _sweep(home)
        if identity.is_protected(home):
            put_private(home.data_key, datakey.content(unlocked.key, None), replace=True)
        for path, text in _phrases(home):
            plain = _opened(home, text, path, unlocked.vault) if identity.is_sealed(text) else None
            if plain is not None:
                put_private(path, f"{plain.rstrip()}\n".encode(), replace=True)


def _phrases(home: Home) -> Iterator[tuple[Path, str]]:
    """The phrases' files that can be read as text, those that were put aside too."""
    for path in (*identity.kept_files(home), home.mnemonic):
        if text := identity.read(path, home):
            yield path, text


def _opened(home: Home, text: str, path: Path, vault: Vault) -> str | None:
    """``None``: it was sealed with the key of another home, and stays as it is."""
    try:
        return identity.opened_text(text, path, vault)
    except IdentityError:
        if path == home.mnemonic:
            raise
        return None


def _sweep(home: Home) -> None:
    """What a crash has left may be a phrase in plain."""
    for path in (home.mnemonic, home.data_key):
        sweep_drafts(path)


@contextlib.contextmanager
def _telling(home: Home) -> Iterator[None]:
    """A file that cannot be written is told as an ``IdentityError``."""
    try:
        yield
    except OSError as error:
        raise IdentityError(
            f"cannot write {error.filename or home.data}: {error.strerror}",
            "free some space, or check the modes, and do the same again",
        ) from None
