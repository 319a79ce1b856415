"""What every command shares: the global options, and how it speaks.

stdout is data; warnings, prompts and progress go to stderr. With ``--json`` there is one JSON value on stdout, and an
error is one JSON object on stderr. Only click and the standard library, for ``pylon status`` pays for it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pylon.errors import PylonError

if TYPE_CHECKING:
    from pathlib import Path

    from pylon.passphrase import Passphrase
    from pylon.paths import Home

F = TypeVar("F", bound=Callable[..., Any])


class State:
    """The global options, ``ctx.obj`` of every command."""

    def __init__(self) -> None:
        self.home_option: str | None = None
        self.json = False
        self.passphrase_fd: int | None = None
        self.passphrase: Passphrase | None = None
        """Of the home, once it was given: a command of several steps asks once."""
        self._home: Home | None = None

    @property
    def home(self) -> Home:
        """The home, found at the first use; what it warns of is said then."""
        if self._home is None:
            from pylon.paths import find_home

            self._home = find_home(self.home_option)
            _expect_directory(self._home.root)
            warn(self._home.warnings)
        return self._home


def _expect_directory(root: Path) -> None:
    """A home is a directory, or is to be one."""
    try:
        if stat.S_ISDIR(os.stat(root).st_mode):
            return
    except FileNotFoundError:
        return
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        reason = "it is no directory"
    from pylon.errors import ConfigError

    raise ConfigError(f"{root} cannot be a home: {reason}", "name a directory with --home or PYLON_HOME")


pass_state = click.make_pass_decorator(State)


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(State).json = True


def json_option(command: F) -> F:
    """``--json``, the same one before and after the command's name."""
    return click.option(
        "--json", is_flag=True, expose_value=False, callback=_set_json, help="Print one JSON value on stdout."
    )(command)


class FileDescriptor(click.ParamType[int]):
    """The number of an open file. What stands there instead is not repeated: it may be what should be read from it."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        text = str(value)
        if not text.isascii() or not text.isdecimal() or len(text) > 9:
            self.fail("the number of an open file is wanted, as in 3 3< FILE", param, context)
        return int(text)


def _set_descriptor(context: click.Context, _: click.Parameter, value: int | None) -> None:
    if value is not None:
        context.ensure_object(State).passphrase_fd = value


def home_passphrase_option(command: F) -> F:
    """``--passphrase-fd``, where it is the home's."""
    return click.option(
        "--passphrase-fd",
        type=FileDescriptor(),
        metavar="N",
        expose_value=False,
        callback=_set_descriptor,
        help="Read the home's passphrase from file descriptor N, its first line.",
    )(command)


def emit(state: State, data: Any, text: str | Callable[[], str]) -> None:
    """The result of a command: ``data`` with ``--json``, else ``text``."""
    if state.json:
        click.echo(_json(data))
    else:
        click.echo(plain(text if isinstance(text, str) else text()))


_CONTROLS = {code: 0xFFFD for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def plain(text: str) -> str:
    """``text`` without control characters: what others wrote shall not command a terminal."""
    return text.replace("\r\n", "\n").translate(_CONTROLS)


def _json(data: Any) -> str:
    import json

    return json.dumps(data, ensure_ascii=False)


def note(text: str) -> None:
    """A sentence for people, on stderr."""
    click.echo(plain(text), err=True)


def warn(warnings: tuple[str, ...] | list[str]) -> None:
    for warning in warnings:
        note(f"warning: {warning}")


def print_error(error: PylonError, as_json: bool) -> None:
    """An error on stderr, with the next step."""
    if as_json:
        note(_json(error.to_json()))
        return
    note(f"error: {error.message}")
    if error.hint:
        note(f"hint: {error.hint}")


def in_sats(msats: int | None) -> str:
    """An amount for people, with its unit; unknown is said, and is not zero."""
    if msats is None:
        return "unknown"
    from pylon.money import Msat, format_msat

    return format_msat(Msat(msats))
