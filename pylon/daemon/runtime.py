"""One running Pylon: store, relays, wallet, buyer and provider of a home, put together.

What several parts share (store, wallet, pool, embedded relay) lives outside; the parts are children of a supervisor.
The daemon runs it for long; a command without a daemon runs it for as long as the command takes.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio

from pylon.api.address import public_address
from pylon.api.app import build_app
from pylon.api.event_routes import EventApi
from pylon.api.metrics import Metrics
from pylon.api.openai_routes import OpenAIApi
from pylon.api.server import serve_api
from pylon.api.token import load_token
from pylon.clock import Clock, SystemClock
from pylon.compute.buyer import Account, Accounts, Buyer, BuyerSettings
from pylon.config import Config
from pylon.config_values import Bind
from pylon.daemon import books, ownership
from pylon.daemon.answering import answerer_of, counts, deadlines
from pylon.daemon.diskguard import DiskGuard
from pylon.daemon.embedded_relay import EmbeddedRelay
from pylon.daemon.events import Tally, open_stream, read_wanted, watch_balance
from pylon.daemon.hosting import Hosting, assemble
from pylon.daemon.housekeeping import keep_house
from pylon.daemon.integrity import keep_checking
from pylon.daemon.reload import Live, profile_of, set_log_level, terms_of
from pylon.daemon.selling import Selling
from pylon.daemon.thawing import thaw_when_reconciled
from pylon.daemon.wallets import Wallets, open_wallets
from pylon.errors import ConfigError, ModelMissing, NotFound, SealError, brief
from pylon.events import EventStream, RelayConnected, RelayLost, child_ended
from pylon.host.deeds import Deeds
from pylon.host.host import Host
from pylon.host.seedlock import SeedLocks
from pylon.identity import Identity, Unlocked, unlock
from pylon.inference.backends import find_backends
from pylon.inference.port import Backend
from pylon.inference.router import Router
from pylon.money import Msat
from pylon.paths import Home
from pylon.provider.announce import Announcer, Profile
from pylon.provider.pricing import Terms
from pylon.provider.server import Provider
from pylon.relays.information import informer
from pylon.relays.pool import RelayPool
from pylon.relays.publisher import Publisher
from pylon.relays.websocket import connect
from pylon.store import freeze
from pylon.store.database import Store, open_store
from pylon.store.intents import Intent
from pylon.supervision import ChildSpec, ChildStatus, Supervisor
from pylon.wallets.nwc_service import WalletService
from pylon.wallets.port import Payment, Wallet
from pylon.wallets.purse import Outcome, Purse

log = logging.getLogger(__name__)

_RECEIPTS_EVERY = 300.0


@attrs.frozen
class Runtime:
    """What is running. Parts that this home does not run are ``None``."""

    home: Home
    config: Config
    identity: Identity
    clock: Clock
    store: Store
    pool: RelayPool
    supervisor: Supervisor
    live: Live
    """What of the configuration may change while it runs, and how it is now."""
    started_at: float
    events: EventStream
    """What happens in it."""
    wallet: Wallet | None = None
    wallets: Wallets | None = None
    hosting: Hosting | None = None
    """What deals with this home's agents."""
    host: Host | None = None
    """What runs them."""
    buyer: Buyer | None = None
    selling: Selling | None = None
    relay: EmbeddedRelay | None = None
    relay_url: str = ""
    """Of the embedded relay."""
    api: Bind | None = None
    """Where HTTP is served."""
    mode: str = "buyer"
    """``host``, ``provider``, ``both`` or ``buyer``."""
    guard: DiskGuard | None = None
    """What stops selling while nothing can be written down."""
    provider_off: str = ""
    """Why nothing is sold although selling was asked for."""
    openai: OpenAIApi | None = None
    """The API of the HTTP server; who answers it may change."""
    purse: Purse | None = None
    """The home's own, within its budgets."""
    keys: Unlocked | None = None
    """The home, opened."""

    @property
    def provider(self) -> Provider | None:
        return None if self.selling is None else self.selling.provider


@asynccontextmanager
async def open_home_store(home: Home, config: Config, clock: Clock, keys: Unlocked) -> AsyncIterator[Store]:
    """The home's database. Raises ``StoreError``, and ``ConfigError`` if its books are another's."""
    async with open_store(home.database, vault=keys.vault, clock=clock) as store:
        await ownership.claim(store, config.network, keys.identity.pubkey)
        yield store


@asynccontextmanager
async def open_runtime(
    home: Home,
    config: Config,
    *,
    mode: str = "buyer",
    quote_seconds: float = 10.0,
    backend: Backend | None = None,
    serve_http: bool = False,
    clock: Clock | None = None,
    rng: random.Random | None = None,
    keys: Unlocked | None = None,
) -> AsyncIterator[Runtime]:
    """Start everything that the home runs; leaving the block stops it.

    :param mode: ``host`` runs agents; ``both`` sells too, if there is a model; ``provider`` wants a model, else raises
        ``ModelMissing``; ``buyer`` does neither. Whoever runs can be asked to buy by hand.
    :param quote_seconds: how long a chosen provider may take to quote.
    :param backend: what answers, instead of the backends that the configuration means.
    :param keys: the home, opened; a home without a passphrase opens here.
    :param serve_http: whether to serve the HTTP API, if the configuration does not say no.
    """
    clock, rng = clock or SystemClock(), rng or random.Random()
    sell = mode in ("provider", "both")
    keys = unlock(home) if keys is None else keys
    identity = keys.identity
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_home_store(home, config, clock, keys))
        stream = open_stream(store, clock)
        # Who gives everything away needs no wallet, on any network.
        wallets = (
            await stack.enter_async_context(open_wallets(home, config, identity, clock, stays=True))
            if config.enable_payments or mode != "provider" or config.network == "simnet"
            else None
        )
        if wallets is not None and config.wallet.kind == "nwc":
            from pylon.daemon.nwc_home import open_nwc_wallet

            wallets = await stack.enter_async_context(open_nwc_wallet(wallets, home, config, store, clock, rng))
        wallet = None if wallets is None else wallets.own
        locks = stack.enter_context(SeedLocks()) if mode in ("host", "both") else None
        backends = await stack.enter_async_context(AsyncExitStack())  # they close when nobody asks them any more
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        supervisor = Supervisor(nursery, rng=rng, on_failure=functools.partial(_tell, stream))

        urls, live = list(config.relays), Live(config)
        if serve_http:
            set_log_level(config)
        relay, relay_url = None, ""
        if config.relay.enabled:
            relay = EmbeddedRelay(
                config.relay.bind, home.relay_database, clock, job_days=config.retention.relay_jobs_days
            )
            relay_url = await nursery.start(relay.run)
            urls.insert(0, relay_url)
        if not urls:
            raise ConfigError("no relay is configured", "name some in relays = [...], or set [relay] enabled = true")
        # The relays are those that the user has named: they may know whose home this is (NIP-42).
        inform = informer(clock)
        turned = functools.partial(_tell_turn, stream)
        pool = RelayPool(
            urls, connect=connect, clock=clock, rng=rng, signer=identity.nostr, inform=inform, on_turn=turned
        )
        await nursery.start(pool.run)
        supervisor.start(ChildSpec("publisher", Publisher(pool, store, clock, rng).run))
        supervisor.start(
            ChildSpec("housekeeping", functools.partial(keep_house, store, clock, lambda: live.config.retention))
        )
        supervisor.start(ChildSpec("integrity", functools.partial(keep_checking, store)))

        buyer, hosting, host, bound, openai = None, None, None, None, None
        listening = EventApi(stream, functools.partial(read_wanted, store))
        own_purse: Purse | None = None
        if serve_http and config.api.enabled:
            tally = Tally()
            stream.on_event.append(tally)
            told = Metrics(counts(store, clock, pool, clock.now()), tally)
            openai = OpenAIApi(clock, metrics=told, concurrency=config.api.concurrency)
        if wallets is not None and wallet is not None:
            keeper = wallets.keeper
            hosting = assemble(
                config,
                identity,
                store,
                keeper,
                clock,
                rng,
                relays=lambda: pool.urls,
                pool=pool,
                seller=wallet if sell else None,
            )
            hosting.agents.publish = stream.publish
            wallets.learn_seeds(hosting.agents.seed_of_wallet)
            supervisor.start(ChildSpec("balance", functools.partial(watch_balance, stream, store, wallets.known)))
            if wallets.look_after is not None:
                supervisor.start(ChildSpec("wallets", wallets.look_after))
            own_purse = _purse(wallet, store, clock, live)
            account = Account("", identity.nostr, own_purse, await wallet.info())
            buyer = Buyer(
                accounts=_accounts(account, hosting.agents.account),
                store=store,
                pool=pool,
                clock=clock,
                rng=rng,
                settings=BuyerSettings(config.network, keeper.invoice_prefix, quote_seconds=quote_seconds),
            )
            supervisor.start(ChildSpec("buyer", buyer.run))
            service = WalletService(wallet, store, pool, clock, rng, limits=live.budgets(api=False))
            supervisor.start(ChildSpec("wallet-connect", service.run))
            reconcile = functools.partial(_reconcile, hosting, account.purse, buyer, service, locks is not None)
            supervisor.start(ChildSpec("reconciler", reconcile))
            if freeze.ends_when_reconciled(store):
                thaw = functools.partial(_thaw, hosting, own_purse, config, clock)
                supervisor.start(ChildSpec("restored", thaw))
            if openai is not None:
                bound = await nursery.start(_serve_api(home, config, hosting, openai, listening))
                hosting.pay.address = public_address(config, bound)
                await hosting.agents.readdress()
                listed = functools.partial(_keep_listed, hosting, live, relay_url)
                supervisor.start(ChildSpec("relay-lists", functools.partial(listed, pool)))
                supervisor.start(ChildSpec("zaps", functools.partial(_keep_receipts, hosting)))
            if locks is not None:
                host = Host(hosting.agents, buyer, pool, hosting.deeds, hosting.funds, locks=locks)
                supervisor.start(ChildSpec("host", host.run))

        if openai is not None:
            openai.answerer = answerer_of(config, buyer, own_purse, store, identity.pubkey, None)
        if openai is not None and bound is None:
            bound = await nursery.start(_serve_api(home, config, None, openai, listening))

        selling, engine, guard, off = None, None, None, ""
        if sell:
            try:
                engine = Router([backend]) if backend else await _find_backends(config, home, supervisor, rng)
            except ModelMissing as error:
                if mode == "provider":
                    raise
                off = f"{error.message} ({error.hint})"
                log.warning("nothing is sold: %s", off)
            else:
                backends.push_async_callback(engine.aclose)
                unit = Msat(1) if wallet is None else Msat((await wallet.info()).unit_msats)
                told_of = None if hosting is None else functools.partial(hosting.pay.paid, identity.pubkey)
                provider = _provider(config, identity, store, pool, wallet, unit, engine, clock, rng, told_of)
                if openai is not None:
                    openai.answerer = answerer_of(config, buyer, own_purse, store, identity.pubkey, provider.router)
                announce = functools.partial(_announcer, identity, store, pool, provider, clock)
                selling = Selling(supervisor, provider, profile_of(config), announce, publish=stream.publish)
                await selling.open()
                guard = DiskGuard(
                    store,
                    home.data,
                    clock,
                    supervisor,
                    close=selling.close,
                    open=selling.open,
                    publish=stream.publish,
                )
                supervisor.start(ChildSpec("disk", guard.run))
        yield Runtime(
            home=home,
            config=config,
            identity=identity,
            clock=clock,
            store=store,
            pool=pool,
            supervisor=supervisor,
            live=live,
            started_at=clock.now(),
            events=stream,
            wallet=wallet,
            wallets=wallets,
            hosting=hosting,
            host=host,
            buyer=buyer,
            selling=selling,
            relay=relay,
            relay_url=relay_url,
            api=bound,
            mode=mode,
            guard=guard,
            provider_off=off,
            openai=openai,
            purse=own_purse,
            keys=keys,
        )
        # Reached on a clean end only: who crashes, or is cancelled, is known by its silence.
        if selling is not None:
            await selling.farewell()


def _serve_api(
    home: Home, config: Config, hosting: Hosting | None, openai: OpenAIApi, told: EventApi
) -> Callable[..., Awaitable[None]]:
    pay = None if hosting is None else hosting.pay
    routes = [*openai.routes(), *told.routes()]
    app = build_app(pay, token=load_token(home), public_name=config.api.public_name, routes=routes)
    return functools.partial(serve_api, app, config.api.bind, by_user=config.api.bind_given)


async def _keep_listed(hosting: Hosting, live: Live, own: str, pool: RelayPool) -> None:
    """Have the agents' relay lists name the home's relays as they are now: at the start, and after each change."""
    while True:
        await hosting.agents.relist([url for url in (own, *live.config.relays) if url])
        await pool.wait_changed()


async def _keep_receipts(hosting: Hosting) -> None:
    """Look for zaps whose payment nobody told of: at the start, and now and then, for wallets may miss telling."""
    while True:
        await hosting.pay.catch_up()
        await trio.sleep(_RECEIPTS_EVERY)


async def _reconcile(hosting: Hosting, own: Purse, buyer: Buyer, service: WalletService, hosts: bool) -> None:
    """See to the payments that nobody sees to, and to those that an earlier life has not seen the end of."""
    await hosting.withdrawals.reconciler.run(
        lambda owner: hosting.agents.purse(owner) if owner else own,
        lambda intent: service.pays(intent) or _is_driven(intent, buyer, hosting.deeds if hosts else None),
    )


async def _thaw(hosting: Hosting, own: Purse, config: Config, clock: Clock) -> None:
    """End the freeze of a restore as soon as it may end."""
    store, agents = hosting.agents.store, hosting.agents

    async def look(intent: Intent) -> Outcome | None:
        return await (agents.purse(intent.owner) if intent.owner else own).look(intent)

    async def audit() -> books.Report:
        wallet = None if config.wallet.kind == "nwc" else own.wallet
        return await books.audit(store, wallet, clock, keeper=agents.keeper, agents=hosting.owned())

    await thaw_when_reconciled(store, look, audit)


def _is_driven(intent: Intent, buyer: Buyer, deeds: Deeds | None) -> bool:
    """Whether the record that an intent pays for is there, and has its driver."""
    try:
        return buyer.pays(intent.cause) or (deeds is not None and deeds.pays(intent.cause))
    except SealError:
        return False


def _purse(wallet: Wallet, store: Store, clock: Clock, live: Live) -> Purse:
    """The home's own."""
    return Purse(wallet, store, clock, limits=live.budgets(api=True))


def _accounts(home: Account, agents: Accounts | None = None) -> Accounts:
    """Who buys in this home: the home itself, and whom ``agents`` knows."""

    def account(owner: str) -> Account:
        if owner == home.owner:
            return home
        if agents is None:
            raise NotFound(f"there is no agent {owner[:16]} in this home")
        return agents(owner)

    return account


async def _find_backends(config: Config, home: Home, supervisor: Supervisor, rng: random.Random) -> Router:
    """The backends, the embedded engine kept alive from now on. Raises ``ModelMissing``."""
    found = await find_backends(config, logs=home.logs, rng=rng)
    if found.engine is not None:
        supervisor.start(ChildSpec("engine", found.engine.run))
    try:
        await found.check()
    except ModelMissing:
        await found.router.aclose()
        raise
    return found.router


def _tell(stream: EventStream, status: ChildStatus, error: BaseException | None) -> None:
    log.error("%s ended: %s", status.name, "cleanly" if error is None else brief(error))
    stream.publish(child_ended(status.name, status.starts, status.state))


def _tell_turn(stream: EventStream, relay: str, connected: bool) -> None:
    stream.publish(RelayConnected(relay=relay) if connected else RelayLost(relay=relay))


def _provider(
    config: Config,
    identity: Identity,
    store: Store,
    pool: RelayPool,
    wallet: Wallet | None,
    unit: Msat,
    router: Router,
    clock: Clock,
    rng: random.Random,
    received: Callable[[Payment], Awaitable[object]] | None,
) -> Provider:
    return Provider(
        secret=identity.nostr,
        store=store,
        pool=pool,
        wallet=wallet,
        wallet_name="own",
        router=router,
        clock=clock,
        rng=rng,
        terms=terms_of(config, unit),
        deadlines=deadlines(config.provider.deadlines),
        received=received,
        keep_unpaid=config.retention.unpaid_requests,
    )


def _announcer(
    identity: Identity, store: Store, pool: RelayPool, provider: Provider, clock: Clock, terms: Terms, profile: Profile
) -> Announcer:
    return Announcer(
        secret=identity.nostr,
        store=store,
        pool=pool,
        router=provider.router,
        clock=clock,
        terms=terms,
        profile=profile,
    )
