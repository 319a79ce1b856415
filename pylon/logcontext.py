"""On whose behalf the running task works, for the log. A task hands it on to those that it starts."""

from __future__ import annotations

from contextvars import ContextVar

AGENT: ContextVar[str] = ContextVar("agent", default="")
"""The name of the agent, within its nursery."""
