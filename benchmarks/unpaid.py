"""Those who ask and never pay, and a paid job behind them: what it waits, and what the provider keeps of them all.

Relay, provider and buyers are processes of their own, the provider with the terms that it has by default. *Behind*:
the job is ordered at the moment when the relay has taken the last of the others. *A stranger*: a customer of whom the
provider has never heard. *After*: when the provider has come to rest.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.market import party
from benchmarks.processes import Child, child_when_ready, pylon_relay
from benchmarks.report import Table, percentile

FLOODS = (100, 10_000)
MANY = 100_000
SAMPLE = 20
PATIENCE = 10.0
"""Seconds that a customer waits for a quote, as a daemon's buyer does."""
_A_KEY = 10
"""Requests of each of the strangers' keys."""
REST = 1.0
"""Seconds without a new row after which the provider has come to rest."""
_DVM_QUIET, _DVM_BEHIND = 1.04, 3.9


def run(*, floods: Sequence[int] = FLOODS, many: int = MANY, sample: int = SAMPLE, rest: float = REST) -> Table:
    table = Table("Unpaid requests: a paid job behind them, and what is kept of them")
    for requests in floods:
        with tempfile.TemporaryDirectory(prefix="pylon-bench-") as name:
            _one(table, Path(name), requests, sample, rest)
    if many:
        with tempfile.TemporaryDirectory(prefix="pylon-bench-") as name:
            _keep(table, Path(name), many, sample, rest)
    return table


def _one(table: Table, directory: Path, requests: int, sample: int, rest: float) -> None:
    with pylon_relay() as (_, url), party("provider", url, directory, usual_terms=True) as provider:
        with (
            party("buyer", url, directory, patience=PATIENCE) as buyer,
            party("buyer", url, directory, name="stranger", patience=PATIENCE) as stranger,
        ):
            quiet = _buy(buyer, sample)
            with _flood(url, provider, requests) as flood:
                flood.line()
                known = _buy(buyer, 1)
                new = _buy(stranger, 1)
            _come_to_rest(provider, rest)
            after = _buy(buyer, sample)
    dvm = f"nostr-dvm {_DVM_BEHIND:.1f} s after 100, {_DVM_QUIET} before" if requests == 100 else ""
    table.add(f"a paid job before {requests:,} unpaid requests, p50", _p50(quiet), "ms")
    table.add(f"a paid job behind {requests:,}", _p50(known), "ms", _outcome(known) or dvm)
    table.add(f"a stranger's first job behind {requests:,}", _p50(new), "ms", _outcome(new))
    table.add(f"a paid job after {requests:,}, p50", _p50(after), "ms", _outcome(after) or dvm)


def _keep(table: Table, directory: Path, requests: int, sample: int, rest: float) -> None:
    """Memory, rows and the processor's time, over very many."""
    with pylon_relay() as (_, url), party("provider", url, directory, usual_terms=True) as provider:
        with party("buyer", url, directory, patience=PATIENCE) as buyer:
            _buy(buyer, sample)
            sizes, cpu, rates = [provider.rss_bytes()], provider.cpu_seconds(), []
            for _ in range(4):
                with _flood(url, provider, requests // 4) as flood:
                    began = time.perf_counter()
                    flood.line()
                    _come_to_rest(provider, rest)
                    rates.append(requests / 4 / (time.perf_counter() - began))
                sizes.append(provider.rss_bytes())
            used = provider.cpu_seconds() - cpu
            told = provider.ask(do="tell")
            after = _buy(buyer, sample)
    table.add("the provider's memory before", sizes[0] / 1e6, "MB")
    for number, size in enumerate(sizes[1:], 1):
        table.add(f"after {number * requests // 4:,} unpaid requests", size / 1e6, "MB")
    sales = told["sales"]
    rows = ", ".join(f"{count:,} {state}" for state, count in sorted(sales.items()))
    table.add("rows of sales then", sum(sales.values()), "", rows)
    table.add("events that wait for a relay then", told["waiting"], "")
    table.add("CPU of the provider", used / requests * 1e6, "us/request")
    table.add("slowest quarter", min(rates), "requests/s")
    table.add(f"a paid job after {requests:,}, p50", _p50(after), "ms", _outcome(after))


def _buy(buyer: Child, jobs: int) -> dict[str, Any]:
    found: dict[str, Any] = buyer.ask(do="buy", jobs=jobs, at_once=1)
    return found


def _p50(found: dict[str, Any]) -> float:
    return percentile(found["seconds"], 0.5) * 1e3


def _outcome(found: dict[str, Any]) -> str:
    """What went wrong; nothing, as a rule."""
    return f"{len(found['failed'])} of {len(found['seconds'])} FAILED: {found['failed'][0]}" if found["failed"] else ""


def _flood(url: str, provider: Child, requests: int) -> AbstractContextManager[Child]:
    """The flooder, when all is signed. Its next line says that the relay has taken everything."""
    key = provider.ask(do="tell")["key"]
    return child_when_ready(["-m", "benchmarks.flooder", url, key, str(requests), str(max(requests // _A_KEY, 1)), "0"])


def _come_to_rest(provider: Child, seconds: float) -> None:
    """Until nothing moves there any more: no row, and hardly the processor."""
    before: tuple[Any, ...] = ()
    while True:
        cpu = provider.cpu_seconds()
        time.sleep(seconds)
        told = provider.ask(do="tell")
        now = (told["sales"], told["waiting"])
        if now == before and provider.cpu_seconds() - cpu < 0.2 * seconds:
            return
        before = now
