"""Settings of all tests."""

from __future__ import annotations

import os
import signal
import socket

import pytest
from hypothesis import HealthCheck, settings

# No test is timed: a slow machine makes nothing wrong. In CI the examples are always the same ones, so that a change
# is judged by what it changed; everywhere else they are new each time.
settings.register_profile(
    "pylon",
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pylon")

# A shell's background jobs begin with SIGINT ignored, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The suite of all wallets is no test module by its name; it is imported from several places.
for part in ("", "_house", "_holds", "_targets"):
    pytest.register_assert_rewrite(f"tests.pylon.wallets.conformance{part}")


@pytest.fixture(scope="session")
def offline() -> None:
    """For what a machine without internet does and is told; skipped on one that reaches Spark's servers."""
    try:
        socket.getaddrinfo("api.lightspark.com", 443)
    except OSError:
        return
    pytest.skip("Spark can be reached from here")


@pytest.fixture
def figures(record_property):
    """Say what was found in words; all that was said is printed after the tests, by whatever worker they ran."""
    return lambda line: record_property("figures", line)


def pytest_terminal_summary(terminalreporter):
    reports = [report for state in ("passed", "failed") for report in terminalreporter.stats.get(state, [])]
    lines = [value for report in reports for name, value in report.user_properties if name == "figures"]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.line(line)
