"""Bundles: what is sealed opens with its passphrase alone, and not a byte of the file may change."""

from __future__ import annotations

import base64
import re

import orjson
import pytest
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pylon.errors import BundleError
from pylon.host import bundle
from pylon.host.bundle import LOG_N, MAX_PASSPHRASE_CHARS, MAX_PAYLOAD_BYTES, open_bundle, seal

NOW = 1_790_000_000.0
PHRASE = "correct horse battery staple"
CANARY = b'{"phrase":"canary abandon about"}'
QUICK = 10

passphrases = st.text(min_size=1, max_size=40)


def sealed(payload=CANARY, passphrase=PHRASE) -> str:
    return seal(passphrase, payload, now=NOW, log_n=QUICK)


SEALED = sealed()


def refused(text, passphrase=PHRASE) -> BundleError:
    """The error; it never says what must not be said, nor computes for long."""
    with pytest.raises(BundleError) as caught:
        open_bundle(text, passphrase)
    said = f"{caught.value.message} {caught.value.hint}"
    assert caught.value.message
    assert not [word for word in ("canary", "abandon", "horse", "staple") if word in said]
    return caught.value


@given(st.binary(max_size=3_000), passphrases)
def test_what_was_sealed_opens(payload, passphrase):
    assert open_bundle(sealed(payload, passphrase), passphrase) == payload


@given(passphrases, passphrases)
def test_another_passphrase_does_not_open(one, other):
    assume(bundle._normal(one) != bundle._normal(other))
    assert "another passphrase" in refused(sealed(passphrase=one), other).message


def test_a_passphrase_is_the_same_however_it_was_typed():
    """NFKC: composed or not, full width or not."""
    assert open_bundle(sealed(passphrase="Stra\u00dfe caf\u00e9"), "Stra\u00dfe cafe\u0301") == CANARY
    assert open_bundle(sealed(passphrase="\uff11\uff12\uff13\ufb01"), "123fi") == CANARY


@settings(max_examples=300)
@given(st.integers(0, len(SEALED) - 1), st.integers(1, 127))
@example(SEALED.index("version 1") + 8, 3)  # version 2
@example(SEALED.index('"log_n":10') + 9, 8)  # N = 2^18: the most that is computed
def test_every_flipped_byte_is_noticed(place, flip):
    flipped = SEALED[:place] + chr(ord(SEALED[place]) ^ flip) + SEALED[place + 1 :]
    refused(flipped)


def test_every_byte_of_all_is_bound():
    for place, char in enumerate(SEALED):
        if SEALED[place - 9 : place + 1] == '"log_n":10':
            continue  # another N: slow, and an example above
        refused(SEALED[:place] + chr(ord(char) ^ 1) + SEALED[place + 1 :])


@given(st.integers(0, len(SEALED) - 2))
def test_a_file_that_is_cut_short_is_noticed(length):
    refused(SEALED[:length])


@given(st.integers(0, len(SEALED)), st.text(st.characters(exclude_categories=()), min_size=1, max_size=3))
def test_a_file_with_something_more_is_noticed(place, more):
    longer = SEALED[:place] + more + SEALED[place:]
    assume(longer.replace("\r\n", "\n").rstrip("\n") != SEALED.rstrip("\n"))
    refused(longer)


@given(st.text(st.characters(exclude_categories=()), max_size=300), st.booleans())
def test_any_text_is_refused_clearly(text, headed):
    refused(SEALED.partition("\n")[0] + "\n" + text if headed else text)


def test_line_ends_of_another_system_do_no_harm():
    assert open_bundle(SEALED.replace("\n", "\r\n"), PHRASE) == CANARY
    assert open_bundle(SEALED.rstrip("\n"), PHRASE) == CANARY


def test_the_same_bytes_in_another_base64_are_noticed():
    head, body = SEALED[: SEALED.index("}\n") + 2], SEALED[SEALED.index("}\n") + 2 :]
    assert body.endswith("==\n")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = body[-4]
    same = alphabet[alphabet.index(last) ^ 1]  # base64 leaves these bits unused
    assert base64.b64decode(body[:-4] + same + "==") == base64.b64decode(body)
    for other in (body[:-4] + same + "==\n", body[:10] + "\n" + body[10:], body + "\n"):
        assert "damaged" in refused(head + other).message


def test_a_newer_version_is_named():
    error = refused(SEALED.replace("version 1", "version 12", 1))
    assert "version 12" in error.message
    assert "upgrade" in error.hint


def test_other_files_are_named_as_such():
    for text in ("", "hello", CANARY.decode(), SEALED[1:], "\ufeff" + SEALED):
        assert "no sealed bundle" in refused(text).message


def with_parameters(**changes) -> str:
    title, line, body = SEALED.split("\n", 2)
    return f"{title}\n{orjson.dumps({**orjson.loads(line), **changes}).decode()}\n{body}"


@pytest.mark.parametrize(
    "changes",
    [
        {"log_n": 60},
        {"log_n": 19},
        {"log_n": 0},
        {"log_n": -1},
        {"log_n": 2**63},
        {"r": 2**30},
        {"p": 2**30},
        {"p": 0},
        {"r": 9},
        {"log_n": 10.0},
        {"log_n": True},
        {"log_n": "10"},
        {"log_n": None},
        {"salt": ""},
        {"salt": "00" * 400},
        {"nonce": "zz" * 12},
        {"nonce": 5},
        {"kdf": "none"},
        {"cipher": "rot13"},
        {"note": "x" * 1_000},
    ],
)
def test_absurd_parameters_are_refused_before_anything_is_computed(changes, monkeypatch):
    monkeypatch.setattr(bundle, "Scrypt", lambda **_: pytest.fail("computed"))
    refused(with_parameters(**changes))


def test_another_time_in_the_head_is_noticed():
    """It is readable, and as bound as the rest."""
    assert '"created_at":1790000000' in SEALED
    assert "another passphrase" in refused(with_parameters(created_at=5)).message


def test_sizes_are_bounded_before_any_work(monkeypatch):
    monkeypatch.setattr(bundle, "Scrypt", lambda **_: pytest.fail("computed"))
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    assert "at most" in refused(SEALED + "A" * (bundle._MAX_TEXT_CHARS - len(SEALED) + 1)).message
    with pytest.raises(BundleError, match="16 MiB"):
        seal(PHRASE, bytes(MAX_PAYLOAD_BYTES + 1), now=NOW)


def test_the_largest_payload_comes_back():
    text = sealed(bytes(MAX_PAYLOAD_BYTES))
    assert open_bundle(text.replace("\n", "\r\n"), PHRASE) == bytes(MAX_PAYLOAD_BYTES)


@pytest.mark.parametrize("passphrase", ["", "x" * (MAX_PASSPHRASE_CHARS + 1), "horse\udcff"])
def test_a_passphrase_that_cannot_be_is_refused_at_both_ends(passphrase):
    refused(SEALED, passphrase)
    with pytest.raises(BundleError, match="passphrase") as caught:
        sealed(passphrase=passphrase)
    assert "horse" not in str(caught.value)


def test_too_little_memory_is_said(monkeypatch):
    class Starved:
        def __init__(self, **_):
            pass

        def derive(self, _):
            raise MemoryError("These parameters require 1 MB")

    monkeypatch.setattr(bundle, "Scrypt", Starved)
    assert "1 MiB" in refused(SEALED).message


def test_it_is_a_text_file_that_says_what_it_is_and_hides_what_it_holds():
    once, again = (orjson.loads(text.split("\n")[1]) for text in (SEALED, sealed()))
    assert once["salt"] != again["salt"]
    assert once["nonce"] != again["nonce"]
    assert re.fullmatch(r"Pylon sealed bundle, version 1\n\{[!-z]+\}\n(?:[A-Za-z0-9+/=]{1,76}\n)+", SEALED)
    assert "canary" not in SEALED
    assert PHRASE not in SEALED


def test_the_format_stays_what_it_is():
    """Opened here from its description, with nothing of ours: old bundles must open for ever."""
    title, line, body = SEALED.split("\n", 2)
    values = orjson.loads(line)
    salt, nonce = bytes.fromhex(values["salt"]), bytes.fromhex(values["nonce"])
    key = Scrypt(salt=salt, length=32, n=2 ** values["log_n"], r=values["r"], p=values["p"]).derive(PHRASE.encode())
    plain = bundle.ChaCha20Poly1305(key).decrypt(nonce, base64.b64decode(body), f"{title}\n{line}\n".encode())
    assert plain == CANARY
    assert open_bundle(KEPT, "pass") == b"kept since version 1"


def test_what_is_written_by_default_costs_a_guesser_128_mib():
    text = seal(PHRASE, CANARY, now=NOW)
    assert '"log_n":17,' in text
    assert (LOG_N, open_bundle(text, PHRASE)) == (17, CANARY)


KEPT = """\
Pylon sealed bundle, version 1
{"cipher":"chacha20-poly1305","created_at":1790000000,"kdf":"scrypt","log_n":10,"nonce":"57ff0ce71a99589ef6077859","p":1,"r":8,"salt":"801e5d44f7efbdfed348abf93ff34510"}
b9LUexuokCKEl11XJ6X9sO2N/umvv9mbZAyA5Fkgbwp30l3a
"""
