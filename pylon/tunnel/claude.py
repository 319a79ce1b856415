"""Claude Code as a child process: started for one session, spoken to in its streaming JSON, ended with us.

The child inherits our environment without what is Pylon's: no ``PYLON_*``, no wallet's or identity's variable. Its
arguments hold no prompt and no secret. It reads the user's own settings, and none of the directory that it works in
(``--setting-sources=user``, ``--strict-mcp-config``): there, a session could have written itself a rule, a hook, or a
server. Hooks are on, whatever those settings say, for ours is what asks. A prompt is a text, and no more: ``@file``
would read that file without anybody being asked, and a slash begins a command, which may change the user's own
settings.

The child ends when its stdin does; but it finishes its turn first, which can be long, and nobody is there any more to
say yes or no. So a watchman stands beside it, a shell that waits for the end of a pipe of ours: when we are gone,
however that came about, so is the child's process group.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import attrs
import trio

from pylon.errors import ClaudeError
from pylon.tunnel import stream
from pylon.tunnel.policy import NEVER
from pylon.tunnel.stream import Answered, Asked, Event, Reader

log = logging.getLogger(__name__)

OLDEST = (2, 1, 0)
"""Those before it do not know all of our arguments."""
INSTALL = "install Claude Code (https://code.claude.com), or name it with --executable-path or [claude] executable_path"

STARTING = 60.0
"""Seconds for the child to say that it is ready; it may have to update itself."""
WRITING = 30.0
"""Seconds that the child may leave a line of ours unread."""
PATIENCE = 5.0
"""Seconds for the child to end by itself, and again after SIGTERM."""
_WATCH = 'read -r done && exit 0; sleep 1; kill -s KILL -- "-$1"'
"""The watchman: a line means that all is well; the end of the pipe means that we are gone."""
_HOOK_SLACK = 3_600.0
"""Our hook always answers, and before this; what does not answer would count as no objection."""
_RECEIVE = 65_536
_KEPT_ERRORS = 4_096

_OURS = re.compile(
    r"PYLON_|NWC_|NOSTR_|SPARK_|BREEZ_|CREDENTIALS_DIRECTORY$|CLAUDECODE$|CLAUDE_CODE_ENTRYPOINT$"
    # It has Claude Code call no hook, and ours is what asks.
    r"|CLAUDE_CODE_SIMPLE$"
    r"|.*(MNEMONIC|SEED_PHRASE|NSEC|PASSPHRASE)",
    re.IGNORECASE,
)
_TOLD = {
    "CLAUDE_CODE_DISABLE_ATTACHMENTS": "1",
    "CLAUDE_CODE_DISABLE_FILE_MENTIONS": "1",
    # What a page has said is not remembered for the user's own sessions.
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
}
_SETTINGS = '{"disableAllHooks":false}'
"""Wins over the user's own: with hooks turned off there, nobody would be asked."""
_PLAIN = re.compile(r"[A-Za-z0-9_]+")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._-]+")


@attrs.frozen(kw_only=True)
class Launch:
    """What a session's child is started with."""

    executable: Path
    model: str
    cwd: Path
    max_cost_usd: int | None = None
    """Millionths of a dollar."""
    blocked: tuple[str, ...] = ()
    """Tools that Claude need not even know of; what is denied is decided by the hook."""
    tools: tuple[str, ...] | None = None
    """The only tools that it is to have; ``None``: its own choice. Read-only, it would have a shell to search with."""
    closed: tuple[Path, ...] = ()
    """Directories that Claude Code itself shall keep out of: a second lock, the first is the hook's."""
    system_prompt: str | None = attrs.field(default=None, repr=False)
    """Added to Claude Code's own."""
    approval_seconds: float = 300.0


def find_executable(configured: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The program. Raises ``ClaudeError`` where it is not."""
    if configured is not None:
        if not configured.is_file():
            raise ClaudeError(f"there is no claude executable at {configured}", INSTALL)
        if not os.access(configured, os.X_OK):
            raise ClaudeError(f"{configured} cannot be executed", f"chmod +x {configured}, or name another")
        return configured
    found = shutil.which("claude", path=environ.get("PATH"))
    home = Path(environ.get("HOME") or Path.home())
    usual = (home / ".local/bin/claude", home / ".claude/local/claude", home / ".npm-global/bin/claude")
    places = [Path(found)] if found else [path for path in usual if os.access(path, os.X_OK)]
    if not places:
        raise ClaudeError("there is no claude on the PATH", INSTALL)
    return places[0]


async def version_of(executable: Path) -> str:
    """The program's version. Raises ``ClaudeError`` for one that does not run, and for one that is too old."""
    try:
        with trio.fail_after(STARTING):
            done = await trio.run_process(
                [executable, "--version"],
                stdin=b"",
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=environment(os.environ),
            )
    except trio.TooSlowError:
        raise ClaudeError(f"{executable} --version does not answer within {STARTING:g} s", INSTALL) from None
    except OSError as error:
        raise ClaudeError(f"{executable} does not run: {error.strerror or error}", INSTALL) from None
    told = done.stdout.decode("utf-8", "replace").strip()
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", told)
    if done.returncode != 0 or match is None:
        raise ClaudeError(f"{executable} --version does not tell a version: is it Claude Code?", INSTALL)
    if tuple(map(int, match.groups())) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ClaudeError(f"{executable} is Claude Code {match[0]}; {oldest} or newer is wanted", "claude update")
    return match[0]


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the child may know of ours."""
    return {name: value for name, value in environ.items() if _OURS.match(name) is None}


def arguments(launch: Launch, prompt_file: str | None) -> list[str]:
    found = [str(launch.executable), "--output-format", "stream-json", "--verbose", "--input-format", "stream-json"]
    found += ["--include-partial-messages", "--permission-prompt-tool", "stdio", "--permission-mode", "default"]
    found += ["--setting-sources=user", "--settings", _SETTINGS, "--strict-mcp-config", "--model", launch.model]
    blocked = [tool for tool in launch.blocked if _PLAIN.fullmatch(tool)]
    closed = [str(path) for path in launch.closed if _PLAIN_PATH.fullmatch(str(path))]
    doors = [f"{tool}(/{path}/**)" for path in closed for tool in ("Read", "Edit")]
    found += ["--disallowedTools", ",".join(dict.fromkeys((*NEVER, *blocked, *doors)))]
    if launch.tools is not None:
        found += ["--tools", ",".join(tool for tool in launch.tools if _PLAIN.fullmatch(tool))]
    if launch.max_cost_usd is not None:
        dollars, millionths = divmod(launch.max_cost_usd, 1_000_000)
        found += ["--max-budget-usd", f"{dollars}.{millionths:06d}"]
    if prompt_file is not None:
        found += ["--append-system-prompt-file", prompt_file]
    return found


class Claude:
    """One child. ``start`` it, run ``drain`` beside it, read ``events`` in one task, and ``aclose`` it always."""

    def __init__(self, process: trio.Process, watchman: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._watchman = watchman
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._reader = Reader()
        self._early: deque[Event] = deque()
        self._buffer = bytearray()
        self._searched = 0
        self._lock = trio.Lock()
        self._requests = 0
        self._errors = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def last_words(self) -> str:
        """The last line of its stderr: for our log, and for no page."""
        lines = self._errors.decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    @classmethod
    async def start(cls, launch: Launch) -> Claude:
        """Start it, and wait until it listens. Raises ``ClaudeError``."""
        prompt_file = None
        if launch.system_prompt:
            descriptor, prompt_file = tempfile.mkstemp(prefix="pylon-prompt-", suffix=".txt")  # 0600
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(launch.system_prompt)
        try:
            process = await trio.lowlevel.open_process(
                arguments(launch, prompt_file),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=launch.cwd,
                env={**environment(os.environ), **_TOLD, "PWD": str(launch.cwd)},
                start_new_session=True,  # Ctrl-C in a terminal is for us, and its group can be ended
            )
        except OSError as error:
            _remove(prompt_file)
            raise ClaudeError(f"{launch.executable} does not start: {error.strerror or error}", INSTALL) from None
        try:
            watchman = await _watch(process.pid)
        except OSError as error:
            process.kill()
            _remove(prompt_file)
            raise ClaudeError(
                f"claude cannot be watched over: {error.strerror or error}", "is /bin/sh there?"
            ) from None
        claude = cls(process, watchman)
        try:
            await claude._initialize(launch.approval_seconds + _HOOK_SLACK)
        except BaseException:
            await claude.aclose()
            raise
        finally:
            _remove(prompt_file)  # it has been read
        return claude

    async def _initialize(self, hook_seconds: float) -> None:
        with trio.move_on_after(STARTING):
            await self._write(stream.initialization("pylon-init", hook_seconds=hook_seconds))
            while (line := await self._line()) is not None:
                for event in self._reader.read(line):
                    if isinstance(event, Answered) and event.request_id == "pylon-init":
                        if event.error:
                            raise ClaudeError(f"claude does not start: {event.error[:200]}", "claude update")
                        return
                    self._early.append(event)
            raise ClaudeError("claude ended before it was ready", "does it run in a terminal, and is it logged in?")
        raise ClaudeError(f"claude was not ready within {STARTING:g} s", "does it run in a terminal?")

    async def drain(self) -> None:
        """Read its stderr, and keep the last of it."""
        errors = self._process.stderr
        assert errors is not None
        try:
            while piece := await errors.receive_some(_RECEIVE):
                self._errors = (self._errors + piece)[-_KEPT_ERRORS:]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def events(self) -> AsyncGenerator[Event]:
        """What it says, until it ends. Raises ``ClaudeError`` for a line beyond all bounds."""
        while self._early:
            yield self._early.popleft()
        while (line := await self._line()) is not None:
            for event in self._reader.read(line):
                yield event

    async def prompt(self, text: str) -> None:
        await self._write(stream.prompt(text))

    async def interrupt(self) -> None:
        """Ask it to end the turn, which then ends by ``TurnEnded``."""
        self._requests += 1
        await self._write(stream.interruption(f"pylon-{self._requests}"))

    async def allow(self, asked: Asked) -> None:
        await self._write(stream.allowance(asked))

    async def refuse(self, asked: Asked, reason: str) -> None:
        await self._write(stream.refusal(asked, reason))

    async def complain(self, request: stream.Unanswerable, error: str) -> None:
        await self._write(stream.complaint(request, error))

    async def cause(self) -> str:
        """How it ended, in words that may be told; for one that has closed its stdout."""
        with trio.move_on_after(PATIENCE):
            await self._process.wait()
        code = self._process.returncode
        if code is None:
            return "claude fell silent"
        return (
            f"claude was ended by {signal.Signals(-code).name}" if code < 0 else f"claude ended with exit code {code}"
        )

    async def aclose(self) -> None:
        """End it: the turn and its stdin first, then SIGTERM, then SIGKILL, and whatever is left of its group."""
        with trio.CancelScope(shield=True):
            with trio.move_on_after(1):
                try:
                    await self.interrupt()  # without which it would finish its turn
                except ClaudeError:
                    pass
            await self._stdin.aclose()
            for number in (signal.SIGTERM, signal.SIGKILL):
                with trio.move_on_after(PATIENCE):
                    await self._until_ended()
                if self._process.returncode is not None:
                    break
                self._signal(number)
            await self._process.wait()
            self._signal(signal.SIGKILL)
            await _dismiss(self._watchman)
            await self._stdout.aclose()
            if self._process.stderr is not None:
                await self._process.stderr.aclose()

    async def _until_ended(self) -> None:
        """Whatever it still says is read: with a full pipe it could not end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._discard)
            await self._process.wait()
            nursery.cancel_scope.cancel()

    async def _discard(self) -> None:
        try:
            while await self._stdout.receive_some(_RECEIVE):
                pass
        except trio.BrokenResourceError:
            pass

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    async def _write(self, line: bytes) -> None:
        try:
            # Alone: another task's line must not come between the halves of this one.
            async with self._lock:
                with trio.fail_after(WRITING):
                    await self._stdin.send_all(line)
        except trio.TooSlowError:
            raise ClaudeError(f"claude has read nothing for {WRITING:g} s") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ClaudeError("claude has ended") from None

    async def _line(self) -> bytes | None:
        """The next line; ``None``: no more."""
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._searched = 0
                return line
            self._searched = len(self._buffer)
            if self._searched > stream.MAX_LINE_BYTES:
                raise ClaudeError(f"claude has written a line of more than {stream.MAX_LINE_BYTES} bytes")
            try:
                piece = await self._stdout.receive_some(_RECEIVE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not piece:
                return None
            self._buffer += piece


async def _watch(group: int) -> trio.Process:
    return await trio.lowlevel.open_process(
        ["/bin/sh", "-c", _WATCH, "pylon-watch", str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"PATH": os.defpath},
        start_new_session=True,
    )


async def _dismiss(watchman: trio.Process) -> None:
    """The watchman goes first, or the number that it knows may be another's by then."""
    assert watchman.stdin is not None
    with trio.move_on_after(PATIENCE):
        try:
            await watchman.stdin.send_all(b"done\n")
            await watchman.wait()
        except trio.BrokenResourceError:
            pass
    await watchman.stdin.aclose()
    if watchman.returncode is None:
        watchman.kill()
        await watchman.wait()


def _remove(path: str | None) -> None:
    if path is not None:
        Path(path).unlink(missing_ok=True)
