"""BOLT 11: the specification's examples, properties, and two independent implementations."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
from bech32 import CHARSET
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocols import bolt11
from protocols.strategies_invoices import WAYS, BrokenInvoice, broken_invoices, invoice_fields, invoices

VECTORS = json.loads((Path(__file__).parent / "vectors" / "bolt11.json").read_text(encoding="utf-8"))
SPEC_SECRET = bytes.fromhex(VECTORS["node_secret"])


@pytest.fixture(scope="module")
def oracle() -> Any:
    """The ``bolt11`` package, an implementation that is not ours."""
    if sys.version_info >= (3, 13):
        pytest.skip("bolt11 has no release for this Python")
    import bolt11 as theirs

    return theirs


def named(vectors: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


def as_json(invoice: bolt11.Invoice) -> dict[str, Any]:
    return {
        "prefix": invoice.prefix,
        "amount_msats": invoice.amount_msats,
        "timestamp": invoice.timestamp,
        "payment_hash": invoice.payment_hash,
        "payment_secret": invoice.payment_secret,
        "description": invoice.description,
        "description_hash": invoice.description_hash,
        "expiry": invoice.expiry,
        "min_final_cltv": invoice.min_final_cltv,
        "payee": invoice.payee,
        "features": sorted(invoice.features),
        "metadata": None if invoice.metadata is None else invoice.metadata.hex(),
        "fallbacks": [[version, program.hex()] for version, program in invoice.fallbacks],
        "route_hints": [hint.hex() for hint in invoice.route_hints],
    }


def random_fields(rng: random.Random) -> dict[str, Any]:
    amount = rng.choice([rng.randrange(1, 10**6), rng.randrange(1, 10**12), rng.randrange(1, 10**6) * 1_000])
    return {
        "prefix": "bcrt",
        "amount_msats": amount,
        "timestamp": rng.randrange(1_500_000_000, 2_500_000_000),
        "payment_hash": rng.randbytes(32).hex(),
        "payment_secret": rng.randbytes(32).hex(),
        "node_secret": (b"\x00" + rng.randbytes(31)),
        "description": "".join(rng.choice("job 42 €☕𝄞é'\"") for _ in range(rng.randrange(40))),
        "expiry": rng.choice([60, 3600, rng.randrange(1, 10**7)]),
        "min_final_cltv": rng.randrange(1, 2_000),
        "features": {8, 14} | ({17} if rng.random() < 0.5 else set()),
    }


class TestSpecification:
    @pytest.mark.parametrize("vector", named(VECTORS["valid"]))
    def test_a_valid_example_says_what_it_says(self, vector):
        assert as_json(bolt11.decode(vector["invoice"])) == vector["decoded"]

    @pytest.mark.parametrize("vector", named(VECTORS["invalid"]))
    def test_an_invalid_example_is_refused_for_its_reason(self, vector):
        with pytest.raises(bolt11.Bolt11Invalid, match=vector["reason"]):
            bolt11.decode(vector["invoice"])

    @pytest.mark.parametrize("vector", named([v for v in VECTORS["valid"] if v["canonical"]]))
    def test_encoding_gives_the_very_string(self, vector):
        fields = dict(vector["decoded"])
        del fields["payee"]
        fields["fallbacks"] = [(version, bytes.fromhex(program)) for version, program in fields["fallbacks"]]
        fields["route_hints"] = [bytes.fromhex(hint) for hint in fields["route_hints"]]
        fields["min_final_cltv"] = None
        assert bolt11.encode(**fields, node_secret=SPEC_SECRET) == vector["invoice"]

    @pytest.mark.parametrize("vector", named([v for v in VECTORS["valid"] if "high-S" not in v["name"]]))
    def test_signing_the_same_data_gives_the_same_signature(self, vector):
        text = vector["invoice"].lower()
        hrp, _, data = text.rpartition("1")
        words = [CHARSET.index(letter) for letter in data[:-110]]
        assert bolt11.seal(hrp, words, SPEC_SECRET) == text


class TestRoundTrip:
    @given(invoice_fields())
    def test_what_is_encoded_is_decoded(self, fields):
        text = bolt11.encode(**fields)
        invoice = bolt11.decode(text)
        secret = fields.pop("node_secret")
        fields.pop("name_payee", None)
        for name, value in fields.items():
            found = getattr(invoice, name)
            assert found == (tuple(value) if isinstance(value, list) else value), name
        assert invoice.payee == bolt11.node_public_key(secret).hex()
        assert bolt11.decode(text.upper()) == invoice
        assert text.startswith("ln" + invoice.prefix)

    @given(broken_invoices())
    def test_a_broken_invoice_is_refused(self, broken):
        with pytest.raises(bolt11.Bolt11Invalid):
            bolt11.decode(broken.text)

    @pytest.mark.parametrize("way", sorted(WAYS))
    @settings(max_examples=5)
    @given(data=st.data())
    def test_every_way_of_breaking_breaks(self, way, data):
        broken: BrokenInvoice = data.draw(broken_invoices(way))
        with pytest.raises(bolt11.Bolt11Invalid) as caught:
            bolt11.decode(broken.text)
        assert str(caught.value)

    @given(st.text(max_size=300) | st.text(alphabet="ln1bctrsq0mup" + CHARSET, max_size=300))
    @example("ln1" + "\ud800")
    @example("lnbc٣m1" + "q" * 120)
    @example("LNBC1\x00")
    def test_any_text_is_decoded_or_refused(self, text):
        with pytest.raises(bolt11.Bolt11Invalid):
            bolt11.decode(text)

    @given(invoice_fields(), st.lists(st.integers(0, 31), max_size=200))
    def test_any_signed_data_is_decoded_or_refused(self, fields, words):
        try:
            bolt11.decode(bolt11.seal("lnsb10u", [0] * 7 + words, fields["node_secret"]))
        except bolt11.Bolt11Invalid:
            pass

    @given(invoice_fields(plain=True), st.sampled_from("psdxc9nm"))
    def test_of_a_field_given_twice_the_first_counts(self, fields, letter):
        fields |= {"expiry": 77, "metadata": b"first", "name_payee": True}
        text = bolt11.encode(**fields)
        hrp, _, data = text.rpartition("1")
        words = [CHARSET.index(found) for found in data[:-110]]
        again = bolt11.field(letter, {"n": [1] * 53, "x": [1], "c": [1]}.get(letter, [1] * 52))
        both = bolt11.seal(hrp, words + again, fields["node_secret"])
        assert attrs.evolve(bolt11.decode(both), signature="") == attrs.evolve(bolt11.decode(text), signature="")

    def test_reads_nothing_over_the_cap(self):
        with pytest.raises(bolt11.Bolt11Invalid, match="longer than 50"):
            bolt11.decode("lnsb1" + "q" * 100, max_chars=50)


class TestNetworks:
    @given(invoices(prefixes=["sb"]))
    def test_simnet_is_no_other_network(self, oracle, text):
        assert text.startswith("lnsb")
        assert bolt11.decode(text).network == "simnet"
        assert not text.startswith(("lnbc", "lntb"))
        with pytest.raises(oracle.exceptions.Bolt11HrpInvalidException):
            oracle.decode(text)

    @pytest.mark.parametrize("prefix", sorted(bolt11.NETWORKS))
    @pytest.mark.parametrize("amount", [None, 1, 10, 100, 2_500_000, 10**11, bolt11.MAX_AMOUNT_MSATS])
    def test_prefix_and_amount_do_not_run_together(self, prefix, amount):
        fields = random_fields(random.Random(0)) | {"prefix": prefix, "amount_msats": amount}
        invoice = bolt11.decode(bolt11.encode(**fields))
        assert (invoice.prefix, invoice.amount_msats) == (prefix, amount)


class TestEncodeRefuses:
    @pytest.mark.parametrize(
        "change",
        [
            {"prefix": "ltc"},
            {"amount_msats": 0},
            {"amount_msats": -1},
            {"amount_msats": bolt11.MAX_AMOUNT_MSATS + 1},
            {"timestamp": -1},
            {"timestamp": 2**35},
            {"payment_hash": "00"},
            {"payment_hash": "zz" * 32},
            {"payment_secret": "00 " * 32},
            {"description": None},
            {"description_hash": "00" * 32},
            {"description": "é" * 320},
            {"description": "\ud800"},
            {"expiry": 0},
            {"expiry": 2**53},
            {"min_final_cltv": 0},
            {"node_secret": bytes(32)},
            {"node_secret": b"\x01" * 31},
            {"node_secret": b"\xff" * 32},
            {"fallbacks": [(19, bytes(20))]},
            {"route_hints": [bytes(50)]},
            {"metadata": bytes(640)},
        ],
        ids=str,
    )
    def test_fields_that_make_no_invoice(self, change):
        with pytest.raises(bolt11.Bolt11Invalid):
            bolt11.encode(**(random_fields(random.Random(0)) | change))

    def test_the_secret_is_in_no_message(self):
        with pytest.raises(bolt11.Bolt11Invalid) as caught:
            bolt11.encode(**(random_fields(random.Random(0)) | {"node_secret": b"\xff" * 32}))
        assert "ff" * 8 not in repr(caught.value)


class TestTerms:
    fields: ClassVar = random_fields(random.Random(1)) | {"amount_msats": 5_000, "timestamp": 1_000, "expiry": 60}
    invoice = bolt11.decode(bolt11.encode(**fields))
    agreed: ClassVar = {"prefix": "bcrt", "amount_msats": 5_000, "now": 1_059.0}

    def test_what_was_agreed_upon(self):
        bolt11.check_terms(
            self.invoice, **self.agreed, payment_hash=self.invoice.payment_hash, payee=self.invoice.payee
        )

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"prefix": "bc"}, "regtest, not for mainnet"),
            ({"amount_msats": 4_999}, "5000 msat"),
            ({"amount_msats": 5_001}, "5000 msat"),
            ({"now": 1_060.0}, "expired"),
            ({"min_seconds": 1.5}, "less than 1.5 s"),
            ({"payment_hash": "00" * 32}, "payment hash"),
            ({"payee": "02" * 33}, "another node"),
        ],
    )
    def test_anything_else(self, change, reason):
        with pytest.raises(bolt11.TermsMismatch, match=reason):
            bolt11.check_terms(self.invoice, **(self.agreed | change))

    def test_an_amountless_invoice_is_never_agreed(self):
        open_invoice = bolt11.decode(bolt11.encode(**(self.fields | {"amount_msats": None})))
        with pytest.raises(bolt11.TermsMismatch, match="no amount"):
            bolt11.check_terms(open_invoice, **self.agreed)

    def test_expiry(self):
        assert self.invoice.expires_at == 1_060
        assert not self.invoice.is_expired(1_059.999)
        assert self.invoice.is_expired(1_060)


BREEZ = textwrap.dedent(
    """
    import asyncio, json, sys
    import breez_sdk_spark as breez

    async def main():
        seed = breez.Seed.ENTROPY(bytes(16))
        config = breez.default_server_config(breez.Network.REGTEST)
        sdk = await breez.connect(breez.ConnectRequest(config=config, seed=seed, storage_dir=sys.argv[1]))
        out = []
        for text in json.load(sys.stdin):
            try:
                found = (await sdk.parse(text))[0]
            except breez.SdkError:
                out.append(None)
                continue
            out.append([
                found.amount_msat, found.description, found.payment_hash, found.payment_secret, found.payee_pubkey,
                found.timestamp, found.expiry, found.min_final_cltv_expiry_delta, found.network.name,
            ])
        json.dump(out, sys.stdout)
        await sdk.disconnect()

    asyncio.run(main())
    """
)


class TestOracles:
    """``bolt11`` reads and writes; the Breez SDK (LDK) reads, in a process of its own: it keeps one event loop."""

    def test_a_thousand_invoices_are_read_alike(self, tmp_path):
        rng = random.Random(11)
        texts = [bolt11.encode(**random_fields(rng)) for _ in range(1_000)]
        # One wrong character in some: both must refuse those.
        for at in range(0, 1_000, 25):
            texts[at] = texts[at][:-1] + ("q" if texts[at][-1] != "q" else "p")
        run = subprocess.run(
            [sys.executable, "-c", BREEZ, str(tmp_path)],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        breez_read = json.loads(run.stdout)
        assert len(breez_read) == len(texts)
        for text, breez_found in zip(texts, breez_read, strict=True):
            try:
                ours = bolt11.decode(text)
            except bolt11.Bolt11Invalid:
                assert breez_found is None
                continue
            assert breez_found == [
                *(ours.amount_msats, ours.description, ours.payment_hash, ours.payment_secret, ours.payee),
                *(ours.timestamp, ours.expiry, ours.min_final_cltv, "REGTEST"),
            ]

    def test_a_thousand_invoices_are_read_and_written_alike(self, oracle):
        rng = random.Random(12)
        for nth in range(1_000):
            fields = random_fields(rng)
            text = bolt11.encode(**fields)
            theirs = oracle.decode(text)
            ours = bolt11.decode(text)
            assert [
                *(theirs.currency, theirs.amount_msat, theirs.description, theirs.payment_hash),
                *(theirs.payment_secret, theirs.payee, theirs.date, theirs.expiry, theirs.min_final_cltv_expiry),
            ] == [
                *(ours.prefix, ours.amount_msats, ours.description, ours.payment_hash),
                *(ours.payment_secret, ours.payee, ours.timestamp, ours.expiry, ours.min_final_cltv),
            ]
            if nth % 4 == 0:  # it takes its time
                assert oracle.encode(theirs, fields["node_secret"].hex()) == text

    def test_an_invoice_made_elsewhere_is_read(self, oracle):
        rng = random.Random(13)
        for _ in range(50):
            preimage = rng.randbytes(32)
            tags = oracle.Tags()
            tags.add(oracle.TagChar.payment_hash, hashlib.sha256(preimage).hexdigest())
            tags.add(oracle.TagChar.payment_secret, rng.randbytes(32).hex())
            tags.add(oracle.TagChar.description, "made elsewhere")
            tags.add(oracle.TagChar.expire_time, 120)
            amount = oracle.MilliSatoshi(rng.randrange(1, 10**9))
            made = oracle.Bolt11("bcrt", 1_700_000_000, tags, amount)
            secret = b"\x01" + rng.randbytes(31)
            ours = bolt11.decode(oracle.encode(made, secret.hex()))
            assert ours.payee == bolt11.node_public_key(secret).hex()
            assert ours.payment_hash == hashlib.sha256(preimage).hexdigest()
            assert (ours.amount_msats, ours.expiry, ours.description) == (amount, 120, "made elsewhere")
