from __future__ import annotations

import pytest

from pylon.errors import ConfigError
from pylon.groups import cause

ODD, OURS, STOP = ZeroDivisionError("oh"), ConfigError("no"), KeyboardInterrupt()


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (ODD, ODD),
        (OURS, OURS),
        (ExceptionGroup("one", [OURS]), OURS),
        (ExceptionGroup("two", [ODD, ExceptionGroup("deep", [OURS])]), OURS),
        (ExceptionGroup("odd", [ODD, ValueError()]), ODD),
        (BaseExceptionGroup("stop", [OURS, BaseExceptionGroup("deep", [ODD, STOP])]), STOP),
    ],
)
def test_the_one_that_a_person_should_read(error, found):
    assert cause(error) is found
