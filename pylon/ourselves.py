"""How this very installation is run again: an interpreter with our package, or one program that holds both.

The program (``make binary``) is frozen: its ``sys.executable`` is itself and knows no ``-m``. Whatever starts a process
of ours asks here what to run, and whatever starts one of somebody else's asks what that one may know of us.

Only the standard library's smallest parts are imported: every command pays for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

RUN_MODULE = "--run-module"
"""First argument of the program: the next one is a module of ours that it is to be, instead of the command."""

FILE_VARIABLE = "_PYLON_FILE"
"""Set by the single file, which unpacks the program and becomes it: its own path."""

_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where systems keep the authorities that they trust."""

_lock: int | None = None


def frozen() -> bool:
    """Whether we are the program, and not a package of some Python's."""
    return bool(getattr(sys, "frozen", False))


def command() -> list[str]:
    """The command line of ``pylon``, without arguments."""
    # -P: what lies around in the current directory is not imported.
    return [sys.executable] if frozen() else [sys.executable, "-P", "-m", "pylon"]


def module(name: str) -> list[str]:
    """The command line of a module of ours that is run by its name."""
    return [sys.executable, RUN_MODULE, name] if frozen() else [sys.executable, "-P", "-m", name]


def lasting_command(environ: Mapping[str, str] = os.environ) -> list[str]:
    """``command`` for somebody who notes it down: what a single file has unpacked may be cleared away one day."""
    file = environ.get(FILE_VARIABLE, "")
    return [file] if frozen() and os.path.isfile(file) else command()


def bundled(*parts: str) -> Path | None:
    """A file that travels with the program, beside its code; ``None`` where there is none."""
    root = getattr(sys, "_MEIPASS", None) if frozen() else None
    path = None if root is None else Path(root, *parts)
    return path if path is not None and path.exists() else None


def environment_of_others(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for a program that is not ours: without the libraries that ours brings along."""
    kept = {name: value for name, value in environ.items() if name != FILE_VARIABLE and not name.startswith("_PYI_")}
    if frozen():
        kept.pop("LD_LIBRARY_PATH", None)
        if (before := kept.pop("LD_LIBRARY_PATH_ORIG", None)) is not None:
            kept["LD_LIBRARY_PATH"] = before
    return kept


def begin(arguments: list[str]) -> bool:
    """Begin the life of the program; true if it was to be a module, which has been that by then.

    Until the process ends, what was unpacked for it is marked as used.
    """
    _mark()
    if "SSL_CERT_FILE" not in os.environ and not any(map(os.path.exists, _BUNDLES)):
        bundle = bundled("certifi", "cacert.pem")
        if bundle is not None:
            os.environ["SSL_CERT_FILE"] = str(bundle)
    if len(arguments) < 2 or arguments[0] != RUN_MODULE:
        return False
    import runpy

    name = arguments[1]
    if not name.startswith("pylon."):
        sys.exit(f"{name} is no module of ours")
    sys.argv[1:] = arguments[2:]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
    return True


def _mark() -> None:
    global _lock
    import fcntl

    try:
        _lock = os.open(os.path.join(os.path.dirname(sys.executable), ".used"), os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(_lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        pass  # no single file has unpacked this one
