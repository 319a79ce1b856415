"""The database is read through now and then, so that damage is found before somebody builds on it.

A small one was checked when it was opened (``pylon.store.damage``); a large one is checked as soon as it is. Both are
checked again every day. What is found damaged is written to no more: nothing is sold or spent, and who asks is told.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

import trio

from pylon.errors import brief
from pylon.store import damage
from pylon.store.database import Store

log = logging.getLogger(__name__)

EVERY = 86_400.0
AT_ONCE_BYTES = 256 << 20
"""What is read through while somebody waits: in about a second."""
_AGAIN = 3_600.0
"""Seconds until the next look, where nobody could look."""


async def keep_checking(store: Store) -> None:
    """Until cancelled."""
    path = Path(store.path)
    wait = EVERY if os.stat(path).st_size <= damage.CHECKED_BYTES else 0.0
    while True:
        await trio.sleep(wait)
        wait = EVERY if await look(store) else _AGAIN


async def look(store: Store, *, at_most: int | None = None) -> bool:
    """Once, where the database has ``at_most`` so many bytes; whether that could be."""
    path = Path(store.path)
    try:
        size = os.stat(path).st_size
        if at_most is None or size <= at_most:
            trouble = await trio.to_thread.run_sync(damage.check, path, abandon_on_cancel=True)
            if trouble:
                store.condemn(damage.damaged(path, trouble))
    except FileNotFoundError:
        store.condemn(damage.damaged(path, "it is gone"))
    except (sqlite3.Error, OSError) as error:
        log.warning("the database cannot be checked: %s", brief(error))
        return False
    return True
