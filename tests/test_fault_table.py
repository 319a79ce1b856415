"""docs/faults.md names a test for each fault, and each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "faults.md"
ROW = re.compile(r"^\|.*\|$")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_each_row_names_a_test_that_is_there():
    rows = [line for line in PAGE.read_text().splitlines() if ROW.match(line) and "|---" not in line]
    rows = [line for line in rows if not line.endswith("| Test |")]
    assert len(rows) > 40
    for row in rows:
        (name,) = TEST.findall(row)
        file, function = name
        assert re.search(rf"^(async )?def {function}\(", (ROOT / file).read_text(), re.MULTILINE), row
