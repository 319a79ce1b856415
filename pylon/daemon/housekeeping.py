"""Tidies up, once an hour: what is of no more use goes (``pylon.daemon.retention``), and with it the room it took."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from pylon.clock import Clock
from pylon.config import RetentionConfig
from pylon.daemon import retention
from pylon.errors import brief
from pylon.store import outbox
from pylon.store.database import Store

log = logging.getLogger(__name__)

EVERY = 3_600.0


async def keep_house(
    store: Store, clock: Clock, config: Callable[[], RetentionConfig] = lambda: RetentionConfig()
) -> None:
    """Until cancelled."""
    while True:
        try:
            await sweep(store, clock.now(), config())
        except Exception as error:
            log.warning("cannot tidy up: %s", brief(error))
        await trio.sleep(EVERY)


async def sweep(store: Store, now: float, config: RetentionConfig | None = None) -> None:
    """Once."""
    await store.write(lambda tx: outbox.expire(tx, now))
    counts = await retention.forget(store, now, config or RetentionConfig())
    pages = await retention.give_back(store)
    forgotten = {what: count for what, count in counts.items() if count}
    if forgotten or pages:
        told = ", ".join(f"{count} of {what}" for what, count in forgotten.items())
        log.info("tidied up: %s; %d pages given back", told or "nothing", pages)
