"""The configuration: every key optional, every mistake named with its line.

Order of precedence: defaults < ``config.toml`` < ``PYLON_*`` environment < flags. The variable of a key is its path in
capitals: ``network`` is ``PYLON_NETWORK``, ``[relay] bind`` is ``PYLON_RELAY_BIND``; a list is separated by commas.
(``data_dir`` has no variable: ``PYLON_HOME`` is the environment's way to say where things are.)

Sections are frozen attrs classes; a field's ``Kind`` knows how its value is checked and how it is read from text.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import cattrs
import tomlkit
from cattrs.gen import make_dict_structure_fn, override
from tomlkit.exceptions import TOMLKitError

from pylon.config_backends import BackendConfig, BackendsInvalid
from pylon.config_values import (
    BACKEND_LIST,
    BACKEND_TABLES,
    BIND,
    FLAG,
    MULTIPLIERS,
    PATH,
    PUBLIC_KEYS,
    PUBLIC_NAME,
    RELAYS,
    SECRET,
    SOME_TEXT,
    TEXT,
    TEXTS,
    Bind,
    Kind,
    choice,
    integer,
    seconds,
)
from pylon.errors import ConfigError
from pylon.money import MAX_MSAT, Msat

NETWORKS = ("mainnet", "testnet", "signet", "regtest", "simnet")
AUTONOMY = ("full", "supervised", "restricted", "read_only")
LOG_LEVELS = ("debug", "info", "warning", "error")
DEFAULT_NETWORK = "testnet"
DEFAULT_RELAYS = ("wss://relay.damus.io", "wss://nos.lol", "wss://relay.nostr.band")
MAX_FILE_BYTES = 1 << 20


def _key(kind: Kind, default: Any) -> Any:
    return attrs.field(default=default, metadata={"kind": kind})


# --- the sections -----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class RelayConfig:
    """The embedded relay."""

    enabled: bool = _key(FLAG, True)
    """Serve a relay, for this home and its neighbours on the machine; the first home to bind the port serves it."""
    bind: Bind = _key(BIND, Bind("127.0.0.1", 7777))
    """Where it listens. Anything but the loopback opens it to whoever can reach that address."""


@attrs.frozen(kw_only=True)
class SimnetConfig:
    """The pretended Lightning network."""

    ledger: Path | None = _key(PATH, None)
    """A ledger file shared by several homes; ``None`` is the home's own ``simnet.db``."""


@attrs.frozen(kw_only=True)
class SparkConfig:
    """The Spark wallets, on every network but simnet."""

    api_key: str = attrs.field(default="", repr=False, metadata={"kind": SECRET})
    """Breez' API key; mainnet wants one. Better in the environment: ``PYLON_SPARK_API_KEY``."""
    client_wallets: int = _key(integer(1, 1_000, "wallets"), 20)
    """How many wallets hear of payments at once; the others are asked in turn (docs/spark.md)."""
    sweeps_per_second: float = _key(attrs.evolve(seconds(1_000), allowed="a number, more than 0 and at most 1000"), 2.0)
    """How many of the others are asked, a second."""


@attrs.frozen(kw_only=True)
class DeadlinesConfig:
    """How long a backend, and a customer, is waited for. Seconds."""

    connect: float = _key(seconds(600), 5.0)
    """Until the backend accepts a request."""
    first_token: float = _key(seconds(3_600), 60.0)
    """From there to the first token."""
    between_tokens: float = _key(seconds(3_600), 30.0)
    """From one token to the next."""
    total: float = _key(seconds(86_400), 300.0)
    """For a whole answer."""
    payment: float = _key(seconds(86_400), 600.0)
    """From the quote to the payment; the life of an invoice."""


@attrs.frozen(kw_only=True)
class ProviderConfig:
    """What is sold, and how it is announced."""

    name: str = _key(SOME_TEXT, "Pylon Provider")
    """As it is announced."""
    description: str = _key(TEXT, "")
    """As it is announced."""
    model_file: Path | None = _key(PATH, None)
    """A GGUF file for the embedded llama.cpp server, before any installed model. ``start --model-file`` wins."""
    max_tokens: int = _key(integer(1, 1_000_000, "tokens"), 512)
    """The longest answer sold; also the length where a customer names none."""
    pay_on_delivery: bool = _key(FLAG, True)
    """Hold a payment until the job is done, and give it back if it fails, where customer and wallet can."""
    price_in_msats: Msat = _key(integer(0, MAX_MSAT, "msats"), Msat(0))
    """What 1,000 tokens of a prompt cost, millisatoshi. A job costs at least `min_price_msats`."""
    price_out_msats: Msat = _key(integer(0, MAX_MSAT, "msats"), Msat(0))
    """What 1,000 tokens of the longest answer cost that the customer allows, millisatoshi."""
    multipliers: tuple[tuple[str, float], ...] = _key(MULTIPLIERS, ())
    """What a model costs more or less than the others: `[provider.multipliers]` with `"llama3.2" = 2.5`."""
    free_per_day: int = _key(integer(0, 1_000_000, "jobs"), 0)
    """Jobs a day (UTC) that each key has free of charge. Keys cost nothing: it is worth what a stranger may take."""
    trusted: tuple[str, ...] = _key(PUBLIC_KEYS, ())
    """Customers that no cap holds back, besides those of `pylon provider trust`."""
    trusted_free: bool = _key(FLAG, False)
    """Serve the customers of ``trusted`` free of charge."""
    blocked: tuple[str, ...] = _key(PUBLIC_KEYS, ())
    """Customers that are not heard, besides those of `pylon provider block`."""
    fetch_urls: bool = _key(FLAG, False)
    """Fetch inputs that are addresses (`url`), from the public network alone."""
    deadlines: DeadlinesConfig = attrs.field(factory=DeadlinesConfig)


@attrs.frozen(kw_only=True)
class ApiConfig:
    """The HTTP interface: OpenAI's API, and what makes agents zappable (LNURL-pay), which alone wants no token."""

    enabled: bool = _key(FLAG, True)
    """Serve it."""
    bind: Bind = _key(BIND, Bind("127.0.0.1", 9899))
    """Where it listens. Where only the default is taken, a free port is used; one that you have set must be free."""
    public_name: str = _key(PUBLIC_NAME, "")
    """Under which the world reaches it, by https: agents are zapped as NAME@public_name. Empty: by nobody outside."""
    zap_max_sats: int = _key(integer(1, MAX_MSAT // 1_000, "sats"), 1_000_000)
    """The most that one payment to an agent may bring, sats."""
    concurrency: int = _key(integer(1, 100, "calls"), 16)
    """How many completions run at a time; more are told to come again (429)."""
    market: bool = _key(FLAG, False)
    """Buy what is answered from the market, within the two budgets below and those of ``[wallet]``."""
    budget_day_msats: Msat = _key(integer(0, MAX_MSAT, "msats"), Msat(1_000_000))
    """For what the API buys in any 24 hours, fees included, millisatoshi; 0 means nothing."""
    budget_each_msats: Msat = _key(integer(0, MAX_MSAT, "msats"), Msat(100_000))
    """For one answer that the API buys, the fee not included, millisatoshi."""
    bind_given: bool = attrs.field(default=False, eq=False)
    """Whether ``bind`` was set, and is not the default. No key."""


@attrs.frozen(kw_only=True)
class WalletConfig:
    """The home's own wallet, and what programs may spend of it. What you pay by hand is bounded by the wallet alone."""

    kind: str = _key(choice("network", "nwc"), "network")
    """``nwc``: a wallet that you have already, by Nostr Wallet Connect. Agents have wallets of the network's own."""
    uri_file: Path | None = _key(PATH, None)
    """Where its connection string is (0600); ``None``: ``keys/wallet.nwc``. ``PYLON_NWC_URI`` wins over both."""
    budget_day_sats: int | None = _key(integer(0, MAX_MSAT // 1_000, "sats"), None)
    """For any 24 hours, fees included, sats; 0 means nothing. What you buy by hand counts, too."""
    budget_each_sats: int | None = _key(integer(0, MAX_MSAT // 1_000, "sats"), None)
    """For one payment, its fee not included, sats."""
    payee_day_sats: int | None = _key(integer(0, MAX_MSAT // 1_000, "sats"), None)
    """To one payee in any 24 hours, fees included, sats."""
    max_fee_sats: int | None = _key(integer(0, MAX_MSAT // 1_000, "sats"), None)
    """The highest fee of one payment, where that is less than 1 % (at least 2 sat), sats."""
    reserve_sats: int = _key(integer(0, MAX_MSAT // 1_000, "sats"), 0)
    """What stays in the wallet, sats."""
    approve_above_sats: int | None = _key(integer(0, MAX_MSAT // 1_000, "sats"), None)
    """A larger payment waits for your yes (pylon wallet approvals), sats."""


@attrs.frozen(kw_only=True)
class RetentionConfig:
    """How long is kept what has no money in it; payments are kept for ever (docs/operating.md)."""

    events_days: int = _key(integer(1, 36_500, "days"), 7)
    """Events of ours that every relay has answered."""
    requests_days: int = _key(integer(30, 36_500, "days"), 30)
    """Requests that came to nothing, sold or bought, and that an event was taken."""
    unpaid_requests: int = _key(integer(100, 1_000_000, "requests"), 5_000)
    """Of those that nobody paid, how many are kept at most in each of their states, whatever their age."""
    quiet_days: int = _key(integer(1, 36_500, "days"), 14)
    """Ticks in which an agent thought nothing."""
    thoughts_days: int = _key(integer(30, 36_500, "days"), 365)
    """What agents have thought and done; what they remember is their own."""
    relay_jobs_days: int = _key(integer(1, 36_500, "days"), 90)
    """Requests, results and feedback of jobs (kinds 5000 to 7000) on the embedded relay."""


@attrs.frozen(kw_only=True)
class ClaudeConfig:
    """The Claude tunnel (``pylon connect``): the rules of every session. A page may tighten them, never loosen them."""

    enabled: bool = _key(FLAG, True)
    """Allow a tunnel."""
    model: str = _key(SOME_TEXT, "claude-sonnet-4-20250514")
    """The model that it drives."""
    autonomy: str = _key(choice(*AUTONOMY), "supervised")
    """How much it may do unasked."""
    approval_required_tools: tuple[str, ...] = _key(TEXTS, ("Write", "Edit", "Bash"))
    """Tools that wait for a yes. The names of tools alone: ``Bash``, or ``mcp__github__*``."""
    approval_seconds: float = _key(seconds(86_400), 300.0)
    """How long a yes is waited for; then it is a no."""
    allowed_tools: tuple[str, ...] = _key(TEXTS, ())
    """The only tools that may be used; empty: all that are not blocked."""
    blocked_tools: tuple[str, ...] = _key(TEXTS, ())
    """Tools that are never run."""
    max_cost_usd: int | None = _key(integer(0, 10**12, "millionths of a dollar"), None)
    """The most that one session may cost: 250000 is $0.25. No key: no cap."""
    max_sessions: int = _key(integer(1, 64, "sessions"), 4)
    """How many may run at once."""
    cwd: Path | None = _key(PATH, None)
    """The directory that it works in; a page may name one within it. No key: where the command was called."""
    executable_path: Path | None = _key(PATH, None)
    """The program, where it is not on the PATH."""


@attrs.frozen(kw_only=True)
class LogConfig:
    """The daemon's log."""

    level: str = _key(choice(*LOG_LEVELS), "info")
    """What is written: this, and what is graver. ``PYLON_DEBUG=1`` wins over it."""


@attrs.frozen
class Origin:
    """What a configuration was read from, to read it once more: the file, and the flags of the command line."""

    path: Path
    flags: Mapping[str, object]


@attrs.frozen(kw_only=True)
class Config:
    """The keys above all sections."""

    network: str = _key(choice(*NETWORKS), DEFAULT_NETWORK)
    """Where Lightning payments happen. On simnet sats are not money; testnet and signet are Spark's regtest."""
    relays: tuple[str, ...] = _key(RELAYS, DEFAULT_RELAYS)
    """Relays of the host and the provider, beside the embedded one. On simnet none unless named."""
    enable_payments: bool = _key(FLAG, True)
    """Sell for sats. False serves every job free, on any network, to whoever asks."""
    require_payment: bool = _key(FLAG, True)
    """Work only once a job is paid. False serves it at once, and asks for its price with the result."""
    min_price_msats: Msat = _key(integer(0, MAX_MSAT, "msats"), Msat(1_000))
    """What a job costs at least, millisatoshi."""
    default_model: str = _key(SOME_TEXT, "llama3.2")
    """What answers where a job names no model; where nobody has it, the first model of the first healthy backend."""
    backend_preference: tuple[str, ...] = _key(BACKEND_LIST, ("ollama", "llamacpp", "apple_fm"))
    """The kinds of backends that are looked for, and in which order they are asked (docs/backends.md)."""
    backends: tuple[BackendConfig, ...] = _key(BACKEND_TABLES, ())
    """Backends elsewhere, or several of a kind: `[[backends]]` tables; the variable takes them as JSON."""
    data_dir: Path | None = _key(PATH, None)
    """Where everything but ``config.toml`` is kept, instead of the home. ``--home`` and ``PYLON_HOME`` win over it."""
    relay: RelayConfig = attrs.field(factory=RelayConfig)
    simnet: SimnetConfig = attrs.field(factory=SimnetConfig)
    spark: SparkConfig = attrs.field(factory=SparkConfig)
    provider: ProviderConfig = attrs.field(factory=ProviderConfig)
    api: ApiConfig = attrs.field(factory=ApiConfig)
    wallet: WalletConfig = attrs.field(factory=WalletConfig)
    claude: ClaudeConfig = attrs.field(factory=ClaudeConfig)
    log: LogConfig = attrs.field(factory=LogConfig)
    retention: RetentionConfig = attrs.field(factory=RetentionConfig)
    origin: Origin | None = attrs.field(default=None, eq=False, repr=False)
    """Where it was read; ``None``: it was made. No key."""


KeyPath = tuple[str, ...]


@attrs.frozen
class Source:
    """Where the value of a key comes from."""

    kind: str
    """``default``, ``file``, ``environment`` or ``flag``."""
    where: str = ""
    """``FILE:LINE``, the variable, or the flag."""


DEFAULT = Source("default")


@attrs.frozen
class Loaded:
    """What ``load`` has found."""

    config: Config
    warnings: tuple[str, ...] = ()
    """Sentences for stderr: keys that mean nothing, and what is unwise."""
    sources: Mapping[KeyPath, Source] = attrs.field(factory=dict, eq=False)
    """Of the keys that are not at their default."""

    def source(self, path: KeyPath) -> Source:
        return self.sources.get(path, DEFAULT)


@attrs.frozen
class _Found:
    """Values as they were written, not checked yet, and where."""

    values: dict[KeyPath, Any]
    sources: dict[KeyPath, Source]
    warnings: list[str]
    problems: dict[KeyPath, str]


_SECTIONS: dict[KeyPath, type] = {
    (): Config,
    ("relay",): RelayConfig,
    ("simnet",): SimnetConfig,
    ("spark",): SparkConfig,
    ("provider",): ProviderConfig,
    ("provider", "deadlines"): DeadlinesConfig,
    ("api",): ApiConfig,
    ("wallet",): WalletConfig,
    ("claude",): ClaudeConfig,
    ("log",): LogConfig,
    ("retention",): RetentionConfig,
}

_MOVED: dict[KeyPath, KeyPath] = {("name",): ("provider", "name"), ("description",): ("provider", "description")}
"""Keys of older files, read where they stood."""


def known_keys() -> dict[KeyPath, str]:
    """Every key, as a path, with what it allows, in words."""
    return {path: kind.allowed for path, kind in _KINDS.items()}


def kind_of(path: KeyPath) -> Kind:
    """How a key's value is checked and read. Raises ``KeyError`` for a key that nobody knows."""
    return _KINDS[path]


def sections() -> tuple[KeyPath, ...]:
    """The sections, the one above all sections being ``()``."""
    return tuple(_SECTIONS)


def older_name(path: KeyPath) -> KeyPath | None:
    """Under which an older file may have the key."""
    return next((old for old, new in _MOVED.items() if new == path), None)


def value_at(config: Config, path: KeyPath) -> Any:
    """The value of a key."""
    value: Any = config
    for name in path:
        value = getattr(value, name)
    return value


def variable(path: KeyPath) -> str:
    """The environment variable of a key."""
    return "_".join(("PYLON", *path)).upper()


_KINDS: dict[KeyPath, Kind] = {
    (*section, field.name): field.metadata["kind"]
    for section, cls in _SECTIONS.items()
    for field in attrs.fields(cls)
    if "kind" in field.metadata
}


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False)
    # The innermost sections first: a hook calls those of the sections within.
    for section, cls in sorted(_SECTIONS.items(), key=lambda item: -len(item[0])):
        hooks = {
            field.name: override(struct_hook=_structure(_KINDS[(*section, field.name)]))
            for field in attrs.fields(cls)
            if "kind" in field.metadata
        }
        converter.register_structure_hook(cls, make_dict_structure_fn(cls, converter, **hooks))  # type: ignore[arg-type]
    return converter


def _structure(kind: Kind) -> Callable[[Any, Any], Any]:
    return lambda value, _: kind.check(value)


# --- loading ----------------------------------------------------------------------------------------------------------


def load(path: Path, *, environ: Mapping[str, str] = os.environ, flags: Mapping[str, object] | None = None) -> Loaded:
    """The configuration of a home. A file that is not there is an empty one.

    ``flags`` are keys from the command line, sections separated by a dot (``{"relay.bind": "127.0.0.1:0"}``).
    Raises ``ConfigError`` that names every wrong key with its value, what is allowed, and the file and line.
    """
    flags = dict(flags or {})
    found = _find(path, read_text(path), environ, flags)
    values, sources = found.values, found.sources
    if found.problems:
        problems = "\n".join(found.problems.values())
        raise ConfigError(problems, f"mend the value, or leave the key out for its default (in {path})")

    if values.get(("network",)) == "simnet":
        values.setdefault(("relays",), [])
    config = attrs.evolve(_CONVERTER.structure(_nest(values), Config), origin=Origin(path, flags))
    if ("api", "bind") in values:
        config = attrs.evolve(config, api=attrs.evolve(config.api, bind_given=True))
    warnings = [
        f"{sources[('relays',)].where}: {url} is not encrypted; ws:// is for one's own machine and network, "
        "wss:// for others"
        for url in config.relays
        if url.startswith("ws://") and not _is_near(url)
    ]
    return Loaded(config, (*found.warnings, *warnings), sources)


def problems_in(path: Path, text: str) -> dict[KeyPath, str]:
    """What is wrong with a file of this text, by the key. Raises ``ConfigError`` where it is no TOML."""
    return _find(path, text, {}, {}).problems


def _find(path: Path, text: str, environ: Mapping[str, str], flags: Mapping[str, object]) -> _Found:
    found = _Found({}, {}, [], {})
    values, sources = found.values, found.sources
    where = _Lines(path, text)

    for key, value in _leaves(parse(path, text)[1]):
        target = _MOVED.get(key, key)
        if target in _KINDS:
            values[target], sources[target] = value, Source("file", where(key))
        elif key in _SECTIONS:
            name = ".".join(key)
            found.problems[key] = f"{where(key)}: {name} = {_show(value)}: wanted a section, [{name}]"
        else:
            found.warnings.append(f"{where(key)}: unknown key {'.'.join(key)}{suggestion(key)}")

    unread: dict[KeyPath, str] = {}
    for key, kind in _KINDS.items():
        name = variable(key)
        if key == ("data_dir",) or name not in environ:
            continue
        try:
            values[key], sources[key] = kind.from_text(environ[name]), Source("environment", name)
        except (ValueError, KeyError):
            shown = "(not shown)" if kind.secret else _show(environ[name])
            unread[key] = f"{name} = {shown}: wanted {kind.allowed}"

    for name, value in flags.items():
        key = tuple(name.split("."))
        values[key], sources[key] = value, Source("flag", f"--{key[-1].replace('_', '-')}")

    for key, value in values.items():
        source = sources[key]
        told = source.where if source.kind == "environment" else f"{source.where}: {'.'.join(key)}"
        try:
            _KINDS[key].check(value)
        except BackendsInvalid as error:
            found.problems[key] = f"{source.where}: {key[-1]} {error}"
        except (ValueError, TypeError, OverflowError):
            shown = "(not shown)" if _KINDS[key].secret else _show(value)
            found.problems[key] = f"{told} = {shown}: wanted {_KINDS[key].allowed}"
    for key, problem in unread.items():
        found.problems[key] = f"{found.problems[key]}\n{problem}" if key in found.problems else problem
    return found


def read_text(path: Path) -> str:
    """What stands in the file, nothing if it is not there. Raises ``ConfigError``."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "check its owner and mode") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} has {len(raw)} bytes", f"a configuration has at most {MAX_FILE_BYTES}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8", "save the file as UTF-8") from None


def parse(path: Path, text: str) -> tuple[tomlkit.TOMLDocument, dict[str, Any]]:
    """The file with its comments, and its plain values. Raises ``ConfigError`` with the line where it is no TOML."""
    try:
        document = tomlkit.parse(text)
        return document, document.unwrap()
    except (TOMLKitError, RecursionError, ValueError) as error:
        line = getattr(error, "line", None)
        place = f"{path}:{line}" if line else str(path)
        raise ConfigError(f"{place}: not TOML: {error}", "mend the line; strings stand in double quotes") from None


def _leaves(table: Mapping[str, Any], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    for name, value in table.items():
        key = (*prefix, name)
        if isinstance(value, dict) and key in _SECTIONS:
            yield from _leaves(value, key)
        else:
            yield key, value


def _nest(values: Mapping[KeyPath, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        table = tree
        for section in key[:-1]:
            table = table.setdefault(section, {})
        table[key[-1]] = value
    return tree


def _show(value: Any) -> str:
    """A value as one would write it, short."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:
        text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def suggestion(key: KeyPath) -> str:
    """Which key may have been meant, as the end of a sentence; or nothing."""
    names = {".".join(known): known for known in (*_KINDS, *(section for section in _SECTIONS if section))}
    close = difflib.get_close_matches(".".join(key), names, n=1, cutoff=0.75)
    if close:
        return f"; did you mean {close[0]}?"
    same = [name for name, known in names.items() if known[-1] == key[-1]]
    return f"; did you mean {same[0]}?" if len(same) == 1 else ""


def _is_near(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or "." not in host or host.endswith((".local", ".internal", ".onion", ".localhost"))


# Names as TOML has them: bare or quoted, those of a key separated by dots.
_NAME = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_KEY = re.compile(rf"\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*=")


class _Lines:
    """``file:line`` of a key, found by reading the file as people do: headers in brackets, keys before ``=``."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._found: dict[KeyPath, int] = {}
        section: KeyPath = ()
        for number, line in enumerate(text.splitlines(), 1):
            header = re.match(r"\s*\[+([^\]#]+)\]+", line)
            if header:
                section = self._split(header[1])
                self._found.setdefault(section, number)
            elif match := _KEY.match(line):
                self._found.setdefault((*section, *self._split(match[1])), number)

    @staticmethod
    def _split(dotted: str) -> KeyPath:
        return tuple(part.strip().strip("\"'") for part in dotted.split("."))

    def __call__(self, key: KeyPath) -> str:
        for length in range(len(key), 0, -1):
            if key[:length] in self._found:
                return f"{self._path}:{self._found[key[:length]]}"
        return str(self._path)


_CONVERTER = _converter()
