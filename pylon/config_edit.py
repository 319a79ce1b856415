"""Changing ``config.toml`` as a careful person would: one key, everything else and every comment as it was.

A file is replaced whole or not at all, stays 0600, and is not written where the change would make it wrong. What was
wrong elsewhere in it before is told, and is no reason to refuse: it may be what is being mended, a key at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import attrs
import tomlkit
from tomlkit.items import Item

from pylon import config as configuration
from pylon.config import KeyPath, Source
from pylon.config_backends import BackendConfig, BackendsInvalid
from pylon.config_default import remark
from pylon.config_values import Bind, Kind
from pylon.errors import ConfigError, UsageError
from pylon.files import put_private

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOCK_SECONDS = 5.0
_INDENT = "    "
_LONG_LIST = 2
"""Texts that a list has on one line at most."""


@attrs.frozen
class Edited:
    """What became of the file."""

    path: Path
    changed: bool
    """Whether anything had to be written."""
    left: tuple[str, ...] = ()
    """What is wrong in the file still, and was before."""


def key_path(text: str) -> KeyPath:
    """A key as people name it, ``relay.bind``. Raises ``UsageError`` with a suggestion."""
    path = tuple(part.strip() for part in text.strip().split("."))
    if path not in configuration.known_keys():
        if path in configuration.sections():
            raise UsageError(f"{text} is a section, not a key", "pylon config show lists its keys")
        close = configuration.suggestion(path).removeprefix("; ")
        raise UsageError(f"there is no key {text!r}", close or "pylon config show lists them")
    return path


def read_value(path: KeyPath, words: tuple[str, ...]) -> Any:
    """The value that somebody has typed for a key, checked. Raises ``ConfigError`` with what is allowed.

    A list comes as words, each perhaps several by commas, or as one JSON array; ``backends`` comes as JSON.
    """
    kind = configuration.kind_of(path)
    name = ".".join(path)
    shown = "(not shown)" if kind.secret else json.dumps(" ".join(words), ensure_ascii=False)
    try:
        value = _from_words(kind, words)
        kind.check(value)
    except BackendsInvalid as error:
        raise ConfigError(f"{name}: {error}", "see docs/backends.md") from None
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ConfigError(f"{name} = {shown}: wanted {kind.allowed}", "nothing was changed") from None
    return value


def _from_words(kind: Kind, words: tuple[str, ...]) -> Any:
    if kind.many:
        if len(words) == 1 and words[0].lstrip().startswith("["):
            return json.loads(words[0])
        return [part for word in words for part in kind.from_text(word)]
    if len(words) != 1:
        raise ValueError
    return kind.from_text(words[0])


def set_value(file: Path, path: KeyPath, value: Any) -> Edited:
    """Write a checked value (as TOML has it: a text, a number, a list, a list of tables) for a key."""

    def edit(document: tomlkit.TOMLDocument) -> None:
        old = configuration.older_name(path)
        table: MutableMapping[str, Any] = document
        for name in path[:-1]:
            if name not in table:
                inline = isinstance(table, tomlkit.items.InlineTable)
                table[name] = tomlkit.inline_table() if inline else tomlkit.table()
            table = table[name]
            if not isinstance(table, MutableMapping):
                raise ConfigError(f"{file}: {'.'.join(path[:-1])} is no section in it", "make it one by hand")
        _put(table, path, value)
        if old is not None:
            _drop(document, old)  # an older file's name of the same thing: two would contradict each other

    return _edit(file, path, edit)


def unset_value(file: Path, path: KeyPath) -> Edited:
    """Take a key out, so that its default holds; one that nobody knows can be taken out, too."""

    def edit(document: tomlkit.TOMLDocument) -> None:
        _drop(document, path)
        old = configuration.older_name(path)
        if old is not None:
            _drop(document, old)

    return _edit(file, path, edit)


def relays_in(file: Path) -> list[str] | None:
    """The relays that the file itself names; ``None`` where it names none."""
    value = _plain(file).get("relays")
    return [str(url) for url in value] if isinstance(value, list) else None


def has(file: Path, path: KeyPath) -> bool:
    """Whether the file itself has this key."""
    table: Any = _plain(file)
    for name in path:
        if not isinstance(table, Mapping) or name not in table:
            return False
        table = table[name]
    return True


def _plain(file: Path) -> dict[str, Any]:
    return configuration.parse(file, configuration.read_text(file))[1]


# --- the document -----------------------------------------------------------------------------------------------------


def _put(table: MutableMapping[str, Any], path: KeyPath, value: Any) -> None:
    name, before = path[-1], table.get(path[-1])
    if path == ("backends",):
        if name in table:
            del table[name]  # tables do not merge with those of before
        if value:
            tables = tomlkit.aot()
            for entry in value:
                tables.append(tomlkit.item(dict(entry)))
            table[name] = tables
        return
    if path == ("relays",) and isinstance(before, tomlkit.items.Array):
        _put_list(before, [str(entry) for entry in value])
        return
    comment = before.trivia.comment if isinstance(before, Item) else ""
    made = _array(value) if isinstance(value, list | tuple) else tomlkit.item(value)
    if isinstance(made, tomlkit.items.Table) and not isinstance(before, tomlkit.items.Table):
        # In a line: one with lines of its own may stand in no line, and takes the keys that are set after it.
        made = tomlkit.inline_table()
        made.update(value)
    table[name] = made
    if path == ("network",) and comment and f"  {comment}" == remark(str(before)):
        # What a new home's file says beside its network is of that network.
        fresh = table[name]
        fresh.trivia.comment_ws, fresh.trivia.comment = "", ""
        if remark(value):
            fresh.comment(remark(value).removeprefix("  # "))


def _array(values: list[Any] | tuple[Any, ...]) -> tomlkit.items.Array:
    array = tomlkit.array()
    array.extend(values)
    return array.multiline(len(values) > _LONG_LIST)


def _put_list(array: tomlkit.items.Array, values: list[str]) -> None:
    """Change a list in place: what stays keeps its comment."""
    lines = "\n" in array.as_string()
    for index in range(len(array) - 1, -1, -1):
        if array[index] not in values:
            del array[index]
    there = list(array)
    if [value for value in values if value in there] != there:
        array.clear()
        there = []
    for value in values:
        if value not in there:
            if lines:
                array.add_line(value, indent=_INDENT, newline=True)
            else:
                array.append(value)


def _drop(document: tomlkit.TOMLDocument, path: KeyPath) -> None:
    table: Any = document
    for name in path[:-1]:
        table = table.get(name) if isinstance(table, MutableMapping) else None
    if isinstance(table, MutableMapping) and path[-1] in table:
        del table[path[-1]]


# --- the file ---------------------------------------------------------------------------------------------------------


def _edit(file: Path, path: KeyPath, change: Callable[[tomlkit.TOMLDocument], None]) -> Edited:
    """Change the file by ``change``. Raises ``ConfigError`` where that would make anything wrong that was right."""
    real = Path(os.path.realpath(file))  # a link into somebody's dotfiles stays one
    try:
        real.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(real.parent):
            before = configuration.read_text(real)
            document, _ = configuration.parse(file, before)
            problems = configuration.problems_in(file, before)
            change(document)
            text = tomlkit.dumps(document)
            now = configuration.problems_in(file, text)
            fresh = [told for key, told in now.items() if key not in problems or key == path]
            if fresh:
                raise ConfigError("\n".join(fresh), "nothing was changed")
            left = tuple(now.values())
            if text == before:
                return Edited(file, False, left)
            put_private(real, text.encode(), replace=True)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror or error}", "check its owner and mode") from None
    return Edited(file, True, left)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One at a time, of all who change a file in this directory; the kernel takes it back from one that dies."""
    if fcntl is None:
        with _alone_by_file(directory):
            yield
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _busy(directory) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alone_by_file(directory: Path) -> Iterator[None]:
    """The same where directories cannot be locked."""
    import filelock

    try:
        lock = filelock.FileLock(directory / ".config.lock", timeout=_LOCK_SECONDS)
        with lock:
            yield
    except filelock.Timeout:
        raise _busy(directory) from None


def _busy(directory: Path) -> ConfigError:
    return ConfigError(f"somebody else is changing a file in {directory}", "try again when that is done")


# --- what is shown ----------------------------------------------------------------------------------------------------


def row_of(path: KeyPath, value: Any, source: Source) -> dict[str, Any]:
    """One key for output: ``value``, ``source``, ``where``; of a secret ``set``, whether there is one."""
    row: dict[str, Any] = {"value": plain_value(path, value), "source": source.kind, "where": source.where or None}
    if configuration.kind_of(path).secret and path != ("backends",):
        row["set"] = bool(value)
    return row


def plain_value(path: KeyPath, value: Any) -> Any:
    """A value as JSON has it. What is secret is not in it: ``None`` stands for a secret, whether set or not."""
    if path == ("backends",):
        return [_backend(table) for table in value]
    if configuration.kind_of(path).secret:
        return None
    if isinstance(value, Bind | Path):
        return str(value)
    if path == ("provider", "multipliers"):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    return value


def _backend(table: BackendConfig) -> dict[str, Any]:
    shown = {name: list(value) if isinstance(value, tuple) else value for name, value in attrs.asdict(table).items()}
    return {**shown, "url": _without_secrets(table.url)}


def _without_secrets(url: str) -> str:
    """An address without the password, and without the query, that it may carry."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    netloc = f"…@{host}" if "@" in parts.netloc else host
    return urlunsplit((parts.scheme, netloc, parts.path, "…" if parts.query else "", ""))


def as_toml(value: Any) -> str:
    """A plain value on one line, as one would write it in the file."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(name)} = {as_toml(entry)}" for name, entry in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(as_toml(entry) for entry in value) + "]"
    return str(tomlkit.item(value).as_string())


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else as_toml(name)
