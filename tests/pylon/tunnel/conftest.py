"""A page and a server for the machine's end of the tunnel: in memory, or over a real WebSocket."""

from __future__ import annotations

import json
import random

import pytest

from pylon.backoff import Backoff
from pylon.clock import SystemClock
from pylon.config import ClaudeConfig
from pylon.store.database import open_store
from pylon.store.vault import Vault
from pylon.testing.scripted_claude import end_all, install
from pylon.tunnel.address import TunnelAddress
from pylon.tunnel.client import Tunnel
from pylon.tunnel.policy import rules_of
from tests.pylon.tunnel.pages import MemoryServer, Page, serve_page


@pytest.fixture
def page():
    return Page()


@pytest.fixture
def work(tmp_path):
    directory = tmp_path / "work"
    (directory / "sub").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    return directory.resolve()


@pytest.fixture
async def store(tmp_path):
    vault = Vault(bytes(range(32)))
    opened = open_store(tmp_path / "pylon.db", vault=vault, clock=SystemClock(), executor="inline", durable=False)
    async with opened as store:
        yield store


@pytest.fixture
async def server(page):
    return MemoryServer(page)


@pytest.fixture
async def open_tunnel(tmp_path, work, page, server, store, nursery):
    """``await open_tunnel(rules of the script, settings of the script, **[claude])``."""

    async def open_it(
        script=None,
        settings=None,
        *,
        url="wss://tunnel.example/?token=topsecret",
        connect=None,
        within=None,
        executable=None,
        **config,
    ):
        bin_ = tmp_path / "bin"
        bin_.mkdir(exist_ok=True)
        executable = executable or install(bin_, script, log=str(tmp_path / "claude.log"), **(settings or {}))
        options = {
            key: config.pop(key) for key in ("approval_seconds", "max_sessions", "max_cost_day_usd") if key in config
        }
        tunnel = Tunnel(
            TunnelAddress.of(url),
            rules_of(ClaudeConfig(**config), default_cwd=work, closed=[tmp_path / "home"]),
            executable=executable,
            store=store,
            rng=random.Random(1),
            backoff=Backoff(random.Random(1), first=0.05),
            connect=connect or server.dial,
            **options,
        )
        await (within or nursery).start(tunnel.run)
        return tunnel

    yield open_it
    nursery.cancel_scope.cancel()
    end_all(tmp_path / "claude.log")


@pytest.fixture
def claude_log(tmp_path):
    """What the scripted claude was given: ``(what, value)``."""

    def read() -> list[tuple[str, object]]:
        lines = (tmp_path / "claude.log").read_text().splitlines()
        return [next(iter(json.loads(line).items())) for line in lines]

    return read


@pytest.fixture
async def address(page, nursery):
    """Of a real server, without its token, which is ``good``."""
    return await nursery.start(serve_page, page)
