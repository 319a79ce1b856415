"""What an open Spark wallet costs: 1, 20 and 100 of them, in client mode and in server mode, each in its own process.

The wallets are Pylon's (``pylon.wallets.spark``) over the real SDK, on regtest; nobody has to be reached for it, and
without the internet the idle CPU is that of a wallet that looks for its servers in vain.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path

import psutil
import trio

from benchmarks.processes import child
from benchmarks.report import Table

WALLETS = (1, 20, 100)
SECONDS = 10.0
"""For which idle wallets are watched."""


def run(
    *,
    wallets: tuple[int, ...] = WALLETS,
    modes: tuple[str, ...] = ("client", "server"),
    seconds: float = SECONDS,
    settle: float = 1.0,
) -> Table:
    table = Table(f"Spark: open wallets, idle for {seconds:.0f} s")
    rows: list[list[str]] = []
    costs: dict[str, list[dict[str, float]]] = {}
    for mode in modes:
        for count in wallets:
            found = _measure(mode, count, seconds, settle)
            costs.setdefault(mode, []).append(found)
            rows.append(
                [
                    mode,
                    str(count),
                    f"{found['rss'] / 1e6:.1f}",
                    f"{found['threads']:.0f}",
                    f"{found['fds']:.0f}",
                    f"{found['cpu']:.2f}",
                    f"{found['open']:.2f}",
                    f"{found['close']:.2f}",
                ]
            )
    heads = ("mode", "wallets", "RSS MB", "threads", "fds", "CPU % of a core", "opened in s", "closed in s")
    table.details.append((heads, rows))
    if len(wallets) > 1:
        more = wallets[-1] - wallets[0]
        for mode, (first, *_, last) in costs.items():
            table.add(f"each further wallet, {mode} mode", (last["rss"] - first["rss"]) / more / 1e3, "kB")
            table.add(f"threads of it, {mode} mode", (last["threads"] - first["threads"]) / more, "")
            table.add(f"descriptors of it, {mode} mode", (last["fds"] - first["fds"]) / more, "")
    return table


def _measure(mode: str, count: int, seconds: float, settle: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="pylon-bench-") as name:
        with child(["-m", "benchmarks.spark", mode, str(count), str(seconds), str(settle), name]) as process:
            found: dict[str, float] = json.loads(process.line())
    return found


async def _hold(mode: str, count: int, seconds: float, settle: float, directory: Path) -> None:
    """Open so many wallets, watch, close them; print what was seen."""
    from pylon.clock import SystemClock
    from pylon.wallets.spark import SparkWallet
    from pylon.wallets.spark_kit import SparkKit
    from pylon.wallets.spark_types import REGTEST

    kit = SparkKit(REGTEST, clock=SystemClock(), directory=directory)
    rng, meter = random.Random(0), psutil.Process()
    wallets = [SparkWallet(kit, rng.randbytes(64), f"w{n}", server=mode == "server") for n in range(count)]
    began = time.perf_counter()
    for wallet in wallets:
        await wallet.connect()
    opened = time.perf_counter() - began
    await trio.sleep(settle)
    before, since = meter.cpu_times(), time.perf_counter()
    await trio.sleep(seconds)
    after, passed = meter.cpu_times(), time.perf_counter() - since
    seen = {
        "rss": meter.memory_info().rss,
        "threads": meter.num_threads(),
        "fds": meter.num_fds(),
        "cpu": 100 * (after.user + after.system - before.user - before.system) / passed,
        "open": opened,
    }
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for wallet in wallets:
            nursery.start_soon(wallet.aclose)
    print(json.dumps({**seen, "close": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    trio.run(_hold, sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
