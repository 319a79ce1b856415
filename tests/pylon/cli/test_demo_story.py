"""The story of ``pylon demo`` without its actors: what it writes, how it gives up.

The whole play, with processes and a model, is in tests/e2e.
"""

from __future__ import annotations

import stat
import subprocess
import sys

import pytest

from pylon import identity
from pylon.cli import demo_cast
from pylon.cli.demo_cast import Player, environment, stop, until
from pylon.cli.demo_story import Story
from pylon.cli.main import run
from pylon.config import load
from pylon.errors import MarketError, ModelMissing, PylonError
from pylon.money import sats


@pytest.fixture
def player(tmp_path):
    return Player("cheap", tmp_path, sats(7), "provider")


@pytest.fixture
def gone():
    """A process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(10)
    return process


@pytest.fixture
def story(tmp_path):
    told: list[str] = []
    made = Story(tmp_path, tell=told.append, ticks=3, goal=None, model_file=None)
    made.told = told
    return made


def test_a_home_of_the_story_loads(tmp_path):
    directory = tmp_path / 'with "quotes" and ä'
    directory.mkdir()
    player = Player("cheap", directory, sats(7), "provider")
    ledger, model = directory / "simnet.db", directory / "model.gguf"
    player.make(relay="enabled = false", relays=["ws://127.0.0.1:1"], ledger=ledger, model=model, now=1.0)
    config = load(player.home.config, environ={}).config
    assert (config.network, config.min_price_msats, config.relay.enabled) == ("simnet", 7_000, False)
    assert (config.simnet.ledger, config.provider.model_file, config.relays) == (ledger, model, ("ws://127.0.0.1:1",))
    assert config.api.bind.port == 0, "the demo takes nobody's port"
    assert stat.S_IMODE(player.home.mnemonic.stat().st_mode) == 0o600
    assert identity.load(player.home).pubkey == player.pubkey


def test_a_daemon_that_ends_is_told_with_its_last_words(player, tmp_path, gone):
    (tmp_path / "cheap.out").write_text("one\ntwo\nerror: no model\nhint: pull it\n")
    player.process = gone
    with pytest.raises(MarketError, match="cheap ended: two / error: no model / hint: pull it"):
        player.ready()
    stop([player])  # a process that is gone harms nothing


def test_what_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(demo_cast, "POLL_SECONDS", 0.01)
    with pytest.raises(MarketError, match="it was not ready within 0 s") as caught:
        until(lambda: False, 0.05, "it was not ready")
    assert "--keep" in caught.value.hint


def test_daemons_do_not_hear_what_this_shell_says_of_other_homes(monkeypatch):
    monkeypatch.setenv("PYLON_NETWORK", "nonsense")
    monkeypatch.setenv("PYLON_MODELS", "/models")
    assert "PYLON_NETWORK" not in environment()
    assert environment()["PYLON_MODELS"] == "/models", "but the models are everybody's"


def test_a_players_books_are_its_own_commands(player):
    with pytest.raises(PylonError, match=r"the books of cheap cannot be read: .*there is no identity"):
        player.books()


def test_a_model_that_was_named_must_be_there(tmp_path):
    story = Story(tmp_path, tell=print, ticks=3, goal=None, model_file=str(tmp_path / "nope.gguf"))
    with pytest.raises(ModelMissing, match=r"nope\.gguf"):
        story._model()


def test_an_installed_model_is_taken(story, tmp_path, monkeypatch):
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    mine = tmp_path / "models" / "mine.gguf"
    mine.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(2_000_000))
    assert story._model() == mine


def test_a_state_is_told_when_it_is_new(story):
    for state, reason in (("active", "active: 9 sat"), ("active", "active: 8 sat"), ("dormant", "dormant: 0 sat")):
        story._see({"state": state, "reason": reason})
    assert [line.strip() for line in story.told] == ["active: 9 sat", "dormant: 0 sat"]


def test_long_words_are_wrapped(story):
    story._say("post", "word " * 40)
    assert len(story.told) == 3
    assert all(len(line) <= 90 for line in story.told)


@pytest.mark.parametrize("options", [("--ticks", "1"), ("--jobs", "1"), ("--ticks", "3", "--jobs", "4")])
def test_numbers_that_make_no_story(options, capsys):
    assert run(["demo", *options]) == 2
    assert "error:" in capsys.readouterr().err


def test_homes_are_kept_in_a_new_directory_only(tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "something").write_text("mine")
    assert run(["demo", "--keep", str(tmp_path / "there")]) == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "there" / "something").read_text() == "mine"
