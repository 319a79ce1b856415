"""The daemon's log: one line a record in ``logs/pylon.log``, rotated, 0600. Nothing secret is ever handed to it."""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
from pathlib import Path

import structlog

_ROTATE_AT = 10 << 20
_KEEP = 5


class _PrivateHandler(logging.handlers.RotatingFileHandler):
    def _open(self) -> io.TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="replace")


def start_logging(path: Path, level: int = logging.INFO) -> None:
    """Send every record of the process to ``path`` as JSON lines: time, level, logger, event, exception."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handler = _PrivateHandler(path, maxBytes=_ROTATE_AT, backupCount=_KEEP)
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
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
