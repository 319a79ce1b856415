"""Paid jobs: a provider, a buyer and our relay, three processes on one machine, a backend that answers at once.

Every job is whole: discovery, request, invoice, payment, answer, each step committed to disk before its effect.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.floor import Floor, Needs, measure
from benchmarks.processes import Child, child_when_ready, pylon_relay
from benchmarks.report import Table, percentile

SEQUENTIAL = 60
AT_ONCE = (4, 20, 200)
JOBS = 200
"""In each of those rows, so that beginning and end weigh little."""
METERED = 60
SLOTS = 8

# Measured in the same way on 2 cores: nostr-dvm 1.1.8 with a wallet that costs nothing (20 at once, its CPU, one by
# one), and this project's predecessor.
_DVM_RATE, _DVM_CPU, _DVM_SEQUENTIAL = 6.6, 48.0, 1_025.0
_FIRST_RATE = 0.3

_SIGNATURES = 4
"""Request, quote, processing, result."""
_VERIFICATIONS = 8
"""Each event by the relay, and by who gets it."""
_SIMNET_COMMITS = 2
"""The invoice and the payment, in the simulated network's own file."""


class Stage:
    """The three processes."""

    def __init__(self, relay: Child, provider: Child, buyer: Child) -> None:
        self.parties = {"provider": provider, "buyer": buyer, "relay": relay}
        self.provider, self.buyer = provider, buyer

    def run(self, jobs: int, at_once: int) -> dict[str, Any]:
        """Buy, and measure what it took: seconds of each job, CPU seconds of each process, commits."""
        for who in (self.provider, self.buyer):
            who.ask(do="reset")
        cpu = {name: who.cpu_seconds() for name, who in self.parties.items()}
        commits = self._commits()
        found: dict[str, Any] = self.buyer.ask(do="buy", jobs=jobs, at_once=at_once)
        if found["failed"]:
            raise RuntimeError(f"{len(found['failed'])} of {jobs} jobs failed: {found['failed'][0]}")
        found["cpu"] = {name: who.cpu_seconds() - cpu[name] for name, who in self.parties.items()}
        found["commits"] = self._commits() - commits
        found["jobs"] = jobs
        return found

    def _commits(self) -> int:
        return sum(who.ask(do="tell")["commits"] for who in (self.provider, self.buyer))


def run(
    *, sequential: int = SEQUENTIAL, at_once: Sequence[int] = AT_ONCE, jobs: int = JOBS, metered: int = METERED
) -> Table:
    table = Table("Paid jobs: relay, provider and buyer as three processes, a backend that answers at once")
    with tempfile.TemporaryDirectory(prefix="pylon-bench-") as name:
        floor = measure(Path(name))
        _measure(table, Path(name), floor, sequential, at_once, jobs)
    if metered:
        with tempfile.TemporaryDirectory(prefix="pylon-bench-") as name:
            _budget(table, Path(name), metered)
    return table


def _measure(table: Table, directory: Path, floor: Floor, sequential: int, at_once: Sequence[int], jobs: int) -> None:
    with pylon_relay() as (relay, url), party("provider", url, directory) as provider:
        with party("buyer", url, directory) as buyer:
            stage = Stage(relay, provider, buyer)
            stage.run(3, 1)
            before = provider.rss_bytes()
            _one_by_one(table, stage.run(sequential, 1), floor)
            for count in at_once:
                _together(table, stage.run(max(jobs, count), count), count, floor)
            table.add("provider's memory before", before / 1e6, "MB")
            table.add(
                "provider's memory after", provider.rss_bytes() / 1e6, "MB", "nostr-dvm 107 idle, 134-178 after 20-40"
            )
    table.add("a bare commit (fsync)", floor.commit * 1e3, "ms")
    table.add("a bare signature", floor.sign * 1e6, "us")
    table.add("a bare verification", floor.verify * 1e6, "us")


def _one_by_one(table: Table, found: dict[str, Any], floor: Floor) -> None:
    p50, p90, p99 = (percentile(found["seconds"], share) * 1e3 for share in (0.5, 0.9, 0.99))
    table.add(
        "one by one, p50",
        p50,
        "ms",
        f"goal: under 50; nostr-dvm {_DVM_SEQUENTIAL:,.0f} ({_DVM_SEQUENTIAL / p50:.0f} x)",
    )
    table.add("one by one, p90", p90, "ms")
    table.add("one by one, p99", p99, "ms")
    _against_floor(table, "one by one", found, floor)


def _together(table: Table, found: dict[str, Any], count: int, floor: Floor) -> None:
    rate = found["jobs"] / found["wall"]
    times = f"{_DVM_RATE} ({rate / _DVM_RATE:.0f} x), the first Pylon {_FIRST_RATE} ({rate / _FIRST_RATE:.0f} x)"
    beside = f"goal: 100; nostr-dvm, 20 at once, {times}"
    table.add(f"{count} at once", rate, "jobs/s", beside)
    table.add(f"{count} at once, p50", percentile(found["seconds"], 0.5) * 1e3, "ms")
    table.add(f"{count} at once, p99", percentile(found["seconds"], 0.99) * 1e3, "ms")
    for name, seconds in found["cpu"].items():
        own = seconds / found["jobs"] * 1e3
        beside = (
            f"goal: under 10; nostr-dvm {_DVM_CPU:.0f} ({_DVM_CPU / own:.1f} x)" if name == "provider" and own else ""
        )
        table.add(f"{count} at once, CPU of the {name}", own, "ms/job", beside)
    _against_floor(table, f"{count} at once", found, floor)


def _against_floor(table: Table, label: str, found: dict[str, Any], floor: Floor) -> None:
    commits = found["commits"] / found["jobs"]
    needs = Needs(commits + _SIMNET_COMMITS, _SIGNATURES, _VERIFICATIONS)
    bare, took = floor.seconds(needs), found["wall"] / found["jobs"]
    table.add(f"{label}, commits", needs.commits, "/job")
    table.add(
        f"{label}, the same commits and signatures bare", bare * 1e3, "ms/job", f"{took / bare:.1f} x of it taken"
    )


def _budget(table: Table, directory: Path, jobs: int) -> None:
    """The same jobs with the clocks in: dearer by the clocks, so for the shares only."""
    with pylon_relay() as (relay, url), party("provider", url, directory, metered=True) as provider:
        with party("buyer", url, directory, metered=True) as buyer:
            stage = Stage(relay, provider, buyer)
            stage.run(3, 1)
            found = stage.run(jobs, min(jobs, 20))
            for name, who in (("provider", provider), ("buyer", buyer)):
                rows = who.ask(do="tell")["rows"]
                table.details.append(_budget_of(name, rows, jobs, found["cpu"][name]))


def _budget_of(
    name: str, rows: dict[str, dict[str, float]], jobs: int, cpu: float
) -> tuple[Sequence[str], list[Sequence[Any]]]:
    lines: list[Sequence[Any]] = [
        (label, row["calls"] / jobs, row["cpu_ns"] / jobs / 1e3, row["wall_ns"] / jobs / 1e3)
        for label, row in sorted(rows.items(), key=lambda item: -item[1]["cpu_ns"])
        if row["calls"]
    ]
    metered = sum(row["cpu_ns"] for row in rows.values())
    lines.append(("scheduling and the rest", "", (cpu * 1e9 - metered) / jobs / 1e3, ""))
    lines.append(("all", "", cpu * 1e6 / jobs, ""))
    return (f"{name}, 20 at once, with the clocks in", "calls/job", "us CPU/job", "us wall/job"), lines


def party(role: str, url: str, directory: Path, *, metered: bool = False, **more: Any) -> AbstractContextManager[Child]:
    """A provider or a buyer, ready."""
    settings = {"relay": url, "directory": str(directory), "metered": metered, "slots": SLOTS, "patience": 60.0, **more}
    return child_when_ready(["-m", "benchmarks.parties", role, json.dumps(settings)])
