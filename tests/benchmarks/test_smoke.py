"""The benchmarks can be run. What they measure is never asserted."""

from __future__ import annotations

import importlib
import json

from benchmarks import agents, market, report, spark, unpaid
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
