"""The ``[[backends]]`` tables of the configuration: backends elsewhere than where one looks, or several of a kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs

KINDS = ("ollama", "llamacpp", "apple_fm", "openai")
DEFAULT_URLS = {
    "ollama": "http://127.0.0.1:11434",
    "llamacpp": "http://127.0.0.1:8080/v1",
    "apple_fm": "http://127.0.0.1:11435",
    "openai": "https://api.openai.com/v1",
}

_USUAL_KEYS = {"openai": "OPENAI_API_KEY", "llamacpp": "LLAMA_API_KEY"}
"""The variables that these services' own programs read."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")


class BackendsInvalid(ValueError):
    """What is wrong with the tables, in words that may be shown."""


@attrs.frozen(kw_only=True)
class BackendConfig:
    """A backend. Only ``kind`` is needed."""

    kind: str
    """``ollama``, ``llamacpp`` (a server of llama.cpp), ``apple_fm``, or ``openai``: whatever speaks OpenAI's API."""
    name: str
    """What log and output call it; the kind, with a number if need be."""
    url: str
    """Where it is."""
    key_env: str = ""
    """The environment variable that holds its API key. The key itself has no place in a configuration."""
    models: tuple[str, ...] = ()
    """Serve only these; empty: all that it has. A paid service wants them named."""
    max_concurrent: int = 1
    """Answers at the same time."""
    max_waiting: int = 64
    """Requests that may wait for their turn; the next is refused."""
    context: int | None = None
    """Tokens of prompt and answer together, where the backend says nothing, or more; Ollama is told to hold so many."""
    keep_alive: str = ""
    """Ollama only: how long a model stays loaded, such as ``10m``."""


ALLOWED = f"tables [[backends]] with a kind ({', '.join(KINDS)}) and what else is needed: " + ", ".join(
    field.name for field in attrs.fields(BackendConfig) if field.name != "kind"
)


def check_backends(value: Any) -> tuple[BackendConfig, ...]:
    """The tables as they are kept. Raises ``BackendsInvalid``, which names the table by its number and the key."""
    if isinstance(value, tuple) and all(isinstance(table, BackendConfig) for table in value):
        return value
    if not isinstance(value, list | tuple):
        raise BackendsInvalid(f"wanted {ALLOWED}")
    tables: list[BackendConfig] = []
    for number, table in enumerate(value, 1):
        if not isinstance(table, Mapping):
            raise BackendsInvalid(f"number {number}: wanted a table, [[backends]]")
        made = _table(table, number, taken={other.name for other in tables})
        tables.append(made)
    return tuple(tables)


def default_backend(kind: str) -> BackendConfig:
    """The backend of a kind where one looks for it."""
    return BackendConfig(
        kind=kind,
        name=kind,
        url=DEFAULT_URLS[kind],
        key_env=_USUAL_KEYS.get(kind, ""),
        max_concurrent=_concurrent(kind),
    )


def _concurrent(kind: str) -> int:
    """Machines of one's own do one thing at a time best; a service does many."""
    return 8 if kind == "openai" else 1


def _table(table: Mapping[str, Any], number: int, taken: set[str]) -> BackendConfig:
    known = {field.name for field in attrs.fields(BackendConfig)}

    def wrong(key: str, wanted: str) -> BackendsInvalid:
        return BackendsInvalid(f"number {number}: {key}: wanted {wanted}")

    def text(key: str) -> str:
        value = table.get(key, "")
        if not isinstance(value, str) or any(ord(char) < 32 for char in value):
            raise wrong(key, "a text")
        return value.strip()

    def count(key: str, default: int, least: int, most: int) -> int:
        value = table.get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise wrong(key, f"a whole number from {least} to {most}")
        return value

    unknown = sorted(set(table) - known)
    if unknown:
        raise BackendsInvalid(f"number {number}: unknown key {unknown[0]!r}; there is {', '.join(sorted(known))}")
    kind = text("kind")
    if kind not in KINDS:
        raise wrong("kind", "one of " + ", ".join(f'"{one}"' for one in KINDS))
    name = text("name") or next(n for n in (kind, *(f"{kind}-{i}" for i in range(2, 1_000))) if n not in taken)
    if not _NAME.match(name):
        raise wrong("name", "letters, digits, - _ and ., at most 32")
    if name in taken:
        raise wrong("name", "a name that no other backend has")
    url = text("url") or DEFAULT_URLS[kind]
    if not _is_url(url):
        raise wrong("url", 'an http or https address, such as "http://127.0.0.1:11434"')
    key_env = text("key_env")
    if key_env and not _VARIABLE.match(key_env):
        raise wrong("key_env", "the name of an environment variable; the key itself has no place here")
    models = table.get("models", ())
    if not isinstance(models, list | tuple) or not all(isinstance(m, str) and m.strip() for m in models):
        raise wrong("models", "a list of the names of models")
    return BackendConfig(
        kind=kind,
        name=name,
        url=url,
        key_env=key_env or (_USUAL_KEYS.get(kind, "") if url.startswith(DEFAULT_URLS[kind]) else ""),
        models=tuple(dict.fromkeys(model.strip() for model in models)),
        max_concurrent=count("max_concurrent", _concurrent(kind), 1, 1_000),
        max_waiting=count("max_waiting", 64, 0, 100_000),
        context=count("context", 256, 256, 1 << 24) if "context" in table else None,
        keep_alive=text("keep_alive"),
    )


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:
        return False
