"""The wheel and the source distribution: what is in them, and that they come out the same."""

from __future__ import annotations

import importlib.util
import shutil
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "packaging" / "distribution.py"


def load(script: Path):
    """Scripts are no package: they are run by their paths."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


distribution = load(SCRIPT)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Built twice, which says that both builds are the same."""
    return distribution.build(tmp_path_factory.mktemp("dist"))


def changed(wheel: Path, place: Path, *, without: str = "", extra: str = "", said: tuple[str, str] = ("", "")) -> Path:
    """A copy of a wheel that is not quite it."""
    path = place / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(path, "w") as sink:
        for name in source.namelist():
            if not without or not name.endswith(without):
                sink.writestr(name, source.read(name).replace(said[0].encode(), said[1].encode()) if said[0] else
                              source.read(name))  # fmt: skip
        if extra:
            sink.writestr(extra, "")
    return path


def test_both_are_what_they_should_be(built):
    wheel, source = built
    distribution.check_wheel(wheel)
    distribution.check_source(source)
    assert wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"without": "pylon/py.typed"}, "lacks"),
        ({"without": "LICENSE"}, "no licence"),
        ({"extra": "tests/test_x.py"}, "too much"),
        ({"extra": "pylon/__pycache__/x.pyc"}, "too much"),
        ({"said": ("pylon = pylon.cli.main:main", "pylon = pylon.cli.main:other")}, "commands"),
        ({"said": ("\nVersion: 0.", "\nVersion: 9.")}, "version"),
    ],
)
def test_a_wheel_that_is_not(built, tmp_path, change, what):
    with pytest.raises(distribution.Wrong, match=what):
        distribution.check_wheel(changed(built[0], tmp_path, **change))


def test_metadata_that_an_index_refuses(built, tmp_path):
    from packaging.metadata import InvalidMetadata

    with pytest.raises((InvalidMetadata, ExceptionGroup)):
        distribution.check_wheel(changed(built[0], tmp_path, said=("\nRequires-Python: ", "\nRequires-Python: no")))


def test_a_build_that_says_no(monkeypatch, tmp_path):
    shutil.copy(SCRIPT.parents[1] / "pyproject.toml", tmp_path)  # which names a readme that is not there
    monkeypatch.setattr(distribution, "ROOT", tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    with pytest.raises(distribution.Wrong, match="hatchling"):
        distribution.build(tmp_path / "dist")


@pytest.mark.deep
def test_the_wheel_installs_and_runs(built):
    distribution.try_wheel(built[0])
