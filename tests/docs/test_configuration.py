"""The configuration that pages show is one that a home takes, and keys that they name are there."""

from __future__ import annotations

import pytest

from pylon import config
from pylon.cli.main import run
from tests.docs.pages import PAGES, SHELLS, blocks, commands, named

REFUSED = {"bitcoin", "-"}
"""What is shown to be refused; and what comes by stdin."""
KEYS = {".".join(path) for path in config.known_keys()}


def read(page, *languages):
    return [block for block in blocks(page.read_text(encoding="utf-8")) if block.language in languages]


@pytest.mark.parametrize("page", [page for page in PAGES if read(page, "toml")], ids=named)
def test_what_is_shown_is_taken(page, tmp_path):
    for block in read(page, "toml"):
        path = tmp_path / "config.toml"
        path.write_text(block.text, encoding="utf-8")
        path.chmod(0o600)
        assert config.load(path, environ={}).warnings == (), f"{named(page)}:{block.line}"


def test_what_is_set_by_command_can_be_set(tmp_path):
    found = 0
    for page in PAGES:
        for block in read(page, *SHELLS):
            for line, words in commands(block):
                if words[:2] not in (["config", "set"], ["config", "get"], ["config", "unset"]):
                    continue
                assert words[2] in KEYS, f"{named(page)}:{line}: {words[2]}"
                if words[1] == "set" and words[3] not in REFUSED:
                    home = tmp_path / str(found)
                    home.mkdir(mode=0o700)
                    assert run(["--home", str(home), *words]) == 0, f"{named(page)}:{line}: {' '.join(words)}"
                found += 1
    assert found > 5
