"""Kinds of values of the configuration: what is allowed, said in words, and how it is read from text."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from pylon.config_backends import ALLOWED, KINDS, check_backends
from pylon.errors import UsageError


@attrs.frozen
class Bind:
    """An address to listen on; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen
class Kind:
    allowed: str
    check: Callable[[Any], Any]
    """The value as it is kept; raises ``ValueError`` or ``TypeError`` where it is not allowed."""
    from_text: Callable[[str], Any] = str
    secret: bool = False
    """A value that no message shows."""
    many: bool = False
    """A list; as text, separated by commas."""


def _is(kind: type, value: Any) -> Any:
    """``value``, which must be of exactly this type: no ``True`` for 1, no 1 for ``True``."""
    if type(value) is not kind:
        raise ValueError
    return value


def _text(value: Any) -> str:
    if any(ord(char) < 32 and char not in "\n\t" for char in _is(str, value)):
        raise ValueError
    return str(value)


def _some_text(value: Any) -> str:
    text = _text(value).strip()
    if not text:
        raise ValueError
    return text


def choice(*choices: str) -> Kind:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return Kind("one of " + ", ".join(f'"{choice}"' for choice in choices), check)


def integer(least: int, most: int, unit: str) -> Kind:
    def check(value: Any) -> int:
        if not least <= _is(int, value) <= most:
            raise ValueError
        return int(value)

    return Kind(f"a whole number of {unit} from {least} to {most}", check, int)


def seconds(most: float) -> Kind:
    def check(value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not 0 < value <= most:
            raise ValueError
        return float(value)

    return Kind(f"seconds, more than 0 and at most {most:g}", check, float)


def _flag_from_text(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    return known[text.strip().lower()]


def _list_of(item: Callable[[Any], Any], allowed: str) -> Kind:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) not in (list, tuple):
            raise ValueError
        return tuple(dict.fromkeys(item(entry) for entry in value))

    return Kind(allowed, check, lambda text: [part.strip() for part in text.split(",") if part.strip()], many=True)


def relay_url(value: Any) -> str:
    """A relay's address as configured: ``ws://`` or ``wss://`` and a host. Raises ``ValueError``."""
    url = str(_is(str, value)).strip()
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.port == 0:
        raise ValueError
    if "@" in parts.netloc or parts.fragment or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError
    return url


def relay_urls(values: Iterable[Any]) -> list[str]:
    """The relays that somebody has named, each once. Raises ``UsageError``."""
    try:
        return list(dict.fromkeys(map(relay_url, values)))
    except (ValueError, TypeError):
        raise UsageError("a relay is named by its address", "wss://relay.example") from None


def _bind(value: Any) -> Bind:
    if isinstance(value, Bind):
        return value
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})", _is(str, value).strip())
    if match is None or int(match[3]) > 65535:
        raise ValueError
    return Bind(match[1] or match[2], int(match[3]))


def _public_name(value: Any) -> str:
    """Empty, or what may stand behind the @ of a lightning address: those who pay refuse anything else."""
    name = _text(value).strip().lower()
    if name:
        # Imported here: most configurations name none.
        from protocols.lnurl import lightning_address_url

        lightning_address_url(f"agent@{name}")
    return name


def _public_key(value: Any) -> str:
    """As hex."""
    # Imported here: most configurations name none.
    from protocols.nip19 import decode_public_key

    return decode_public_key(_some_text(value)).hex


def _multipliers(value: Any) -> tuple[tuple[str, float], ...]:
    """Pairs of a model and its number, from a table of them."""
    pairs = value.items() if isinstance(value, dict) else _is(tuple, value)
    found = {}
    for model, number in pairs:
        if type(number) not in (int, float) or not math.isfinite(number) or not 0 <= number <= 10_000:
            raise ValueError
        found[_some_text(model)] = float(number)
    return tuple(found.items())


def absolute_path(value: Any) -> Path:
    try:
        path = Path(_some_text(os.fspath(value))).expanduser()
    except RuntimeError:  # ~somebody who is not there
        raise ValueError from None
    if not path.is_absolute():
        raise ValueError
    return path


FLAG = Kind("true or false", lambda value: _is(bool, value), _flag_from_text)
TEXT = Kind("a text", _text)
SECRET = Kind("a text", _text, secret=True)
SOME_TEXT = Kind("a text that is not empty", _some_text)
PATH = Kind("an absolute path (~ is yours)", absolute_path)
BIND = Kind('"host:port", port 0 to 65535', _bind)
PUBLIC_NAME = Kind('a host name in public, a port with it if need be, such as "agents.example.com"', _public_name)
RELAYS = _list_of(relay_url, 'a list of relay addresses, ws:// or wss://, such as ["wss://relay.example"]')
BACKEND_LIST = _list_of(choice(*KINDS).check, "a list of " + ", ".join(f'"{name}"' for name in KINDS))
BACKEND_TABLES = Kind(ALLOWED, check_backends, json.loads, secret=True)
TEXTS = _list_of(_some_text, "a list of texts")
PUBLIC_KEYS = _list_of(_public_key, "a list of public keys, npub1... or hex")
MULTIPLIERS = Kind(
    "models with what each costs more or less: a table of numbers from 0 to 10000", _multipliers, json.loads
)
