"""The soak: by default half an hour of it, in ``make deep``; ``PYLON_SOAK_MINUTES`` says otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.e2e.homes import environment

pytestmark = [pytest.mark.e2e, pytest.mark.deep, pytest.mark.timeout(7_200)]


def test_the_soak(model, tmp_path):
    report = tmp_path / "soak.json"
    minutes = os.environ.get("PYLON_SOAK_MINUTES", "30")
    done = subprocess.run(
        [sys.executable, "-m", "pylon.testing.soak", "--minutes", minutes, "--report", str(report)],
        capture_output=True, text=True, check=False, env=environment(), stdin=subprocess.DEVNULL,
    )  # fmt: skip
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["problems"] == []
    assert found["paid_purchases"] > 0
    assert set(found["killed"]) <= {"both", "relay", "engine"}
