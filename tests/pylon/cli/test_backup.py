"""``pylon backup`` and ``pylon restore`` as they are typed."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from pylon.cli.main import run
from pylon.daemon.process import hold_home
from pylon.identity import find, unlock
from pylon.passphrase import Passphrase
from pylon.paths import Home
from pylon.store import remedy
from tests.pylon.cli.test_identity import WORDS, descriptor, nobody, protected, quick  # noqa: F401


@pytest.fixture
def new(tmp_path, capsys):
    """``pylon`` in another home."""

    def new(*arguments):
        code = run(["--home", str(tmp_path / "new"), *arguments])
        return code, *capsys.readouterr()

    return new


def test_an_open_home_has_open_backups_and_is_told_so(simnet, home, tmp_path, new):
    code, out, err = simnet("backup", str(tmp_path / "file"))
    assert (code, out) == (0, f"{tmp_path / 'file'}\n")
    assert "NOT SEALED" in err
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert remedy.newest(home.data)[0] == tmp_path / "file"
    code, out, err = simnet("--json", "backup", str(tmp_path / "second"))
    assert json.loads(out)["sealed"] == "open"
    assert "NOT SEALED" in err
    code, out, err = new("restore", str(tmp_path / "file"))
    assert code == 0, err
    assert "frozen, until" in out
    assert find(Home(tmp_path / "new")).public == find(home).public
    assert json.loads(new("--json", "wallet", "freeze")[1])["already"]


def test_a_protected_home_asks_for_its_passphrase_and_its_backup_for_the_same(protected, home, tmp_path, new, nobody):  # noqa: F811
    assert protected("backup", str(tmp_path / "file"))[0] == 1
    with descriptor(WORDS + "\n") as number:
        code, out, err = protected("backup", str(tmp_path / "file"), "--passphrase-fd", number, "--json")
    assert (code, json.loads(out)["sealed"]) == (0, "home"), err
    assert "NOT SEALED" not in err
    code, _, err = new("restore", str(tmp_path / "file"))
    assert code == 1
    assert "--passphrase-fd" in err
    with descriptor("another\n") as number:
        code, _, err = new("restore", str(tmp_path / "file"), "--passphrase-fd", number)
    assert code == 1
    assert "another passphrase" in err
    with descriptor(WORDS + "\n") as number:
        assert new("restore", str(tmp_path / "file"), "--passphrase-fd", number)[0] == 0
    assert unlock(Home(tmp_path / "new"), Passphrase(WORDS)).identity.pubkey == find(home).public.pubkey


def test_a_passphrase_of_its_own(simnet, tmp_path, new, nobody):  # noqa: F811
    with descriptor("own\n") as number:
        code, out, err = simnet("backup", str(tmp_path / "file"), "--backup-passphrase-fd", number, "--json")
    assert (code, json.loads(out)["sealed"]) == (0, "own")
    assert "NOT SEALED" not in err
    assert simnet("backup", str(tmp_path / "other"), "--own-passphrase")[0] == 1
    assert not (tmp_path / "other").exists()
    with descriptor("own\n") as number:
        assert new("restore", str(tmp_path / "file"), "--backup-passphrase-fd", number)[0] == 0


def test_directories_names_and_how_many(simnet, home, tmp_path, monkeypatch):
    paths = []
    for number in range(4):
        monkeypatch.setattr("pylon.clock.SystemClock.now", lambda self, n=number: 1_800_000_000.0 + n)
        code, out, _ = simnet("--json", "backup", "--keep", "2")
        assert code == 0
        paths.append(json.loads(out))
    left = sorted(path.name for path in (home.data / "home-backups").iterdir())
    assert left == [Path(each["path"]).name for each in paths[2:]]
    assert left[0].startswith(f"pylon-{find(home).public.npub[5:13]}-20270115T")
    assert paths[3]["removed"] == [paths[1]["path"]]
    assert stat.S_IMODE((home.data / "home-backups").stat().st_mode) == 0o700
    code, out, _ = simnet("backup", str(tmp_path))
    assert (code, Path(out.strip()).parent) == (0, tmp_path)


def test_what_makes_no_sense(simnet, home, tmp_path):
    assert simnet("backup", str(tmp_path / "file"), "--keep", "3")[0] == 2
    assert simnet("backup", str(tmp_path / "nowhere" / "file"))[0] == 2
    (tmp_path / "mine").write_text("mine")
    assert simnet("backup", str(tmp_path / "mine"))[0] == 2
    assert simnet("restore", str(tmp_path / "nothing"))[0] == 2
    code, _, err = simnet("restore", str(tmp_path / "mine"))
    assert code == 1
    assert "no backup" in err
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_home_that_is_held_or_has_something_to_lose(simnet, home, tmp_path):
    file = str(tmp_path / "file")
    simnet("backup", file)
    code, _, err = simnet("restore", file)
    assert code == 1
    assert "--force" in err
    with hold_home(home):
        code, _, err = simnet("restore", "--force", file)
        assert code == 1
        assert "another pylon command" in err
        assert simnet("backup", str(tmp_path / "meanwhile"))[0] == 0, "who backs up holds nobody off"
    code, out, _ = simnet("--json", "restore", "--force", file, "--stay-frozen")
    assert (code, json.loads(out)["until"]) == (0, None)


def test_the_copy_from_before_an_upgrade(simnet, home, tmp_path):
    simnet("wallet", "fund", "-a", "5")
    copy = tmp_path / "pylon.db.m001"
    copy.write_bytes(home.database.read_bytes())
    simnet("wallet", "fund", "-a", "7")
    code, out, err = simnet("restore", str(copy))
    assert code == 0, err
    assert "replaced-" in out
    code, out, _ = simnet("--json", "books", "--check")
    assert code == 0
    assert json.loads(out)["accounts"]["wallet_msats"] == 12_000, "what came since is booked as outside"


def test_a_damaged_database_is_not_backed_up(simnet, home, tmp_path):
    simnet("wallet", "fund", "-a", "5")
    simnet("backup", str(tmp_path / "good"))
    raw = bytearray(home.database.read_bytes())
    raw[8_192 : 30 * 4_096] = bytes(28 * 4_096)
    home.database.write_bytes(raw)
    code, _, err = simnet("backup", str(tmp_path / "bad"))
    assert code == 1
    assert "damaged" in err
    assert not (tmp_path / "bad").exists()
    assert home.database.read_bytes() == bytes(raw)
    code, _, err = simnet("wallet", "balance")
    assert code == 1
    assert f"pylon restore --force {tmp_path / 'good'}" in err


def test_the_daemon_writes_it_where_it_may_and_the_command_fetches_it(protected, home, tmp_path, daemon, nobody):  # noqa: F811
    import hashlib

    staged = home.data / ".outgoing-1"
    staged.write_bytes(b"sealed")
    report = {
        "path": str(staged), "bytes": 6, "sha256": hashlib.sha256(b"sealed").hexdigest(), "npub": "x", "sealed": "home",
    }  # fmt: skip
    with daemon({"result": report}) as asked:
        code, out, err = protected("backup", str(tmp_path / "file"))
    assert (code, out) == (0, f"{tmp_path / 'file'}\n"), err
    assert asked[0]["method"] == "backup"
    assert (tmp_path / "file").read_bytes() == b"sealed"
    assert not staged.exists()
    staged.write_bytes(b"seale!")
    with daemon({"result": report}):
        code, _, err = protected("backup", str(tmp_path / "broken"))
    assert code == 1
    assert "does not hold" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "home"]
