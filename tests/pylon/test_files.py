from __future__ import annotations

import os
import stat

import pytest

from pylon.files import sync_directory, write_private


@pytest.mark.parametrize("mask", [0o000, 0o777])
def test_a_private_file_is_its_owners_whatever_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_private(tmp_path / "key", b"\x00secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert (tmp_path / "key").read_bytes() == b"\x00secret"


def test_it_is_private_and_written_before_it_is_said_to_be_there(tmp_path, monkeypatch):
    seen = []
    real = os.fsync

    def fsync(descriptor):
        status = os.fstat(descriptor)
        seen.append((stat.S_ISDIR(status.st_mode), status.st_size))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_private(tmp_path / "key", b"12345")
    assert seen == [(False, 5)]
    sync_directory(tmp_path)
    assert seen[1][0]


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "key").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "key", b"new")
    assert (tmp_path / "key").read_bytes() == b"old"
