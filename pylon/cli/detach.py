"""Starting the daemon in the background: the command runs itself again, detached, and waits until that is ready.

The new process is a program of its own from its first instruction (no fork goes on with threads, locks or an event
loop of ours): in a session of its own, with stdin on /dev/null, stdout and stderr in the log. Over a pipe it tells one
JSON object a line: ``{"say": TEXT}``, then ``{"ready": FACTS}`` or ``{"error": …, "exit_code": N}``. A passphrase
travels by a descriptor, never by argv or the environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from pylon import ourselves
from pylon.cli.client import remote_error
from pylon.cli.output import State, note
from pylon.cli.unlock import home_passphrase
from pylon.errors import ConfigError, ControlError, PylonError

PATIENCE = 120.0
"""Seconds for it to become ready. Afterwards it goes on alone."""
_SHOWN_LINES = 5
_PATHS = ("PYLON_HOME", "PYLON_MODELS", "PYLON_PASSPHRASE_FILE")
"""Variables with paths, which may be relative to where the command was given."""


def start_detached(state: State, arguments: list[str]) -> dict[str, Any]:
    """Run ``pylon start ARGUMENTS`` in the background; its facts, once it is ready.

    Raises what kept it from starting.
    """
    words = _words(state)
    heard, tell = os.pipe()
    try:
        log = _open_log(state)
        before = os.fstat(log).st_size
        command = [
            *ourselves.command(),
            *(["--home", os.path.abspath(os.path.expanduser(state.home_option))] if state.home_option else []),
            "start",
            *arguments,
            "--ready-fd",
            str(tell),
            *([] if words is None else ["--passphrase-fd", str(words)]),
        ]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(tell,) if words is None else (tell, words),
            )
        finally:
            os.close(log)
    except BaseException:
        os.close(heard)
        raise
    finally:
        os.close(tell)
        if words is not None:
            os.close(words)
    try:
        return _wait(state, process, heard, before)
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        raise
    finally:
        os.close(heard)


def _words(state: State) -> int | None:
    """A descriptor that gives the passphrase; ``None`` where none is needed, or the new process finds it itself."""
    if state.passphrase_fd is not None:
        try:
            return os.dup(state.passphrase_fd)  # its number is free for the new process then, even if it is stdin's
        except OSError as error:
            raise ConfigError(f"file descriptor {state.passphrase_fd}: {error.strerror}", "3 3< FILE") from None
    from pylon import identity, passphrase

    if not identity.is_protected(state.home) or passphrase.is_given():
        return None
    typed = home_passphrase(state)
    assert typed is not None, "a protected home has a passphrase"
    reader, writer = os.pipe()
    try:
        typed.write_line(writer)  # a line is far shorter than a pipe's buffer
    finally:
        os.close(writer)
    return reader


def _open_log(state: State) -> int:
    state.home.prepare()
    try:
        return os.open(state.home.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot open {state.home.log}: {error.strerror}", "check its owner and mode") from None


def _wait(state: State, process: subprocess.Popen[bytes], heard: int, before: int) -> dict[str, Any]:
    for message in _messages(heard, time.monotonic() + PATIENCE):
        if message is None:
            raise ControlError(
                f"pid {process.pid} is not ready after {PATIENCE:.0f} s, and goes on starting",
                f"pylon status; its log: {state.home.log}",
            )
        if isinstance(message.get("say"), str):
            note(message["say"])
        elif isinstance(facts := message.get("ready"), dict):
            return facts
        elif isinstance(error := message.get("error"), dict):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)  # whoever hears why may try again at once
            raise remote_error({"data": {**error, "exit_code": message.get("exit_code")}})
    raise _died(state, process.wait(), before)


def _messages(heard: int, deadline: float) -> Iterator[dict[str, Any] | None]:
    """What is told, until the other end is closed; ``None`` when the time is over."""
    buffer = b""
    poll = select.poll()
    poll.register(heard, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1_000):
            yield None
            return
        received = os.read(heard, 65_536)
        if not received:
            return
        *lines, buffer = (buffer + received).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict):
                yield message


def _died(state: State, code: int, before: int) -> PylonError:
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    tail = _tail(state, before)
    said = f": {tail}" if tail else ""
    return ControlError(f"the daemon ended {how} before it was ready{said}", f"its log: {state.home.log}")


def _tail(state: State, before: int) -> str:
    """The end of what it has written to the log as plain text."""
    try:
        with state.home.log.open("rb") as file:
            file.seek(before)
            text = file.read(65_536).decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("{")]
    return " | ".join(lines[-_SHOWN_LINES:])


class Teller:
    """The other end: what the new process tells until it is ready."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor: int | None = descriptor

    def say(self, line: str) -> None:
        self._tell({"say": line})

    def ready(self, facts: dict[str, Any]) -> None:
        self._tell({"ready": facts})
        self._close()

    def failed(self, error: PylonError) -> None:
        self._tell({**error.to_json(), "exit_code": error.exit_code})
        self._close()

    def _tell(self, message: dict[str, Any]) -> None:
        """Whoever waited may have gone; that is no reason to fail."""
        if self._descriptor is None:
            return
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextlib.contextmanager
def telling(descriptor: int) -> Iterator[Teller]:
    """Be the process that was started: whatever ends the block before it is ready is told."""
    teller = Teller(descriptor)
    try:
        yield teller
    except BaseException as raised:
        from pylon.errors import brief
        from pylon.groups import cause

        error = cause(raised)
        teller.failed(
            error if isinstance(error, PylonError) else PylonError(f"unexpected {brief(error)}", "see the log")
        )
        raise


def leave_directory(directory: os.PathLike[str]) -> None:
    """Stand in ``directory`` from now on, so that no other one is kept in use."""
    for name in _PATHS:
        if value := os.environ.get(name):
            os.environ[name] = os.path.abspath(os.path.expanduser(value))
    os.chdir(directory)
