"""A daemon that answers OpenAI's API and ``infer``: by its own backend, or by what it buys from another home."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import attrs
import httpx
import openai
import pytest
import trio

from pylon import config as configuration
from pylon import identity
from pylon.api.token import load_token
from pylon.config_values import Bind
from pylon.daemon.answering import open_local, serve_alone
from pylon.daemon.runtime import open_runtime
from pylon.daemon.verbs import Verbs
from pylon.errors import BackendUnavailable, MarketError, ModelMissing, UsageError, WalletError
from pylon.money import Msat, sats
from pylon.paths import Home
from pylon.testing.backend import Reply, ScriptedBackend
from tests.pylon.market import until

WORDS = "nobody has ever known"


@pytest.fixture
def make(tmp_path):
    def make(name: str, api: dict | None = None, **changes):
        home = Home(tmp_path / name)
        identity.create(home, now=1.0)
        home.config.write_text(
            f'network = "simnet"\n[relay]\nbind = "127.0.0.1:0"\n[simnet]\nledger = "{tmp_path}/ledger.db"\n'
            '[api]\nbind = "127.0.0.1:0"\n'
        )
        config = configuration.load(home.config, environ={}).config
        return home, attrs.evolve(config, api=attrs.evolve(config.api, **(api or {})), **changes)

    return make


@asynccontextmanager
async def opened(home, config, **options):
    with trio.fail_after(30):
        async with open_runtime(home, config, serve_http=True, **options) as runtime:
            yield runtime


@asynccontextmanager
async def sdk(url, home):
    """OpenAI's package at an API: ``await run(lambda client: ...)``."""
    client = openai.OpenAI(
        base_url=f"{url}/v1",
        api_key=load_token(home, {}).reveal(),
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )
    try:
        yield lambda function: trio.to_thread.run_sync(function, client)
    finally:
        client.close()


def ask(**options):
    said = {"model": "scripted-1", "messages": [{"role": "user", "content": "why?"}], **options}
    return lambda client: client.chat.completions.with_raw_response.create(**said)


async def infer(runtime, told=None, **params):
    async def notify(method, data):
        if told is None:
            return True
        if method == "job":
            assert len(data["id"]) == 32
            return True
        assert method == "words"
        told.append(data["text"])
        return len(told) < 3

    return await Verbs.of(runtime).table()["infer"]({"prompt": "why?", **params}, notify)


async def metrics(runtime) -> list[str]:
    headers = {"Authorization": f"Bearer {load_token(runtime.home, {}).reveal()}"}
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://{runtime.api}/metrics", headers=headers)).text.splitlines()


async def test_a_daemon_with_a_backend(make):
    home, config = make("both")
    async with opened(home, config, mode="both", backend=ScriptedBackend(WORDS)) as runtime:
        async with sdk(f"http://{runtime.api}", home) as run:
            raw = await run(ask())
            assert raw.parse().choices[0].message.content == WORDS
            assert "x-pylon-paid-msats" not in raw.headers
        done = await infer(runtime, system="be brief", model="scripted-1", max_tokens=2)
        assert done == {
            "text": "nobody has", "model": "scripted-1", "finish_reason": "length", "prompt_tokens": 3,
            "completion_tokens": 2, "job": None, "price_msats": None, "paid_msats": None, "fee_msats": None,
        }  # fmt: skip
        said = await metrics(runtime)
        assert "pylon_purchases_total 0.0" in said
        assert "pylon_provider_jobs_total 0.0" in said
        assert any(line.startswith("pylon_uptime_seconds ") for line in said)


async def test_an_infer_whose_caller_goes_ends(make):
    home, config = make("both")
    backend = ScriptedBackend(Reply("word " * 1_000, pace=0.01))
    async with opened(home, config, mode="both", backend=backend) as runtime:
        told: list[str] = []
        await infer(runtime, told, max_tokens=900)
        assert len(told) == 3
        await until(lambda: backend.active == 0, 3)
        assert backend.stopped == 1


async def test_a_host_without_a_backend_answers_nothing(make):
    home, config = make("host")
    async with opened(home, config, mode="host") as runtime:
        async with sdk(f"http://{runtime.api}", home) as run:
            with pytest.raises(openai.InternalServerError) as info:
                await run(ask())
            assert info.value.code == "backend_unavailable"
        with pytest.raises(BackendUnavailable) as refused:
            await infer(runtime)
        assert "--market" in refused.value.hint


SENSELESS = [
    {"prompt": " "}, {"prompt": 5}, {"prompt": "x" * 200_000}, {"prompt": "\ud800"}, {"model": 5}, {"max_tokens": 0},
    {"max_tokens": True}, {"temperature": 3}, {"temperature": "hot"}, {"market": True},
    {"top_p": 0}, {"top_p": 2}, {"top_p": True}, {"seed": -1}, {"seed": 1.5}, {"seed": True}, {"stop": "x"},
    {"stop": [""]}, {"stop": ["x"] * 17}, {"stop": [5]}, {"stop": ["x" * 10_000]},
    {"market": True, "bid_msats": 0},
]  # fmt: skip


async def test_what_makes_no_sense(make):
    home, config = make("both")
    async with opened(home, config, mode="both", backend=ScriptedBackend(WORDS)) as runtime:
        for params in SENSELESS:
            with pytest.raises(UsageError):
                await infer(runtime, **params)
        with pytest.raises(ModelMissing):
            await infer(runtime, model="gpt")


async def test_a_gateway_buys_from_another_home(make):
    """Also where it has a backend of its own, which answers ``infer``."""
    shop, shop_config = make("shop")
    async with opened(shop, shop_config, mode="provider", backend=ScriptedBackend(WORDS)) as selling:
        home, config = make("home", {"market": True}, relays=tuple(selling.pool.urls))
        async with opened(home, config, mode="both", backend=ScriptedBackend("its own")) as runtime:
            assert (await infer(runtime))["text"] == "its own"
            async with sdk(f"http://{runtime.api}", home) as run:
                with pytest.raises(openai.RateLimitError) as info:
                    await run(ask())
                assert info.value.code == "insufficient_quota"
                with pytest.raises(WalletError):
                    await infer(runtime, market=True, bid_msats=sats(20))
                await runtime.wallet.fund(Msat(sats(1_000)))
                raw = await run(ask())
                assert raw.parse().choices[0].message.content == WORDS
                assert int(raw.headers["x-pylon-paid-msats"]) == 1_000
            told: list[str] = []
            done = await infer(runtime, told, market=True, bid_msats=sats(20))
            assert done["text"] == "".join(told) == WORDS
            assert done["paid_msats"] == 1_000
            assert done["job"]
            with pytest.raises(MarketError):
                await infer(runtime, market=True, bid_msats=sats(20), max_tokens=900_000)
            said = await metrics(runtime)
            assert "pylon_purchases_paid_msats_total 2000.0" in said
            assert "pylon_api_paid_msats_total 1000.0" in said
            # The gateway's budget bounds what the API buys, and not what is bought by hand.
            jobs = list(runtime.buyer.records.where(runtime.store, "paid_msats > 0", ()))
            assert sorted(job.scope for job in jobs) == ["", "api"]


async def test_a_provider_that_gives_everything_away_serves_it_too(make):
    """It has no wallet, so nobody is paid there; its words are served."""
    home, config = make("free", network="testnet", relays=(), enable_payments=False)
    async with opened(home, config, mode="provider", backend=ScriptedBackend(WORDS)) as runtime:
        assert runtime.wallet is None
        async with sdk(f"http://{runtime.api}", home) as run:
            assert (await run(ask())).parse().choices[0].message.content == WORDS


async def test_without_a_daemon_there_is_no_need_of_an_identity(tmp_path, monkeypatch):
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path / "models"))
    home = Home(tmp_path / "bare")
    home.prepare()
    config = configuration.load(home.config, environ={}).config
    config = attrs.evolve(config, api=attrs.evolve(config.api, bind=Bind("127.0.0.1", 0)))

    async with open_local(home, config, ScriptedBackend(WORDS)) as answerer, trio.open_nursery() as nursery:
        bound = await nursery.start(partial(serve_alone, home, config, answerer))
        async with sdk(f"http://{bound}", home) as run:
            assert (await run(ask())).parse().choices[0].message.content == WORDS
        nursery.cancel_scope.cancel()
    with pytest.raises(ModelMissing):
        async with open_local(home, config):
            pass
    assert not home.mnemonic.exists()
