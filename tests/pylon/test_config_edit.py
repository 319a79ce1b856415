"""One key changes, and nothing else does."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import config as configuration
from pylon import config_edit as edit
from pylon.config import known_keys, load, value_at
from pylon.config_default import render_default
from pylon.errors import ConfigError, UsageError

SAMPLES = {
    "retention.requests_days": ["30", "90"],
    "retention.unpaid_requests": ["100", "5000"],
    "retention.thoughts_days": ["30", "365"],
    "provider.trusted": ["ab" * 32, "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798," + "ab" * 32],
    "provider.blocked": ["ab" * 32],
    "provider.multipliers": ['{"llama3.2": 2.5}', '{"a b": 1, "c.d": 0}'],
    "network": ("mainnet", "signet", "simnet"),
    "relays": ("wss://a.example", "wss://a.example,ws://127.0.0.1:9", "[]"),
    "backend_preference": ("ollama", "llamacpp,openai"),
    "backends": ("[]", '[{"kind": "ollama"}, {"kind": "openai", "models": ["m"], "max_concurrent": 3}]'),
    "relay.bind": ("127.0.0.1:0", "[::1]:7"),
    "api.bind": ("127.0.0.1:0",),
    "api.public_name": ("agents.example.com",),
    "wallet.kind": ("nwc",),
    "claude.autonomy": ("full", "read_only"),
    "log.level": ("debug", "error"),
    "spark.api_key": ("k\"e'y#",),
}
PATHS = {"data_dir", "simnet.ledger", "provider.model_file", "wallet.uri_file", "claude.cwd", "claude.executable_path"}


def sample_of(path):
    name = ".".join(path)
    if name in SAMPLES:
        return st.sampled_from(SAMPLES[name])
    if name in PATHS:
        return st.sampled_from(["/tmp/x", "/tmp/with space/#y"])
    kind = configuration.kind_of(path)
    if kind.allowed == "true or false":
        return st.sampled_from(["true", "off"])
    if kind.many or kind.allowed.startswith("a text"):
        return st.sampled_from(["one", 'a "b" # c', "ä = [1]"])
    return st.integers(1, 20).map(str)


changes = st.lists(
    st.sampled_from(sorted(known_keys())).flatmap(lambda path: st.tuples(st.just(path), sample_of(path))),
    min_size=1,
    max_size=4,
)
FILES = [
    "",
    "# only words\n",
    render_default("testnet"),
    render_default("simnet"),
    'network = "signet"  # mine\n[provider]\nname = "x"  # who\n[provider.deadlines]\ntotal = 3 # s\n'
    "[api]\nenabled = false\n",
    'relays = [\n    "wss://a.example",  # near\n    "wss://b.example",  # far\n]\nprovider = { name = "in a line" }\n',
    'name = "old"  # of older files\nprovider.deadlines.total = 7\n[[backends]]\nkind = "ollama"  # here\n'
    "[unknown]\nx = 1\n",
    '[relay]\nbind = "127.0.0.1:1"\r\n\r\n[log]\r\nlevel = "debug"\r\n',
]


def comments(text: str) -> list[str]:
    return sorted(line.partition("#")[2].strip() for line in text.splitlines() if "#" in line)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(FILES), changes)
def test_what_was_set_is_read_and_all_else_is_as_it_was(text, wanted):
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "config.toml"
        file.write_bytes(text.encode())
        before = load(file, environ={}).config
        touched = {}
        for path, words in wanted:
            value = edit.read_value(path, (words,))
            edit.set_value(file, path, value)
            touched[path] = configuration.kind_of(path).check(value)
        after = load(file, environ={}).config
        for path in known_keys():
            expected = touched[path] if path in touched else value_at(before, path)
            if path == ("relays",) and path not in touched and ("network",) in touched:
                continue  # their default is the network's
            assert value_at(after, path) == expected, path
        kept = comments(file.read_text())
        lost = [comment for comment in comments(text) if comment not in kept]
        # What stood inside a value that was replaced goes with it, and a remark on the network that it no longer is.
        assert all(c in ("near", "far", "here", "of older files") or "not money" in c for c in lost), lost
        for path in touched:
            edit.unset_value(file, path)
        assert touched.keys().isdisjoint(load(file, environ={}).sources)


@pytest.mark.parametrize("line", ["relays = [\n    'wss://a.example',  # near\n    'wss://b.example',\n]\n"])
def test_a_relay_that_stays_keeps_its_comment(tmp_path, line):
    file = tmp_path / "config.toml"
    file.write_text(line)
    edit.set_value(file, ("relays",), ["wss://a.example", "wss://c.example"])
    assert "# near" in file.read_text()
    assert load(file, environ={}).config.relays == ("wss://a.example", "wss://c.example")
    edit.set_value(file, ("relays",), ["wss://c.example", "wss://a.example"])
    assert load(file, environ={}).config.relays == ("wss://c.example", "wss://a.example")


@pytest.mark.parametrize(
    ("key", "words", "allowed"),
    [
        ("network", ["bitcoin"], '"simnet"'),
        ("network", ["mainnet", "simnet"], '"simnet"'),
        ("relays", ["https://x"], "wss://"),
        ("relays", ["[1]"], "wss://"),
        ("relays", ["[broken"], "wss://"),
        ("relay.bind", ["77"], "host:port"),
        ("min_price_msats", ["-1"], "msats"),
        ("min_price_msats", ["1e3"], "msats"),
        ("provider.deadlines.total", ["nan"], "seconds"),
        ("enable_payments", ["maybe"], "true or false"),
        ("backends", ['[{"kind": "gpu"}]'], "number 1: kind"),
        ("backends", ["not json"], "[[backends]]"),
    ],
)
def test_what_does_not_check_is_refused_with_what_is_allowed(key, words, allowed):
    with pytest.raises(ConfigError) as caught:
        edit.read_value(edit.key_path(key), tuple(words))
    assert allowed in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"), [("netwrk", "did you mean network?"), ("relay", "show"), ("bind", "show"), ("", "show")]
)
def test_a_key_that_is_none(name, hint):
    with pytest.raises(UsageError) as caught:
        edit.key_path(name)
    assert hint in caught.value.hint


def test_an_older_name_does_not_contradict_the_new_one(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('name = "old"\n')
    edit.set_value(file, ("provider", "name"), "new")
    assert load(file, environ={}).config.provider.name == "new"
    assert "old" not in file.read_text()
    file.write_text('name = "old"\n')
    edit.unset_value(file, ("provider", "name"))
    assert load(file, environ={}).config.provider.name == "Pylon Provider"


def test_a_network_is_not_remarked_on_as_another(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(render_default("simnet"))
    edit.set_value(file, ("network",), "mainnet")
    assert 'network = "mainnet"\n' in file.read_text()
    edit.set_value(file, ("network",), "testnet")
    file.write_text('network = "testnet"  # because I say so\n')
    edit.set_value(file, ("network",), "mainnet")
    assert file.read_text() == 'network = "mainnet"  # because I say so\n'


def test_what_was_wrong_elsewhere_is_told_and_can_be_mended_a_key_at_a_time(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('network = "bitcoin"\nmin_price_msats = "many"\n')
    edited = edit.set_value(file, ("network",), "simnet")
    assert edited.changed
    (left,) = edited.left
    assert "min_price_msats" in left
    assert edit.set_value(file, ("min_price_msats",), 5).left == ()
    assert load(file, environ={}).config.min_price_msats == 5


def test_a_change_that_makes_another_key_wrong_is_not_written(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('provider = "mine"\n')
    before = file.read_text()
    with pytest.raises(ConfigError):
        edit.set_value(file, ("provider", "name"), "x")
    with pytest.raises(ConfigError):
        edit.set_value(file, ("network",), "bitcoin")  # however it got here unchecked
    assert file.read_text() == before


def test_the_file_is_private_from_its_first_byte_and_a_link_stays_one(tmp_path):
    target = tmp_path / "dotfiles" / "pylon.toml"
    target.parent.mkdir()
    target.write_text("# mine\n")
    target.chmod(0o644)
    file = tmp_path / "home" / "config.toml"
    file.parent.mkdir()
    file.symlink_to(target)
    edit.set_value(file, ("network",), "simnet")
    assert file.is_symlink()
    assert "# mine" in target.read_text()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(target.parent) == ["pylon.toml"]
    fresh = tmp_path / "new" / "config.toml"
    edit.set_value(fresh, ("network",), "simnet")
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o600
    assert stat.S_IMODE(fresh.parent.stat().st_mode) == 0o700


def test_nothing_is_written_where_nothing_changes(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('network = "simnet"\n')
    before = file.stat().st_ino
    assert not edit.set_value(file, ("network",), "simnet").changed
    assert file.stat().st_ino == before


def test_many_at_once_lose_nothing(tmp_path):
    file = tmp_path / "config.toml"
    code = (
        "import sys, pathlib; from pylon import config_edit as e\n"
        f"[e.set_value(pathlib.Path({str(file)!r}), e.key_path(sys.argv[1]), n) for n in range(1, 12)]"
    )
    keys = ["min_price_msats", "api.concurrency", "provider.max_tokens"]
    running = [subprocess.Popen([sys.executable, "-c", code, key]) for key in keys]
    assert [each.wait(30) for each in running] == [0, 0, 0]
    config = load(file, environ={}).config
    assert (config.min_price_msats, config.api.concurrency, config.provider.max_tokens) == (11, 11, 11)


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot read"):
        edit.set_value(tmp_path / "config.toml", ("network",), "simnet")
    with pytest.raises(ConfigError, match="cannot write"):
        edit.set_value(Path("/proc/none/config.toml"), ("network",), "simnet")


def test_the_file_s_own_relays(tmp_path):
    file = tmp_path / "config.toml"
    assert edit.relays_in(file) is None
    file.write_text('relays = ["wss://a.example"]')
    assert edit.relays_in(file) == ["wss://a.example"]


def test_what_is_shown_has_no_secret():
    loaded = configuration.Config(
        backends=configuration.kind_of(("backends",)).check(
            [{"kind": "openai", "url": "https://me:canary@x.example:1/v1?key=canary"}]
        ),
        spark=configuration.SparkConfig(api_key="canary"),
    )
    shown = json.dumps({".".join(p): edit.plain_value(p, value_at(loaded, p)) for p in known_keys()})
    assert "canary" not in shown
    assert "x.example:1/v1" in shown


def test_a_table_is_one_line_when_shown_and_a_table_in_the_file(tmp_path):
    file, path = tmp_path / "config.toml", ("provider", "multipliers")
    edit.set_value(file, path, edit.read_value(path, ('{"llama3.2": 2.5, "b": 1}',)))
    value = edit.plain_value(path, value_at(load(file, environ={}).config, path))
    assert value == {"llama3.2": 2.5, "b": 1.0}
    assert edit.as_toml(value) == '{ "llama3.2" = 2.5, b = 1.0 }'
    assert tomlkit.parse(f"x = {edit.as_toml(value)}").unwrap() == {"x": value}
    edit.set_value(file, path, {})
    assert load(file, environ={}).config.provider.multipliers == ()
