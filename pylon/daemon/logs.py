"""The daemon's log: one line a record in ``logs/pylon.log``, rotated, 0600. Nothing secret is ever handed to it.

A record is a JSON object: ``timestamp`` (UTC), ``level``, ``logger``, ``event``, ``exception`` if there was one, and
``agent`` (its name) where the record was made in an agent's own nursery. One that tells an event of the home
(``pylon.events``) has its ``kind``, its ``seq``, and its fields in ``data``, too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import logging.handlers
import os
from pathlib import Path
from typing import Any

import attrs
import structlog

from pylon.errors import ConfigError
from pylon.events import Told
from pylon.logcontext import AGENT

_ROTATE_AT = 10 << 20
_KEEP = 5


class Log(logging.handlers.RotatingFileHandler):
    """The open log. What cannot be written (the disk is full) is dropped, counted, and said when it is possible again.

    ``streams``: stdout and stderr of the process go where the log goes, also after a rotation.
    """

    def __init__(self, path: Path, *, streams: bool = False) -> None:
        self._streams = streams
        self.dropped = 0
        super().__init__(path, maxBytes=_ROTATE_AT, backupCount=_KEEP)

    def _open(self) -> io.TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        if self._streams:
            for stream in (1, 2):
                os.dup2(descriptor, stream)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="replace")

    def emit(self, record: logging.LogRecord) -> None:
        before = self.dropped
        super().emit(record)
        if before and self.dropped == before:
            self.dropped = 0
            message = f"the log could not be written: {before} records are missing"
            self.emit(logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None))

    def handleError(self, record: logging.LogRecord) -> None:
        self.dropped += 1

    def reopen(self) -> None:
        """Go on in the file that has the log's name now: another program may have moved the old one away."""
        self.acquire()
        try:
            if self.stream is not None:
                with contextlib.suppress(OSError):
                    self.stream.close()
            self.stream = self._open()
        except OSError:
            self.stream = None  # opened by the next record
            self.dropped += 1
        finally:
            self.release()


def start_logging(path: Path, level: int = logging.INFO, *, streams: bool = False) -> Log:
    """Send every record of the process to ``path`` as JSON lines. Raises ``ConfigError`` where it cannot be opened."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handler = Log(path, streams=streams)
    except OSError as error:
        raise ConfigError(
            f"cannot open the log {path}: {error.strerror or error}", "check its owner and mode"
        ) from None
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_agent,
        _add_told,
        structlog.processors.format_exc_info,
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # httpx logs each request's URL at INFO; it says nothing that the backends do not.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return handler


def _add_agent(logger: Any, method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if name := AGENT.get():
        fields["agent"] = name
    return fields


def _add_told(logger: Any, method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    told = getattr(fields.get("_record"), "told", None)
    if isinstance(told, Told):
        fields.update(kind=told.event.kind, seq=told.seq, data=attrs.asdict(told.event))
        if told.name:
            fields["agent"] = told.name
    return fields
