from __future__ import annotations

import pytest

from tests.pylon.market import open_market


@pytest.fixture
async def market(tmp_path):
    """Ask for ``autojump_clock`` too: the market's clock is Trio's."""
    async with open_market(tmp_path) as opened:
        yield opened
