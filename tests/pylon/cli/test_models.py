from __future__ import annotations

import json

import pytest

from pylon.cli.main import run
from pylon.inference.models import CATALOGUE, DEFAULT_MODEL


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path))
    return tmp_path


def test_nothing_is_installed(directory, capsys):
    assert run(["models", "list", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["directory"] == str(directory)
    assert report["installed"] == []
    assert [entry["name"] for entry in report["available"]] == list(CATALOGUE)
    assert run(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert "none" in out
    assert f"  {DEFAULT_MODEL}  93 MB  Apache-2.0" in out


def test_a_file_of_ones_own_is_listed(directory, capsys):
    (directory / "mine.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(2_000_000))
    run(["--json", "models", "list"])
    (model,) = json.loads(capsys.readouterr().out)["installed"]
    assert (model["name"], model["source"], model["size_bytes"]) == ("mine", "file", 2_000_008)
    run(["models", "list"])
    assert "  mine  2 MB\n" in capsys.readouterr().out


def test_a_model_that_nobody_knows(directory, capsys):
    assert run(["--json", "models", "pull", "gpt-9"]) == 1
    out, err = capsys.readouterr()
    error = json.loads(err)["error"]
    assert out == ""
    assert error["code"] == "model_missing"
    assert DEFAULT_MODEL in error["hint"]


def test_progress_goes_to_stderr_and_the_result_to_stdout(directory, capsys, monkeypatch):
    from pylon.inference import models as store

    async def pull(name, where, progress):
        for done in range(0, 101):
            progress(store.Progress("downloading", done * 1_000_000, 100_000_000))
        return store.Pulled(store.ModelFile(name, where / "m.gguf", 5, "ab", "catalogue"), True)

    monkeypatch.setattr(store, "pull", pull)
    assert run(["models", "pull", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "name": DEFAULT_MODEL, "path": str(directory / "m.gguf"), "size_bytes": 5, "sha256": "ab", "fetched": True
    }  # fmt: skip
    assert len(err.splitlines()) == 11
    assert err.splitlines()[5] == "downloading 50 % of 100 MB"
