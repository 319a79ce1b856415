"""What a Spark wallet remembers by itself; and reading of targets and networks, which asks nobody."""

from __future__ import annotations

import stat

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import bech32_words, bolt11, spark_address
from pylon.errors import ConfigError, InvoiceInvalid, NotSupported, StoreError
from pylon.money import sats
from pylon.wallets.port import IssuedInvoice
from pylon.wallets.spark_journal import Journal, Send, Stage
from pylon.wallets.spark_types import identity_path, network_of, read_target


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "wallet" / "journal.db")
    yield opened
    opened.close()


def invoice(number: int) -> IssuedInvoice:
    return IssuedInvoice(f"lnbcrt{number}", f"{number:064x}", sats(number), 1_000.0)


def send(key: str, payment_hash: str = "", at: float = 1.0, stage: Stage = Stage.ASKED) -> Send:
    return Send(key, f"id-{key}", payment_hash, "target", sats(5), sats(1), at, stage)


def test_the_first_invoice_of_a_key_stays(journal):
    first = journal.add_issued("k", invoice(1), 5.0, hold=False)
    assert journal.add_issued("k", invoice(2), 6.0, hold=True) == first
    assert journal.issued_by_key("k") == journal.issued_by_hash(invoice(1).payment_hash) == first
    assert journal.issued_by_hash(invoice(2).payment_hash) is None
    with pytest.raises(StoreError):
        journal.add_issued("another", invoice(1), 7.0, hold=False)
    assert journal.issued_hashes([invoice(1).payment_hash, invoice(2).payment_hash]) == {invoice(1).payment_hash}


def test_what_is_settled_is_final(journal):
    journal.add_issued("k", invoice(1), 5.0, hold=True)
    name = invoice(1).payment_hash
    journal.settled(name, sats(1), 9.0)
    journal.settled(name, sats(7), 10.0)
    journal.cancel(name)
    kept = journal.issued_by_hash(name).invoice
    assert (kept.received, kept.settled_at, kept.cancelled) == (sats(1), 9.0, False)


def test_payments_by_key_and_by_hash(journal):
    journal.begin(send("a", "11" * 32, 1.0))
    with pytest.raises(StoreError):
        journal.begin(send("a", "22" * 32))
    assert journal.under_way() == []
    journal.mark("a", Stage.SENT)
    assert [found.key for found in journal.under_way()] == ["a"]
    journal.mark("a", Stage.FAILED)
    journal.begin(send("b", "11" * 32, 1.0))
    assert journal.send_of("11" * 32).key == "b", "the newest"
    journal.forget("b")
    assert journal.send_of("11" * 32) == attrs.evolve(send("a", "11" * 32), stage=Stage.FAILED)
    assert journal.send("b") is None
    assert journal.keys(["id-a", "id-b"]) == {"id-a": "a"}


def test_what_is_not_written_down_is_not_sent(journal):
    with pytest.raises(StoreError):
        journal.mark("a", Stage.SENT)
    journal.begin(send("a"))
    journal.forget("a")
    with pytest.raises(StoreError):
        journal.mark("a", Stage.SENT)
    journal.begin(send("a"))
    journal.mark("a", Stage.SENT)
    with pytest.raises(StoreError):
        journal.mark("a", Stage.SENT)


def test_what_has_settled_neither_fails_nor_is_forgotten(journal):
    journal.begin(send("a", "11" * 32, 1.0))
    journal.mark("a", Stage.SENT)
    journal.mark("a", Stage.FAILED)
    journal.mark("a", Stage.DONE)  # it was taken for lost, and was not
    journal.mark("a", Stage.FAILED)
    journal.forget("a")
    assert journal.send("a").stage is Stage.DONE
    journal.begin(send("b", "11" * 32, 2.0, Stage.FAILED))
    assert journal.send_of("11" * 32).key == "a", "before all that have failed"


def test_many_names_at_once(journal):
    for number in range(3):
        journal.begin(send(str(number)))
    names = [f"id-{number}" for number in range(2_000)]
    assert journal.keys(names) == {f"id-{number}": str(number) for number in range(3)}
    assert journal.issued_hashes(names) == set()


def test_it_is_private_and_lasts(journal, tmp_path):
    journal.learn("bitcoin_address", "one")
    journal.learn("bitcoin_address", "two")
    for path in (tmp_path / "wallet").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "wallet").stat().st_mode) == 0o700
    again = Journal(tmp_path / "wallet" / "journal.db")
    assert again.fact("bitcoin_address") == "two"
    assert again.fact("other") is None
    again.close()
    again.close()


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "journal.db"
    path.write_bytes(b"this is no database" * 100)
    broken = Journal(path)
    with pytest.raises(StoreError, match=str(path)):
        broken.send("k")
    broken.close()


# --- networks and targets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "name", "prefix", "path"),
    [
        ("mainnet", "mainnet", "bc", "m/8797555'/1'/0'"), ("regtest", "regtest", "bcrt", "m/8797555'/0'/0'"),
        ("testnet", "regtest", "bcrt", "m/8797555'/0'/0'"), ("signet", "regtest", "bcrt", "m/8797555'/0'/0'"),
    ],
)  # fmt: skip
def test_networks(configured, name, prefix, path):
    network = network_of(configured)
    assert (network.name, network.prefix, identity_path(network)) == (name, prefix, path)
    assert ("not money" in network.note) == (name != "mainnet")
    assert (configured in network.note) == (configured not in ("mainnet",))


def test_simnet_is_none_of_sparks():
    with pytest.raises(ConfigError):
        network_of("simnet")


def test_a_spark_invoice_is_no_address():
    key = bolt11.node_public_key(b"\x07" * 32)
    payload = b"\x0a\x21" + key + b"\x12\x82\x01" + bytes(130)
    text = bech32_words.encode("sparkrt", bech32_words.to_words(payload), bech32m=True)
    assert spark_address.decode(text).invoice
    with pytest.raises(NotSupported):
        read_target(text)


@given(st.text(max_size=300))
def test_any_text_is_a_target_or_refused(text):
    for given_text in (text, f"lightning:{text}", f"spark1{text}", f"lnbc1{text}"):
        try:
            read_target(given_text)
        except (InvoiceInvalid, NotSupported):
            pass
