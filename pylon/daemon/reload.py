"""Reading the configuration again while the home runs, and taking over what can be.

What is *live* is taken over at once: the home's relays, its prices and terms, how it is announced, its budgets, the
log's level. Everything else was built into the running parts when they were made, and waits for a restart; whoever
asks is told which keys do. Nothing is half taken over: a file that is wrong changes nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import attrs

from pylon import config as configuration
from pylon.config import Config, KeyPath, Loaded, ProviderConfig, Source
from pylon.config_edit import row_of
from pylon.daemon.answering import answerer_of
from pylon.daemon.control import Method, Notify
from pylon.daemon.hosting import HOME_NAME
from pylon.errors import ConfigError
from pylon.events import DaemonReload
from pylon.money import Msat
from pylon.provider.announce import Profile
from pylon.provider.pricing import Standing, Terms
from pylon.store import wallet_connections
from pylon.store.database import Reads, Store
from pylon.wallets.budgets import Budget, Limits, Spend
from pylon.wallets.limits import home_limits

if TYPE_CHECKING:
    from pylon.daemon.runtime import Runtime

log = logging.getLogger(__name__)

_SOLD: frozenset[KeyPath] = frozenset(
    {
        ("enable_payments",),
        ("require_payment",),
        ("min_price_msats",),
        ("provider", "name"),
        ("provider", "description"),
        ("provider", "max_tokens"),
        ("provider", "pay_on_delivery"),
        ("provider", "price_in_msats"),
        ("provider", "price_out_msats"),
        ("provider", "multipliers"),
        ("provider", "free_per_day"),
        ("provider", "trusted"),
        ("provider", "trusted_free"),
        ("provider", "blocked"),
        ("provider", "deadlines", "payment"),
    }
)
"""How it sells, and how it is announced."""
_WALLET = (
    "budget_day_sats",
    "budget_each_sats",
    "payee_day_sats",
    "max_fee_sats",
    "reserve_sats",
    "approve_above_sats",
)
LIVE: frozenset[KeyPath] = _SOLD | {
    ("relays",),
    ("api", "market"),
    ("api", "budget_day_msats"),
    ("api", "budget_each_msats"),
    ("log", "level"),
    *(("retention", name) for name in ("events_days", "requests_days", "quiet_days", "thoughts_days")),
    *(("wallet", name) for name in _WALLET),
}
"""Taken over while the home runs."""

UNUSED = ("claude",)
"""Nothing that the daemon runs uses them: no restart is needed. `pylon connect` reads them when it starts."""


class Live:
    """The part of a running home's configuration that may change under it."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def budgets(self, *, api: bool) -> Limits:
        """``home_limits`` of whatever the configuration is by then; with those of ``[api]`` or without."""

        def limits(source: Reads, spend: Spend) -> Budget:
            return home_limits(self.config.wallet, self.config.api if api else None)(source, spend)

        return limits


def terms_of(config: Config, unit: Msat) -> Terms:
    """How a home with this configuration sells; ``unit`` is the smallest amount of its wallet."""
    return Terms(
        min_price=Msat(config.min_price_msats),
        unit=unit,
        payments=config.enable_payments,
        on_trust=not config.require_payment,
        pay_on_delivery=config.provider.pay_on_delivery,
        price_in=Msat(config.provider.price_in_msats),
        price_out=Msat(config.provider.price_out_msats),
        multipliers={model: Fraction(str(times)) for model, times in config.provider.multipliers},
        free_per_day=config.provider.free_per_day,
        standings=_standings(config.provider),
        fetch_urls=config.provider.fetch_urls,
        max_tokens=config.provider.max_tokens,
        default_tokens=config.provider.max_tokens,
        invoice_seconds=int(config.provider.deadlines.payment),
    )


def _standings(config: ProviderConfig) -> dict[str, Standing]:
    trust = Standing.FREE if config.trusted_free else Standing.TRUSTED
    return {**dict.fromkeys(config.trusted, trust), **dict.fromkeys(config.blocked, Standing.BLOCKED)}


def profile_of(config: Config) -> Profile:
    """How a home with this configuration is announced."""
    sells = config.enable_payments and config.api.enabled and config.api.public_name
    return Profile(
        config.provider.name,
        config.provider.description,
        config.network,
        lud16=f"{HOME_NAME}@{config.api.public_name}" if sells else "",
    )


def set_log_level(config: Config) -> None:
    """What our own loggers write, from now on. The root's level, which the start has chosen, is that of ``info``."""
    debug = os.environ.get("PYLON_DEBUG") == "1"
    level = logging.NOTSET if debug or config.log.level == "info" else config.log.level.upper()
    logging.getLogger("pylon").setLevel(level)


@attrs.frozen
class Change:
    """What a new configuration would do to a running one."""

    applied: tuple[str, ...]
    restart: tuple[str, ...]


def compare(old: Config, new: Config, *, has_wallet: bool) -> Change:
    """Which keys differ, by whether they are live.

    :param has_wallet: whether there is a wallet; a home that began without one cannot begin to be paid.
    """
    applied: list[str] = []
    restart: list[str] = []
    for key in configuration.known_keys():
        if configuration.value_at(old, key) == configuration.value_at(new, key):
            continue
        live = key in LIVE or key[0] in UNUSED
        if key == ("enable_payments",) and new.enable_payments and not has_wallet:
            live = False
        (applied if live else restart).append(".".join(key))
    return Change(tuple(applied), tuple(restart))


def merged(old: Config, new: Config, applied: tuple[str, ...]) -> Config:
    """``old`` with the values of ``new`` for the keys that were applied."""
    result = old
    for name in applied:
        path = tuple(name.split("."))
        result = _with(result, path, configuration.value_at(new, path))
    return result


def _with(holder: Any, path: KeyPath, value: Any) -> Any:
    if len(path) > 1:
        value = _with(getattr(holder, path[0]), path[1:], value)
    return attrs.evolve(holder, **{path[0]: value})


@attrs.frozen
class Reloading:
    """The verb ``reload`` of a home that runs whole."""

    runtime: Runtime

    def table(self) -> Mapping[str, Method]:
        return {"reload": self.reload, "config": self.config}

    async def config(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """What the daemon works by: each key with its value and where that comes from.

        ``source`` is ``start`` where the daemon has what it was started with, and the file says otherwise by now.
        """
        running = self.runtime.live.config
        if running.origin is None:
            raise ConfigError("this home was not started from a file", "restart it")
        try:
            now: Loaded | None = configuration.load(running.origin.path, flags=running.origin.flags)
        except ConfigError:
            now = None  # it is wrong by now, and nothing can be said of where anything came from
        rows = {}
        for key in configuration.known_keys():
            value = configuration.value_at(running, key)
            same = now is not None and configuration.value_at(now.config, key) == value
            source = now.source(key) if now is not None and same else Source("start")
            rows[".".join(key)] = row_of(key, value, source)
        return {"path": str(running.origin.path), "exists": running.origin.path.exists(), "keys": rows}

    async def reload(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """Read the configuration again and take over what can be.

        ``applied``: the keys whose new value is in force by now; ``restart``: those that differ from what runs, and
        want a restart; ``overridden``: keys whose value comes from a variable or a flag of the daemon, whatever the
        file says. Raises ``ConfigError``, and then nothing has changed.
        """
        running = self.runtime.live.config
        if running.origin is None:
            raise ConfigError("this home was not started from a file", "restart it")
        loaded = configuration.load(running.origin.path, flags=running.origin.flags)
        wanted = self._checked(loaded, running)
        change = compare(running, wanted, has_wallet=self.runtime.wallet is not None)
        self.runtime.live.config = merged(running, wanted, change.applied)
        await self._apply(running, self.runtime.live.config, set(change.applied))
        for warning in loaded.warnings:
            log.warning("configuration: %s", warning)
        log.info(
            "the configuration was read again; in force: %s; wants a restart: %s",
            ", ".join(change.applied) or "nothing new",
            ", ".join(change.restart) or "nothing",
        )
        self.runtime.events.publish(DaemonReload(applied=tuple(change.applied), restart=tuple(change.restart)))
        return {
            "path": str(running.origin.path),
            "applied": list(change.applied),
            "restart": list(change.restart),
            "overridden": _overridden(loaded),
            "warnings": list(loaded.warnings),
        }

    def _checked(self, loaded: Loaded, running: Config) -> Config:
        wanted = loaded.config
        if wanted.network != running.network and loaded.source(("relays",)).kind == "default":
            # The default is the network's: it waits with it. A home on simnet talks to nobody it was not told of.
            wanted = attrs.evolve(wanted, relays=running.relays)
        if not wanted.relays and self.runtime.relay is None:
            raise ConfigError("no relay would be left", "name some in relays = [...]")
        return wanted

    async def _apply(self, old: Config, new: Config, changed: set[str]) -> None:
        runtime = self.runtime
        if "log.level" in changed:
            set_log_level(new)
        if changed & {".".join(key) for key in _SOLD}:
            self._retune(new)
        if changed & {"api.market", "api.budget_each_msats"} and runtime.openai is not None:
            router = None if runtime.provider is None else runtime.provider.router
            own = runtime.identity.pubkey
            runtime.openai.answerer = answerer_of(new, runtime.buyer, runtime.purse, runtime.store, own, router)
        if "relays" in changed:
            await self._relays(old.relays, new.relays)

    def _retune(self, config: Config) -> None:
        selling = self.runtime.selling
        if selling is not None:
            selling.sell_by(terms_of(config, selling.provider.terms.unit), profile_of(config))

    async def _relays(self, old: tuple[str, ...], new: tuple[str, ...]) -> None:
        pool, store = self.runtime.pool, self.runtime.store
        before = set(pool.urls)
        for url in new:
            pool.add_relay(url)
        own = self.runtime.relay_url
        for url in old:
            if url not in new and url != own and not is_wanted(store, url):
                pool.remove_relay(url)
        if set(pool.urls) - before and self.runtime.hosting is not None:
            await self.runtime.hosting.agents.introduce()


def is_wanted(store: Store, url: str) -> bool:
    """Whether an agent, or an app that uses the wallet, is met on this relay, whatever the home's own are."""
    agent = store.one(
        "SELECT 1 FROM agents, json_each(CASE WHEN json_valid(settings) THEN settings ELSE '{}' END, '$.relays') AS r"
        " WHERE agents.moved = '' AND r.value = ? LIMIT 1",
        (url,),
    )
    if agent is not None:
        return True
    return any(url in each.relays for each in wallet_connections.known(store, closed_since=float("inf")))


def _overridden(loaded: Loaded) -> dict[str, str]:
    return {
        ".".join(key): source.where for key, source in loaded.sources.items() if source.kind in ("environment", "flag")
    }
