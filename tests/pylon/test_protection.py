"""The passphrase of a home, with the machine dying at every file operation."""

from __future__ import annotations

import functools
import os
import shutil
import stat
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols import nip06
from pylon import identity, protection
from pylon.errors import IdentityError, PassphraseError, SealError
from pylon.identity import create, find, load, unlock
from pylon.passphrase import Passphrase
from pylon.paths import Home
from pylon.protection import protect, unprotect
from pylon.store import datakey

PHRASE = "leader monkey parrot ring guide accident before fence cannon height naive bean"
OTHER = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"
NOW = 1_800_000_000.0
OLD, NEW, WRONG = Passphrase("the old one"), Passphrase("the new one"), Passphrase("neither")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A cheap stretching, and each phrase's keys made once: two thousand hashes for a look at a phrase add up."""
    monkeypatch.setattr("pylon.passphrase.LOG_N", 10)
    monkeypatch.setattr(nip06, "seed", functools.lru_cache(nip06.seed))
    monkeypatch.setattr(nip06, "derive", functools.lru_cache(nip06.derive))


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    create(home, PHRASE, now=NOW)
    return home


def opens(home: Home, *words: Passphrase | None) -> list[int]:
    """Which of these open it; whatever opens it opens all of it."""
    found = []
    for n, each in enumerate(words):
        try:
            opened = unlock(home, each)
        except PassphraseError:
            continue
        assert opened.identity.reveal_phrase() == PHRASE
        assert load(home, each).reveal_phrase() == PHRASE
        found.append(n)
    return found


def in_plain(home: Home, *words: str) -> list[str]:
    """Files in which a phrase, or the open data key, can be read."""
    return [
        path.name
        for path in home.data.rglob("*")
        if path.is_file() and any(word.encode() in path.read_bytes() for word in words)
    ]


def test_set_change_and_remove(home):
    key = home.data_key.read_bytes()
    before = home.mnemonic.read_bytes()
    sealed = unlock(home).vault.seal("a prompt", "here")
    assert protect(home, OLD) is False
    assert opens(home, None, OLD, WRONG) == [1]
    assert find(home) == identity.Found(identity.from_phrase(PHRASE).public(), True, True)
    assert home.mnemonic.read_text().startswith("Pylon seed phrase, sealed with the data key, version 1\n")
    assert in_plain(home, "leader monkey", key.hex()) == []
    assert not any(key in path.read_bytes() for path in home.data.rglob("*") if path.is_file())
    phrase = home.mnemonic.read_bytes()
    assert protect(home, NEW, OLD) is True
    assert home.mnemonic.read_bytes() == phrase, "changing rewraps the key and nothing else"
    assert opens(home, None, OLD, NEW) == [2]
    assert unlock(home, NEW).vault.open(sealed, "here") == "a prompt"
    for path in (home.mnemonic, home.data_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    unprotect(home, NEW)
    assert (home.data_key.read_bytes(), home.mnemonic.read_bytes()) == (key, before)
    assert opens(home, None, WRONG) == [0, 1], "where none is wanted, none is looked at"


def test_a_wrong_passphrase_changes_nothing_and_tells_nothing(home):
    protect(home, OLD)
    before = {path: path.read_bytes() for path in (home.mnemonic, home.data_key)}
    for wrong in (None, WRONG):
        for act, words in ((protect, (NEW, wrong)), (unprotect, (wrong,)), (load, (wrong,))):
            with pytest.raises(PassphraseError) as caught:
                act(home, *words)
            assert caught.value.exit_code == 1
            assert caught.value.__cause__ is None
            text = str(caught.value) + caught.value.hint
            assert not any(word in text for word in ("neither", "the old", "leader"))
    assert {path: path.read_bytes() for path in before} == before


def test_phrases_put_aside_are_sealed_too(home):
    create(home, OTHER, force=True, now=NOW)
    home.mnemonic.write_text("half a phr")
    create(home, PHRASE, force=True, now=NOW)
    protect(home, OLD)
    assert in_plain(home, "leader monkey", "abandon", "half a phr") == []
    unprotect(home, OLD)
    kept = [path.read_text() for path in identity.kept_files(home)]
    assert kept == [PHRASE + "\n", "half a phr\n"]


def test_a_new_identity_in_a_protected_home_is_sealed(home):
    protect(home, OLD)
    for wrong in (None, WRONG):
        with pytest.raises(PassphraseError):
            create(home, OTHER, force=True, now=NOW, passphrase=wrong)
    made = create(home, OTHER, force=True, now=NOW, passphrase=OLD)
    assert in_plain(home, "abandon", "leader") == []
    assert load(home, OLD).reveal_phrase() == OTHER
    unprotect(home, OLD)
    assert made.kept.read_text() == PHRASE + "\n"


def test_again_is_left_as_it_is_without_asking(home):
    protect(home, OLD)
    again = create(home, OTHER, now=NOW)
    assert (again.new, again.identity) == (False, None)
    assert again.public == identity.from_phrase(PHRASE).public()


def test_a_sealed_phrase_without_its_key_is_told(home):
    protect(home, OLD)
    home.data_key.unlink()
    for act in (lambda: create(home, now=NOW), lambda: load(home, OLD), lambda: unlock(home, OLD)):
        with pytest.raises(IdentityError, match=r"data\.key"):
            act()


def test_the_public_line_cannot_be_changed(home):
    protect(home, OLD)
    home.mnemonic.write_text(home.mnemonic.read_text().replace("npub1", "npub2", 1))
    with pytest.raises(IdentityError, match="does not open"):
        load(home, OLD)


@pytest.mark.parametrize("at", range(0, 330, 7))
def test_no_byte_of_a_wrapped_key_can_change(home, at):
    protect(home, OLD)
    raw = bytearray(home.data_key.read_bytes())
    at = min(at, len(raw) - 2)
    raw[at] ^= 1
    home.data_key.write_bytes(raw)
    with pytest.raises((IdentityError, SealError)):
        load(home, OLD)


def test_a_phrase_put_there_in_plain_is_sealed_with_the_next_change(home):
    protect(home, OLD)
    home.mnemonic.write_text(PHRASE)
    assert opens(home, OLD) == [0]
    assert not find(home).sealed
    protect(home, OLD, OLD)
    assert in_plain(home, "leader") == []


def test_what_is_replaced_is_overwritten_where_no_other_name_holds_it(home, tmp_path):
    os.link(home.data_key, tmp_path / "mine")
    key = home.data_key.read_bytes()
    descriptor = os.open(home.mnemonic, os.O_RDONLY)
    try:
        protect(home, OLD)
        assert os.read(descriptor, 1_000).strip(b"\0") == b""
    finally:
        os.close(descriptor)
    assert (tmp_path / "mine").read_bytes() == key, "somebody's hard link is somebody's copy"


# --- crashes ------------------------------------------------------------------------------------------------------

OPERATIONS = ("open", "fdopen", "fsync", "link", "replace", "unlink", "fchmod", "chmod", "mkdir", "pwrite", "close")


class Died(BaseException):
    """The machine: nothing after it is done, no clean-up either."""


@pytest.fixture
def die_at(monkeypatch):
    """``die_at(step)``: before the file operation of that number from now; ``die_at.live()`` counts them."""
    state = {"left": None, "dead": False, "calls": 0}

    def wrap(name):
        real = getattr(os, name)

        def wrapped(*args, **kwargs):
            if state["dead"]:
                raise Died
            if state["left"] is not None:
                state["calls"] += 1
                state["left"] -= 1
                if state["left"] == 0:
                    state["dead"] = True
                    raise Died
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, wrapped)

    for name in OPERATIONS:
        wrap(name)

    def die_at(step):
        state.update(left=step, dead=False, calls=0)

    def live():
        state.update(left=None, dead=False)
        return state["calls"]

    die_at.live = live
    return die_at


def crashes(home, die_at, act):
    """The home as each crash leaves it, and as the end does; after one operation is before the next one."""
    copy = home.root.with_name("copy")
    shutil.copytree(home.root, copy)
    step = 0
    done = False
    while not done:
        step += 1
        die_at(step)
        try:
            act()
            done = True
        except Died:
            pass
        calls = die_at.live()
        yield step, done
        shutil.rmtree(home.root)
        shutil.copytree(copy, home.root)
        assert done or calls == step
    assert step > 8, "hardly anything was counted"


@contextmanager
def dying_at(step):
    """Die before the ``step``-th of what changes a disk; 0: not at all."""
    left, dead = step, False
    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "link", "replace", "unlink", "pwrite"):
            real = getattr(os, name)

            def wrapped(*args, real=real, **kwargs):
                nonlocal left, dead
                left -= 1
                if dead or left == 0:
                    dead = True
                    raise Died
                return real(*args, **kwargs)

            patch.setattr(os, name, wrapped)
        yield


PASSPHRASES = (None, OLD, NEW, WRONG)
steps = st.tuples(st.sampled_from([OLD, NEW, WRONG, None]), st.integers(0, 20) | st.just(0))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, min_size=1, max_size=8))
def test_any_history_of_passphrases_and_crashes(quick, tmp_path_factory, history):
    """At every moment one passphrase, or none, opens it, and it is the one before or the one that was being set."""
    home = Home(tmp_path_factory.mktemp("history") / "home")
    create(home, PHRASE, now=NOW)
    key, now = home.data_key.read_bytes(), None
    for wanted, step in history:
        try:
            with dying_at(step):
                unprotect(home, now) if wanted is None else protect(home, wanted, now)
            died = False
        except Died:
            died = True
        protected = identity.is_protected(home)
        working = [each for each in PASSPHRASES if opens(home, each)]
        if protected:
            assert len(working) == 1, "one alone"
            (reached,) = working
            assert in_plain(home, "leader monkey") == [], "from the moment that one is wanted"
        else:
            assert len(working) == len(PASSPHRASES), "nothing is wanted"
            reached = None
        assert reached in (now, wanted) if died else reached is wanted
        now = reached
        assert unlock(home, now).key.reveal() == key
    protect(home, OLD, now)
    assert in_plain(home, "leader monkey") == []
    unprotect(home, OLD)
    assert home.data_key.read_bytes() == key
    assert home.mnemonic.read_text() == PHRASE + "\n"


# Descriptors that a dead process held are closed when it is collected here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("act", ["set", "change", "remove", "new identity"])
def test_a_crash_anywhere_leaves_the_old_passphrase_or_the_new_one(home, die_at, act):
    create(home, OTHER, force=True, now=NOW)
    create(home, PHRASE, force=True, now=NOW)
    key = home.data_key.read_bytes()
    if act != "set":
        protect(home, OLD)
    do = {
        "set": lambda: protect(home, NEW),
        "change": lambda: protect(home, NEW, OLD),
        "remove": lambda: unprotect(home, OLD),
        "new identity": lambda: create(home, PHRASE, force=True, now=NOW, passphrase=OLD),
    }[act]
    before, after = {"set": (None, NEW), "change": (OLD, NEW), "remove": (OLD, None), "new identity": (OLD, OLD)}[act]
    seen = set()
    for step, done in crashes(home, die_at, do):
        working = opens(home, before, after)
        assert working, (act, step)
        if identity.is_protected(home):
            assert in_plain(home, "leader monkey", "abandon abandon") == [], "from the moment that one is wanted"
        # Removing: a home that wants no passphrase opens with the old one too.
        now = after if 1 in working else before
        assert unlock(home, now).key.reveal() == key
        seen.add((done, 0 in working, 1 in working))
        kept = [path for path in identity.kept_files(home) if path.exists()]
        texts = [identity.read(path, home) for path in kept]
        opened = [
            identity.opened_text(text, path, unlock(home, now).vault) if identity.is_sealed(text) else text
            for path, text in zip(kept, texts, strict=True)
        ]
        assert [text.strip() for text in opened][:2] == [PHRASE, OTHER], "what was put aside is there"
        # Whatever was left half done: setting one completes it, and nothing in plain stays behind.
        protect(home, NEW, now)
        assert opens(home, NEW) == [0]
        assert in_plain(home, "leader monkey", "abandon abandon") == []
        assert not list(home.data.glob(".identity*")) + list(home.keys.glob(".data*"))
        assert stat.S_IMODE(home.mnemonic.stat().st_mode) == 0o600
    if act != "new identity":
        assert len({(one, two) for _, one, two in seen}) == 2, "crashes on both sides of the moment"


def test_a_full_disk_is_told_and_changes_nothing(home, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IdentityError, match="No space left"):
        protect(home, NEW)
    monkeypatch.undo()
    assert opens(home, None) == [0]


def test_representations_are_blank(home):
    protect(home, OLD)
    opened = unlock(home, OLD)
    text = f"{OLD!r} {OLD} {opened!r} {opened} {opened.key!r} {opened.vault!r} {find(home)!r}"
    assert "old one" not in text
    assert "leader" not in text
    assert opened.key.reveal().hex() not in text
    assert not hasattr(OLD, "__dict__")
    assert isinstance(opened.key, datakey.DataKey)
    assert protection.__doc__
