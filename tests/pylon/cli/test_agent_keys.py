"""``pylon agent reveal``, ``export``, ``import``: where phrases and bundles go, and where they come from."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from contextlib import contextmanager

import click
import pytest

from pylon.cli import agent_keys as module
from pylon.cli.main import cli
from pylon.daemon.control import Limits
from pylon.host import bundle
from tests.pylon.cli.agent_json import NPUB, PHRASE, agent

PHRASED = {"name": "alice", "npub": NPUB, "mnemonic": PHRASE}
BUNDLE = "PYLON-BUNDLE 1\n{}\nYWJj\n"
BUNDLED = {"name": "alice", "npub": NPUB, "bundle": BUNDLE}
WORDS = "correct horse"
IMPORTED = agent(epoch=2, found={"profile": True, "schedule": False, "state": True})


@contextmanager
def descriptor(content: bytes):
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    try:
        yield str(reading)
    finally:
        os.close(reading)


@pytest.fixture
def hidden(monkeypatch):
    """What is typed where nothing is echoed."""

    def hidden(*typed):
        answers = iter(typed)
        monkeypatch.setattr(click.termui, "hidden_prompt_func", lambda text: next(answers))

    return hidden


@pytest.fixture
def piped(monkeypatch):
    def piped(raw: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))

    return piped


def test_no_command_takes_a_secret_as_an_argument():
    def options(command, path=()):
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                yield from options(command.get_command(click.Context(command), name), (*path, name))
        else:
            yield from ((*path, option) for param in command.params for option in param.opts)

    found = [path for path in options(cli) if path[-1].strip("-") in ("mnemonic", "passphrase", "phrase", "secret")]
    assert sorted(found) == [("agent", "export", "--phrase"), ("agent", "import", "--phrase")]
    for name in ("export", "import"):
        (flag,) = (
            param
            for param in cli.get_command(click.Context(cli), "agent").commands[name].params
            if param.name == "phrase"
        )
        assert flag.is_flag


# --- reveal -----------------------------------------------------------------------------------------------------------


def test_reveal(asked_once):
    call, out, err = asked_once("reveal", "alice", **PHRASED)
    assert (call, out, err) == (("agent.reveal", {"agent": "alice"}), f"{PHRASE}\n", "")
    _, out, _ = asked_once("reveal", "alice", "--json", **PHRASED)
    assert json.loads(out) == PHRASED


def test_reveal_asks_on_a_terminal(pylon, daemon, terminal):
    for arguments, answer, shown in (((), "n", False), ((), "y", True), (("-y",), "", True)):
        terminal(answer)
        with daemon({"result": PHRASED}) as asked:
            code, out, err = pylon("agent", "reveal", "alice", *arguments)
        assert (code, out, len(asked)) == ((0, f"{PHRASE}\n", 1) if shown else (1, "", 0))
        assert PHRASE not in err
        assert ("has alice and its money. Show it here? [y/N]" in err) is (not arguments)


# --- export -----------------------------------------------------------------------------------------------------------


def test_export_of_a_phrase(asked_once):
    call, out, err = asked_once("export", "alice", "--phrase", **PHRASED)
    assert call == ("agent.export", {"agent": "alice", "form": "phrase"})
    assert out == f"{PHRASE}\n"
    assert "pylon agent import --phrase" in err
    assert PHRASE not in err
    _, out, err = asked_once("export", "alice", "--phrase", "--json", **PHRASED)
    assert (json.loads(out), err) == (PHRASED, "")


@pytest.mark.parametrize("line", [f"{WORDS}\n".encode(), WORDS.encode(), f"{WORDS}\r\nmore\n".encode()])
def test_export_of_a_bundle(asked_once, tmp_path, line):
    file = tmp_path / "alice.bundle"
    before = os.umask(0)
    try:
        with descriptor(line) as number:
            call, out, err = asked_once("export", "alice", "--bundle", str(file), "--passphrase-fd", number, **BUNDLED)
    finally:
        os.umask(before)
    assert call == ("agent.export", {"agent": "alice", "form": "bundle", "passphrase": WORDS})
    assert out == f"{file}\n"
    assert file.read_text() == BUNDLE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "pylon agent import --bundle alice.bundle" in err
    assert WORDS not in out + err


def test_export_of_a_bundle_in_json_names_the_file_or_has_the_bundle(asked_once, tmp_path):
    with descriptor(WORDS.encode()) as number:
        _, out, err = asked_once(
            "export", "alice", "--json", "--bundle", str(tmp_path / "b"), "--passphrase-fd", number, **BUNDLED
        )
    assert json.loads(out) == {"name": "alice", "npub": NPUB, "path": str(tmp_path / "b")}
    assert err == ""
    with descriptor(WORDS.encode()) as number:
        _, out, _ = asked_once("export", "alice", "--json", "--bundle", "-", "--passphrase-fd", number, **BUNDLED)
    assert json.loads(out) == BUNDLED
    with descriptor(WORDS.encode()) as number:
        _, out, _ = asked_once("export", "alice", "--bundle", "-", "--passphrase-fd", number, **BUNDLED)
    assert out == BUNDLE


def test_a_passphrase_is_typed_twice(asked_once, terminal, hidden, tmp_path):
    terminal()
    hidden(WORDS, "corect horse", WORDS, WORDS)
    call, out, err = asked_once("export", "alice", "--bundle", str(tmp_path / "b"), **BUNDLED)
    assert call[1]["passphrase"] == WORDS
    assert "do not match" in err
    assert WORDS not in out + err


@pytest.mark.parametrize("there", ["file", "link", "directory"])
def test_nothing_is_overwritten(pylon, daemon, tmp_path, there):
    file = tmp_path / "b"
    match there:
        case "file":
            file.write_text("precious")
        case "link":
            file.symlink_to(tmp_path / "elsewhere")
        case _:
            file.mkdir()
    with descriptor(WORDS.encode()) as number, daemon({"result": BUNDLED}) as asked:
        code, out, err = pylon("agent", "export", "alice", "--bundle", str(file), "--passphrase-fd", number)
    assert (code, out, asked) == (2, "", []), "said before anything secret is asked for"
    assert "is not overwritten" in err
    assert not (tmp_path / "elsewhere").exists()
    if there == "file":
        assert file.read_text() == "precious"


def test_nothing_is_overwritten_that_came_meanwhile(tmp_path):
    (tmp_path / "b").write_text("precious")
    with pytest.raises(module.UsageError):
        module._write_new(str(tmp_path / "b"), BUNDLE)
    assert (tmp_path / "b").read_text() == "precious"


def test_half_a_bundle_is_not_left_behind(tmp_path, monkeypatch):
    def full(path, content):
        path.write_bytes(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pylon.files.write_private", full)
    with pytest.raises(module.PylonError, match="No space left"):
        module._write_new(str(tmp_path / "b"), BUNDLE)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there(pylon, daemon, tmp_path):
    with descriptor(WORDS.encode()) as number, daemon({"result": BUNDLED}) as asked:
        code, _, err = pylon(
            "agent", "export", "alice", "--bundle", str(tmp_path / "no" / "b"), "--passphrase-fd", number
        )
    assert (code, asked) == (2, [])
    assert str(tmp_path / "no") in err


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"\n", "empty"), (b"caf\xe9\n", "UTF-8"), (b"x" * 4_097, "more than 4,096 bytes")],
)
@pytest.mark.parametrize("verb", ["export", "import"])
def test_a_passphrase_that_cannot_be(pylon, daemon, tmp_path, verb, content, words):
    (tmp_path / "there").write_text(BUNDLE)
    arguments = ("export", "alice", "--bundle", str(tmp_path / "new")) if verb == "export" else (
        "import", "--bundle", str(tmp_path / "there")
    )  # fmt: skip
    with descriptor(content) as number, daemon({"result": BUNDLED}) as asked:
        code, out, err = pylon("--json", "agent", *arguments, "--passphrase-fd", number)
    assert (code, out, asked) == (2, "", [])
    assert words in json.loads(err)["error"]["message"]
    assert not (tmp_path / "new").exists()


def test_a_descriptor_that_is_closed(pylon, daemon, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with daemon({"result": BUNDLED}) as asked:
        code, _, err = pylon("agent", "export", "a", "--bundle", str(tmp_path / "b"), "--passphrase-fd", str(reading))
    assert (code, asked) == (2, [])
    assert f"file descriptor {reading}" in err


def test_without_a_terminal_a_passphrase_needs_a_descriptor(pylon, daemon, piped, tmp_path):
    piped(b"")
    with daemon({"result": BUNDLED}) as asked:
        code, _, err = pylon("agent", "export", "alice", "--bundle", str(tmp_path / "b"))
    assert (code, asked) == (2, [])
    assert "--passphrase-fd 3 3< FILE" in err


# --- import -----------------------------------------------------------------------------------------------------------


def test_import_of_a_phrase(pylon, daemon, piped):
    piped(f"{PHRASE}\n".encode())
    told = {"method": "import", "params": {"text": "asking 3 relays\x1b[2J"}}
    with daemon(told, {"result": IMPORTED}) as asked:
        code, out, err = pylon(
            "agent", "import", "--phrase", "--name", "alice", "--relay", "wss://a.example", "--relay", "wss://b.example"
        )
    assert code == 0
    assert (asked[0]["method"], asked[0]["params"]) == (
        "agent.import",
        {"mnemonic": PHRASE, "name": "alice", "relays": ["wss://a.example", "wss://b.example"]},
    )
    assert out.splitlines() == [
        "alice is here, in epoch 2.", "found: profile, state; not found: schedule",
        "alice is active: 12,345 sat, runway 12 days, next tick in 12m.",
    ]  # fmt: skip
    assert err.startswith("asking 3 relays")
    assert "\x1b" not in err
    assert PHRASE not in out + err


def test_import_of_a_bundle(pylon, daemon, tmp_path):
    file = tmp_path / "b"
    file.write_text(BUNDLE)
    for name, changes in (((), {}), (("-n", "bob"), {"name": "bob"})):
        with descriptor(WORDS.encode()) as number, daemon({"result": IMPORTED}) as asked:
            code, out, err = pylon("--json", "agent", "import", "--bundle", str(file), "--passphrase-fd", number, *name)
        assert (code, json.loads(out), err) == (0, IMPORTED, "")
        assert asked[0]["params"] == {"bundle": BUNDLE, "passphrase": WORDS, **changes}


def test_a_backup_of_a_deleted_agent_opens_in_its_home_and_no_passphrase_is_asked_for(
    pylon, daemon, tmp_path, terminal
):
    backup = f"pylon agent backup 1 {NPUB}\nAAAA\n"
    file = tmp_path / "alice.agent"
    file.write_text(backup)
    terminal()  # whoever asks is answered by nobody
    with daemon({"result": IMPORTED}) as asked:
        assert pylon("agent", "import", "--bundle", str(file))[0] == 0
    assert asked[0]["params"] == {"bundle": backup}
    with daemon({"result": IMPORTED}) as asked, descriptor(WORDS.encode()) as number:
        code, _, err = pylon("agent", "import", "--bundle", str(file), "--passphrase-fd", number)
    assert (code, asked) == (2, [])
    assert "leave out --passphrase-fd" in err


def test_import_of_a_bundle_from_stdin(pylon, daemon, piped):
    piped(BUNDLE.encode())
    with descriptor(WORDS.encode()) as number, daemon({"result": IMPORTED}) as asked:
        assert pylon("agent", "import", "--bundle", "-", "--passphrase-fd", number)[0] == 0
    assert asked[0]["params"] == {"bundle": BUNDLE, "passphrase": WORDS}


def test_a_passphrase_to_open_with_is_typed_once(asked_once, terminal, hidden, tmp_path):
    (tmp_path / "b").write_text(BUNDLE)
    terminal()
    hidden(WORDS)
    call, _, _ = asked_once("import", "--bundle", str(tmp_path / "b"), **IMPORTED)
    assert call[1]["passphrase"] == WORDS


def test_nothing_was_found(asked_once, piped):
    piped(PHRASE.encode())
    nothing = dict.fromkeys(("profile", "schedule", "state"), False)
    _, out, _ = asked_once("import", "--phrase", **{**IMPORTED, "found": nothing})
    assert "found: nothing; not found: profile, schedule, state\n" in out


def test_without_a_daemon_import_needs_relays_itself(pylon, piped, monkeypatch):
    calls = []

    def run_verb(state, verb, params, **options):
        calls.append((verb, options["online"], options["timeout"]))
        return IMPORTED

    monkeypatch.setattr(module, "run_verb", run_verb)
    piped(PHRASE.encode())
    code, _, err = pylon("agent", "import", "--phrase")
    assert (code, calls) == (0, [("agent.import", True, None)])
    assert "no daemon is running here: it runs once there is one (pylon start)" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read"),
        (b"\xff\xfe", "no text"),
        (b"x" * 900_001, "which a running daemon does not take"),
    ],
)
def test_a_bundle_that_is_none(pylon, daemon, tmp_path, content, words):
    if content is not None:
        (tmp_path / "b").write_bytes(content)
    with descriptor(WORDS.encode()) as number, daemon({"result": IMPORTED}) as asked:
        code, out, err = pylon("agent", "import", "--bundle", str(tmp_path / "b"), "--passphrase-fd", number)
    assert (code, out, asked) == (2, "", [])
    assert words in err


def test_a_bundle_fits_into_a_line_to_the_daemon():
    assert Limits().max_line * 0.9 > module.MAX_SENT_BYTES
    assert bundle._MAX_TEXT_CHARS < module.MAX_BUNDLE_BYTES


def test_without_a_daemon_a_large_bundle_is_read(pylon, monkeypatch, tmp_path):
    monkeypatch.setattr(
        module, "run_verb", lambda state, verb, params, **_: {**IMPORTED, "epoch": len(params["bundle"])}
    )
    monkeypatch.setattr(module, "MAX_BUNDLE_BYTES", 2_000_000)
    for size, code in ((2_000_000, 0), (2_000_001, 2)):
        (tmp_path / "b").write_bytes(b"x" * size)
        with descriptor(WORDS.encode()) as number:
            got, out, err = pylon("agent", "import", "--bundle", str(tmp_path / "b"), "--passphrase-fd", number)
        assert got == code
        assert ("epoch 2000000" in out) is (code == 0)
        assert ("more than 2,000,000 bytes" in err) is (code == 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("reveal",), ("export",), ("export", "alice"), ("export", "alice", "--phrase", "--bundle", "b"),
        ("export", "alice", "--phrase", "--passphrase-fd", "0"),
        ("export", "alice", "--bundle", "b", "--passphrase-fd", "-1"),
        ("import",), ("import", "--phrase"), ("import", "--phrase", "--bundle", "b"), ("import", "alice", "--phrase"),
        ("import", "--phrase", "--passphrase-fd", "0"), ("import", "--bundle", "-", "--passphrase-fd", "0"),
    ],
)  # fmt: skip
def test_usage(pylon, daemon, piped, arguments):
    piped(b"")
    with daemon({"result": IMPORTED}) as asked:
        code, out, err = pylon("--json", "agent", *arguments)
    assert (code, out, asked) == (2, "", [])
    error = json.loads(err)["error"]
    assert error["code"] == "usage"
    assert error["hint"]
