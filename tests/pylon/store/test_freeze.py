from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.errors import WalletFrozen
from pylon.store import freeze, settings
from tests.pylon.store.conftest import NOW, transaction


def test_there_and_back():
    with transaction() as tx:
        assert freeze.mark(tx) is None
        freeze.check(tx)
        assert freeze.freeze(tx, "strange things", NOW) == freeze.Frozen("strange things", NOW)
        with pytest.raises(WalletFrozen, match="frozen: strange things") as refused:
            freeze.check(tx)
        assert refused.value.hint == "pylon wallet thaw"
        assert refused.value.exit_code == 4
        assert freeze.freeze(tx, "another reason", NOW + 1) == freeze.Frozen("strange things", NOW), "the first stands"
        assert freeze.thaw(tx) == freeze.Frozen("strange things", NOW)
        freeze.check(tx)
        assert freeze.thaw(tx) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["reason", "at", "x"]), inner),
)


@given(st.text() | json_values.map(json.dumps) | st.just("[" * 100_000) | st.just(""))
def test_whatever_stands_there_is_a_freeze(text):
    """Whoever wrote it meant to stop; that it cannot be read is no reason to go on."""
    with transaction() as tx:
        settings.put(tx, freeze.KEY, text.encode(errors="replace").decode())
        found = freeze.mark(tx)
        assert found is not None
        with pytest.raises(WalletFrozen):
            freeze.check(tx)
        assert freeze.freeze(tx, "again", NOW) == found
        assert freeze.thaw(tx) == found
        assert freeze.mark(tx) is None


@pytest.mark.parametrize("text", ['{"reason": "restored"}', '{"reason": "restored", "at": "noon"}'])
def test_the_reason_is_told_also_without_a_time(text):
    with transaction() as tx:
        settings.put(tx, freeze.KEY, text)
        assert freeze.mark(tx) == freeze.Frozen("restored", None)
