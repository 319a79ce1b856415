"""Electrum for the tests, in a directory of its own: ``python -m tests.lightning.install``.

The program comes from the distribution's packages (Debian 12 has 4.3.4), unpacked and not installed: nothing outside
the directory changes, and nobody need be root. What it imports comes from the Python package index, at the versions
in ``requirements.txt``, into a virtual environment made by the Python that runs this.

The directory is ``pylon/electrum-VERSION-pyVERSION`` in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``), or
``PYLON_ELECTRUM``. It is there whole or not at all; a changed requirements.txt makes it anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import filelock

PACKAGE = "python3-electrum"
SERIES = "4.3."
"""What these tests are written for. Later ones speak another JSON-RPC."""
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
STAMP = "complete"


class CannotInstall(Exception):
    """Why there is no Electrum here, in words for whoever runs the tests."""


@attrs.frozen
class Installation:
    """How to run it."""

    directory: Path

    @property
    def python(self) -> Path:
        return self.directory / "venv" / "bin" / "python"

    @property
    def script(self) -> Path:
        return self.directory / "root" / "usr" / "bin" / "electrum"

    @property
    def modules(self) -> Path:
        return self.directory / "root" / "usr" / "lib" / "python3" / "dist-packages"

    @property
    def is_complete(self) -> bool:
        stamp = self.directory / STAMP
        return stamp.is_file() and stamp.read_text() == _mark()

    def command(self, *arguments: str) -> list[str]:
        return [str(self.python), str(self.script), *arguments]

    def environment(self, home: Path) -> dict[str, str]:
        """Nothing of ours but the path, so that no proxy and no setting of the user's is in play."""
        return {"PATH": os.defpath, "HOME": str(home), "PYTHONPATH": str(self.modules), "LANG": "C.UTF-8"}


def directory() -> Path:
    if chosen := os.environ.get("PYLON_ELECTRUM"):
        return Path(chosen).expanduser().absolute()
    wanted = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(wanted) if os.path.isabs(wanted) else Path("~/.cache").expanduser()
    return cache / "pylon" / f"electrum-{SERIES}x-py{sys.version_info[0]}.{sys.version_info[1]}"


def install() -> Installation:
    """Electrum, installed if it was not. Raises ``CannotInstall``."""
    made = Installation(directory())
    made.directory.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{made.directory}.lock"):
        if not made.is_complete:
            shutil.rmtree(made.directory, ignore_errors=True)
            made.directory.mkdir()
            _unpack(_download(made.directory / "packages"), made)
            _make_venv(made)
            _try_it(made)
            (made.directory / STAMP).write_text(_mark())
    return made


def _mark() -> str:
    return hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()


def _run(command: Sequence[str], why: str, *, cwd: Path | None = None, timeout: float = 600.0) -> str:
    """Its stdout. Raises ``CannotInstall`` with the last of its words."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise CannotInstall(f"{why}: there is no {command[0]} here") from None
    except subprocess.TimeoutExpired:
        raise CannotInstall(f"{why}: {command[0]} did not end within {timeout:.0f} s") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise CannotInstall(f"{why}: {' | '.join(said) or f'{command[0]} ended with {done.returncode}'}")
    return done.stdout


# --- the distribution's packages --------------------------------------------------------------------------------------


def _download(into: Path) -> list[Path]:
    """The packages of Electrum and of the library it signs with."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise CannotInstall(f"Electrum comes from the packages of Debian or its kin, and there is no {tool} here")
    into.mkdir()
    try:
        first = _fetch(["electrum", PACKAGE], into, ())
        options: Sequence[str] = ()
    except CannotInstall:
        # The system has no lists of packages, or old ones, and only root may renew them: make lists of our own.
        options = _own_lists(into)
        first = _fetch(["electrum", PACKAGE], into, options)
    (main,) = [file for file in first if file.name.startswith(PACKAGE)]
    version = _run(["dpkg-deb", "--field", str(main), "Version"], "reading a package").strip()
    if not version.startswith(SERIES):
        raise CannotInstall(
            f"this distribution has Electrum {version}; the tests are written for {SERIES}x (Debian 12)"
        )
    needs = _run(["dpkg-deb", "--field", str(main), "Depends"], "reading a package")
    library = re.search(r"libsecp256k1-\d+", needs)
    if library is None:
        raise CannotInstall("the package of Electrum does not say which libsecp256k1 it wants")
    return [*first, *_fetch([library[0]], into, options)]


def _fetch(names: Sequence[str], into: Path, options: Sequence[str]) -> list[Path]:
    before = set(into.glob("*.deb"))
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    command = ["apt-get", "-qq", *sandbox, *options, "download", *names]
    _run(command, f"fetching {' and '.join(names)} from the distribution", cwd=into)
    found = sorted(set(into.glob("*.deb")) - before)
    if len(found) != len(names):
        raise CannotInstall(f"apt-get download brought {[file.name for file in found]}, not {list(names)}")
    return found


def _own_lists(beside: Path) -> list[str]:
    """Options for apt-get with which it keeps its lists here; they are filled."""
    state, cache = beside / "state", beside / "cache"
    (state / "lists" / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    options = [
        "-o",
        f"Dir::State={state}",
        "-o",
        "Dir::State::status=/var/lib/dpkg/status",
        "-o",
        f"Dir::Cache={cache}",
    ]
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    strict = ["-o", "APT::Update::Error-Mode=any"]  # else it calls it a success that nothing could be reached
    _run(["apt-get", "-qq", *sandbox, *options, *strict, "update"], "asking the distribution for its lists of packages")
    return options


def _unpack(packages: Sequence[Path], made: Installation) -> None:
    root = made.directory / "root"
    for package in packages:
        _run(["dpkg-deb", "--extract", str(package), str(root)], f"unpacking {package.name}")
    # It looks for the library beside its own modules before it asks the system.
    libraries = [file for file in root.glob("usr/lib/**/libsecp256k1.so.*") if re.search(r"\.so\.\d+$", file.name)]
    if len(libraries) != 1:
        raise CannotInstall("libsecp256k1 is not where its package used to have it")
    shutil.copy(libraries[0].resolve(), made.modules / "electrum" / libraries[0].name)
    shutil.rmtree(packages[0].parent)


# --- what it imports --------------------------------------------------------------------------------------------------


def _make_venv(made: Installation) -> None:
    _run([sys.executable, "-m", "venv", str(made.directory / "venv")], "making a virtual environment")
    command = [str(made.python), "-m", "pip", "install", "-qq", "--no-deps", "--disable-pip-version-check"]
    _run([*command, "--requirement", str(REQUIREMENTS)], "installing what Electrum imports")


def _try_it(made: Installation) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = made.command("--regtest", "--offline", "-D", scratch, "version")
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env=made.environment(Path(scratch)),
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise CannotInstall("Electrum was unpacked, and does not answer when asked its version") from None
    if not done.stdout.startswith(SERIES):
        raise CannotInstall(f"Electrum was unpacked, and does not run: {(done.stdout + done.stderr).strip()[-300:]}")


def main() -> None:
    try:
        made = install()
    except CannotInstall as error:
        sys.exit(f"no Electrum, hence no Lightning to test with: {error}")
    print(made.directory)


if __name__ == "__main__":
    main()
