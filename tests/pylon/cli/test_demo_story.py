"""The story of ``pylon demo`` without its actors: what it tells, what it writes, how it gives up.

The whole play, with processes and a model, is in tests/e2e.
"""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from pylon import identity
from pylon.cli import demo_story
from pylon.cli.demo_story import Story
from pylon.cli.main import run
from pylon.compute.purchase import Purchase, PurchaseState
from pylon.config import load
from pylon.errors import MarketError, ModelMissing, PylonError
from pylon.money import Msat
from pylon.paths import Home

RECORD = Purchase("ab" * 16, 0.0, "why?", 16, Msat(50_000))


@pytest.fixture
def story(tmp_path):
    told: list[str] = []
    made = Story(tmp_path, tell=told.append, jobs=2, prompt=None, model_file=None)
    made.told = told
    return made


def test_words_appear_once_a_line_as_soon_as_it_is_whole(story):
    text = "Words that a model says, one after the other, until there are enough of them to fill a line and more."
    for end in range(0, len(text), 7):
        story._speak(text[:end], complete=False)
    assert len(story.told) == 1
    story._speak(text, complete=True)
    assert " ".join(line.strip() for line in story.told) == text


def test_a_second_attempt_with_other_words_is_told_at_its_end(story):
    first, second = "first " * 40, "second " * 40
    story._speak(first, complete=False)
    told = len(story.told)
    story._speak(second, complete=False)
    assert len(story.told) == told
    story._speak(second, complete=True)
    assert " ".join(" ".join(story.told[told:]).split()) == second.strip()


def test_every_scene(story):
    seller = story._sellers[0]
    seller.pubkey = "cc" * 32
    record = attrs.evolve(RECORD, provider=seller.pubkey, request_id="dd" * 32, quoted=Msat(10_000))
    scenes = [
        (attrs.evolve(record, state=PurchaseState.SEEKING), None),
        (attrs.evolve(record, state=PurchaseState.SEEKING, tried=("cc" * 32,), reason="dead"), "asking the next"),
        (attrs.evolve(record, state=PurchaseState.REQUESTED), f"requested {'dd' * 8} (kind 5050) from cheap"),
        (attrs.evolve(record, state=PurchaseState.PAYING, payment_hash="ee" * 32), "quoted    10 sat"),
        (attrs.evolve(record, state=PurchaseState.PAID, paid=Msat(10_000), fee=Msat(50)), "paid      10 sat + 0.05"),
    ]
    for scene, words in scenes:
        before = len(story.told)
        story._scene(scene)
        assert story.told[before:] == [] if words is None else words in story.told[-1]


@pytest.mark.parametrize("told_paid", [True, False])
def test_a_payment_is_told_once_also_where_the_answer_overtook_it(story, told_paid):
    paid = attrs.evolve(RECORD, state=PurchaseState.PAID, paid=Msat(10_000))
    if told_paid:
        story._scene(paid)
    story._scene(attrs.evolve(paid, state=PurchaseState.ANSWERED, text="words", result_id="ff" * 32))
    assert sum(line.startswith("paid") for line in story.told) == 1
    assert any(line.startswith("answered") for line in story.told)


def test_a_home_of_the_story_loads(story, tmp_path):
    home = Home(tmp_path / 'with "quotes" and ä')
    config = story._make_home(home, '"ws://127.0.0.1:1"', "enabled = false", 1.0, more="min_price_msats = 7\n\n")
    assert config == load(home.config, environ={}).config
    assert (config.network, config.min_price_msats, config.relay.enabled) == ("simnet", 7, False)
    assert config.simnet.ledger == tmp_path / "simnet.db"
    assert stat.S_IMODE(home.mnemonic.stat().st_mode) == 0o600
    assert identity.load(home).npub.startswith("npub1")


@pytest.fixture
def gone():
    """A process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(10)
    return process


async def test_a_provider_that_ends_is_told_with_its_last_words(story, tmp_path, monkeypatch, gone):
    async def nobody(*_):
        return []

    monkeypatch.setattr(demo_story, "announcements", nobody)
    (tmp_path / "cheap.out").write_text("one\ntwo\nerror: no model\nhint: pull it\n")
    cheap, dear = story._sellers
    cheap.process, cheap.pubkey, dear.pubkey = gone, "aa" * 32, "bb" * 32

    class Runtime:
        pool = None

    with pytest.raises(MarketError, match="cheap ended: two / error: no model / hint: pull it"):
        await story._announced(Runtime)
    story._stop_sellers()  # a process that is gone harms nothing


async def test_providers_that_never_announce_are_named(story, monkeypatch, autojump_clock):
    async def nobody(*_):
        return []

    monkeypatch.setattr(demo_story, "announcements", nobody)
    story._sellers[0].pubkey, story._sellers[1].pubkey = "aa" * 32, "bb" * 32

    class Runtime:
        pool = None

    with pytest.raises(MarketError, match="not ready within 90 s: cheap, dear") as caught:
        await story._announced(Runtime)
    assert "--keep" in caught.value.hint


async def test_a_model_that_was_named_must_be_there(tmp_path):
    story = Story(tmp_path, tell=print, jobs=2, prompt=None, model_file=str(tmp_path / "nope.gguf"))
    with pytest.raises(ModelMissing, match=r"nope\.gguf"):
        await story._model()


async def test_an_installed_model_is_taken(story, tmp_path, monkeypatch):
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    mine = tmp_path / "models" / "mine.gguf"
    mine.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(2_000_000))
    assert await story._model() == mine


def test_a_providers_books_are_its_own_commands(story, monkeypatch):
    """Whatever this shell says of other homes."""
    monkeypatch.setenv("PYLON_NETWORK", "nonsense")
    seller = story._sellers[0]
    with pytest.raises(PylonError, match=r"the books of cheap cannot be read: .*there is no identity"):
        demo_story._books_of(seller)
    story._make_home(seller.home, "", "enabled = false", 1.0)
    assert demo_story._books_of(seller)["clean"] is True


@pytest.mark.parametrize("arguments", [["--jobs", "1"], ["--jobs", "x"], ["nonsense"]])
def test_usage(arguments, capsys):
    assert run(["demo", *arguments]) == 2
    assert "hint: see pylon demo --help" in capsys.readouterr().err


def test_an_error_of_the_story_is_told_in_json_and_leaves_no_directory(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(["demo", "--json", "--model-file", str(tmp_path / "nope.gguf")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err.splitlines()[-1])["error"]["code"] == "model_missing"
    assert list(Path(tmp_path).iterdir()) == []


def test_keep_wants_a_new_directory(tmp_path, capsys):
    """Old books in it would not agree with the new story."""
    (tmp_path / "simnet.db").touch()
    assert run(["demo", "--keep", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert run(["demo", "--keep", str(tmp_path / "simnet.db")]) == 2


def test_keep_makes_the_directory(tmp_path, capsys):
    kept = tmp_path / "a" / "b"
    run(["demo", "--keep", str(kept), "--model-file", str(tmp_path / "nope.gguf")])
    assert kept.is_dir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert "nope.gguf" in capsys.readouterr().err
