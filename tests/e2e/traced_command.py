"""The command, with what SQLite writes and syncs told to a file: ``python traced_command.py TRACE ARGUMENT ...``

The default VFS of the library that Python itself uses is made to tell: a line for each xWrite and xSync of a log,
``write NAME``, ``commit NAME`` or ``sync NAME``, in their order. ``commit`` is the write of a log's frame header that
ends a transaction (https://sqlite.org/fileformat2.html#the_write_ahead_log). ``commits_synced`` reads it.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import sys
from collections.abc import Sequence

WAL = 0x0008_0000
"""SQLITE_OPEN_WAL."""
FRAME_HEADER = 24

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
OPEN = ctypes.CFUNCTYPE(_INT, _POINTER, _POINTER, _POINTER, _INT, _POINTER)
WRITE = ctypes.CFUNCTYPE(_INT, _POINTER, _POINTER, _INT, ctypes.c_int64)
SYNC = ctypes.CFUNCTYPE(_INT, _POINTER, _INT)


class Vfs(ctypes.Structure):
    """``sqlite3_vfs``, as far as ``xOpen``."""

    _fields_ = [
        *[("iVersion", _INT), ("szOsFile", _INT), ("mxPathname", _INT)],
        *[("pNext", _POINTER), ("zName", ctypes.c_char_p), ("pAppData", _POINTER), ("xOpen", OPEN)],
    ]


class Methods(ctypes.Structure):
    """``sqlite3_io_methods``, version 3."""

    _fields_ = [
        *[("iVersion", _INT), ("xClose", _POINTER), ("xRead", _POINTER), ("xWrite", WRITE)],
        *[("xTruncate", _POINTER), ("xSync", SYNC), ("others", _POINTER * 13)],
    ]


class File(ctypes.Structure):
    """``sqlite3_file``."""

    _fields_ = [("pMethods", ctypes.POINTER(Methods))]


class Tracer:
    """Keeps alive what SQLite calls."""

    def __init__(self, trace: str) -> None:
        self._out = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._kept: list[object] = []
        library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))  # which finds what it is linked to
        library.sqlite3_vfs_find.restype = ctypes.POINTER(Vfs)
        vfs = library.sqlite3_vfs_find(None).contents
        really = OPEN(ctypes.cast(vfs.xOpen, _POINTER).value)

        def open_(pointer: int, path: int | None, file: int, flags: int, given: int) -> int:
            code = really(pointer, path, file, flags, given)
            if code == 0 and path and flags & WAL:
                self._tell_of(File.from_address(file), os.path.basename(ctypes.string_at(path)).decode())
            return code

        replacement = OPEN(open_)
        self._kept += [really, replacement]
        vfs.xOpen = replacement

    def _tell_of(self, file: File, name: str) -> None:
        before = file.pMethods.contents
        assert before.iVersion == 3
        methods = Methods.from_buffer_copy(before)
        really_write = WRITE(ctypes.cast(before.xWrite, _POINTER).value)
        really_sync = SYNC(ctypes.cast(before.xSync, _POINTER).value)

        def write(pointer: int, data: int, amount: int, offset: int) -> int:
            ends = amount == FRAME_HEADER and ctypes.string_at(data, 8)[4:] != bytes(4)
            self._say("commit" if ends else "write", name)
            return really_write(pointer, data, amount, offset)

        def sync(pointer: int, flags: int) -> int:
            code = really_sync(pointer, flags)
            self._say("sync" if code == 0 else "failed", name)
            return code

        methods.xWrite, methods.xSync = WRITE(write), SYNC(sync)
        self._kept.append((methods, really_write, really_sync))
        file.pMethods = ctypes.pointer(methods)

    def _say(self, what: str, name: str) -> None:
        os.write(self._out, f"{what} {name}\n".encode())


def commits_synced(calls: Sequence[str]) -> int:
    """How many commits one log has had: each was synced before anything else was written to it.

    ``calls``: ``write``, ``commit`` or ``sync``. What follows a commit is the page that its frame carries.
    """
    commits = [number for number, call in enumerate(calls) if call == "commit"]
    for number in commits:
        assert calls[number + 1 : number + 3] == ["write", "sync"], calls[number:]
    return len(commits)


if __name__ == "__main__":
    tracer = Tracer(sys.argv[1])
    from pylon.cli.main import main

    main(sys.argv[2:])
