"""What a running home takes over of a changed configuration, and what it says of the rest."""

from __future__ import annotations

import json
import logging

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import config as configuration
from pylon import config_edit as edit
from pylon import events, identity
from pylon.api.answerer import LocalAnswerer
from pylon.api.gateway import MarketAnswerer
from pylon.clock import SystemClock
from pylon.config import Config, known_keys, value_at
from pylon.daemon.reload import LIVE, UNUSED, Reloading, compare, merged
from pylon.daemon.runtime import open_runtime
from pylon.daemon.verbs import Verbs
from pylon.errors import ConfigError
from pylon.money import Msat, sats
from pylon.paths import Home
from pylon.relays.relay import open_relay
from pylon.relays.server import serve_relay
from pylon.testing.backend import ScriptedBackend
from pylon.wallets.budgets import Spend
from pylon.wallets.limits import API_SCOPE
from tests.pylon.relays.scripted import until
from tests.pylon.test_config_edit import sample_of


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch, tmp_path):
    monkeypatch.delenv("PYLON_DEBUG", raising=False)
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path / "models"))
    yield
    logging.getLogger("pylon").setLevel(logging.NOTSET)


async def notify(method, data):
    pass


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    identity.create(home, now=1.0)
    home.config.write_text(
        'network = "simnet"  # pretended\n[relay]\nbind = "127.0.0.1:0"\n[api]\nbind = "127.0.0.1:0"\n'
    )
    return home


class Running:
    def __init__(self, home, runtime):
        self.home, self.runtime = home, runtime

    def put(self, key, *words):
        path = edit.key_path(key)
        edit.set_value(self.home.config, path, edit.read_value(path, words))

    async def reload(self):
        async def notify(method, data):
            pass

        return await Verbs.of(self.runtime).table()["reload"]({}, notify)

    async def change(self, key, *words):
        self.put(key, *words)
        return await self.reload()


@pytest.fixture
async def running(home):
    config = configuration.load(home.config).config
    with trio.fail_after(30):
        async with open_runtime(
            home, config, mode="both", backend=ScriptedBackend("it depends"), serve_http=True
        ) as runtime:
            yield Running(home, runtime)


@pytest.fixture
async def relay(nursery):
    """A relay of somebody else: its address."""
    async with open_relay(":memory:", clock=SystemClock()) as opened:
        ((host, port),) = await nursery.start(serve_relay, opened, "127.0.0.1", 0)
        yield f"ws://{host}:{port}"
        nursery.cancel_scope.cancel()


async def test_relays_come_and_go(running, relay):
    pool = running.runtime.pool
    (own,) = pool.urls
    assert (await running.change("relays", relay))["applied"] == ["relays"]
    assert pool.urls == [own, relay]
    await pool.connected(2)
    assert running.runtime.live.config.relays == (relay,)
    told = [each.event for each in running.runtime.events.recent(9, events.Wanted.of(["daemon.reload", "relay"]))]
    assert [(event.kind, getattr(event, "relay", "")) for event in told] == [
        ("relay.connected", own), ("daemon.reload", ""), ("relay.connected", relay)
    ]  # fmt: skip
    assert told[1].applied == ("relays",)
    assert (await running.change("relays", "[]"))["applied"] == ["relays"]
    assert pool.urls == [own]
    assert (await running.reload())["applied"] == []
    for named in (own, "[]"):
        await running.change("relays", named)
        assert pool.urls == [own], "the home's own is there whether it is named or not"


async def test_a_relay_that_an_agent_or_an_app_needs_stays(running, relay):
    runtime = running.runtime
    await running.change("relays", relay, "ws://127.0.0.1:9")
    verbs = Verbs.of(runtime).table()

    async def notify(method, data):
        pass

    await verbs["agent.spawn"]({"name": "alice", "relays": [relay]}, notify)
    await running.change("relays", "[]")
    assert relay in runtime.pool.urls
    assert "ws://127.0.0.1:9" not in runtime.pool.urls
    await running.change("relays", "ws://127.0.0.1:9")
    made = await verbs["wallet.connect"]({"name": "app", "day_msats": 1000}, notify)
    assert made["relays"] == ["ws://127.0.0.1:9"]  # those of the configuration as it is now
    await running.change("relays", "[]")
    assert "ws://127.0.0.1:9" in runtime.pool.urls


async def test_the_relay_lists_of_agents_name_the_relays_as_they_are(running, relay):
    runtime = running.runtime
    verbs = Verbs.of(runtime).table()

    async def notify(method, data):
        pass

    await verbs["agent.spawn"]({"name": "alice"}, notify)
    await verbs["agent.spawn"]({"name": "bob", "relays": ["ws://127.0.0.1:9"]}, notify)
    await verbs["agent.spawn"]({"name": "carol", "publish": False}, notify)

    def listed():
        rows = runtime.store.read("SELECT event FROM outbox WHERE kind IN (10002, 10050) ORDER BY id")
        events = [json.loads(row["event"]) for row in rows]
        return {(e["pubkey"], e["kind"]): [tag[1] for tag in e["tags"]] for e in events}

    def at(url):
        return sorted(kind for (_, kind), urls in listed().items() if url in urls)

    await running.change("relays", relay)
    with trio.fail_after(10):
        await until(lambda: at(relay) == [10_002, 10_050])
    assert at("ws://127.0.0.1:9") == [10_002, 10_050]
    profiles = "SELECT COUNT(*) AS n FROM deliveries JOIN outbox USING (event_id) WHERE relay = ? AND kind = 0"
    assert runtime.store.one(profiles, (relay,))["n"] == 1, "and who it is, is told there as well"
    await running.change("relays", "[]")
    with trio.fail_after(10):
        await until(lambda: not at(relay))
    count = runtime.store.one("SELECT COUNT(*) AS n FROM outbox WHERE kind = 10002")["n"]
    runtime.pool._tell()
    await trio.sleep(0.2)
    assert runtime.store.one("SELECT COUNT(*) AS n FROM outbox WHERE kind = 10002")["n"] == count, "once is enough"


async def test_prices_terms_and_the_announcement(running):
    provider = running.runtime.provider
    before = provider.terms
    running.put("min_price_msats", "7000")
    running.put("provider.max_tokens", "99")
    running.put("provider.name", "Another")
    report = await running.reload()
    assert sorted(report["applied"]) == ["min_price_msats", "provider.max_tokens", "provider.name"]
    assert (provider.terms.price, provider.terms.max_tokens) == (7000, 99)
    assert provider.terms.unit == before.unit
    assert ["price", "7000", "msats"] in (await announced(running, "Another"))["tags"]
    await running.change("provider.name", "A third")
    await announced(running, "A third")


async def announced(running, name):
    """The announcement under this name, as soon as it is there."""
    with trio.fail_after(10):
        while True:
            await running.runtime.selling.announcer.look()
            rows = running.runtime.store.read("SELECT event FROM outbox WHERE kind = 31990")
            for row in rows:
                if name in (event := json.loads(row["event"]))["content"]:
                    return event
            await trio.sleep(0.05)


async def test_budgets_hold_at_once(running):
    runtime = running.runtime
    assert (await running.change("wallet.budget_each_sats", "3"))["applied"] == ["wallet.budget_each_sats"]
    limits = runtime.live.budgets(api=True)
    wanted = attrs.evolve(a_spend(), scope=API_SCOPE)
    assert limits(runtime.store, wanted).each == sats(3)
    await running.change("api.budget_day_msats", "0")
    assert limits(runtime.store, wanted).scope_day == 0
    assert runtime.purse._limits(runtime.store, wanted).scope_day == 0


def a_spend() -> Spend:
    return Spend(owner="", scope="", purpose="purchase", cause="c", amount=Msat(1), max_fee=Msat(0))


async def test_who_answers_the_api(running):
    openai = running.runtime.openai
    assert isinstance(openai.answerer, LocalAnswerer)
    assert (await running.change("api.market", "true"))["applied"] == ["api.market"]
    assert isinstance(openai.answerer, MarketAnswerer)
    await running.change("api.market", "false")
    assert isinstance(openai.answerer, LocalAnswerer)


async def test_the_log_s_level(running, monkeypatch):
    assert (await running.change("log.level", "error"))["applied"] == ["log.level"]
    assert not logging.getLogger("pylon.relays.pool").isEnabledFor(logging.WARNING)
    await running.change("log.level", "debug")
    assert logging.getLogger("pylon.relays.pool").isEnabledFor(logging.DEBUG)
    await running.change("log.level", "info")
    assert logging.getLogger("pylon").level == logging.NOTSET


async def test_what_wants_a_restart_is_named_until_it_is_taken_back(running):
    report = await running.change("network", "mainnet")
    assert (report["applied"], report["restart"]) == ([], ["network"])
    assert len(running.runtime.pool.urls) == 1  # the default relays are mainnet's: they wait with it
    report = await running.change("api.concurrency", "3")
    assert report["restart"] == ["network", "api.concurrency"]
    assert running.runtime.live.config.network == "simnet"
    running.put("network", "simnet")
    assert (await running.reload())["restart"] == ["api.concurrency"]


async def test_a_file_that_is_wrong_changes_nothing(running):
    before = running.runtime.live.config
    running.home.config.write_text('network = "simnet"\nmin_price_msats = 9\nrelays = ["https://x"]\n')
    with pytest.raises(ConfigError, match="relays"):
        await running.reload()
    assert running.runtime.live.config is before
    assert running.runtime.provider.terms.price == 1000


async def test_flags_and_variables_of_the_start_still_win(home, monkeypatch):
    monkeypatch.setenv("PYLON_MIN_PRICE_MSATS", "5000")
    config = configuration.load(home.config, flags={"provider.max_tokens": 77}).config
    with trio.fail_after(30):
        async with open_runtime(home, config, mode="both", backend=ScriptedBackend("it depends")) as runtime:
            running = Running(home, runtime)
            running.put("provider.max_tokens", "5")
            report = await running.change("min_price_msats", "1")
            assert report["applied"] == []
            assert report["overridden"] == {
                "min_price_msats": "PYLON_MIN_PRICE_MSATS",
                "provider.max_tokens": "--max-tokens",
            }
            rows = (await Reloading(runtime).config({}, notify))["keys"]
            assert rows["provider.max_tokens"] == {"value": 77, "source": "flag", "where": "--max-tokens"}
            assert rows["min_price_msats"]["source"] == "environment"
            assert rows["network"]["where"] == f"{home.config}:1"
            running.put("network", "mainnet")
            rows = (await Reloading(runtime).config({}, notify))["keys"]
            assert rows["network"] == {"value": "simnet", "source": "start", "where": None}
            assert rows["spark.api_key"] == {"value": None, "source": "default", "where": None, "set": False}
            running.home.config.write_text("network = 3")
            rows = (await Reloading(runtime).config({}, notify))["keys"]
            assert rows["network"]["value"] == "simnet"
            assert (runtime.provider.terms.price, runtime.provider.terms.max_tokens) == (5000, 77)


async def test_the_last_relay_is_not_taken_away(home, relay):
    config = attrs.evolve(configuration.load(home.config).config, relays=(relay,))
    config = attrs.evolve(config, relay=attrs.evolve(config.relay, enabled=False))
    with trio.fail_after(30):
        async with open_runtime(home, config, mode="buyer") as runtime:
            with pytest.raises(ConfigError, match="no relay would be left"):
                await Running(home, runtime).reload()
            assert runtime.pool.urls == [relay]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.sampled_from(sorted(known_keys())).flatmap(lambda path: st.tuples(st.just(path), sample_of(path))),
        max_size=5,
        unique_by=lambda change: change[0],
    ),
    st.booleans(),
)
def test_every_difference_is_either_taken_over_or_named(changes, has_wallet):
    old = new = Config(network="simnet", relays=())
    for path, words in changes:
        value = configuration.kind_of(path).check(edit.read_value(path, (words,)))
        new = merged_one(new, path, value)
    change = compare(old, new, has_wallet=has_wallet)
    differs = {".".join(path) for path in known_keys() if value_at(old, path) != value_at(new, path)}
    assert {*change.applied} | {*change.restart} == differs
    assert not {*change.applied} & {*change.restart}
    result = merged(old, new, change.applied)
    for path in known_keys():
        name = ".".join(path)
        assert value_at(result, path) == value_at(new if name in change.applied else old, path)
    again = compare(result, new, has_wallet=has_wallet)
    assert (again.applied, again.restart) == ((), change.restart)


def merged_one(config, path, value):
    if len(path) == 1:
        return attrs.evolve(config, **{path[0]: value})
    return attrs.evolve(config, **{path[0]: merged_one(getattr(config, path[0]), path[1:], value)})


def test_what_is_live_is_a_key():
    assert set(known_keys()) >= LIVE
    assert {path[0] for path in known_keys()} >= {*UNUSED}


def test_a_home_without_a_wallet_does_not_begin_to_be_paid():
    free, paid = Config(enable_payments=False), Config()
    assert compare(free, paid, has_wallet=False).restart == ("enable_payments",)
    assert compare(free, paid, has_wallet=True).applied == ("enable_payments",)
    assert compare(paid, free, has_wallet=False).applied == ("enable_payments",)
