"""A home in one file and back: whole, frozen, and safe against a crash at every move."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import sqlite3
import stat
from contextlib import closing

import pytest
import trio

from protocols import nip06
from pylon import identity, protection
from pylon.clock import SystemClock
from pylon.daemon.backup import back_up, fetch, file_name, home_seal, own_directory, rotate
from pylon.daemon.restoring import complete, restore, restore_database, wants
from pylon.daemon.sealed_file import Lock, write_sealed
from pylon.errors import BackupError, IdentityError, PassphraseError
from pylon.host import acting
from pylon.host.acting import Action
from pylon.host.agents import action_records
from pylon.host.replies import Proposed
from pylon.host.settings import ActionKind
from pylon.identity import create, load, unlock
from pylon.money import Msat
from pylon.passphrase import Passphrase
from pylon.paths import Home
from pylon.store import intents, remedy, settings
from pylon.store.database import open_store
from pylon.wallets.history import unbooked
from pylon.wallets.port import Direction, Payment, PaymentState
from pylon.wallets.simnet_ledger import LedgerFile
from tests.pylon.daemon.agent_home import furnish

PHRASE = "leader monkey parrot ring guide accident before fence cannon height naive bean"
OTHER = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"
WORDS, HOME_WORDS = Passphrase("the backup's"), Passphrase("the home's")
NOW = 1_800_000_000.0


class StoppedClock:
    """``Clock``, outside of Trio."""

    def now(self):
        return NOW

    def monotonic(self):
        return 0.0


CLOCK = StoppedClock()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("pylon.passphrase.LOG_N", 10)
    monkeypatch.setattr(nip06, "seed", functools.lru_cache(nip06.seed))
    monkeypatch.setattr(nip06, "derive", functools.lru_cache(nip06.derive))


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    root = tmp_path_factory.mktemp("furnished") / "home"
    trio.run(furnish, root)
    return root


@pytest.fixture
def home(furnished, tmp_path):
    """A home with two agents, a payment under way, and a phrase put aside."""
    shutil.copytree(furnished, tmp_path / "home")
    home = Home(tmp_path / "home")
    home.config.write_text('network = "simnet"\n# mine\n')
    home.config.chmod(0o600)
    kept = home.data / "identity.mnemonic.20260101T000000Z"
    kept.write_text(OTHER + "\n")
    kept.chmod(0o600)

    async def owe():
        async with open_store(home.database, vault=unlock(home).vault, clock=SystemClock()) as store:
            await store.write(
                lambda tx: intents.reserve(
                    tx, tx.vault, cause="c", payment_hash="ab" * 32, invoice="lnsb1", amount=Msat(1_000),
                    max_fee=Msat(10), at=NOW,
                )
            )  # fmt: skip

    trio.run(owe)
    return home


def backed_up(home, passphrase=None):
    path = home.root.parent / "backup"
    assert back_up(home, unlock(home, passphrase), path, WORDS, now=NOW).length == path.stat().st_size
    return path


def rows(path, sql):
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def test_there_and_back(home, tmp_path):
    path = backed_up(home)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    raw = path.read_bytes()
    who = unlock(home)
    for secret in (b"leader", b"abandon", b"SQLite format", who.key.reveal(), who.identity.reveal_phrase().encode()):
        assert secret not in raw
    new = Home(tmp_path / "new")
    done = restore(new, path, WORDS, CLOCK)
    assert (done.npub, done.taken_at, done.protected) == (who.identity.npub, NOW, False)
    assert (done.agents, done.unknown, done.kept) == (2, 1, None)
    again = unlock(new)
    assert again.key.reveal() == who.key.reveal()
    assert again.identity.reveal_phrase() == who.identity.reveal_phrase()
    assert [kept.read_text() for kept in identity.kept_files(new)] == [OTHER + "\n"]
    assert new.config.read_text() == 'network = "simnet"\n# mine\n'
    for name in ("pylon.db", "identity.mnemonic", "keys/data.key", "config.toml"):
        assert stat.S_IMODE((new.root / name).stat().st_mode) == 0o600, name
    assert not new.restoring.exists()
    before, after = (dict(rows(each.database, "SELECT name, epoch FROM agents")) for each in (home, new))
    assert after == {name: epoch + 1 for name, epoch in before.items()}
    assert rows(new.database, "SELECT DISTINCT instance FROM agents") != rows(
        home.database, "SELECT DISTINCT instance FROM agents"
    )
    ((state, error),) = rows(new.database, "SELECT state, error FROM intents")
    assert (state, error) == ("pending", "the home was restored from a backup")
    same = (
        "SELECT id, name, phrase, keys, settings FROM agents",
        "SELECT * FROM entries",
        "SELECT * FROM agent_states",
    )
    for sql in same:
        assert rows(new.database, sql) == rows(home.database, sql)

    async def look():
        async with open_store(new.database, vault=again.vault, clock=CLOCK) as store:
            return json.loads(settings.get(store, "frozen"))

    frozen = trio.run(look)
    assert frozen["at"] == NOW
    assert "backup" in frozen["reason"]


def test_wallet_connections_are_closed(home, tmp_path):
    """What has been spent by them since the backup is not known, nor whether they still should be there."""
    with closing(sqlite3.connect(home.database)) as db:
        db.execute("INSERT INTO wallet_connections VALUES ('app', 'own', 'app', x'00', '[]', 1, NULL, 1.0, NULL, NULL)")
        db.execute("INSERT INTO wallet_connections VALUES ('old', 'x', 'old', x'00', '[]', 1, NULL, 1.0, NULL, 2.0)")
        db.commit()
    new = Home(tmp_path / "new")
    restore(new, backed_up(home), WORDS, CLOCK)
    assert rows(new.database, "SELECT client, closed_at FROM wallet_connections ORDER BY client") == [
        ("app", NOW),
        ("old", 2.0),
    ]


def test_what_was_sent_since_the_backup_is_booked_as_anothers_doing(home, tmp_path):
    new = Home(tmp_path / "new")
    restore(new, backed_up(home), WORDS, CLOCK)

    def sent(name, at):
        hashed = name * 64
        return Payment(name, hashed, Direction.SENT, PaymentState.SETTLED, Msat(5_000), Msat(7), at, at)

    async def look():
        async with open_store(new.database, vault=unlock(new).vault, clock=SystemClock()) as store:
            return unbooked(store, [sent("d", NOW - 1), sent("e", NOW + 1)], "", 0.0)

    assert [payment.payment_id for payment in trio.run(look)] == ["d"], "what is sent from now on has an intent of ours"


def test_a_home_with_a_passphrase_comes_back_with_the_backups(home, tmp_path):
    protection.protect(home, HOME_WORDS)
    path = backed_up(home, HOME_WORDS)
    new = Home(tmp_path / "new")
    assert restore(new, path, WORDS, CLOCK).protected
    assert unlock(new, WORDS).key.reveal() == unlock(home, HOME_WORDS).key.reveal()
    for plain in new.data.rglob("*"):
        assert not plain.is_file() or b"abandon" not in plain.read_bytes(), plain
    protection.unprotect(new, WORDS)
    assert [kept.read_text() for kept in identity.kept_files(new)] == [OTHER + "\n"]


def test_a_home_that_has_never_run(tmp_path):
    home = Home(tmp_path / "home")
    create(home, PHRASE, now=NOW)
    new = Home(tmp_path / "new")
    restore(new, backed_up(home), WORDS, CLOCK)
    assert load(new).reveal_phrase() == PHRASE
    assert rows(new.database, "SELECT key FROM settings WHERE key = 'frozen'") == [("frozen",)]


async def test_while_somebody_writes(home):
    """The copy is of one moment: two rows that are written together are both in it or both not."""
    async with open_store(home.database, vault=unlock(home).vault, clock=SystemClock()) as store:
        stop = trio.Event()

        async def write():
            n = 0
            while not stop.is_set():
                n += 1
                await store.write(lambda tx, n=n: [settings.put(tx, name, str(n)) for name in ("one", "two")])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.sleep(0.05)
            writes = store.writes
            path = await trio.to_thread.run_sync(backed_up, home)
            await trio.sleep(0.05)
            assert store.writes > writes
            stop.set()
    new = Home(home.root.parent / "new")
    await trio.to_thread.run_sync(restore, new, path, WORDS, CLOCK)
    (one,), (two,) = rows(new.database, "SELECT value FROM settings WHERE key IN ('one', 'two')")
    assert one == two
    assert not list(home.data.glob(".pylon.db*"))


def test_a_file_that_is_there_stays(home):
    path = home.root.parent / "backup"
    path.write_text("mine")
    with pytest.raises(BackupError, match="not overwritten"):
        backed_up(home)
    assert path.read_text() == "mine"
    assert {entry.name for entry in path.parent.iterdir()} == {"home", "backup"}


def test_a_memory_stick_without_links(home, monkeypatch):
    def unknown(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unknown)
    path = backed_up(home)
    with pytest.raises(BackupError, match="not overwritten"):
        back_up(home, unlock(home), path, WORDS, now=NOW)
    restore(Home(home.root.parent / "new"), path, WORDS, CLOCK)


def test_what_a_killed_backup_has_left_goes(home):
    there = home.root.parent
    old, new = home.data / ".pylon.db.0123", home.data / ".pylon.db.4567"
    half, mine = there / f".pylon-abcdefgh-20260101T000000Z.backup.{'0a' * 8}", there / ".pylon-mine.backup"
    for path in (old, new, half, mine):
        path.write_bytes(b"half a database")
    for path in (old, half, mine):
        os.utime(path, (NOW - 1e6, 1.0))
    backed_up(home)
    assert [path.exists() for path in (old, new, half, mine)] == [False, True, False, True]


def test_a_configuration_that_points_elsewhere_is_put_beside(home, tmp_path):
    home.config.write_text('network = "simnet"\ndata_dir = "/elsewhere"\n')
    new = Home(tmp_path / "new")
    done = restore(new, backed_up(home), WORDS, CLOCK)
    assert (done.config.name, new.config.exists()) == ("config.toml.restored", False)
    assert done.config.read_text() == home.config.read_text()


def test_a_damaged_database_is_told(home):
    raw = bytearray(home.database.read_bytes())
    raw[8192:60_000] = bytes(60_000 - 8192)
    home.database.write_bytes(raw)
    with pytest.raises(BackupError, match="database"):
        backed_up(home)


@pytest.mark.parametrize("wrong", ["passphrase", "cut", "no backup", "none"])
def test_what_does_not_open_changes_nothing(home, tmp_path, wrong):
    path = backed_up(home)
    words = Passphrase("another") if wrong == "passphrase" else WORDS
    if wrong == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    if wrong == "no backup":
        path.write_bytes(b"hello")
    if wrong == "none":
        path.unlink()
    before = {each: each.read_bytes() for each in home.data.rglob("*") if each.is_file()}
    new = Home(tmp_path / "new")
    for target, force in ((new, False), (home, True)):
        with pytest.raises(BackupError) as caught:
            restore(target, path, words, CLOCK, force=force)
        assert "leader" not in str(caught.value)
        assert not target.restoring.exists()
    assert {each: each.read_bytes() for each in home.data.rglob("*") if each.is_file()} == before
    assert not new.mnemonic.exists()
    create(new, PHRASE, now=NOW)


def test_a_home_that_has_something_to_lose(home, tmp_path):
    path = backed_up(home)
    other = Home(tmp_path / "other")
    create(other, PHRASE, now=NOW)
    key = other.data_key.read_bytes()
    with pytest.raises(BackupError, match="no empty home") as caught:
        restore(other, path, WORDS, CLOCK)
    assert "--force" in caught.value.hint
    kept = restore(other, path, WORDS, CLOCK, force=True).kept
    assert (kept / "identity.mnemonic").read_text() == PHRASE + "\n"
    assert (kept / "keys" / "data.key").read_bytes() == key
    assert load(other).pubkey == load(home).pubkey
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700


# --- sealed as the home is ----------------------------------------------------------------------------------------


def sealed_as_home(home, passphrase=None):
    path = home.root.parent / "as-home"
    unlocked = unlock(home, passphrase)
    back_up(home, unlocked, path, home_seal(home, unlocked), now=NOW)
    return path


def test_sealed_by_the_homes_own_passphrase(home, tmp_path):
    protection.protect(home, HOME_WORDS)
    path = sealed_as_home(home, HOME_WORDS)
    raw, who = path.read_bytes(), unlock(home, HOME_WORDS)
    for secret in (b"leader", b"abandon", b"SQLite format", who.key.reveal(), who.key.reveal().hex().encode()):
        assert secret not in raw
    assert wants(path) is Lock.HOME
    new = Home(tmp_path / "new")
    for given in (None, WORDS):
        with pytest.raises((BackupError, PassphraseError)):
            restore(new, path, given, CLOCK)
        assert not new.mnemonic.exists()
    done = restore(new, path, HOME_WORDS, CLOCK)
    assert done.protected
    assert unlock(new, HOME_WORDS).key.reveal() == who.key.reveal()


def test_a_home_without_a_passphrase_has_open_backups(home, tmp_path):
    path = sealed_as_home(home)
    assert wants(path) is Lock.OPEN
    new = Home(tmp_path / "new")
    assert not restore(new, path, None, CLOCK).protected
    assert unlock(new).key.reveal() == unlock(home).key.reveal()


def test_no_byte_of_an_open_backup_can_change_unnoticed(home, tmp_path):
    path = sealed_as_home(home)
    raw = path.read_bytes()
    for at in (3, 40, raw.index(b"data_key") + 14, raw.index(b"salt") + 9, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(BackupError):
            restore(Home(tmp_path / "new"), path, None, CLOCK)
    assert not Home(tmp_path / "new").mnemonic.exists()


@pytest.mark.parametrize("more", [b"", b"x"])
def test_a_backup_of_the_first_version_still_opens(home, tmp_path, more):
    who = unlock(home)
    manifest = json.dumps(
        {
            "version": 1, "taken_at": NOW, "phrase": who.identity.reveal_phrase(), "kept": {},
            "data_key": who.key.reveal().hex(), "protected": False, "config": None,
            "database_bytes": home.database.stat().st_size,
        }
    ).encode()  # fmt: skip
    path = tmp_path / "first"
    with path.open("wb") as file:
        write_sealed(file, WORDS, [len(manifest).to_bytes(4, "big") + manifest, home.database.read_bytes(), more])
    new = Home(tmp_path / "new")
    if more:
        with pytest.raises(BackupError, match="more than it says"):
            restore(new, path, WORDS, CLOCK)
        return
    assert restore(new, path, WORDS, CLOCK).agents == 2
    assert rows(new.database, "SELECT COUNT(*) FROM intents") == [(1,)]


# --- all that a home needs ----------------------------------------------------------------------------------------


def ledger_of(home, *names):
    with closing(LedgerFile(home.simnet, rng=random.Random(1))) as ledger:
        for name in names:
            ledger.register(name * 66, name, name, NOW)


def accounts(home):
    found = {row[0] for row in rows(home.simnet, "SELECT account FROM accounts")}
    return {name for name in "abc" if name * 66 in found}


def test_what_stands_beside_comes_too(home, tmp_path):
    for name in ("api.token", "keys/wallet.nwc", "backups/alice-1.agent"):
        (home.data / name).parent.mkdir(exist_ok=True)
        (home.data / name).write_text(f"what is in {name}")
    ledger_of(home, "a")
    new = Home(tmp_path / "new")
    restore(new, sealed_as_home(home), None, CLOCK)
    for name in ("api.token", "keys/wallet.nwc", "backups/alice-1.agent"):
        assert (new.data / name).read_text() == f"what is in {name}"
        assert stat.S_IMODE((new.data / name).stat().st_mode) == 0o600
    assert accounts(new) == {"a"}
    assert rows(new.simnet, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("state", ["newer", "another's", "cut", "damaged"])
def test_a_ledger_that_goes_on_stays_and_another_gives_way(home, tmp_path, state):
    """To a home it is what a wallet's server is: it is not put back by restoring the books."""
    ledger_of(home, "a")
    path = sealed_as_home(home)
    if state == "newer":
        ledger_of(home, "b")
    elif state == "another's":
        for end in ("", "-wal", "-shm"):
            home.simnet.with_name(home.simnet.name + end).unlink(missing_ok=True)
        ledger_of(home, "c")
    else:
        raw = bytearray(home.simnet.read_bytes())
        raw[4 * 4_096 : 5 * 4_096] = b"\xff" * 4_096
        home.simnet.write_bytes(raw[:5_000] if state == "cut" else raw)
    kept = restore(home, path, None, CLOCK, force=True).kept
    assert accounts(home) == ({"a", "b"} if state == "newer" else {"a"})
    assert (kept / "simnet.db").exists() == (state != "newer")


def test_the_configuration_of_the_same_home_stays_and_that_of_another_goes(home, tmp_path):
    path = sealed_as_home(home)
    home.config.write_text('network = "simnet"\n# newer\n')
    restore(home, path, None, CLOCK, force=True)
    assert "# newer" in home.config.read_text()
    home.config.write_text("network = \n")
    kept = restore(home, path, None, CLOCK, force=True).kept
    assert "# mine" in home.config.read_text(), "what does not read is no loss"
    assert (kept / "config.toml").read_text() == "network = \n"
    other = Home(tmp_path / "other")
    create(other, OTHER, now=NOW)
    other.config.write_text('network = "testnet"\n')
    kept = restore(other, path, None, CLOCK, force=True).kept
    assert "# mine" in other.config.read_text()
    assert (kept / "config.toml").read_text() == 'network = "testnet"\n'


def test_a_configuration_that_was_prepared_is_not_replaced(home, tmp_path):
    path = sealed_as_home(home)
    new = Home(tmp_path / "new")
    new.prepare()
    new.config.write_text('network = "simnet"\n# prepared\n')
    done = restore(new, path, None, CLOCK)
    assert "# prepared" in new.config.read_text()
    assert (done.kept, done.config) == (None, None)


def test_only_the_newest_are_kept_and_nobody_elses_goes(home, tmp_path):
    npub = load(home).npub
    directory = own_directory(home)
    directory.mkdir()
    names = [file_name(npub, NOW + day * 86_400) for day in range(5)]
    strangers = [file_name("npub1" + "q" * 58, NOW), "pylon-mine.backup", "notes.txt"]
    for name in (*names, *strangers):
        (directory / name).write_text("x")
    assert [path.name for path in rotate(directory, npub, 2)] == names[:3]
    assert {path.name for path in directory.iterdir()} == {*names[3:], *strangers}
    # The one just written stays, also where a clock that was ahead has named the others.
    written = directory / file_name(npub, NOW - 86_400)
    written.write_text("x")
    assert [path.name for path in rotate(directory, npub, 2, written)] == names[3:4]
    assert written.exists()


def test_the_home_knows_its_newest_backup(home):
    path = sealed_as_home(home)
    assert remedy.newest(home.data) == (path, NOW)
    assert str(path) in remedy.restore(home.database)


# --- another database for the same home ---------------------------------------------------------------------------


@pytest.mark.parametrize("words", [None, HOME_WORDS])
def test_a_bare_copy_of_the_database(home, tmp_path, words):
    """As it lies beside after an upgrade: the home stays, its records go back, and it is treated as restored."""
    copy = tmp_path / "pylon.db.before"
    shutil.copyfile(home.database, copy)
    if words:
        protection.protect(home, words)
    with closing(sqlite3.connect(home.database)) as db:
        db.execute("INSERT INTO settings VALUES ('later', 'x')")
        db.commit()
    (home.data / "api.token").write_text("token")
    who = load(home, words).pubkey
    assert wants(copy) is None
    done = restore_database(home, copy, unlock(home, words), words, CLOCK, stay_frozen=False)
    assert (load(home, words).pubkey, done.agents, done.unknown, done.protected) == (who, 2, 1, bool(words))
    assert (home.data / "api.token").exists()
    assert rows(home.database, "SELECT key FROM settings WHERE key IN ('later', 'frozen')") == [("frozen",)]
    assert rows(done.kept / "pylon.db", "SELECT key FROM settings WHERE key = 'later'") == [("later",)]
    assert copy.exists()
    assert [unlock(home, words).vault.open(*row) for row in _sealed_rows(home)]


def _sealed_rows(home):
    found = rows(home.database, "SELECT state, agent FROM agent_states")
    return [(blob, f"agent_states.state:{agent}") for blob, agent in found]


def test_a_damaged_copy_changes_nothing(home, tmp_path):
    copy = tmp_path / "copy"
    raw = bytearray(home.database.read_bytes())
    raw[8192:60_000] = bytes(60_000 - 8192)
    copy.write_bytes(raw)
    before = home.database.read_bytes()
    with pytest.raises(BackupError, match="damaged"):
        restore_database(home, copy, unlock(home), None, CLOCK, stay_frozen=False)
    assert home.database.read_bytes() == before
    assert not home.restoring.exists()


@pytest.mark.parametrize("stay", [True, False])
def test_whether_the_freeze_ends_by_itself(home, tmp_path, stay):
    new = Home(tmp_path / "new")
    restore(new, sealed_as_home(home), None, CLOCK, stay_frozen=stay)
    found = dict(rows(new.database, "SELECT key, value FROM settings"))
    assert "frozen" in found
    assert ("frozen_until_reconciled" in found) == (not stay)


@pytest.mark.parametrize("wrong", ["", "damaged", "taken"])
def test_what_a_daemon_has_written_is_fetched_whole_or_not_at_all(home, tmp_path, wrong):
    staged, target = tmp_path / ".outgoing-1", tmp_path / "out" / "target"
    target.parent.mkdir()
    done = back_up(home, unlock(home), staged, WORDS, now=NOW)
    if wrong == "damaged":
        staged.write_bytes(staged.read_bytes()[:-1])
    if wrong == "taken":
        target.write_bytes(b"mine")
    content = staged.read_bytes()
    with contextlib.nullcontext() if not wrong else pytest.raises(BackupError):
        fetch(home, staged, target, done.sha256, now=NOW + 1)
    assert not staged.exists()
    kept = {"": [content], "damaged": [], "taken": [b"mine"]}[wrong]
    assert [path.read_bytes() for path in target.parent.iterdir()] == kept
    if not wrong:
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert remedy.newest(home.data) == (target, NOW + 1)


@pytest.mark.parametrize("own", [True, False])
def test_a_freeze_of_the_operators_own_is_not_lost_with_the_records_that_had_it(home, tmp_path, own):
    """Somebody meant to stop, and has not said anything else since the backup."""
    path = sealed_as_home(home)
    marks = {"frozen": '{"reason": "stop", "at": 1.0}'} | ({} if own else {"frozen_until_reconciled": "1.0"})
    with closing(sqlite3.connect(home.database)) as db:
        db.executemany("INSERT INTO settings VALUES (?, ?)", marks.items())
        db.commit()
    assert restore(home, path, None, CLOCK, force=True).stays_frozen == own
    assert ("frozen_until_reconciled" in dict(rows(home.database, "SELECT key, value FROM settings"))) != own


def test_a_freeze_of_the_operators_own_in_the_backup_is_told(home, tmp_path):
    with closing(sqlite3.connect(home.database)) as db:
        db.execute("INSERT INTO settings VALUES ('frozen', ?)", ('{"reason": "stop", "at": 1.0}',))
        db.commit()
    new = Home(tmp_path / "new")
    assert restore(new, sealed_as_home(home), None, CLOCK).stays_frozen
    assert "frozen_until_reconciled" not in dict(rows(new.database, "SELECT key, value FROM settings"))


@pytest.mark.parametrize("moved", [acting.Admitted(), acting.Held(NOW + 600)])
@pytest.mark.parametrize("kind", [ActionKind.ZAP, ActionKind.PAY_INVOICE, ActionKind.REQUEST_PAYMENT])
def test_what_was_to_be_paid_is_not_paid_by_a_restored_home(home, tmp_path, kind, moved):
    """No intent names it yet, so no wallet can be asked whether it was paid since the backup."""

    async def wish():
        async with open_store(home.database, vault=unlock(home).vault, clock=SystemClock()) as store:
            (agent, *_) = store.read("SELECT id FROM agents")
            wish = Proposed(kind=kind, to="npub1", sats=7, invoice="lnsb1")
            action = Action("tick:0", agent["id"], "tick", 0, NOW, wish)
            await store.write(lambda tx: action_records(store).begin(tx, action, moved, NOW))

    trio.run(wish)
    before = dict(rows(home.database, "SELECT id, state FROM actions"))
    new = Home(tmp_path / "new")
    restore(new, backed_up(home), WORDS, CLOCK)
    after = dict(rows(new.database, "SELECT id, state FROM actions"))
    if kind is ActionKind.REQUEST_PAYMENT:
        assert after["tick:0"] == before["tick:0"], "it only asks for money"
    else:
        assert after["tick:0"] in ("failed", "denied")
    assert after.keys() == before.keys()


def test_payments_of_a_machine_whose_clock_was_ahead_are_waited_for(home, tmp_path):
    path = backed_up(home)

    class Behind(StoppedClock):
        def now(self):
            return NOW - 600

    new = Home(tmp_path / "new")
    assert restore(new, path, WORDS, Behind()).unknown == 1
    (until,) = rows(new.database, "SELECT CAST(value AS REAL) FROM settings WHERE key = 'frozen_until_reconciled'")
    (made,) = rows(new.database, "SELECT MAX(created_at) FROM intents WHERE state = 'pending'")
    assert until >= made, "what is younger does not count as left open by the backup"


class Died(BaseException):
    pass


def test_a_crash_at_any_move_loses_nothing_and_the_same_again_completes_it(home, tmp_path, monkeypatch):
    path = backed_up(home)
    wanted = load(home).pubkey
    master = Home(tmp_path / "master")
    create(master, PHRASE, now=NOW)
    with closing(sqlite3.connect(master.database)) as db:
        db.execute("CREATE TABLE mine (text)")
        db.execute("INSERT INTO mine VALUES ('old records')")
        db.commit()
    old_key = master.data_key.read_bytes()
    real = {name: getattr(os, name) for name in ("rename", "mkdir", "unlink", "rmdir")}
    left, dead = 0, False
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def wrap(name):
        def wrapped(*args, **kwargs):
            nonlocal left, dead
            if dead:
                raise Died
            left -= 1
            if left == 0:
                dead = True
                raise Died
            return real[name](*args, **kwargs)

        return wrapped

    ends = set()
    # After one change to the disk is before the next one.
    step = 0
    while True:
        step += 1
        root = tmp_path / str(step)
        shutil.copytree(master.root, root)
        target = Home(root)
        left, dead = step, False
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, wrap(name))
            try:
                restore(target, path, WORDS, CLOCK, force=True)
                died = False
            except Died:
                died = True
        dead = False
        try:
            found = load(target).pubkey
            whole = unlock(target)
            assert (found == wanted) == (whole.key.reveal() != old_key), "never one's phrase with the other's key"
            ends.add("new" if found == wanted else "old")
            # Nobody would think of doing it again, and without it the home is on another network.
            assert found != wanted or target.config.read_text() == home.config.read_text()
        except IdentityError:
            ends.add("between")
            with pytest.raises(IdentityError, match="interrupted"):
                create(target, now=NOW)
        files = [each.read_bytes() for each in root.rglob("*") if each.is_file()]
        assert any(raw == f"{PHRASE}\n".encode() for raw in files), "the old phrase is somewhere"
        assert old_key in files
        assert any(b"old records" in raw for raw in files)
        if not died:
            break
        restore(target, path, WORDS, CLOCK, force=True)
        assert load(target).pubkey == wanted
        assert target.config.read_text() == home.config.read_text()
        assert unlock(target).key.reveal() == unlock(home).key.reveal()
        assert not target.restoring.exists()
        shutil.rmtree(root)
    assert step > 10
    assert ends == {"old", "between", "new"}


def test_a_crash_while_a_copy_comes_back_can_be_completed(home, tmp_path, monkeypatch):
    """The phrase has moved out by then, and the keys with it: nothing else would open the home again."""
    copy = tmp_path / "copy"
    shutil.copy(home.database, copy)
    who = load(home).pubkey
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    real, between, step, died = os.rename, 0, 0, True
    while died:
        step, left, died = step + 1, step + 1, False
        root = tmp_path / str(step)
        shutil.copytree(home.root, root)
        target = Home(root)

        def rename(*args):
            nonlocal left, died
            left -= 1
            if left <= 0:
                died = True
                raise Died
            real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            try:
                restore_database(target, copy, unlock(target), None, CLOCK, stay_frozen=False)
            except Died:
                pass
        between += not target.mnemonic.exists()
        complete(target)
        assert load(target).pubkey == who
        assert unlock(target).key.reveal() == unlock(home).key.reveal()
        frozen = dict(rows(target.database, "SELECT key, value FROM settings")).get("frozen_until_reconciled")
        assert frozen or step == 1, "the one that comes in is frozen, or nothing has moved"
        restore_database(target, copy, unlock(target), None, CLOCK, stay_frozen=False)
        assert not target.restoring.exists()
        shutil.rmtree(root)
    assert between >= 4


def test_a_restore_that_fails_takes_nothing_from_one_that_was_interrupted(home, tmp_path, monkeypatch):
    """Not the keys that a copy's has made ready, and not the operator's freeze, whose records have moved out."""
    path, copy = backed_up(home), tmp_path / "copy"
    shutil.copy(home.database, copy)
    with closing(sqlite3.connect(home.database)) as db:
        db.execute("INSERT INTO settings VALUES ('frozen', ?)", ('{"reason": "stop", "at": 1.0}',))
        db.commit()
    real, between, step, died = os.rename, 0, 0, True
    while died:
        step, left, died = step + 1, step + 1, False
        target = Home(tmp_path / str(step))
        shutil.copytree(home.root, target.root)

        def rename(*args):
            nonlocal left, died
            left -= 1
            if left <= 0:
                died = True
                raise Died
            real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            try:
                restore_database(target, copy, unlock(target), None, CLOCK, stay_frozen=False)
            except Died:
                pass
        between += not target.mnemonic.exists()
        with pytest.raises(BackupError):
            restore(target, path, Passphrase("another"), CLOCK, force=True)
        other = Home(tmp_path / f"{step}-completed")
        shutil.copytree(target.root, other.root)
        complete(other)
        assert unlock(other).key.reveal() == unlock(home).key.reveal()
        assert restore(target, path, WORDS, CLOCK, force=True).stays_frozen
        assert not target.restoring.exists()
    assert between >= 4


def test_what_is_not_whole_is_not_completed(home, tmp_path, monkeypatch):
    """A restore that died before its records were frozen moves nothing in."""
    path = backed_up(home)
    target = Home(tmp_path / "target")
    monkeypatch.setattr("pylon.daemon.restoring._open_and_mark", None)

    def die(*_):
        raise Died

    monkeypatch.setattr(trio, "run", die)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **options: None)
        with pytest.raises(Died):
            restore(target, path, WORDS, CLOCK)
    assert target.restoring.exists()
    complete(target)
    assert not target.mnemonic.exists()
    assert not target.database.exists()
