"""What the single file does before it is the program: it unpacks that once, and becomes it."""

from __future__ import annotations

import fcntl
import importlib.util
import io
import os
import shutil
import stat
import struct
import subprocess
import sys
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "packaging" / "bootstrap.py"
IDENTITY = "0.1.0-0123456789abcdef"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the single file is made on Linux only")


@pytest.fixture
def bootstrap(monkeypatch, tmp_path):
    payload = types.ModuleType("payload")
    payload.IDENTITY = IDENTITY
    monkeypatch.setitem(sys.modules, "payload", payload)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def payload() -> bytes:
    """A program with an executable, a library, a link to it, and a model."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, mode, content in (
            ("pylon", 0o100755, b"#!/bin/sh\n"),
            ("_internal/lib.so.1", 0o100644, b"library" * 1_000),
            ("_internal/lib.so", 0o120777, b"lib.so.1"),
            ("_internal/models/m.gguf", 0o100644, os.urandom(100_000)),
        ):
            entry = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            entry.external_attr = mode << 16
            archive.writestr(entry, content)
    return data.getvalue()


def executable(path: Path, sections: dict[str, bytes]) -> Path:
    """An ELF file with nothing but sections (System V ABI, chapter 4)."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*sections, ".shstrtab"))
    body, table = b"", [struct.pack("<IIQQQQIIQQ", *([0] * 10))]
    for name, content in (*sections.items(), (".shstrtab", names)):
        offset = 64 + len(body)
        table.append(
            struct.pack("<IIQQQQIIQQ", names.index(name.encode() + b"\0"), 1, 0, 0, offset, len(content), 0, 0, 1, 0)
        )
        body += content
    last = len(table) - 1
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64,
                       len(table), last)  # fmt: skip
    path.write_bytes(head + body + b"".join(table))
    return path


@pytest.fixture
def own(tmp_path):
    # Sections do not begin where pages do.
    return str(executable(tmp_path / "file", {".text": b"x" * 5_001, ".pylon": payload(), "pydata": b"y" * 9_999}))


def test_it_is_unpacked_once(bootstrap, own, tmp_path):
    place = Path(bootstrap.unpacked(own))
    assert place == tmp_path / "cache" / "pylon" / "program" / IDENTITY
    assert (place / "pylon").stat().st_mode & 0o777 == 0o755
    assert (place / "_internal" / "lib.so.1").read_bytes() == b"library" * 1_000
    assert (place / "_internal" / "lib.so").is_symlink()
    assert (place / "_internal" / "lib.so").read_bytes() == b"library" * 1_000
    for directory in (place, place.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [path.name for path in place.parent.iterdir()] == [IDENTITY]
    (place / "pylon").write_text("as it was")
    assert bootstrap.unpacked(own) == str(place)
    assert (place / "pylon").read_text() == "as it was"


def test_many_at_once(bootstrap, own):
    with ThreadPoolExecutor(4) as pool:
        # Each with a name of its own for what is not whole yet, as processes have.
        numbers = iter(range(10_000, 11_000))
        bootstrap.os = types.SimpleNamespace(**{**vars(os), "getpid": lambda: next(numbers)})
        bootstrap.clear = lambda root: None
        places = {place.result() for place in [pool.submit(bootstrap.unpacked, own) for _ in range(8)]}
    assert len(places) == 1
    place = Path(places.pop())
    assert [path.name for path in place.parent.iterdir()] == [IDENTITY]


def test_what_is_cut_short_leaves_nothing(bootstrap, own, monkeypatch, tmp_path):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(SystemExit, match="No space left on device") as caught:
        bootstrap.unpacked(own)
    assert "hint: set XDG_CACHE_HOME" in str(caught.value)
    assert not list(tmp_path.rglob("_internal"))


def test_a_file_with_nothing_inside(bootstrap, tmp_path):
    for path in (executable(tmp_path / "bare", {".text": b"x"}), Path(__file__)):
        with pytest.raises(SystemExit, match=r"nothing inside|no executable"):
            bootstrap.unpacked(str(path))


def test_without_a_cache_it_is_unpacked_among_the_temporary_files(bootstrap, own, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # nobody knows this user
    assert bootstrap.unpacked(own) == str(tmp_path / "tmp" / f"pylon-{os.getuid()}" / "program" / IDENTITY)


@pytest.mark.parametrize("trick", ["writable", "link", "theirs"])
def test_a_directory_that_others_can_write_to_is_not_trusted(bootstrap, own, monkeypatch, tmp_path, trick):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    trap = tmp_path / "tmp" / f"pylon-{os.getuid()}"
    if trick == "link":
        (tmp_path / "elsewhere").mkdir()
        trap.symlink_to(tmp_path / "elsewhere")
    else:
        (trap / "program" / IDENTITY).mkdir(parents=True)
        (trap / "program" / IDENTITY / "pylon").write_text("theirs")
        if trick == "theirs":
            uid = os.getuid() + 1
            monkeypatch.setattr(bootstrap.os, "getuid", lambda: uid)
            trap.rename(trap.with_name(f"pylon-{uid}"))
        else:
            (trap / "program" / IDENTITY).chmod(0o777)
            trap.chmod(0o777)
    with pytest.raises(SystemExit, match="somebody else's, or may be written by others"):
        bootstrap.unpacked(own)


def test_what_nobody_uses_is_cleared_away(bootstrap, own):
    root = Path(bootstrap.unpacked(own)).parent
    old, used = root / "0.0.1-aaaa", root / "0.0.2-bbbb"
    for place in (old, used):
        place.mkdir()
        (place / ".used").touch()
    half, halfway = root / "0.0.3-cccc.999999999", root / f"0.0.3-cccc.{os.getppid()}"
    half.mkdir()
    halfway.mkdir()
    with (used / ".used").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        shutil.rmtree(root / IDENTITY)
        bootstrap.unpacked(own)
    assert sorted(path.name for path in root.iterdir()) == sorted([IDENTITY, used.name, halfway.name])


@pytest.mark.parametrize("theirs", [None, "/theirs"])
def test_it_becomes_the_program(bootstrap, own, monkeypatch, tmp_path, theirs):
    became = []
    monkeypatch.setattr(sys, "executable", own)
    monkeypatch.setattr(sys, "argv", ["pylon", "status", "--json"])
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append(arguments))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/ours")
    if theirs is None:
        monkeypatch.delenv("LD_LIBRARY_PATH_ORIG", raising=False)
    else:
        monkeypatch.setenv("LD_LIBRARY_PATH_ORIG", theirs)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    bootstrap.main()
    ((program, arguments, environment),) = became
    assert program == str(tmp_path / "cache" / "pylon" / "program" / IDENTITY / "pylon")
    assert arguments == [program, "status", "--json"]
    assert environment["_PYLON_FILE"] == own
    assert environment.get("LD_LIBRARY_PATH") == theirs
    assert "LD_LIBRARY_PATH_ORIG" not in environment
    assert environment["WATCHDOG_PID"] == str(os.getpid())


@pytest.mark.skipif(shutil.which("objcopy") is None, reason="objcopy is what the build uses")
def test_a_section_as_the_build_makes_it(bootstrap, tmp_path):
    (tmp_path / "zip").write_bytes(payload())
    path = tmp_path / "true"
    shutil.copyfile(shutil.which("true"), path)
    subprocess.run(["objcopy", "--add-section", f".pylon={tmp_path / 'zip'}", str(path)], check=True)
    with bootstrap.section(str(path)) as data, zipfile.ZipFile(data) as archive:
        assert archive.testzip() is None
        assert "_internal/models/m.gguf" in archive.namelist()
