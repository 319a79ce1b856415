"""NIP-06 and BIP-32 beyond the published vectors (those are in test_nips.py)."""

from __future__ import annotations

import unicodedata

import nostr_sdk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemonic import Mnemonic

from protocols import entropy, nip06

PHRASE = "leader monkey parrot ring guide accident before fence cannon height naive bean"


@settings(max_examples=8, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_a_passphrase_makes_the_seed_that_nostr_sdk_makes(passphrase):
    # BIP-39 wants the passphrase in NFKD; the library takes it as it comes.
    normal = unicodedata.normalize("NFKD", passphrase)
    ours = nip06.derive(nip06.seed(PHRASE, passphrase), "m/44'/1237'/0'/0/0")
    assert ours.hex() == nostr_sdk.Keys.from_mnemonic(PHRASE, normal).secret_key().to_hex()


@given(st.binary(min_size=16, max_size=16))
def test_a_phrase_is_made_of_the_given_entropy(found):
    entropy.use(lambda length: found[:length])
    try:
        phrase = nip06.new_mnemonic()
    finally:
        entropy.use(None)
    assert bytes(Mnemonic("english").to_entropy(phrase)) == found
    assert nip06.check_mnemonic(phrase) == phrase


@pytest.mark.parametrize("words", [0, 11, 13, 15, 48])
def test_a_new_phrase_has_12_or_24_words(words):
    with pytest.raises(nip06.MnemonicInvalid):
        nip06.new_mnemonic(words)


@given(st.text(max_size=120) | st.lists(st.sampled_from(PHRASE.split()), max_size=26).map(" ".join))
def test_no_text_breaks_the_check_and_no_error_repeats_it(text):
    try:
        normal = nip06.check_mnemonic(text)
    except nip06.MnemonicInvalid as error:
        said, causes = str(error), (error.__cause__, error.__context__)
    else:
        assert nip06.check_mnemonic(normal) == normal
        return
    assert said in ("a phrase has 12 or 24 words", "a word is not in the list, or the checksum is wrong")
    assert causes == (None, None)


@pytest.mark.parametrize("path", ["m/" + "1" * 5_000, "m/0'/" + "9" * 11, "m/2147483648'", "m//0", "M/0", "m/+1"])
def test_no_path_breaks_the_derivation(path):
    with pytest.raises(nip06.PathInvalid):
        nip06.derive(bytes(64), path)


@pytest.mark.parametrize("account", [-1, 1 << 31])
def test_an_account_is_a_number_of_31_bits(account):
    with pytest.raises(nip06.PathInvalid):
        nip06.nostr_key(PHRASE, account)


def test_the_largest_account():
    theirs = nostr_sdk.Keys.from_mnemonic(PHRASE, account=(1 << 31) - 1)
    assert nip06.nostr_key(PHRASE, (1 << 31) - 1).reveal().hex() == theirs.secret_key().to_hex()
