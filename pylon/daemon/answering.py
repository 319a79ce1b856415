"""Who answers the API and ``pylon infer``: this machine's backends, or the market; with a daemon, or without one."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from pylon.api.answerer import Answerer, LocalAnswerer
from pylon.api.app import build_app
from pylon.api.gateway import MarketAnswerer, paid_so_far
from pylon.api.metrics import Counts, Metrics
from pylon.api.openai_routes import OpenAIApi
from pylon.api.server import serve_api
from pylon.api.token import load_token
from pylon.clock import Clock, SystemClock
from pylon.compute.buyer import Buyer
from pylon.config import Config, DeadlinesConfig
from pylon.config_values import Bind
from pylon.inference.backends import find_backends
from pylon.inference.port import Backend, Deadlines
from pylon.inference.router import Router
from pylon.money import Msat
from pylon.paths import Home
from pylon.provider.earnings import earnings
from pylon.relays.connection import ConnectionState
from pylon.relays.pool import RelayPool
from pylon.store.database import Store
from pylon.wallets.limits import API_SCOPE
from pylon.wallets.purse import Purse

log = logging.getLogger(__name__)


def deadlines(wanted: DeadlinesConfig) -> Deadlines:
    """Those of ``[provider.deadlines]`` that a backend has."""
    return Deadlines(wanted.connect, wanted.first_token, wanted.between_tokens, wanted.total)


def market(
    buyer: Buyer,
    purse: Purse,
    store: Store,
    config: Config,
    own: str,
    *,
    most: Msat | None = None,
    open_market: bool = False,
) -> MarketAnswerer:
    """What buys: for the API, within its budgets; with ``most``, by hand, for at most that.

    :param own: the home's public key, hex.
    """
    scope, bound = (API_SCOPE, config.api.budget_each_msats) if most is None else ("", most)
    return MarketAnswerer(
        buyer, purse, store, most=bound, network=config.network, own=own, scope=scope, open_market=open_market
    )


def answerer_of(
    config: Config, buyer: Buyer | None, purse: Purse | None, store: Store, own: str, router: Router | None
) -> Answerer | None:
    """Who answers the API by this configuration: the market, or this machine's backends; ``None``: nobody can."""
    if config.api.market and buyer is not None and purse is not None:
        return market(buyer, purse, store, config, own)
    return None if router is None else LocalAnswerer(router, deadlines(config.provider.deadlines))


def counts(store: Store, clock: Clock, pool: RelayPool, started_at: float) -> Counts:
    """What the daemon counts, for ``/metrics``."""

    def read() -> Mapping[str, float]:
        found = earnings(store, clock.now())
        bought = store.one("SELECT COUNT(*) AS n, COALESCE(SUM(paid_msats), 0) AS paid FROM purchases", ())
        assert bought is not None, "an aggregate has a row"
        return {
            "uptime_seconds": clock.now() - started_at,
            "relays_connected": sum(status.state is ConnectionState.CONNECTED for status in pool.statuses()),
            "provider_jobs_total": found.jobs,
            "provider_earned_msats_total": found.total,
            "provider_owed_msats": found.owed,
            "purchases_total": bought["n"],
            "purchases_paid_msats_total": bought["paid"],
            **paid_so_far(store),
        }

    return read


# --- without a daemon -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_local(home: Home, config: Config, backend: Backend | None = None) -> AsyncIterator[LocalAnswerer]:
    """This machine's backends alone, for as long as the block: no identity, no wallet, no relay.

    :param backend: what answers, instead of those that are found. Raises ``ModelMissing``, ``ConfigError``.
    """
    async with AsyncExitStack() as stack:
        if backend is not None:
            router = Router([backend])
        else:
            found = await find_backends(config, logs=home.logs if home.logs.is_dir() else None, rng=random.Random())
            router = found.router
            stack.push_async_callback(router.aclose)
            await found.check()
            if found.engine is not None:
                await stack.enter_async_context(found.engine.running())
        yield LocalAnswerer(router, deadlines(config.provider.deadlines))


async def serve_alone(
    home: Home,
    config: Config,
    answerer: Answerer,
    *,
    task_status: trio.TaskStatus[Bind] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The API of a home whose daemon does not run, until cancelled. Started with the address that is bound."""
    clock = SystemClock()
    began = clock.now()
    metrics = Metrics(lambda: {"uptime_seconds": clock.now() - began})
    api = OpenAIApi(clock, answerer=answerer, metrics=metrics, concurrency=config.api.concurrency)
    app = build_app(None, token=load_token(home), public_name=config.api.public_name, routes=api.routes())
    await serve_api(app, config.api.bind, by_user=config.api.bind_given, task_status=task_status)
