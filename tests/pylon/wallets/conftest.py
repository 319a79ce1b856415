"""Virtual time for whole suites: a fixture may ask for ``autojump_clock`` in the name of its tests.

pytest-trio looks for a clock only among what the test function itself asks for.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

HERE = Path(__file__).parent


def run_on_its_clock(
    item: pytest.Function, test: Callable[[], Awaitable[None]], *, clock: Any, instruments: Sequence[Any]
) -> None:
    trio.run(test, clock=clock or item.funcargs["autojump_clock"], instruments=instruments)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not isinstance(item, pytest.Function) or HERE not in item.path.parents:
            continue
        if "autojump_clock" in item.fixturenames and inspect.iscoroutinefunction(item.obj):
            item.add_marker(pytest.mark.trio(run=partial(run_on_its_clock, item)), append=False)
