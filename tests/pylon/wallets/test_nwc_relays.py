"""NWC over bad relays, ours with ours: whatever is lost, doubled or late, an invoice is paid once, and it is known."""

from __future__ import annotations

import contextlib

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pylon.errors import PaymentUnknown, WalletError
from pylon.money import max_fee, sats
from pylon.testing.relay import Faults
from pylon.wallets.port import PaymentState
from tests.pylon.wallets.conformance_house import key
from tests.pylon.wallets.nwc_world import RELAY, open_world

SECOND = "ws://second.test"
AMOUNT = sats(100)
faults = st.builds(
    Faults,
    delay=st.sampled_from([(0.0, 0.0), (0.0, 1.0), (0.1, 3.0)]),
    duplicate=st.sampled_from([0.0, 0.5]),
    reorder=st.sampled_from([0.0, 0.5]),
    lose_ok=st.sampled_from([0.0, 0.5, 1.0]),
    drop_after=st.sampled_from([None, None, 12, 30]),
)


@pytest.fixture
async def world(tmp_path, autojump_clock):
    async with open_world(tmp_path, relays=2) as opened:
        yield opened


async def until_known(wallet, payment_hash):
    for _ in range(200):
        with contextlib.suppress(WalletError):
            payment = await wallet.lookup_payment(payment_hash)
            if payment is not None and payment.state is not PaymentState.PENDING:
                return payment
        await trio.sleep(10)
    raise AssertionError("nobody knows")


async def trade(world, first=None, second=None, count=3):
    """Some payments over both relays; faults begin when the two ends have met."""
    home, shop = world.wallet("home"), world.wallet("shop")
    await home.fund(sats(10_000))
    async with world.serving(home, "home") as serving:
        _, uri = await serving.connect(relays=(RELAY, SECOND))
        async with world.using(uri, "app") as app:
            await app.info()
            world.relay.faults = first or Faults()
            world.others[0].faults = second or Faults()
            for relay in (world.relay, *world.others):
                relay.disconnect_all()
            await trio.sleep(30)
            for n in range(count):
                issued = await shop.receive(AMOUNT, "tea", 86_400, f"{n}")
                for _ in range(60):  # as a purse does: again under the same key, for as long as it is not known
                    try:
                        payment = await app.pay(issued.bolt11, max_fee=max_fee(AMOUNT), idempotency_key=key(f"{n}"))
                    except PaymentUnknown:
                        await trio.sleep(30)
                    except WalletError:  # it could not be asked: nothing has left
                        await trio.sleep(30)
                    else:
                        if payment.state is not PaymentState.PENDING:
                            break
                payment = await until_known(app, issued.payment_hash)
                assert payment.state is PaymentState.SETTLED
    made = [payment for payment in await home.payments() if payment.direction == "sent"]
    assert len(made) == count
    assert (await shop.balance()).settled == count * AMOUNT


async def test_over_two_relays_it_is_one_payment(world):
    await trade(world)


async def test_one_relay_is_dead(world):
    await trade(world, first=Faults(refuse_connections=True))


async def test_one_relay_keeps_silent(world):
    await trade(world, first=Faults(silent=True))


async def test_one_relay_refuses_requests(world):
    await trade(world, first=Faults(refuse="blocked: no wallets here", refuse_kinds=frozenset({23194})))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(faults, faults)
async def test_whatever_relays_do(tmp_path_factory, autojump_clock, first, second):
    async with open_world(tmp_path_factory.mktemp("world"), relays=2) as world:
        await trade(world, first, second, count=2)
