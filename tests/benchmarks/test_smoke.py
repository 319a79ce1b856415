"""The benchmarks can be run. What they measure is never asserted."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time

from benchmarks import agents, demo, market, report, spark, start, unpaid
from benchmarks.__main__ import NAMES


def test_every_benchmark_can_be_imported():
    for name in NAMES:
        assert callable(importlib.import_module(f"benchmarks.{name}").run)


def test_three_paid_jobs():
    table = market.run(sequential=3, at_once=(3,), jobs=3, metered=3)

    names = {figure.name for figure in table.figures}
    assert {"one by one, p50", "3 at once", "3 at once, CPU of the provider"} <= names
    assert all(figure.value >= 0 for figure in table.figures)
    assert [heading[0].split(",")[0] for heading, _ in table.details] == ["provider", "buyer"]
    assert "3 at once" in report.as_text([table])
    assert json.loads(report.as_json([table]))["benchmarks"][0]["title"] == table.title


def test_twenty_unpaid_requests():
    table = unpaid.run(floods=(20,), many=40, sample=1, rest=0.1)

    figures = {figure.name: figure for figure in table.figures}
    assert {"a paid job behind 20", "a stranger's first job behind 20", "after 40 unpaid requests"} <= figures.keys()
    assert not [figure for figure in table.figures if "FAILED" in figure.beside]
    assert figures["events that wait for a relay then"].value == 0


def test_twenty_agents():
    table = agents.run(awake=20, asleep=40, alone=1, seconds=0.3, settle=0.2)

    figures = {figure.name: figure.value for figure in table.figures}
    assert {
        "20 awake, memory in all",
        "each agent asleep",
        "idle CPU, nothing due",
        "restart to ready",
    } <= figures.keys()
    assert figures["20 due at once, late p99"] >= figures["20 due at once, late p50"] > 0
    assert "40 asleep, memory in all" in report.as_text([table])


def test_two_spark_wallets():
    table = spark.run(wallets=(1, 2), modes=("server",), seconds=0.1, settle=0.1)
    (heads, rows) = table.details[0]
    assert [row[:2] for row in rows] == [["server", "1"], ["server", "2"]]
    assert "each further wallet, server mode" in {figure.name for figure in table.figures}
    assert heads[2] in report.as_text([table])


def test_two_starts():
    table = start.run(agents=5, rounds=1, warm_up=False)
    figures = {figure.name: figure.value for figure in table.figures}
    assert figures["start -d to ready"] > 0
    assert figures["start -d to ready, 5 agents, CPU"] > 0
    assert figures["all 5 awake and caught up"] > 0
    assert "the command that waits" in report.as_text([table])


def test_what_a_package_takes_on_the_disk():
    click = demo.installed_bytes("click")
    assert 100_000 < click < 5_000_000
    runtime = demo.installed_bytes("pylon-runtime")
    assert runtime > click + demo.installed_bytes("breez-sdk-spark") > 50_000_000, "what it requires counts too"
    assert demo.installed_bytes("no-such-package") == 0


_PARENT = "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=0); c.wait()"
_CHILD = "x = bytearray(b'x') * 30_000_000; import sys; sys.stdin.read()"


def test_the_memory_of_a_family():
    with subprocess.Popen([sys.executable, "-c", _PARENT, _CHILD], stdin=subprocess.PIPE) as family:
        peak, over = demo.Peak(), threading.Event()
        watcher = threading.Thread(target=demo.watch, args=(family.pid, peak, over))
        watcher.start()
        # The proportional size costs more to read, and is looked at less often.
        shares = 25_000_000 if os.path.exists("/proc/self/smaps_rollup") else -1
        until = time.monotonic() + 20
        while time.monotonic() < until and not (peak.rss > 40_000_000 and peak.pss > shares and peak.processes == 2):
            time.sleep(0.05)
        family.stdin.close()
    over.set()
    watcher.join()
    assert peak.processes == 2
    assert peak.rss > 40_000_000, "the child's counts too"
    assert shares < peak.pss <= peak.rss
