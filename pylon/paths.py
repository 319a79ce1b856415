"""Where things are: the home of one Pylon, its files, and the one rule that finds it.

A home is a directory that nobody else may read (0700). ``config.toml`` always stands in its root; everything else
stands in ``data``, which is the root too unless the configuration names a ``data_dir``.

Only the standard library is imported here, for ``pylon status`` pays for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pylon.errors import ConfigError

DEFAULT_HOME = "~/.openagents/pylon"

MAX_SOCKET_PATH = 107 if sys.platform.startswith("linux") else 103
"""Bytes that fit into ``sockaddr_un.sun_path`` before its closing NUL."""


class Home:
    """The names of one home. Making one touches nothing on disk; ``prepare`` makes the directories.

    ``warnings`` are sentences for stderr: what was found and not followed.
    """

    __slots__ = ("data", "root", "warnings")

    def __init__(self, root: Path, data: Path | None = None, warnings: tuple[str, ...] = ()) -> None:
        self.root = Path(root)
        self.data = Path(data) if data is not None else self.root
        self.warnings = warnings

    def __repr__(self) -> str:
        return (
            f"Home({str(self.root)!r})" if self.data == self.root else f"Home({str(self.root)!r}, {str(self.data)!r})"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Home) and (self.root, self.data) == (other.root, other.data)

    def __hash__(self) -> int:
        return hash((self.root, self.data))

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def mnemonic(self) -> Path:
        return self.data / "identity.mnemonic"

    @property
    def database(self) -> Path:
        return self.data / "pylon.db"

    @property
    def pid(self) -> Path:
        return self.data / "pylon.pid"

    @property
    def lock(self) -> Path:
        """Held by the one process that runs this home."""
        return self.data / "pylon.lock"

    @property
    def socket(self) -> Path:
        return self.data / "control.sock"

    @property
    def cookie(self) -> Path:
        """Where the daemon listens on TCP instead, and the secret of who may speak to it."""
        return self.data / "control.cookie"

    @property
    def may_answer(self) -> bool:
        """Whether there is anything to knock at: of a daemon that listens, or of one that died."""
        return self.socket.exists() or self.cookie.exists()

    @property
    def spark(self) -> Path:
        return self.data / "spark"

    @property
    def keys(self) -> Path:
        return self.data / "keys"

    @property
    def data_key(self) -> Path:
        return self.keys / "data.key"

    @property
    def restoring(self) -> Path:
        """Where a restore gathers what it then moves to its place."""
        return self.data / ".restoring"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def log(self) -> Path:
        return self.logs / "pylon.log"

    @property
    def simnet(self) -> Path:
        """The simnet ledger, unless ``[simnet] ledger`` names a shared one."""
        return self.data / "simnet.db"

    @property
    def relay_database(self) -> Path:
        return self.data / "relay.db"

    def prepare(self) -> None:
        """Make the directories, 0700 each. Raises ``ConfigError`` where that cannot be.

        A directory that exists is closed to others too, if it holds a Pylon already or nothing at all; one that is
        full of other things (somebody's ``$HOME``) keeps its mode.
        """
        try:
            for directory in dict.fromkeys((self.root, self.data)):
                if not directory.is_dir():
                    directory.mkdir(mode=0o700, parents=True)
                elif directory.stat().st_mode & 0o077 and self._is_ours(directory):
                    directory.chmod(0o700)
            for directory in (self.keys, self.logs, self.spark):
                directory.mkdir(mode=0o700, exist_ok=True)
                if directory.stat().st_mode & 0o077:
                    directory.chmod(0o700)
        except OSError as error:
            raise ConfigError(
                f"cannot make the home {self.root}: {error.strerror or error}",
                "name another directory with --home or PYLON_HOME",
            ) from None

    @staticmethod
    def _is_ours(directory: Path) -> bool:
        names = {entry.name for entry in os.scandir(directory)}
        return not names or not names.isdisjoint({"config.toml", "identity.mnemonic", "pylon.db"})


def find_home(option: str | None = None, environ: Mapping[str, str] = os.environ) -> Home:
    """The home to use: ``--home``, else ``PYLON_HOME``, else the default; then ``data_dir`` of its ``config.toml``.

    An explicit home wins over ``data_dir``, and says so in ``warnings``. A file that is no TOML is left for
    ``pylon.config`` to complain about. Raises ``ConfigError`` for a ``data_dir`` that is no absolute path,
    and where nobody knows the user's home directory.
    """
    explicit = option or environ.get("PYLON_HOME") or None
    expanded = os.path.expanduser(explicit or DEFAULT_HOME)
    if explicit is None and not os.path.isabs(expanded):
        raise ConfigError("nothing says where your home directory is", "set HOME, or name a directory with --home")
    root = Path(os.path.abspath(expanded))
    home = Home(root)
    wanted = _data_dir(home.config)
    if wanted is None:
        return home
    data = Path(os.path.expanduser(wanted))
    if not data.is_absolute():
        raise ConfigError(
            f"{home.config}: data_dir = {wanted!r} is not an absolute path", "write the whole path, or ~/something"
        )
    if explicit is None:
        return Home(root, data)
    if data == root:
        return home
    source = "--home" if option else "PYLON_HOME"
    return Home(root, warnings=(f"{source} wins over data_dir = {wanted!r} of {home.config}: everything is in {root}",))


def _data_dir(config: Path) -> str | None:
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if not any(line.lstrip(" \t\"'").startswith("data_dir") for line in text.splitlines()):
        return None  # the common case, in which no parser need be paid for
    import tomllib

    try:
        parsed: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
    value = parsed.get("data_dir")
    return value if isinstance(value, str) and value else None


@contextlib.contextmanager
def short_directory(directory: Path, longest_name: int = 24) -> Iterator[Path]:
    """A path to ``directory`` that is short enough for a Unix socket ``longest_name`` bytes long in it.

    That is the directory itself wherever it fits; otherwise a symbolic link in a private temporary directory, which
    is gone when the block ends. A socket bound or connected through it goes on working.
    """
    if len(os.fsencode(directory)) + 1 + longest_name <= MAX_SOCKET_PATH:
        yield directory
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="pylon-", dir="/tmp") as private:
        link = Path(private) / "d"
        link.symlink_to(directory, target_is_directory=True)
        yield link
