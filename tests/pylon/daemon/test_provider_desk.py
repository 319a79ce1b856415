"""The desk's verbs against a provider that sells."""

from __future__ import annotations

import pytest
import trio

from protocols.nip90 import FEEDBACK
from pylon.cli import provider_desk as commands
from pylon.config import Config
from pylon.daemon.provider_desk import ProviderDesk
from pylon.errors import UsageError
from pylon.provider.sale import SaleState
from tests.pylon.market import open_actor, open_home, until


async def nobody(method, data):
    return None


def test_the_command_knows_every_state():
    assert set(commands._STATES) == {state.value for state in SaleState} - {"received"}


async def test_jobs_and_customers_of_a_provider(autojump_clock, market):
    home, one, other = [await open_home(market), *[await open_actor(market, name) for name in ("one", "other")]]
    async with home.selling() as (provider, store):
        verbs = ProviderDesk(Config(), store, market.clock).table()

        async def call(verb, **params):
            return await verbs[f"provider.{verb}"](params, nobody)

        paid = one.ask(home.secret, prompt="a secret prompt")
        await one.pay(await one.told(paid, "payment-required"))
        await until(lambda: provider.records.load(store, paid.id).state is SaleState.DELIVERED)
        await trio.sleep(1)
        unpaid = other.ask(home.secret)
        await other.told(unpaid, "payment-required")

        jobs = (await call("jobs"))["jobs"]
        assert [(job["id"], job["state"]) for job in jobs] == [(unpaid.id, "quoted"), (paid.id, "delivered")]
        assert [job["id"] for job in (await call("jobs", state="quoted"))["jobs"]] == [unpaid.id]
        assert [job["id"] for job in (await call("jobs", customer=one.hex))["jobs"]] == [paid.id]
        assert [job["id"] for job in (await call("jobs", limit=1))["jobs"]] == [unpaid.id]
        assert "secret" not in str(jobs)
        status = await call("status")
        assert (status["unpaid"], status["jobs"]["quoted"]) == (1, 1)
        for wrong in ({"limit": 0}, {"state": "sold"}, {"customer": "x"}):
            with pytest.raises(UsageError):
                await call("jobs", **wrong)

        assert (await call("block", customer=other.hex))["standing"] == "blocked"
        silent = other.ask(home.secret, prompt="at once")
        await trio.sleep(20)
        assert not [event for event in market.events(FEEDBACK) if event.tag("e") == silent.id]
        await call("unblock", customer=other.hex)
        await other.told(other.ask(home.secret, prompt="again"), "payment-required")
        await call("trust", customer=other.hex, free=True)
        gift = other.ask(home.secret, prompt="free")
        await until(lambda: (s := provider.records.load(store, gift.id)) and s.state is SaleState.DELIVERED)
        assert [job["id"] for job in (await call("jobs", limit=1))["jobs"]] == [gift.id]
        with pytest.raises(UsageError):
            await call("trust", customer=other.hex, free="yes")
