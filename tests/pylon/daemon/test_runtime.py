"""A home put together, without a model: real sockets, real time, a scripted backend."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from functools import partial

import attrs
import pytest
import trio

from protocols import nip57, nip90
from protocols.keys import SecretKey
from protocols.nip01 import Event
from protocols.nip89 import parse_announcement
from pylon import config as configuration
from pylon import identity
from pylon.clock import SystemClock
from pylon.compute.purchase import PurchaseState
from pylon.config_backends import DEFAULT_URLS, check_backends
from pylon.config_values import Bind
from pylon.daemon import status
from pylon.daemon.control import to_nobody
from pylon.daemon.hosting import HOME_NAME
from pylon.daemon.runtime import open_runtime
from pylon.daemon.verbs import Verbs
from pylon.errors import ConfigError, IdentityError, ModelMissing
from pylon.groups import cause
from pylon.inference.backends import choose_model
from pylon.money import Msat, sats
from pylon.paths import Home
from pylon.supervision import ChildState
from pylon.testing.backend import ScriptedBackend
from pylon.testing.backends import OllamaServer, OpenAIServer
from pylon.wallets.budgets import Spend
from pylon.wallets.nwc_service import WalletService
from tests.pylon.market import until

PROMPT, ANSWER = "why-is-the-sky-so-blue?", "nobody-has-ever-known"
GGUF = b"GGUF" + (3).to_bytes(4, "little") + bytes(2_000_000)


@pytest.fixture(autouse=True)
def no_models(tmp_path, monkeypatch):
    """And nobody where one looks for backends: this machine may have an Ollama."""
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path / "models"))
    for kind in DEFAULT_URLS:
        monkeypatch.setitem(DEFAULT_URLS, kind, "http://127.0.0.1:1/v1")


@pytest.fixture
def make(tmp_path):
    def make(name: str, **changes):
        home = Home(tmp_path / name)
        identity.create(home, now=1.0)
        home.config.write_text(
            f'network = "simnet"\n[relay]\nbind = "127.0.0.1:0"\n[simnet]\nledger = "{tmp_path}/ledger.db"\n'
        )
        return home, attrs.evolve(configuration.load(home.config, environ={}).config, **changes)

    return make


@asynccontextmanager
async def opened(home, config, **options):
    with trio.fail_after(20):
        async with open_runtime(home, config, **options) as runtime:
            yield runtime


async def verb(runtime, name, **params):
    async def notify(method, data):
        pass

    return await Verbs.of(runtime).table()[name](params, notify)


async def test_a_host_buys_and_sells_nothing(make):
    home, config = make("host")
    async with opened(home, config, mode="host") as runtime:
        assert runtime.provider is None
        assert runtime.relay.serving
        assert {"publisher", "buyer", "host"} <= {child.name for child in runtime.supervisor.statuses()}
        report = await verb(runtime, "status")
        assert report["daemon"]["host_active"] is True
        assert report["daemon"]["provider_active"] is False
        assert report["backends"] == []
        assert report["default_backend"] is None
        assert report["wallet"]["settled_msats"] == 0
        assert report["npub"] == identity.load(home).npub
    assert not home.socket.exists()


async def test_what_is_quarantined_of_agents_is_shown_however_many_there_are(make, monkeypatch):
    """An agent that is not among the first hundred, too."""
    monkeypatch.setattr(status, "STATUS_AGENTS", 1)
    home, config = make("host")
    async with opened(home, config, mode="host") as runtime:
        verbs = Verbs.of(runtime).table()
        for name in ("alice", "bob"):
            await verbs["agent.spawn"]({"name": name, "goals": ["be of use"]}, to_nobody)
            await verbs["agent.fund"]({"agent": name, "amount_msats": sats(90_000)}, to_nobody)
        await until(lambda: runtime.host.running == 2)
        bob = (await verbs["agent.info"]({"agent": "bob"}, to_nobody))["pubkey"]
        runner = runtime.host.runner(bob)
        parts = [
            attrs.evolve(part, state=ChildState.QUARANTINED, last_error="ValueError") for part in runner.statuses()
        ]
        monkeypatch.setattr(runner, "statuses", lambda: parts[:1])
        report = await verb(runtime, "status")
        assert [agent["name"] for agent in report["agents"]] == ["alice"]
        assert report["quarantined"] == [{"agent": "bob", "name": "heartbeat", "last_error": "ValueError"}]


async def test_a_deleted_agent_comes_back_from_its_backup_without_a_passphrase(make):
    home, config = make("host")
    async with opened(home, config, mode="host") as runtime:
        verbs = Verbs.of(runtime).table()
        await verbs["agent.spawn"]({"name": "alice", "goals": ["be of use"]}, to_nobody)
        gone = await verbs["agent.delete"]({"agent": "alice", "name": "alice"}, to_nobody)
        text = await trio.Path(gone["backup"]).read_text()
        assert (await verb(runtime, "agent.import", bundle=text))["epoch"] == 2
        assert (await verb(runtime, "agent.info", agent="alice"))["name"] == "alice"


async def test_one_home_sells_to_another(make, caplog):
    """And nothing of what was asked, answered or is kept secret is ever handed to the log."""
    caplog.set_level(logging.DEBUG)
    seller, terms = make("seller", min_price_msats=7_000)
    async with opened(seller, terms, mode="provider", backend=ScriptedBackend(ANSWER)) as selling:
        buyer, config = make("buyer", relays=tuple(selling.pool.urls))
        config = attrs.evolve(config, relay=attrs.evolve(config.relay, enabled=False))
        async with opened(buyer, config) as buying:
            await verb(buying, "wallet.fund", amount_msats=sats(100))
            record = await verb(buying, "job.submit", prompt=PROMPT, bid_msats=sats(20), max_tokens=8, wait=True)
            assert (record["state"], record["text"]) == (PurchaseState.ANSWERED, ANSWER)
            assert record["paid_msats"] == 7_000
            assert (await verb(buying, "books"))["clean"]
            report = await verb(buying, "status")
            assert report["relays"][0]["state"] == "connected"
            (row,) = (await verb(buying, "compute", swarm=True))["swarm_providers"]
            assert (row["own"], row["payable"], row["owes_msats"]) == (False, True, 0)
            assert row["observed"]["reliability"] > 0.8, "it has answered once"
            assert (row["observed"]["rests"], row["observed"]["distrusted"]) == (False, False)
        earned = await verb(selling, "earnings")
        assert earned["summary"]["total_msats"] == 7_000
        status = await verb(selling, "status")
        assert status["stats"] == {"jobs_completed": 1, "earnings_msats": 7_000}
        assert status["daemon"]["host_active"] is False
        assert status["default_backend"] == status["backends"][0]["name"]
    assert caplog.records
    for secret in (PROMPT, ANSWER, *(identity.load(home).reveal_phrase() for home in (seller, buyer))):
        assert secret not in caplog.text


async def test_all_backends_of_a_home_are_announced_and_shown(make):
    first, second = OllamaServer("I am the first"), OpenAIServer("I am the second", models=["qwen"])
    async with first.running() as one, second.running() as two:
        tables = [{"kind": "ollama", "name": "gpu", "url": one}, {"kind": "openai", "url": f"{two}/v1"}]
        home, config = make("many", backends=check_backends(tables), backend_preference=())
        async with opened(home, config, mode="provider") as runtime:
            status = await verb(runtime, "status")
            assert [(row["name"], row["ok"]) for row in status["backends"]] == [("gpu", True), ("openai", True)]
            assert status["default_backend"] == "gpu"
            report = await verb(runtime, "compute")
            assert [row["models"] for row in report["local_backends"]] == [["llama3.2:latest"], ["qwen"]]
            assert report["default_model_used"] == "llama3.2:latest"
            assert report["swarm_providers"] is None
            assert (report["pylon"]["running"], report["pylon"]["status"]["provider_active"]) == (True, True)
            announced = None
            while announced is None:
                rows = runtime.store.read("SELECT event FROM outbox WHERE subject = 'announcement'")
                announced = next((Event.from_json(row["event"]) for row in rows), None)
                await trio.sleep(0.05)
            assert sorted(parse_announcement(announced).models) == ["llama3.2:latest", "qwen"]
            await until(lambda: runtime.store.read("SELECT 1 FROM deliveries WHERE state = 'accepted'"), 5)
            (seller,) = (await verb(runtime, "compute", swarm=True))["swarm_providers"]
            assert (seller["npub"], seller["own"], seller["health"]) == (runtime.identity.npub, True, "alive")


async def test_both_without_a_model_buys_and_says_why_it_sells_nothing(make):
    home, config = make("both")
    async with opened(home, config, mode="both") as runtime:
        assert runtime.provider is None
        assert "no model" in runtime.provider_off
        assert "pylon models pull" in runtime.provider_off
        assert (await verb(runtime, "status"))["daemon"]["provider_off"] == runtime.provider_off


async def test_a_provider_without_a_model_is_refused(make):
    home, config = make("provider")
    with pytest.raises(BaseException) as caught:
        async with opened(home, config, mode="provider"):
            pass
    assert isinstance(cause(caught.value), ModelMissing)


async def test_without_an_identity(tmp_path, make):
    _, config = make("other")
    with pytest.raises(IdentityError, match="no identity"):
        async with opened(Home(tmp_path / "none"), config):
            pass


async def test_a_stranger_on_the_relays_port(make):
    home, config = make("home")
    async with trio.open_nursery() as nursery:

        async def hang_up(stream):
            await stream.aclose()

        (listener,) = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
        bind = Bind("127.0.0.1", listener.socket.getsockname()[1])
        config = attrs.evolve(config, relay=attrs.evolve(config.relay, bind=bind))
        with pytest.raises(BaseException) as caught:
            async with opened(home, config):
                pass
        nursery.cancel_scope.cancel()
    error = cause(caught.value)
    assert isinstance(error, ConfigError)
    assert "[relay] bind" in error.hint


@pytest.mark.usefixtures("offline")
async def test_other_networks_start_offline_and_know_no_balance(make):
    """On Spark's regtest, where there is no internet: the wallet is unknown, and not empty."""
    home, config = make("home", network="testnet", relays=())
    async with opened(home, config, mode="both") as runtime:
        report = await verb(runtime, "status")
        assert report["network"] == "testnet"
        assert [report["wallet"][name] for name in ("settled_msats", "pending_msats", "known_at")] == [None] * 3
        info = await runtime.wallet.info()
        assert (info.kind, info.network) == ("spark", "regtest")
        assert "testnet" in info.note
        assert "wallets" in {child.name for child in runtime.supervisor.statuses()}


async def test_mainnet_without_a_key_says_where_it_is_to_be_had(make):
    home, config = make("home", network="mainnet", relays=())
    with pytest.raises(BaseException) as caught:
        async with opened(home, config, mode="host"):
            pass
    error = cause(caught.value)
    assert isinstance(error, ConfigError)
    assert "PYLON_SPARK_API_KEY" in error.hint


async def test_what_is_free_is_served_on_any_network(make):
    home, config = make("home", network="testnet", enable_payments=False, relays=())
    async with opened(home, config, mode="provider", backend=ScriptedBackend("words")) as runtime:
        assert runtime.wallet is None
        assert runtime.buyer is None
        assert runtime.provider is not None


def test_the_model_that_is_served(tmp_path, make):
    _, config = make("home")
    with pytest.raises(ModelMissing, match="no model is installed"):
        choose_model(config)
    models = tmp_path / "models"
    models.mkdir()
    for name in ("alpha", "beta"):
        (models / f"{name}.gguf").write_bytes(GGUF)
    assert choose_model(config).name == "alpha"
    assert choose_model(attrs.evolve(config, default_model="beta")).name == "beta"
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(GGUF)
    named = attrs.evolve(config, provider=attrs.evolve(config.provider, model_file=mine))
    assert choose_model(named).path == mine
    mine.unlink()
    with pytest.raises(ModelMissing, match=r"mine\.gguf"):
        choose_model(named)


def test_the_clock_is_the_systems():
    assert SystemClock().now() > 1.6e9


async def test_status_does_not_wait_for_what_hangs(make):
    """The part is named, and unknown; all else is told."""
    home, config = make("hangs")
    async with opened(home, config, mode="host") as runtime:

        async def hang():
            await trio.sleep_forever()

        async def broken():
            raise RuntimeError("secret words")

        for known, why in ((hang, "no answer within"), (broken, "RuntimeError at")):
            runtime = attrs.evolve(runtime, wallets=attrs.evolve(runtime.wallets, known=known))
            with trio.fail_after(2):
                report = await verb(runtime, "status")
            assert report["wallet"]["settled_msats"] is None
            assert report["incomplete"]["wallet"].startswith(why)
            assert "secret" not in str(report)
            assert report["daemon"]["mode"] == "host"
            assert report["relays"]
            assert report["quarantined"] == []


async def test_status_tells_what_is_sold(make):
    home, config = make("sells")
    async with opened(home, config, mode="provider", backend=ScriptedBackend(ANSWER)) as runtime:
        report = await verb(runtime, "status")
        assert report["incomplete"] == {}
        sold = report["provider"]
        assert (sold["closed"], sold["open"], sold["running"], sold["waiting"]) == ("", {}, 0, 0)
        assert sold["slots"] >= 1
        assert sold["earned_msats"] == 0


async def test_a_zap_of_a_request_pays_for_it_and_has_its_receipt_as_soon_as_it_is_paid(make):
    home, config = make("seller", min_price_msats=sats(21))
    config = attrs.evolve(config, api=attrs.evolve(config.api, bind=Bind("127.0.0.1", 0)))
    async with opened(home, config, mode="provider", backend=ScriptedBackend(ANSWER), serve_http=True) as selling:
        own, relays, pay = selling.identity.pubkey, list(selling.pool.urls), selling.hosting.pay
        customer, now = SecretKey.generate(), int(selling.clock.now())
        seller = selling.identity.nostr.public
        job = nip90.build_request(customer, prompt=PROMPT, provider=seller, max_tokens=8, created_at=now)
        await selling.pool.connected(1)
        await selling.pool.publish(relays[0], job)
        (sale,) = await until(lambda: selling.store.read("SELECT id FROM sales WHERE state = 'quoted'"), 10)
        request = nip57.build_request(
            customer, recipient=own, relays=relays, amount_msats=sats(21), created_at=now, event=job
        )
        invoice = await pay.invoice(HOME_NAME, sats(21), request.to_json())
        assert pay.unpaid(own)
        buyer, terms = make("buyer", relays=tuple(relays))
        terms = attrs.evolve(terms, relay=attrs.evolve(terms.relay, enabled=False))
        async with opened(buyer, terms) as buying:
            await verb(buying, "wallet.fund", amount_msats=sats(100))
            await buying.wallet.pay(invoice, max_fee=sats(10), idempotency_key="a zap")
        await until(lambda: not pay.unpaid(own), 10)
        assert len(selling.store.read("SELECT 1 FROM outbox WHERE kind = ?", (nip57.RECEIPT,))) == 1
        delivered = "SELECT 1 FROM sales WHERE id = ? AND state = 'delivered'"
        await until(lambda: selling.store.one(delivered, (sale["id"],)), 10)


async def test_what_a_home_that_sells_has_beside(make, monkeypatch):
    ours = logging.getLogger("pylon")
    monkeypatch.setattr(ours, "level", ours.level)
    monkeypatch.setattr("pylon.daemon.runtime.WalletService", Apps)
    home, config = make("seller")
    api, wallet = attrs.evolve(config.api, enabled=False), attrs.evolve(config.wallet, budget_each_sats=3)
    config = attrs.evolve(config, api=api, wallet=wallet, log=attrs.evolve(config.log, level="error"))
    async with opened(home, config, mode="both", backend=ScriptedBackend(ANSWER), serve_http=True) as selling:
        assert selling.supervisor.status("disk").state == "running"
        assert ours.level == logging.ERROR
        (own,) = selling.pool.urls
        await until(lambda: selling.pool._named(own).limits.max_subscriptions, 10)
        spend = Spend(owner="", scope="app", purpose="invoice", cause="c", amount=Msat(1), max_fee=Msat(0))
        assert Apps.limits(selling.store, spend).each == sats(3), "apps spend within the home's budgets"


class Apps(WalletService):
    def __init__(self, *parts, limits):
        Apps.limits = staticmethod(limits)
        super().__init__(*parts, limits=limits)
