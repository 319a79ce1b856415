"""The real Breez SDK, on regtest, without the internet: all that it does then, and how long it may take.

Where the machine does reach Spark's servers these tests are skipped: they are about being offline.
"""

from __future__ import annotations

import socket
import stat
import time

import pytest
import trio

from protocols import bolt11, nip06, spark_address
from pylon.clock import SystemClock
from pylon.errors import ConfigError, InvoiceInvalid, NotSupported, StoreError, WalletUnreachable, WrongNetwork
from pylon.money import sats
from pylon.wallets.port import Can, Target, TargetKind
from pylon.wallets.spark import SparkWallet
from pylon.wallets.spark_errors import SERVERS
from pylon.wallets.spark_kit import SparkDeadlines, SparkKit
from pylon.wallets.spark_types import MAINNET, REGTEST, network_of

PHRASE = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"
SEED = nip06.seed(PHRASE)
IDENTITY = "02698b27ac308b275671b3ca25436346469d04a5bba578ae39feba1d65897a6abc"
ADDRESS = "sparkrt1pgssy6vty7krpze82ecm8j39gd35v35aqjjmhftc4culawsavkyh564u2uv8v0"


@pytest.fixture(scope="module", autouse=True)
def offline():
    try:
        socket.getaddrinfo("api.lightspark.com", 443)
    except OSError:
        return
    pytest.skip("Spark can be reached from here")


@pytest.fixture
def kit(tmp_path):
    # In client mode the SDK takes 5 s to find out that there is no internet; nobody here waits for that.
    deadlines = SparkDeadlines(call=1.0, sync=1.0, disconnect=0.3)
    return SparkKit(network_of("testnet"), clock=SystemClock(), directory=tmp_path / "spark", deadlines=deadlines)


@pytest.fixture(params=["client", "server"])
async def wallet(request, kit):
    opened = SparkWallet(kit, SEED, "home", server=request.param == "server")
    yield opened
    with trio.fail_after(10):
        await opened.aclose()


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


async def test_a_balance_is_unknown_and_not_zero(wallet):
    with trio.fail_after(30):
        with pytest.raises(WalletUnreachable) as caught:
            await wallet.balance()
    assert SERVERS in caught.value.message
    assert "internet" in caught.value.hint


async def test_what_needs_the_network_says_so_in_time(wallet):
    with trio.fail_after(60):
        with pytest.raises(WalletUnreachable):
            await wallet.receive(sats(100), "a job", 600, "job-1")
        with pytest.raises(WalletUnreachable):
            await wallet.hold(sats(100), "a job", 600, "job-2", "11" * 32)
        with pytest.raises(WalletUnreachable):
            await wallet.quote(invoice("bcrt"))
        other = spark_address.encode("regtest", bolt11.node_public_key(b"\x09" * 32).hex())
        for target, amount in ((invoice("bcrt"), None), (other, sats(5))):
            with pytest.raises(WalletUnreachable):
                await wallet.pay(target, amount=amount, max_fee=sats(10), idempotency_key="k")
            # Nothing was sent, and the key is as it was.
            assert wallet._journal.send("k") is None
        with pytest.raises(WalletUnreachable):
            await wallet.lookup_payment("11" * 32)


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


async def test_files_are_private(wallet, kit):
    await wallet.payments()
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


async def test_closing_ends_it_at_once(wallet):
    await wallet.payments()
    async with wallet.events() as events:
        began = time.perf_counter()
        await wallet.aclose()
        assert time.perf_counter() - began < 5
        assert [payment async for payment in events] == []
    await wallet.aclose()
    with pytest.raises(StoreError):
        await wallet.balance()


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
