"""The one exception that a person should read, within the groups that nurseries have wrapped around it."""

from __future__ import annotations

from collections.abc import Iterator

from pylon.errors import PylonError


def cause(error: BaseException) -> BaseException:
    """``error`` itself, unless it is a group: then an interrupt, else what Pylon raised on purpose, else the first."""
    found = list(_leaves(error))
    for kind in (KeyboardInterrupt, PylonError):
        for leaf in found:
            if isinstance(leaf, kind):
                return leaf
    return found[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
