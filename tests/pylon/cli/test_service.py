"""The service: what is written, and what the manager is told. The manager is a script that writes down its calls."""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pylon.cli import service as module
from pylon.cli.service_units import launchd_plist, quoted, systemd_unit


@pytest.fixture
def home(home, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PYLON_LOCKS", str(tmp_path / "locks"))
    home.prepare()
    home.mnemonic.write_text("")
    return home


@pytest.fixture
def service(pylon):
    return partial(pylon, "service")


@pytest.fixture
def systemctl(tmp_path, monkeypatch):
    """A ``systemctl`` that writes down what it is told; ``answer`` is what it prints, ``fail`` when it exits 1."""

    class Manager:
        calls_file = tmp_path / "calls"
        answer_file = tmp_path / "answer"

        def calls(self):
            return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

        def answer(self, text, code=0):
            self.answer_file.write_text(text)
            script.write_text(
                f"#!/bin/sh\necho \"$@\" >> '{self.calls_file}'\ncat '{self.answer_file}'\n"
                f"[ {code} = 0 ] || cat '{self.answer_file}' >&2\nexit {code}\n"
            )

    binaries = tmp_path / "bin"
    binaries.mkdir()
    script = binaries / "systemctl"
    manager = Manager()
    manager.answer("")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "platform", "linux")
    return manager


UNIT = "config/systemd/user/pylon.service"


def test_install_writes_enables_and_starts(service, systemctl, tmp_path, home):
    code, out, err = service("install", "-m", "host")
    assert code == 0, err
    path = tmp_path / UNIT
    assert str(path) in out
    assert "enable-linger" in err
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    text = path.read_text()
    assert f"ExecStart={sys.executable} -P -m pylon --home {home.root} start -m host\n" in text
    for directory in ("home", "models", "locks"):
        assert f"ReadWritePaths={tmp_path / directory}\n" in text
        assert (tmp_path / directory).is_dir(), "systemd fails on what is not there"
    assert f"Environment=PYLON_MODELS={tmp_path / 'models'}\n" in text
    assert systemctl.calls() == [
        "--user daemon-reload", "--user enable pylon.service", "--user restart pylon.service"
    ]  # fmt: skip
    assert service("install", "--no-start")[0] == 0
    assert systemctl.calls()[3:] == ["--user daemon-reload", "--user enable pylon.service"]


def test_print_touches_nothing(service, systemctl, tmp_path):
    code, out, _ = service("install", "--print")
    assert code == 0
    assert out.count("[Service]") == 1
    assert systemctl.calls() == []
    assert not (tmp_path / "config").exists()
    assert not (tmp_path / "models").exists()
    told = json.loads(service("install", "--print", "--json", "--name", "other")[1])
    assert told["path"] == str(tmp_path / "config/systemd/user/other.service")
    assert told["text"] == out


def test_uninstall(service, systemctl, tmp_path):
    assert service("uninstall")[0] == 3
    service("install")
    del systemctl.calls()[:]
    assert service("uninstall")[0] == 0
    assert not (tmp_path / UNIT).exists()
    assert systemctl.calls()[-2:] == ["--user disable --now pylon.service", "--user daemon-reload"]


def test_status(service, systemctl):
    code, out, _ = service("status", "--json")
    assert (code, json.loads(out)["installed"]) == (3, False)
    service("install")
    systemctl.answer(
        "LoadState=loaded\nActiveState=active\nSubState=running\nMainPID=7\nStatusText=both, simnet\nX=1\n"
    )
    code, out, _ = service("status")
    assert code == 0
    for words in ("running", "MainPID: 7", "StatusText: both, simnet"):
        assert words in out
    systemctl.answer("ActiveState=failed\nResult=watchdog\n")
    code, out, _ = service("status", "--json")
    assert code == 3
    assert json.loads(out)["manager"] == {"ActiveState": "failed", "Result": "watchdog"}


def test_a_manager_that_is_not_there(service, systemctl, tmp_path):
    """The unit is written, and what is missing is said."""
    systemctl.answer("Failed to connect to bus: No medium found", code=1)
    code, out, err = service("install")
    assert (code, out) == (1, "")
    assert f"{tmp_path / UNIT} is written, and systemctl --user daemon-reload says: Failed to connect" in err
    assert (tmp_path / UNIT).exists()


@pytest.mark.parametrize(
    "arguments", [("--name", "../x"), ("--name", "X"), ("-m", "all"), ("--config", "/nowhere"), ("--credential", "/no")]
)
def test_what_cannot_be_asked_for(service, systemctl, arguments, tmp_path):
    assert service("install", *arguments)[0] in (1, 2)
    assert systemctl.calls() == []
    assert not (tmp_path / "config").exists()


def test_without_an_identity(service, systemctl, home):
    home.mnemonic.unlink()
    code, _, err = service("install")
    assert code == 1
    assert "pylon init" in err
    assert systemctl.calls() == []


def test_a_passphrase_is_named_and_never_written(service, systemctl, tmp_path):
    (tmp_path / "words").write_text("four words at random")
    text = service("install", "--print", "--credential", str(tmp_path / "words"))[1]
    assert f"LoadCredential=pylon.passphrase:{tmp_path / 'words'}" in text
    assert "four words" not in text


def test_a_shared_ledger_may_be_written(service, systemctl, home, tmp_path):
    home.config.write_text(f'network = "simnet"\n[simnet]\nledger = "{tmp_path}/shared/simnet.db"\n')
    assert f"ReadWritePaths={tmp_path}/shared\n" in service("install", "--print")[1]


# --- the texts ----------------------------------------------------------------------------------------------------

COMMAND = ["/usr/bin/python3", "-m", "pylon", "start"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("plain", "plain"), ("", '""'), ("two words", '"two words"'), ('a"b', '"a\\"b"'), ("a\\b", '"a\\\\b"'),
        ("100%", "100%%"), ("it's", '"it\'s"'), ("$HOME", "$HOME"), ("a;b", '"a;b"'),
    ],
)  # fmt: skip
def test_quoting(word, told):
    assert quoted(word) == told


def test_a_dollar_is_no_variable():
    assert "ExecStart=/bin/x $$HOME\n" in systemd_unit(["/bin/x", "$HOME"], writable=[])


def test_what_can_be_left_out():
    whole = systemd_unit(COMMAND, writable=[Path("/w")])
    assert "PrivateDevices=yes" in whole
    assert "PrivateDevices=yes" not in systemd_unit(COMMAND, writable=[Path("/w")], gpu=True)
    bare = systemd_unit(COMMAND, writable=[Path("/w")], sandbox=False)
    for setting in ("PrivateUsers", "ProtectSystem", "PrivateTmp", "CapabilityBoundingSet", "ReadWritePaths"):
        assert setting in whole
        assert setting not in bare
    for setting in ("Type=notify", "WatchdogSec=60", "NoNewPrivileges=yes", "SystemCallFilter=@system-service"):
        assert setting in bare


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("options", [{}, {"gpu": True}, {"sandbox": False}])
def test_systemd_reads_it(tmp_path, options):
    """No setting that it does not know, and not more exposed than we say in the docs."""
    unit = tmp_path / "pylon.service"
    odd = tmp_path / 'a % and "two" $words'
    odd.mkdir()
    unit.write_text(
        systemd_unit(
            [sys.executable, "-P", "-m", "pylon", "--home", str(odd)], writable=[odd], credential=unit, **options
        )
    )
    read = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert not [line for line in read.stderr.splitlines() if "pylon.service" in line], read.stderr
    assert read.returncode == 0, read.stderr
    limit = 60 if options.get("sandbox", True) else 100
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={limit}", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.splitlines()[-1]
    assert "Overall exposure level" in done.stdout


def test_the_property_list():
    text = launchd_plist("com.openagents.pylon", COMMAND, log=Path("/h/logs/launchd.log"), environment=[("A", "b")])
    found = plistlib.loads(text)
    assert found["ProgramArguments"] == COMMAND
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["EnvironmentVariables"] == {"A": "b"}


def test_on_macos(service, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", str(tmp_path))
    told = json.loads(service("install", "--print", "--json")[1])
    assert told["path"] == str(tmp_path / "Library/LaunchAgents/com.openagents.pylon.plist")
    assert plistlib.loads(told["text"].encode())["ProgramArguments"][-3:] == ["start", "-m", "both"]


def test_elsewhere(service, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert service("install")[0] == 2
    assert module._NAME.fullmatch("pylon-2")
