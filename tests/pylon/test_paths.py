from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pylon.errors import ConfigError
from pylon.paths import MAX_SOCKET_PATH, Home, find_home, short_directory


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_pinned_names(tmp_path):
    home = Home(tmp_path)
    relative = {
        str(path.relative_to(tmp_path))
        for path in (
            home.config, home.mnemonic, home.database, home.pid, home.socket, home.spark,
            home.data_key, home.log, home.simnet, home.relay_database,
        )
    }  # fmt: skip
    assert relative == {
        "config.toml", "identity.mnemonic", "pylon.db", "pylon.pid", "control.sock", "spark",
        "keys/data.key", "logs/pylon.log", "simnet.db", "relay.db",
    }  # fmt: skip


def test_option_wins_over_environment_wins_over_default(tmp_path):
    environ = {"PYLON_HOME": str(tmp_path / "environment")}
    assert find_home(str(tmp_path / "option"), environ).root == tmp_path / "option"
    assert find_home(None, environ).root == tmp_path / "environment"
    assert find_home(None, {}).root == Path("~/.openagents/pylon").expanduser()


def test_an_empty_variable_is_no_home():
    assert find_home(None, {"PYLON_HOME": ""}).root == Path("~/.openagents/pylon").expanduser()


def test_nobody_knows_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="where your home directory is") as caught:
        find_home(None, {})
    assert "--home" in caught.value.hint
    assert find_home(str(tmp_path), {}).root == tmp_path


def test_a_relative_home_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_home("here", {}).root == tmp_path / "here"


def default_home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    root = tmp_path / ".openagents" / "pylon"
    root.mkdir(parents=True)
    return root


def test_data_dir_moves_everything_but_the_configuration(tmp_path, monkeypatch):
    root = default_home(tmp_path, monkeypatch)
    (root / "config.toml").write_text(f'data_dir = "{tmp_path}/elsewhere"\n')
    home = find_home(None, {})
    assert home.config == root / "config.toml"
    assert home.mnemonic == tmp_path / "elsewhere" / "identity.mnemonic"
    assert home.log == tmp_path / "elsewhere" / "logs" / "pylon.log"
    assert home.warnings == ()
    home.prepare()
    assert mode(tmp_path / "elsewhere") == 0o700


@pytest.mark.parametrize("how", ["option", "environment"])
def test_an_explicit_home_wins_over_data_dir_and_says_so(tmp_path, how):
    (tmp_path / "config.toml").write_text('data_dir = "/nowhere/at/all"\n')
    home = find_home(str(tmp_path), {}) if how == "option" else find_home(None, {"PYLON_HOME": str(tmp_path)})
    assert home.data == tmp_path
    assert len(home.warnings) == 1
    assert "/nowhere/at/all" in home.warnings[0]
    assert ("--home" if how == "option" else "PYLON_HOME") in home.warnings[0]


@pytest.mark.parametrize(
    "line", ['data_dir="{}"', '  "data_dir" = "{}"', "'data_dir' = '{}'", '\t data_dir\t= "{}" # there']
)
def test_data_dir_however_it_is_written(tmp_path, monkeypatch, line):
    root = default_home(tmp_path, monkeypatch)
    (root / "config.toml").write_text("network = 'simnet'\n" + line.format(tmp_path / "else") + "\n")
    assert find_home(None, {}).data == tmp_path / "else"


def test_data_dir_equal_to_the_home_is_no_news(tmp_path):
    (tmp_path / "config.toml").write_text(f'data_dir = "{tmp_path}"\n')
    assert find_home(str(tmp_path), {}).warnings == ()


def test_a_relative_data_dir_is_refused(tmp_path):
    (tmp_path / "config.toml").write_text('data_dir = "beside"\n')
    with pytest.raises(ConfigError, match="absolute"):
        find_home(str(tmp_path), {})


@pytest.mark.parametrize("text", [b"data_dir = ", b"data_dir = 3", b"# data_dir = '/x'", b'data_dir = "\xff"'])
def test_a_broken_file_is_left_to_the_configuration(tmp_path, text):
    (tmp_path / "config.toml").write_bytes(text)
    assert find_home(str(tmp_path), {}).data == tmp_path


def test_prepare_closes_every_directory(tmp_path):
    home = Home(tmp_path / "a" / "b")
    old = os.umask(0)
    try:
        home.prepare()
    finally:
        os.umask(old)
    for directory in (home.root, home.keys, home.logs, home.spark):
        assert mode(directory) == 0o700
    home.keys.chmod(0o755)
    home.config.write_text("")
    home.root.chmod(0o755)
    home.prepare()
    assert mode(home.keys) == 0o700
    assert mode(home.root) == 0o700


def test_prepare_leaves_a_directory_of_other_things_alone(tmp_path):
    (tmp_path / "diary.txt").write_text("mine")
    tmp_path.chmod(0o755)
    Home(tmp_path).prepare()
    assert mode(tmp_path) == 0o755


def test_a_home_that_cannot_be_made_names_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        Home(tmp_path / "file" / "home").prepare()
    assert "--home" in caught.value.hint


def test_a_short_directory_is_itself(tmp_path):
    with short_directory(Path("/tmp/x")) as directory:
        assert directory == Path("/tmp/x")


def test_a_socket_far_down_is_reached(tmp_path):
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with listener, client:
        with short_directory(deep) as directory:
            assert len(os.fsencode(directory / "control.sock")) <= MAX_SOCKET_PATH
            listener.bind(str(directory / "control.sock"))
            listener.listen()
        assert (deep / "control.sock").is_socket()
        assert not directory.exists()
        with short_directory(deep) as again:
            client.connect(str(again / "control.sock"))


def test_costs_the_standard_library_only():
    heavy = {"attrs", "attr", "trio", "tomlkit", "tomllib", "tempfile", "dataclasses"}
    code = f"import sys, pylon.paths, pylon.errors; print(sorted({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
