"""Where randomness comes from: the operating system, unless a simulation asks for a reproducible source."""

from __future__ import annotations

import secrets
from collections.abc import Callable

_source: Callable[[int], bytes] = secrets.token_bytes


def random_bytes(count: int) -> bytes:
    """``count`` bytes, fit for keys and nonces."""
    return _source(count)


def use(source: Callable[[int], bytes] | None) -> None:
    """Draw from ``source`` from now on; ``None`` goes back to the operating system. For simulations only."""
    global _source
    _source = secrets.token_bytes if source is None else source
