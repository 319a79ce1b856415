"""A process that holds keys leaves no image of its memory behind."""

from __future__ import annotations

import contextlib
import sys

try:
    import resource
except ImportError:  # Windows, which leaves no core files
    resource = None  # type: ignore[assignment]

_PR_SET_DUMPABLE = 4


def forbid_core_dumps() -> None:
    """No core file of this process, nor of what it starts; on Linux no dump to a handler either.

    ``RLIMIT_CORE`` 0 is inherited, but the kernel does not ask it where ``core_pattern`` is a pipe.
    ``PR_SET_DUMPABLE`` 0 holds there too, and keeps ``/proc/<pid>/mem`` and ``environ`` from other processes of the
    same user (prctl(2), core(5)); it ends with an exec, so it is this process's alone.
    """
    if resource is None:
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform.startswith("linux"):
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
