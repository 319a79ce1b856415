"""Settings of all tests."""

from __future__ import annotations

import os

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
