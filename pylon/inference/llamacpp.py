"""The embedded engine: a llama.cpp server in a child process of ours, kept alive.

The child is ``pylon.inference.engine``. It is started again whenever it dies or no longer answers, after a wait that
doubles from 1 s to 60 s and starts over once the child has lived five times as long as the last one. Unlike a
``Supervisor`` this never gives up: nothing else depends on the child, and a file may be put right. Every start makes a
new key, and settings travel through stdin, never through argv. A request that is under way when the child dies fails
with ``BackendUnavailable`` at once: the kernel closes its connection.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import secrets
import signal
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import trio

from pylon import ourselves
from pylon.backoff import Backoff
from pylon.inference.deadlines import Accepted
from pylon.inference.engine import MAX_LINE, Settings
from pylon.inference.local_engine import LocalEngine
from pylon.inference.models import ModelFile
from pylon.inference.openai import OpenAICompatible
from pylon.inference.port import Chunk, InferenceRequest

log = logging.getLogger(__name__)

ENGINE = tuple(ourselves.module("pylon.inference.engine"))

_LOADING = 300.0
"""Seconds that a model may take to load."""

_ENDING = 2.0
"""Seconds from the end of stdin to SIGKILL."""

_WATCH = 10.0
"""Seconds between two looks at a running child."""

_MISSES = 3
_MAX_LOG = 1 << 20

_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
_KEPT_PREFIXES = ("LC_", "LD_", "DYLD_", "CUDA_", "HIP_", "ROCR_", "GGML_", "VK_", "OMP_", "COVERAGE_")
"""What the child may know of our environment; keys of other services are not among it."""


class EmbeddedLlama(LocalEngine[OpenAICompatible]):
    """A backend with one model, in a process of its own.

    :param threads: for computing; ``None``: ``engine.default_threads()``.
    :param slots: answers at the same time; further requests wait for their turn, which counts as ``first_token``.
    :param context: tokens of prompt and answer together, at most.
    :param log_path: where the engine's stderr goes (0600); ``None``: nowhere.
    :param rng: for the jitter of restarts.
    :param backoff: the waits between restarts, instead of those that ``rng`` draws.
    :param command: what to start; tests have their own.

    ``async with engine.running():`` starts it and waits until it answers; ``await nursery.start(engine.run)`` only
    starts it. ``health`` says ``starting``, ``ready``, ``restarting: <why>`` or ``stopped``.
    """

    called = "the embedded engine"
    see = "see logs/engine.log"

    def __init__(
        self,
        model: ModelFile,
        *,
        threads: int | None = None,
        slots: int = 1,
        context: int = 4096,
        log_path: Path | None = None,
        rng: random.Random | None = None,
        backoff: Backoff | None = None,
        command: Sequence[str] = ENGINE,
    ) -> None:
        super().__init__(model, slots=slots, context=context, rng=rng, backoff=backoff)
        self.pid: int | None = None
        self._threads = threads
        self._log_path = log_path
        self._command = list(command)
        self._ready_at = math.inf
        self._turn = trio.Semaphore(slots)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the child alive until cancelled. ``started`` means that the first start has begun."""
        self._say("starting", loading=True)
        task_status.started()
        try:
            while True:
                self._ready_at = math.inf
                reason = await self._live()
                uptime = max(0.0, trio.current_time() - self._ready_at)
                log.warning("the embedded engine is started again: %s", reason)
                self._say(f"restarting: {reason}")
                await trio.sleep(self._backoff.wait(uptime))
                self._say(f"restarting: {reason}", loading=True)
        finally:
            self._say("stopped")

    async def _live(self) -> str:
        """One child from birth to death; returns of what it died."""
        key = secrets.token_urlsafe(32)
        try:
            process = await self._spawn()
        except OSError as error:
            return f"cannot start the engine: {error.strerror or error}"
        self.pid = process.pid
        try:
            port = await self._introduce(process, key)
            if isinstance(port, str):
                return port
            client = OpenAICompatible(self.name, f"http://127.0.0.1:{port}/v1", api_key=key)
            try:
                self._say("ready", client)
                self._ready_at = trio.current_time()
                reason = await self._watch(process, client)
                self._say(f"restarting: {reason}")
                return reason
            finally:
                if self._ready is not None:
                    self._say("stopping")
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _ENDING):
                    await client.aclose()
        finally:
            await _end(process)
            self.pid = None

    async def _spawn(self) -> trio.Process:
        sink: int = subprocess.DEVNULL
        if self._log_path is not None:
            sink = os.open(self._log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(sink).st_size > _MAX_LOG:
                os.ftruncate(sink, 0)
        try:
            return await trio.lowlevel.open_process(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env={k: v for k, v in os.environ.items() if k in _KEPT or k.startswith(_KEPT_PREFIXES)},
                start_new_session=True,  # Ctrl-C in a terminal is for us: the child is needed until we have ended
            )
        finally:
            if sink >= 0:
                os.close(sink)

    async def _introduce(self, process: trio.Process, key: str) -> int | str:
        """Tell the child what to do. Returns its port, or why there is none."""
        settings = Settings(
            model=str(self.model.path),
            name=self.model.name,
            key=key,
            slots=self.slots,
            context=self.context,
            threads=self._threads,
        )
        line = b""
        with trio.move_on_after(_LOADING) as scope:
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                await process.stdin.send_all(json.dumps(settings).encode() + b"\n")
                while b"\n" not in line and len(line) < MAX_LINE:
                    piece = await process.stdout.receive_some(4096)
                    if not piece:
                        break
                    line += piece
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        if scope.cancelled_caught:
            return f"the model did not load within {_LOADING:g} s"
        try:
            reply = json.loads(line)
            return int(reply["port"]) if "port" in reply else f"{reply['error']}{self._see_log()}"[:500]
        except (ValueError, KeyError, TypeError):
            return f"{await _cause(process)} while it loaded the model{self._see_log()}"

    def _see_log(self) -> str:
        return f" (see {self._log_path})" if self._log_path else ""

    async def _watch(self, process: trio.Process, client: OpenAICompatible) -> str:
        """Wait for the child's death, and bring it about if the child hangs."""
        misses = 0
        while misses < _MISSES:
            with trio.move_on_after(_WATCH):
                await process.wait()
                return await _cause(process)
            misses = 0 if (await client.health()).ok else misses + 1
        return "the engine hung, and was ended"

    async def _generate(self, request: InferenceRequest, accepted: Accepted) -> AsyncGenerator[Chunk, None]:
        request = self._asked(request)
        await self._when_ready()
        accepted()
        async with self._turn:
            client = await self._when_ready()
            async with aclosing(client.generate(request, accepted)) as chunks:
                async for chunk in chunks:
                    yield chunk


async def _end(process: trio.Process) -> None:
    """Close stdin, which asks the child to end; then make it."""
    with trio.CancelScope(shield=True):
        if process.stdin is not None:
            await process.stdin.aclose()
        with trio.move_on_after(_ENDING):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        if process.stdout is not None:
            await process.stdout.aclose()


async def _cause(process: trio.Process) -> str:
    with trio.move_on_after(_ENDING):
        await process.wait()
    code = process.returncode
    if code is None:
        return "the engine closed its output"
    if code < 0:
        return f"the engine was ended by {signal.Signals(-code).name}"
    return f"the engine ended with exit code {code}"
