"""The real Breez SDK, on regtest, without the internet: all that it does then, and how long it may take.

Where the machine does reach Spark's servers these tests are skipped: they are about being offline.
"""

from __future__ import annotations

import stat
import time
import traceback

import pytest
import trio
import trio.testing

from protocols import bolt11, nip06, spark_address
from pylon.clock import SystemClock
from pylon.errors import ConfigError, InvoiceInvalid, NotSupported, StoreError, WalletUnreachable, WrongNetwork
from pylon.money import sats
from pylon.wallets.port import Can, Target, TargetKind
from pylon.wallets.spark import SparkWallet
from pylon.wallets.spark_errors import SERVERS
from pylon.wallets.spark_kit import SparkDeadlines, SparkKit
from pylon.wallets.spark_types import MAINNET, REGTEST, network_of

pytestmark = pytest.mark.usefixtures("offline")

PHRASE = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"
SEED = nip06.seed(PHRASE)
IDENTITY = "02698b27ac308b275671b3ca25436346469d04a5bba578ae39feba1d65897a6abc"
ADDRESS = "sparkrt1pgssy6vty7krpze82ecm8j39gd35v35aqjjmhftc4culawsavkyh564u2uv8v0"


@pytest.fixture
def kit(tmp_path):
    # In client mode the SDK takes 5 s to find out that there is no internet; nobody here waits for that.
    deadlines = SparkDeadlines(call=1.0, sync=1.0, disconnect=0.3)
    return SparkKit(network_of("testnet"), clock=SystemClock(), directory=tmp_path / "spark", deadlines=deadlines)


@pytest.fixture
async def wallet(kit):
    """In server mode, which waits for nobody."""
    opened = SparkWallet(kit, SEED, "home", server=True)
    yield opened
    with trio.fail_after(10):
        await opened.aclose()


@pytest.fixture(params=["client", "server"])
async def either(request, wallet):
    wallet.server = request.param == "server"
    return wallet


def invoice(prefix: str, **changes) -> str:
    fields = {
        "amount_msats": 1_000_000,
        "timestamp": int(time.time()),
        "payment_hash": "11" * 32,
        "payment_secret": "22" * 32,
        "description": "from a stranger",
        "node_secret": b"\x07" * 32,
    }
    return bolt11.encode(prefix=prefix, **{**fields, **changes})


async def test_it_knows_who_it_is_without_anybody(wallet):
    assert wallet.identity_pubkey == IDENTITY
    info = await wallet.info()
    assert (info.network, info.kind, info.unit_msats) == ("regtest", "spark", 1_000)
    assert "testnet" in info.note
    assert "not money" in info.note
    assert info.can == set(Can)
    assert (await wallet.addresses()).spark == ADDRESS


async def test_the_sdk_has_the_same_identity_and_address(wallet, kit):
    sdk = kit.sdk
    async with wallet._using() as instance:
        info = await kit.bridge.run(instance.get_info, sdk.GetInfoRequest(ensure_synced=False))
        assert info.identity_pubkey == IDENTITY
        read = await kit.bridge.run(instance.parse, ADDRESS)
        assert read.is_SPARK_ADDRESS()
        assert read[0].identity_public_key == IDENTITY
    # By its phrase, as any other Spark wallet would open it.
    config = sdk.default_server_config(sdk.Network.REGTEST)
    config.private_enabled_default = False
    request = sdk.ConnectRequest(
        config=config,
        seed=sdk.Seed.MNEMONIC(mnemonic=PHRASE, passphrase=None),
        storage_dir=str(kit.directory / "other"),
    )
    other = await kit.bridge.run(sdk.connect, request)
    assert (await kit.bridge.run(other.get_info, sdk.GetInfoRequest(ensure_synced=False))).identity_pubkey == IDENTITY
    method = sdk.ReceivePaymentMethod.SPARK_ADDRESS()
    answer = await kit.bridge.run(other.receive_payment, sdk.ReceivePaymentRequest(payment_method=method))
    assert answer.payment_request == ADDRESS
    await kit.bridge.run(other.disconnect)


@pytest.mark.parametrize("network", [MAINNET, REGTEST], ids=lambda network: network.name)
async def test_addresses_are_the_sdks(wallet, kit, network):
    async with wallet._using() as instance:
        for number in range(1, 6):
            key = bolt11.node_public_key(number.to_bytes(32, "big")).hex()
            read = await kit.bridge.run(instance.parse, spark_address.encode(network.name, key))
            assert read[0].identity_public_key == key


async def test_a_balance_is_unknown_and_not_zero(either):
    with trio.fail_after(30):
        with pytest.raises(WalletUnreachable) as caught:
            await either.balance()
    assert SERVERS in caught.value.message
    assert "internet" in caught.value.hint


async def test_what_needs_the_network_says_so_in_time(either):
    with trio.fail_after(60):
        with pytest.raises(WalletUnreachable):
            await either.receive(sats(100), "a job", 600, "job-1")
        with pytest.raises(WalletUnreachable):
            await either.hold(sats(100), "a job", 600, "job-2", "11" * 32)
        with pytest.raises(WalletUnreachable):
            await either.quote(invoice("bcrt"))
        other = spark_address.encode("regtest", bolt11.node_public_key(b"\x09" * 32).hex())
        for target, amount in ((invoice("bcrt"), None), (other, sats(5))):
            with pytest.raises(WalletUnreachable):
                await either.pay(target, amount=amount, max_fee=sats(10), idempotency_key="k")
            # Nothing was sent, and the key is as it was.
            assert either._journal.send("k") is None
        with pytest.raises(WalletUnreachable):
            await either.lookup_payment("11" * 32)


async def test_what_needs_nobody_works(wallet):
    assert await wallet.quote(
        spark_address.encode("regtest", bolt11.node_public_key(b"\x09" * 32).hex()), amount=sats(5)
    ) == sats(0)
    assert await wallet.lookup_invoice("11" * 32) is None
    assert await wallet.payments() == []
    read = await wallet.decode("lightning:" + invoice("bcrt").upper())
    assert (read.kind, read.network, read.amount) == (TargetKind.BOLT11, "regtest", sats(1_000))
    assert await wallet.decode(ADDRESS) == Target(TargetKind.SPARK, ADDRESS, "regtest", None, ADDRESS)
    with pytest.raises(WrongNetwork):
        await wallet.quote(invoice("bc"))
    with pytest.raises(InvoiceInvalid):
        await wallet.decode("nobody@example.com")
    with pytest.raises(NotSupported):
        await wallet.receive(sats(100), "words", 600, "zap", hash_description=True)


async def test_our_invoices_are_read_by_the_sdk_alike(wallet, kit):
    async with wallet._using() as instance:
        for prefix, amount in (("bcrt", 1_234_000), ("bc", None), ("tbs", 1)):
            text = invoice(prefix, amount_msats=amount)
            read = (await kit.bridge.run(instance.parse, text))[0]
            ours = bolt11.decode(text)
            assert (read.amount_msat, read.payment_hash, read.payee_pubkey, read.expiry, read.timestamp) == (
                *(ours.amount_msats, ours.payment_hash, ours.payee, ours.expiry, ours.timestamp),
            )


async def test_files_are_private(either, kit):
    await either.payments()
    (own,) = kit.directory.iterdir()
    assert own.name == IDENTITY[:16]
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    words = set(PHRASE.split())
    for file in own.rglob("*"):
        if file.is_file():
            raw = file.read_bytes()
            assert SEED not in raw
            assert SEED.hex().encode() not in raw
            assert not any(f"{word} {word}".encode() in raw for word in words)


async def test_closing_ends_it_at_once(either):
    await either.payments()
    async with either.events() as events:
        began = time.perf_counter()
        await either.aclose()
        assert time.perf_counter() - began < 5
        assert [payment async for payment in events] == []
    await either.aclose()
    with pytest.raises(StoreError):
        await either.balance()


async def test_a_cancelled_call_ends_in_time(kit):
    wallet = SparkWallet(kit, SEED, "home")
    async with wallet._using() as instance:
        began = time.perf_counter()
        with trio.move_on_after(0.5) as scope:
            # It waits for a first synchronization that never is.
            await kit.bridge.run(instance.get_info, kit.sdk.GetInfoRequest(ensure_synced=True))
        assert scope.cancelled_caught
        assert time.perf_counter() - began < 3
    await wallet.aclose()


async def test_mainnet_wants_a_key_and_says_where_it_is_to_be_had(tmp_path):
    with pytest.raises(ConfigError) as caught:
        SparkKit(network_of("mainnet"), clock=SystemClock(), directory=tmp_path)
    assert "breez.technology" in caught.value.hint
    assert "PYLON_SPARK_API_KEY" in caught.value.hint
    kit = SparkKit(network_of("mainnet"), clock=SystemClock(), directory=tmp_path, api_key="secret-and-wrong")
    assert "secret-and-wrong" not in repr(kit)
    wallet = SparkWallet(kit, SEED, "home")
    with pytest.raises(ConfigError) as caught:
        await wallet.balance()
    assert "secret-and-wrong" not in str(caught.value) + caught.value.hint
    assert wallet.identity_pubkey != IDENTITY, "mainnet has an account of its own"
    await wallet.aclose()


async def test_events_cross_from_the_sdks_thread(either, kit):
    """The listener that the SDK was given, called as the SDK calls it: in the asyncio thread."""
    given = []
    original = kit.connect

    async def connect(*args, **options):
        opened = await original(*args, **options)
        real_add = opened.add_event_listener

        async def add_and_keep(listener):
            given.append(listener)
            return await real_add(listener)

        opened.add_event_listener = add_and_keep
        return opened

    kit.connect = connect
    sdk = kit.sdk
    payment = sdk.Payment(
        id="0e6d3b53-2a25-4d4b-8ef5-b2c1a1b0a9c1", payment_type=sdk.PaymentType.RECEIVE,
        status=sdk.PaymentStatus.COMPLETED, amount=21, fees=0, timestamp=1_800_000_000, method=sdk.PaymentMethod.SPARK,
        details=sdk.PaymentDetails.SPARK(invoice_details=None, htlc_details=None, conversion_info=None),
        conversion_details=None,
    )  # fmt: skip
    async with either.events() as events:
        (listener,) = given
        await kit.bridge.run(listener.on_event, sdk.SdkEvent.PAYMENT_SUCCEEDED(payment=payment))
        with trio.fail_after(5):
            heard = await anext(aiter(events))
        await kit.bridge.run(listener.on_event, sdk.SdkEvent.SYNCED())
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert either._synced
    assert (heard.amount, heard.outside, heard.payment_id) == (sats(21), True, payment.id)
    assert either._stale, "there is news"


async def test_no_secret_is_told(kit, caplog, capfd):
    caplog.set_level("DEBUG")
    told = []
    for server in (True, False):
        wallet = SparkWallet(kit, SEED, "home", server=server)
        told += [repr(wallet), repr(kit)]
        for call in (wallet.balance, wallet.addresses, wallet.payments):
            try:
                told.append(repr(await call()))
            except WalletUnreachable as error:
                told += ["".join(traceback.format_exception(error)), error.hint]
        await wallet.aclose()
    out, err = capfd.readouterr()
    everything = "\n".join([caplog.text, out, err, *told])
    assert "abandon" not in everything
    assert SEED.hex() not in everything
    assert repr(SEED)[2:20] not in everything
