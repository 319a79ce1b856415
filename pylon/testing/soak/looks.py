"""What must be true when a soak has ended. Each look gives sentences; none is well."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

LADDER = ("dormant", "hibernating", "low_balance", "active")
MSATS = 1_000
GROWTH, SLACK_MIB = 1.15, 16.0
"""By which memory may be above what it was; what a restart with more rows takes more is within it."""


def allowed_states(balance: int, burn: int, *, hibernate_sats: int, low_days: float) -> set[str]:
    """The states that a balance (msats) implies: on the way down; and up, where the lines are a tenth higher.

    The seed's rule said once more, and not by the code that follows it. An agent that never had a sat is ``spawning``.
    """

    def rung(hibernate: float, low: float) -> int:
        if balance < MSATS:
            return 0
        if balance < hibernate:
            return 1
        return 2 if balance < low else 3

    hibernate, low = float(hibernate_sats * MSATS), low_days * burn
    down, up = rung(hibernate, low), rung(hibernate * 1.1, low * 1.1)
    return {LADDER[step] for step in range(up, down + 1)} | ({"spawning"} if balance < MSATS else set())


def wrong_states(agents: Sequence[Mapping[str, Any]], *, hibernate_sats: int, low_days: float) -> list[str]:
    """Agents as ``agent.list`` tells of them."""
    found = []
    for agent in agents:
        balance = agent["balance_msats"]
        if balance is None:
            found.append(f"{agent['name']}: its balance is not known")
            continue
        allowed = allowed_states(balance, agent["burn_msats"], hibernate_sats=hibernate_sats, low_days=low_days)
        if agent["state"] not in allowed:
            found.append(f"{agent['name']} has {balance:,} msats and is {agent['state']}, not {' or '.join(allowed)}")
    return found


def lost_purchases(purchases: Sequence[Mapping[str, Any]], sales: Mapping[str, str]) -> list[str]:
    """Paid purchases that came to neither an answer nor a debt. ``sales``: state by request."""
    found = []
    for row in purchases:
        if not row["paid_msats"] or row["state"] in ("answered", "credited"):
            continue
        sold = sales.get(row["request_id"] or "", "unknown")
        if sold not in ("owed", "delivered"):  # an answer that came late is taken when the buyer listens next
            found.append(f"purchase {row['id'][:16]} is paid and {row['state']}; its sale is {sold}")
    return found


def grown(samples: Sequence[tuple[float, float]], name: str) -> list[str]:
    """Whether the memory (s, MiB) of the last quarter is above that of the second one, by more than it may be."""
    if not samples:
        return [f"{name}: no samples"]
    first, last = samples[0][0], samples[-1][0]
    length = last - first
    second = [mib for at, mib in samples if first + length * 0.25 <= at < first + length * 0.5]
    fourth = [mib for at, mib in samples if at >= first + length * 0.75]
    if not second or not fourth:
        return [f"{name}: too few samples"]
    before, after = statistics.median(second), statistics.median(fourth)
    if after > before * GROWTH + SLACK_MIB:
        return [f"{name} has grown from {before:.0f} to {after:.0f} MiB"]
    return []


def strangers_of(directory: Path) -> list[str]:
    """Processes that have ``directory`` in their arguments, whoever started them; but us, and who runs us."""
    ours = {psutil.Process().pid, *(each.pid for each in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        words = [] if process.info["status"] == psutil.STATUS_ZOMBIE else process.info["cmdline"] or []
        if process.pid not in ours and any(str(directory) in word for word in words):
            found.append(f"pid {process.pid} still works in {directory}")
    return found
