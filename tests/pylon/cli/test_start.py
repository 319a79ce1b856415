"""``pylon start``, before there is a daemon. What it starts is tested by real processes (tests/e2e)."""

from __future__ import annotations

import gc

import pytest

from pylon.cli import start


def test_garbage_is_collected_again_once_all_is_imported(monkeypatch):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    with start._nothing_to_collect():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), start._nothing_to_collect():
        raise ImportError("a module is not there")
    assert gc.isenabled()
    assert frozen == [False, False], "what was imported is put aside before anything else can be"
