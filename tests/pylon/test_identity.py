from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import nip06
from pylon import identity
from pylon.errors import IdentityError
from pylon.identity import create, from_phrase, load
from pylon.paths import Home
from pylon.store.vault import Vault

# NIP-06, first test vector.
PHRASE = "leader monkey parrot ring guide accident before fence cannon height naive bean"
NSEC_HEX = "7f7ff03d123792d6ac594bfa67bf6d0c0ab55b6b1fdb6249303fe861f1ccba9a"
NPUB = "npub1zutzeysacnf9rru6zqwmxd54mud0k44tst6l70ja5mhv8jjumytsd2x7nu"
OTHER = (
    "what bleak badge arrange retreat wolf trade produce cricket blur garlic valid proud rude strong choose busy staff"
)
OTHER += " weather area salt hollow arm fade"
NOW = 1_800_000_000.0


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files(home) -> set[str]:
    return {path.name for path in home.data.iterdir() if path.is_file()}


def test_the_vector_of_nip06():
    who = from_phrase(PHRASE)
    assert who.nostr.reveal().hex() == NSEC_HEX
    assert who.npub == NPUB
    assert who.pubkey == who.nostr.public.hex


def test_the_simnet_key_is_its_own_and_does_not_move():
    who = from_phrase(PHRASE)
    seed = nip06.seed(PHRASE)
    others = [nip06.derive(seed, f"m/8797555'/{account}'/0'") for account in (0, 1)] + [who.nostr.reveal()]
    assert who.simnet.reveal() not in others
    assert who.simnet.reveal().hex() == "75829b0f8d84cb86f421a87df4ee40b151a39fcb3631f2679158d6c037d028cc"


def test_nothing_of_it_is_ever_shown():
    who = from_phrase(PHRASE)
    text = f"{who!r} {who} {identity.Created(who, True)!r}"
    assert not any(word in text for word in PHRASE.split())
    assert NSEC_HEX not in text
    assert who.reveal_phrase() == PHRASE


@pytest.mark.parametrize(
    "phrase", ["", "leader", PHRASE + " bean", PHRASE.replace("bean", "leader"), "x" * 5_000, "é " * 12, "\udcff"]
)
def test_a_phrase_that_is_none_is_refused_and_not_repeated(phrase, home):
    with pytest.raises(IdentityError) as caught:
        create(home, phrase, now=NOW)
    assert "leader" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert not home.root.exists()


def test_a_new_identity_is_on_disk_and_loads(home):
    old = os.umask(0)
    try:
        created = create(home, now=NOW)
    finally:
        os.umask(old)
    assert created.new
    assert created.kept is None
    assert mode(home.mnemonic) == 0o600
    assert mode(home.data_key) == 0o600
    assert mode(home.root) == 0o700
    assert home.mnemonic.read_text() == created.identity.reveal_phrase() + "\n"
    assert load(home).npub == created.identity.npub
    assert files(home) == {"identity.mnemonic"}
    Vault.load(home.data_key)


@pytest.mark.parametrize("words", [12, 24])
def test_as_many_words_as_wanted(home, words):
    assert len(create(home, words=words, now=NOW).identity.reveal_phrase().split()) == words


def test_two_homes_have_two_identities(tmp_path):
    first, second = (create(Home(tmp_path / name), now=NOW).identity for name in "ab")
    assert first.npub != second.npub


def test_it_is_never_overwritten(home):
    first = create(home, PHRASE, now=NOW)
    key = home.data_key.read_bytes()
    again = create(home, OTHER, now=NOW)
    assert not again.new
    assert again.identity.npub == first.identity.npub == NPUB
    assert home.mnemonic.read_text() == PHRASE + "\n"
    assert home.data_key.read_bytes() == key


def test_force_keeps_the_old_one_aside(home):
    create(home, PHRASE, now=NOW)
    key = home.data_key.read_bytes()
    forced = [
        create(home, OTHER, force=True, now=NOW),
        create(home, force=True, now=NOW),
        create(home, force=True, now=NOW),
    ]
    assert [made.kept.name for made in forced] == [
        "identity.mnemonic.20270115T080000Z",
        "identity.mnemonic.20270115T080000Z-2",
        "identity.mnemonic.20270115T080000Z-3",
    ]
    assert forced[0].kept.read_text() == PHRASE + "\n"
    assert forced[1].kept.read_text() == OTHER + "\n"
    assert mode(forced[0].kept) == 0o600
    assert load(home).npub == forced[-1].identity.npub
    assert home.data_key.read_bytes() == key, "records stay readable"


def test_force_on_a_broken_identity_keeps_even_that(home):
    home.prepare()
    home.mnemonic.write_text("half a phr")
    made = create(home, PHRASE, force=True, now=NOW)
    assert made.kept.read_text() == "half a phr"
    assert load(home).npub == NPUB


def test_a_data_key_is_added_where_only_a_phrase_is(home):
    """A home of the predecessor, or a restored phrase."""
    home.prepare()
    home.mnemonic.write_text(PHRASE)
    home.mnemonic.chmod(0o600)
    assert not create(home, now=NOW).new
    Vault.load(home.data_key)


def test_no_new_data_key_for_a_database_that_another_has_sealed(home):
    create(home, PHRASE, now=NOW)
    home.data_key.unlink()
    home.database.write_bytes(b"")
    for force in (False, True):
        with pytest.raises(IdentityError) as caught:
            create(home, force=force, now=NOW)
        assert "backup" in caught.value.hint
    assert home.mnemonic.read_text() == PHRASE + "\n"
    assert not home.data_key.exists()


def test_one_that_appears_meanwhile_is_not_overwritten(home, monkeypatch):
    new = nip06.new_mnemonic

    def slow(words=12):
        home.prepare()
        home.mnemonic.write_text(PHRASE)
        return new(words)

    monkeypatch.setattr(nip06, "new_mnemonic", slow)
    with pytest.raises(IdentityError, match="meanwhile"):
        create(home, now=NOW)
    assert home.mnemonic.read_text() == PHRASE
    assert files(home) == {"identity.mnemonic"}


def test_missing(home):
    with pytest.raises(IdentityError) as caught:
        load(home)
    assert caught.value.hint == "pylon init"


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o644, 0o660, 0o777])
def test_open_to_others(home, bits):
    create(home, PHRASE, now=NOW)
    home.mnemonic.chmod(bits)
    with pytest.raises(IdentityError) as caught:
        load(home)
    assert caught.value.hint == f"chmod 600 {home.mnemonic}"
    assert f"{bits:04o}" in str(caught.value)


BROKEN = [b"", b"\xff", b"leader " * 12, PHRASE.replace("bean", "leader").encode(), b"x" * 9_000]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_damaged(home, content):
    create(home, PHRASE, now=NOW)
    home.mnemonic.write_bytes(content)
    with pytest.raises(IdentityError, match="checksum") as caught:
        load(home)
    assert "--import --force" in caught.value.hint
    assert "leader" not in str(caught.value)


def test_a_file_with_other_spacing_and_case_is_read(home):
    create(home, PHRASE, now=NOW)
    home.mnemonic.write_text(f"\n {PHRASE.upper()} \r\n".replace(" ", "  "))
    assert load(home).npub == NPUB


KILLED = """
import os, sys
from pylon import identity
from pylon.paths import Home
step, name = int(sys.argv[2]), sys.argv[3]
real = getattr(os, name)
def die(*args, **kwargs):
    global step
    step -= 1
    if step == 0:
        os._exit(9)
    return real(*args, **kwargs)
setattr(os, name, die)
identity.create(Home(sys.argv[1]), sys.argv[4], force=True, now=0.0)
"""


@pytest.mark.parametrize("name", ["open", "fsync", "link", "replace"])
def test_a_crash_leaves_the_old_one_or_the_new_one(home, name):
    create(home, PHRASE, now=NOW)
    codes = []
    for step in range(1, 4):
        arguments = [sys.executable, "-c", KILLED, str(home.root), str(step), name, OTHER]
        codes.append(subprocess.run(arguments, check=False).returncode)
        npub = load(home).npub
        assert npub in (NPUB, from_phrase(OTHER).npub)
        phrases = {path.read_text().strip() for path in home.data.glob("identity.mnemonic*")}
        assert PHRASE in phrases, "the old one is always somewhere"
        if codes[-1] == 0:
            break
    assert 9 in codes


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_phrase_or_an_identity_error(text):
    try:
        from_phrase(text)
    except IdentityError:
        return
    assert nip06.check_mnemonic(text)
