"""The bearer token of the API: ``api.token`` in the home, made at the first start; ``PYLON_API_TOKEN`` overrides it."""

from __future__ import annotations

import contextlib
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from protocols import entropy
from pylon.errors import ConfigError
from pylon.files import NONBLOCK, others, sync_directory, write_private
from pylon.paths import Home

VARIABLE = "PYLON_API_TOKEN"
MAX_CHARS = 1_000
_BYTES = 32


class ApiToken:
    """A secret: its repr is blank, and it compares in constant time. Raises ``ValueError`` for what no header holds."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not 0 < len(text) <= MAX_CHARS or not (text.isascii() and text.isprintable()) or " " in text:
            raise ValueError("a token has 1 to 1,000 printable ASCII characters, and no space")
        self._text = text

    def matches(self, presented: bytes) -> bool:
        """Whether these bytes are the token. Takes as long for any bytes of a length."""
        return hmac.compare_digest(presented, self._text.encode("ascii"))

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "ApiToken(…)"


def token_path(home: Home) -> Path:
    return home.data / "api.token"


def load_token(home: Home, environ: Mapping[str, str] = os.environ) -> ApiToken:
    """The token, made (0600) where there is none yet. Raises ``ConfigError`` for one that cannot be used."""
    given = environ.get(VARIABLE)
    if given:
        try:
            return ApiToken(given)
        except ValueError as error:
            raise ConfigError(f"{VARIABLE} is no token: {error}", "give another one, or none for api.token") from None
    return keep_token(token_path(home))


def keep_token(path: Path) -> ApiToken:
    """The token in a file, made (0600) where there is none yet. Raises ``ConfigError`` for one that cannot be used."""
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    try:
        _make(path)
        return _read(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "check the disk and the modes") from None


def _make(path: Path) -> None:
    """Whole, or not at all; if another process was first, its token stays."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{entropy.random_bytes(8).hex()}")
    try:
        write_private(draft, entropy.random_bytes(_BYTES).hex().encode() + b"\n")
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    sync_directory(path.parent)


def _read(path: Path) -> ApiToken:
    """Raises ``FileNotFoundError``, and ``ConfigError`` for a file that is no token of ours alone."""
    try:
        # Without O_NONBLOCK, a pipe at this place would keep us waiting for a writer.
        descriptor = os.open(path, os.O_RDONLY | NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "check its owner and mode") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path} is not a file", "move it away; a new token is made at the next start")
        if others(mode):
            raise ConfigError(f"{path} can be read by others (mode {stat.S_IMODE(mode):04o})", f"chmod 600 {path}")
        raw = os.read(descriptor, MAX_CHARS + 2)
    finally:
        os.close(descriptor)
    try:
        return ApiToken(raw.decode("ascii").strip())
    except ValueError:
        raise ConfigError(f"{path} holds no token", "delete it; a new one is made at the next start") from None
