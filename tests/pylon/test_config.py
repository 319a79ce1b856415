from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import attrs
import pytest
import tomlkit
from hypothesis import example, given
from hypothesis import strategies as st

from pylon import config as config_module
from pylon.config import (
    DEFAULT_RELAYS,
    NETWORKS,
    Config,
    ProviderConfig,
    RelayConfig,
    SimnetConfig,
    known_keys,
    load,
    variable,
)
from pylon.config_default import render_default
from pylon.config_values import Bind
from pylon.errors import ConfigError

SEED_SAMPLE = """\
# ~/.openagents/pylon/config.toml

# Nostr relays for provider mode
relays = [
    "wss://relay.damus.io",
    "wss://nos.lol",
    "wss://relay.nostr.band",
]

# Bitcoin network for Lightning payments
# Options: "mainnet", "testnet", "signet", "regtest"
network = "testnet"

# Payment settings (provider mode)
enable_payments = true
require_payment = true
min_price_msats = 1000  # 1 sat minimum per job

# Default inference model
default_model = "llama3.2"

# Backend preference order
backend_preference = ["ollama", "llamacpp", "apple_fm"]

# Claude tunnel settings
[claude]
enabled = true
model = "claude-sonnet-4-20250514"
autonomy = "supervised"  # full | supervised | restricted | read_only
approval_required_tools = ["Write", "Edit", "Bash"]

# Data directory (optional, defaults to ~/.openagents/pylon)
# data_dir = "/custom/path"
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path, **kwargs) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path, **{"environ": {}, **kwargs})
    return caught.value


def test_no_file_is_all_defaults(tmp_path):
    loaded = load(tmp_path / "config.toml", environ={})
    assert loaded.config == Config()
    assert loaded.warnings == ()


def test_the_sample_everybody_has_loads_as_it_stands_and_is_the_defaults(write):
    loaded = load(write(SEED_SAMPLE), environ={})
    assert loaded.config == Config()
    assert loaded.warnings == ()


@pytest.mark.parametrize("line", [line for line in SEED_SAMPLE.splitlines() if re.match(r"[a-z_]+ = [^\[]", line)])
def test_every_key_of_the_sample_may_be_left_out(write, line):
    load(write(SEED_SAMPLE.replace(line, "")), environ={})


@pytest.mark.parametrize("network", NETWORKS)
def test_what_init_writes_loads_to_the_defaults_of_its_network(write, network):
    loaded = load(write(render_default(network)), environ={})
    expected = Config(network=network, relays=() if network == "simnet" else DEFAULT_RELAYS)
    assert loaded.config == expected
    assert loaded.warnings == ()


def test_what_init_writes_shows_the_real_defaults(write):
    """Uncommenting a default changes nothing, and every key but the rare ones is shown."""
    text = render_default("testnet")
    text, _, tables = text.partition("# [[backends]]")
    rare = "data_dir|ledger|model_file|budget_|payee_|max_fee|approve_|uri_file"
    shown = re.sub(rf"(?m)^# ((?!{rare})[a-z_]+ = )", r"\1", text)
    assert load(write(shown), environ={}).config == Config()
    sections = tomllib.loads(re.sub(r"(?m)^# ([a-z_]+ = )", r"\1", text))
    shown_keys = set(leaf_paths(sections))
    hidden = {path for path in known_keys() if path not in shown_keys}
    assert {path[0] for path in hidden} == {"claude", "backends"}
    (table,) = load(write(re.sub("(?m)^# ", "", f"# [[backends]]{tables}")), environ={}).config.backends
    assert (table.kind, table.models) == ("openai", ("gpt-5-mini",))


def leaf_paths(table, prefix=()):
    for name, value in table.items():
        yield from leaf_paths(value, (*prefix, name)) if value and isinstance(value, dict) else [(*prefix, name)]


def test_simnet_says_that_it_is_no_money():
    assert "not money" in render_default("simnet")


def test_simnet_without_relays_talks_to_nobody(write):
    assert load(write('network = "simnet"'), environ={}).config.relays == ()
    assert load(write('network = "simnet"\nrelays = ["ws://127.0.0.1:7000"]'), environ={}).config.relays == (
        "ws://127.0.0.1:7000",
    )


def test_precedence(write):
    path = write('network = "signet"\ndefault_model = "file"\nmin_price_msats = 7\n')
    environ = {"PYLON_NETWORK": "regtest", "PYLON_DEFAULT_MODEL": "environment"}
    config = load(path, environ=environ, flags={"network": "simnet", "relay.bind": "127.0.0.1:0"}).config
    assert (config.network, config.default_model, config.min_price_msats) == ("simnet", "environment", 7)
    assert config.relay == RelayConfig(bind=Bind("127.0.0.1", 0))
    assert config.backend_preference == ("ollama", "llamacpp", "apple_fm")


def test_every_kind_of_value_can_come_from_the_environment(tmp_path):
    environ = {
        "PYLON_RELAYS": "wss://one.example, ws://127.0.0.1:9 ,",
        "PYLON_REQUIRE_PAYMENT": "no",
        "PYLON_MIN_PRICE_MSATS": "21",
        "PYLON_RELAY_BIND": "[::1]:0",
        "PYLON_SIMNET_LEDGER": "/tmp/shared.db",
        "PYLON_PROVIDER_DEADLINES_FIRST_TOKEN": "1.5",
        "PYLON_CLAUDE_AUTONOMY": "read_only",
        "PYLON_HOME": "/not/a/key",
        "PYLON_DEBUG": "1",
    }
    config = load(tmp_path / "config.toml", environ=environ).config
    assert config.relays == ("wss://one.example", "ws://127.0.0.1:9")
    assert config.require_payment is False
    assert config.min_price_msats == 21
    assert str(config.relay.bind) == "[::1]:0"
    assert config.simnet == SimnetConfig(ledger=Path("/tmp/shared.db"))
    assert config.provider.deadlines.first_token == 1.5
    assert config.claude.autonomy == "read_only"


def test_variables_are_distinct_and_leave_those_of_others_alone():
    names = [variable(path) for path in known_keys()]
    assert len(set(names)) == len(names)
    taken = {"PYLON_HOME", "PYLON_DEBUG", "PYLON_MODELS", "PYLON_CRASH_AT", "PYLON_API_TOKEN", "PYLON_PASSPHRASE_FILE"}
    assert taken.isdisjoint(names)


WRONG = [
    ("network", '"bitcoin"', '"simnet"'),
    ("relays", '["https://relay.example"]', "wss://"),
    ("relays", '["wss://me:pass@relay.example"]', "wss://"),
    ("relays", '["wss://"]', "wss://"),
    ("relays", '["wss://relay.example:99999"]', "wss://"),
    ("relays", '["wss://[::1"]', "wss://"),
    ("relays", '"wss://relay.example"', "list"),
    ("enable_payments", '"yes"', "true or false"),
    ("enable_payments", "1", "true or false"),
    ("min_price_msats", "-1", "msats"),
    ("min_price_msats", "1.5", "msats"),
    ("min_price_msats", "true", "msats"),
    ("min_price_msats", "99999999999999999999999999", "msats"),
    ("default_model", '""', "text"),
    ("backend_preference", '["gpu"]', "ollama"),
    ("relay.bind", '"7777"', "host:port"),
    ("relay.bind", '"127.0.0.1:65536"', "host:port"),
    ("simnet.ledger", '"here.db"', "absolute"),
    ("provider.max_tokens", "0", "tokens"),
    ("provider.deadlines.total", "inf", "seconds"),
    ("provider.deadlines.total", "nan", "seconds"),
    ("provider.deadlines.total", "0", "seconds"),
    ("claude.autonomy", '"wild"', "supervised"),
    ("claude.blocked_tools", "[1]", "list"),
    ("api.enabled", "1979-05-27", "true or false"),
    ("api.public_name", '"localhost"', "in public"),
    ("api.public_name", '"192.168.1.2"', "in public"),
    ("api.public_name", '"https://agents.example.com"', "in public"),
    ("api.public_name", '"me@example.com"', "in public"),
    ("api.public_name", '"example.com:99999"', "in public"),
    ("api.public_name", '"box"', "in public"),
    ("api.zap_max_sats", "0", "sats"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), WRONG)
def test_an_error_names_key_value_line_and_what_is_allowed(write, key, value, allowed):
    *section, name = key.split(".")
    head = "# first line\n\n" + (f"[{'.'.join(section)}]\n" if section else "")
    path = write(f"{head}{name} = {value}\n")
    error = refused(path)
    line = head.count("\n") + 1
    assert str(error).startswith(f"{path}:{line}: {key} = ")
    assert allowed in str(error)
    assert error.hint


def test_all_errors_are_told_at_once(write):
    error = refused(write('network = "x"\nrequire_payment = 3\n'), environ={"PYLON_API_BIND": "nowhere"})
    assert len(str(error).splitlines()) == 3
    assert "PYLON_API_BIND" in str(error)


def test_a_wrong_variable_is_named_not_the_file(write):
    error = refused(write("min_price_msats = 5"), environ={"PYLON_MIN_PRICE_MSATS": "five"})
    assert str(error).startswith('PYLON_MIN_PRICE_MSATS = "five": wanted a whole number')


def test_a_section_that_is_a_value(write):
    assert "[claude]" in str(refused(write("claude = true")))


@pytest.mark.parametrize("text", ["network = ", "= 3", "[relay\n", "a = 1\na = 2", "x = '\x01'", "[" * 5000])
def test_what_is_no_toml_is_said_with_the_file(write, text):
    path = write(text)
    assert str(path) in str(refused(path))


def test_not_utf8_and_too_large(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b"a = 1\nb = '\xff'\n")
    assert f"{path}:2" in str(refused(path))
    path.write_bytes(b"#" * (config_module.MAX_FILE_BYTES + 1))
    assert "bytes" in str(refused(path))


def test_an_unreadable_file_is_not_taken_for_none(tmp_path):
    (tmp_path / "config.toml").mkdir()
    assert "cannot read" in str(refused(tmp_path / "config.toml"))


@pytest.mark.parametrize(
    ("text", "line", "suggestion"),
    [
        ('netwrok = "testnet"', 1, "network"),
        ("[relay]\nbid = '127.0.0.1:1'", 2, "relay.bind"),
        ("\n[claud]\nenabled = true", 2, "claude"),
        ("max_tokens = 3", 1, "provider.max_tokens"),
        ("completely_different = 3", 1, ""),
    ],
)
def test_unknown_keys_warn_with_a_suggestion(write, text, line, suggestion):
    path = write(text)
    (warning,) = load(path, environ={}).warnings
    assert warning.startswith(f"{path}:{line}: unknown key ")
    assert warning.endswith(f"did you mean {suggestion}?") if suggestion else "did you mean" not in warning


def test_the_names_of_the_predecessor_are_read(write):
    loaded = load(write('name = "Mine"\ndescription = "fast"'), environ={})
    assert loaded.config.provider == ProviderConfig(name="Mine", description="fast")
    assert loaded.warnings == ()


def test_plain_text_to_a_stranger_warns(write):
    near = '"ws://127.0.0.1:7777", "ws://192.168.1.2", "ws://relay.local", "ws://[::1]:1", "wss://relay.example"'
    assert load(write(f"relays = [{near}]"), environ={}).warnings == ()
    (warning,) = load(write('relays = ["ws://relay.example"]'), environ={}).warnings
    assert "wss://" in warning


def test_relays_are_not_doubled(write):
    relays = '["wss://a.example", "wss://b.example", "wss://a.example"]'
    assert load(write(f"relays = {relays}"), environ={}).config.relays == ("wss://a.example", "wss://b.example")


@pytest.mark.parametrize("name", ["agents.example.com", "agents.example.com:8443", " Agents.Example.COM ", "abc.onion"])
def test_a_public_name_is_kept_as_addresses_write_it(write, name):
    assert load(write(f'[api]\npublic_name = "{name}"'), environ={}).config.api.public_name == name.strip().lower()


def test_whether_the_address_of_the_api_was_set_is_known_even_where_it_is_the_default(write):
    assert load(write(""), environ={}).config.api.bind_given is False
    assert load(write("[api]\nenabled = true"), environ={}).config.api.bind_given is False
    loaded = load(write('[api]\nbind = "127.0.0.1:9899"'), environ={}).config
    assert loaded.api.bind_given is True
    assert loaded == Config()
    assert load(write(""), environ={"PYLON_API_BIND": "127.0.0.1:9899"}).config.api.bind_given is True
    assert load(write(""), environ={}, flags={"api.bind": "127.0.0.1:0"}).config.api.bind_given is True
    (warning,) = load(write("[api]\nbind_given = true"), environ={}).warnings
    assert "unknown key api.bind_given" in warning


def test_a_home_without_a_public_name_does_not_pay_for_the_codec(write):
    code = f"import sys, pathlib; from pylon.config import load; load(pathlib.Path({str(write(''))!r}), environ={{}});"
    done = subprocess.run([sys.executable, "-c", code + "print('secp256k1' in sys.modules)"], capture_output=True)
    assert done.stdout == b"False\n", done.stderr


def test_sections_are_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Config().relay.enabled = False  # type: ignore[misc]


def complaint(path: Path, environ: dict[str, str]) -> str | None:
    try:
        load(path, environ=environ)
    except ConfigError as error:
        return str(error)
    return None


KEYS = st.sampled_from([".".join(path) for path in known_keys()] + ["relay", "claude", "unknown", "provider.deadlines"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = (SCALARS | st.lists(SCALARS, max_size=3)).filter(lambda value: value is not None)


@given(key=KEYS, value=VALUES)
def test_any_value_loads_or_is_refused_by_name(tmp_path_factory, key, value):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    document = tomlkit.document()
    table = document
    *sections, name = key.split(".")
    for section in sections:
        table[section] = tomlkit.table()
        table = table[section]
    try:
        table[name] = [v for v in value if v is not None] if isinstance(value, list) else value
        text = tomlkit.dumps(document)
        tomllib.loads(text)
    except (ValueError, TypeError, UnicodeError):
        return
    try:
        path.write_text(text, encoding="utf-8")
    except UnicodeError:
        return
    told = complaint(path, {})
    assert told is None or (key.split(".")[-1] in told and str(path) in told)


@example(name="PYLON_CLAUDE_CWD", text="~nobody-at-all/x")
@given(name=st.sampled_from([variable(path) for path in known_keys()]), text=st.text(max_size=30))
def test_any_variable_loads_or_is_refused_by_name(name, text):
    told = complaint(Path("/nonexistent/config.toml"), {name: text})
    assert told is None or name in told


@pytest.mark.parametrize("line", ["api_key = 5", 'api_key = ["very-secret"]', 'api_key = "very-secret\\u0001"'])
def test_a_secret_that_is_wrong_is_named_and_not_shown(tmp_path, line):
    path = tmp_path / "config.toml"
    path.write_text(f"[spark]\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, environ={})
    assert "spark.api_key" in caught.value.message
    assert "very-secret" not in caught.value.message + caught.value.hint
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.toml", environ={"PYLON_SPARK_API_KEY": "very-secret\x01"})
    assert "PYLON_SPARK_API_KEY" in caught.value.message
    assert "very-secret" not in caught.value.message + caught.value.hint


def test_a_secret_is_in_no_repr(tmp_path):
    config = load(tmp_path / "none.toml", environ={"PYLON_SPARK_API_KEY": "very-secret"}).config
    assert config.spark.api_key == "very-secret"
    assert "very-secret" not in repr(config)


class TestBackends:
    def test_none(self):
        assert Config().backends == ()

    def test_tables(self, write):
        path = write(
            'default_model = "m"\n[relay]\nenabled = true\n'
            '[[backends]]\nkind = "ollama"\n'
            '[[backends]]\nkind = "ollama"\nurl = "http://gpu:11434"\nmax_concurrent = 4\ncontext = 8192\n'
            '[[backends]]\nkind = "openai"\nname = "vllm"\nurl = "http://10.0.0.9:8000/v1"\nmodels = ["a", "b", "a"]\n'
            '[[backends]]\nkind = "openai"\nmodels = ["gpt-5-mini"]\n'
        )
        loaded = load(path, environ={})
        first, second, third, fourth = loaded.config.backends
        assert loaded.warnings == ()
        assert (first.name, first.url, first.max_concurrent, first.key_env) == (
            "ollama",
            "http://127.0.0.1:11434",
            1,
            "",
        )
        assert (second.name, second.max_concurrent, second.context) == ("ollama-2", 4, 8192)
        assert (third.name, third.models, third.key_env, third.max_concurrent) == ("vllm", ("a", "b"), "", 8)
        assert (fourth.name, fourth.key_env) == ("openai", "OPENAI_API_KEY")

    def test_from_the_environment(self, write):
        given = {"PYLON_BACKENDS": '[{"kind": "apple_fm"}]'}
        assert load(write(""), environ=given).config.backends[0].url == "http://127.0.0.1:11435"
        with pytest.raises(ConfigError, match="PYLON_BACKENDS"):
            load(write(""), environ={"PYLON_BACKENDS": "[{"})

    @pytest.mark.parametrize(
        ("table", "words"),
        [
            ("", "kind: wanted one of"),
            ('kind = "gpu"', "kind: wanted one of"),
            ('kind = "ollama"\nurll = "x"', "unknown key 'urll'"),
            ('kind = "ollama"\nurl = "ftp://x"', "url: wanted"),
            ('kind = "ollama"\nurl = 7', "url: wanted a text"),
            ('kind = "ollama"\nurl = "http://x:99999999"', "url: wanted"),
            ('kind = "ollama"\nname = "a b"', "name: wanted"),
            ('kind = "openai"\nkey_env = "sk-very-secret"', "key_env: wanted the name"),
            ('kind = "ollama"\nmax_concurrent = 0', "max_concurrent: wanted"),
            ('kind = "ollama"\nmax_concurrent = true', "max_concurrent: wanted"),
            ('kind = "ollama"\nmax_waiting = -1', "max_waiting: wanted"),
            ('kind = "ollama"\ncontext = 1', "context: wanted"),
            ('kind = "ollama"\nmodels = "m"', "models: wanted"),
            ('kind = "ollama"\nmodels = [" "]', "models: wanted"),
            ('kind = "ollama"\n[[backends]]\nkind = "ollama"\nname = "ollama"', "number 2: name"),
        ],
    )
    def test_mistakes_are_named_with_their_table_and_no_key_is_shown(self, write, table, words):
        with pytest.raises(ConfigError) as caught:
            load(write(f"[[backends]]\n{table}\n"), environ={})
        assert words in caught.value.message
        assert "config.toml:1" in caught.value.message
        assert "sk-very-secret" not in caught.value.message

    @pytest.mark.parametrize("text", ["backends = 7", 'backends = ["ollama"]', "[backends]\nkind = 'ollama'"])
    def test_what_is_no_list_of_tables(self, write, text):
        with pytest.raises(ConfigError, match="backends"):
            load(write(text), environ={})


def test_prices_and_customers_of_the_provider(write):
    npub = "npub180cvv07tjdrrgpa0j7j7tmnyl2yr6yr7l8j4s3evf6u64th6gkwsyjh6w6"
    text = f"""
[provider]
price_out_msats = 2_000
trusted = ["{npub}", "{"AB" * 32}"]
[provider.multipliers]
"llama3.2:3b" = 2
big = 1.5
"""
    provider = load(write(text), environ={}).config.provider
    assert provider.price_out_msats == 2_000
    assert provider.trusted == ("3bf0c63fcb93463407af97a5e5ee64fa883d107ef9e558472c4eb9aaaefa459d", "ab" * 32)
    assert provider.multipliers == (("llama3.2:3b", 2.0), ("big", 1.5))
    environ = {"PYLON_PROVIDER_MULTIPLIERS": '{"m": 3}', "PYLON_PROVIDER_BLOCKED": "ab" * 32}
    provider = load(write(text), environ=environ).config.provider
    assert (provider.multipliers, provider.blocked) == ((("m", 3.0),), ("ab" * 32,))


@pytest.mark.parametrize(
    "line", ["trusted = ['nobody']", "multipliers = {a = -1}", "multipliers = {a = 'b'}", "multipliers = ['a']"]
)
def test_wrong_prices_and_customers_are_named(write, line):
    with pytest.raises(ConfigError, match=f"provider.{line.split()[0]}"):
        load(write(f"[provider]\n{line}\n"), environ={})
