"""``pylon connect`` as a process: it ends tidily, is killed without leaving anything behind, and keeps its token."""

from __future__ import annotations

import functools
import json
import os
import signal

import pytest
import trio

from pylon.testing.scripted_claude import end_all, install
from pylon.tunnel import messages as m
from tests.e2e.homes import Daemon, command
from tests.pylon.tunnel.pages import Page, serve_page

pytestmark = pytest.mark.e2e


@pytest.fixture
async def page():
    return Page()


@pytest.fixture
async def url(page, nursery):
    return await nursery.start(serve_page, page) + "good"


@pytest.fixture
def node(world):
    return world.node("machine").configure()


@pytest.fixture
def connect(world, node, tmp_path, url):
    script = tmp_path / "bin"
    script.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    write = {"tool": "Write", "input": {"file_path": str(work / "x.txt"), "content": "hi"}}
    rules = [{"when": "write", "do": [write]}, {"when": "slow", "do": [{"spawn": 120}, {"text": "a b", "each": 60}]}]
    executable = script / "claude"

    async def connect(*options: str, deaf: bool = False, **environment: str) -> Daemon:
        install(script, rules, log=str(tmp_path / "claude.log"), deaf=deaf)
        arguments = [command(), "--home", str(node.root), "connect", "--cwd", str(work), *options]
        start = functools.partial(Daemon, more=environment)
        daemon = start([*arguments, "--executable-path", str(executable)], tmp_path / "connect.out")
        world.daemons.append(daemon)
        await trio.to_thread.run_sync(daemon.ready)
        return daemon

    yield connect
    end_all(tmp_path / "claude.log")


def child(tmp_path) -> int:
    lines = (tmp_path / "claude.log").read_text().splitlines()
    return next(json.loads(line)["process"] for line in lines if "process" in line)


async def gone(group: int) -> None:
    with trio.fail_after(20):
        while True:
            try:
                os.killpg(group, 0)
            except (ProcessLookupError, PermissionError):
                return
            await trio.sleep(0.05)


async def test_a_session_from_a_page_and_ctrl_c(page, url, connect, node, tmp_path):
    daemon = await connect("--tunnel-url", url, "--max-cost-usd", "$0.25", "--autonomy", "supervised")
    page.send(m.CreateSession("s", m.SessionRequest(initial_prompt="write", autonomy="full", max_cost_usd=10**9)))
    created = await page.wait_for(m.SessionCreated)
    assert (created.autonomy, created.max_cost_usd) == ("supervised", 250_000)
    asked = await page.wait_for(m.ToolApproval)
    page.send(m.ToolApprovalResponse("s", True, asked.approval_id))
    await page.done()
    assert (tmp_path / "work" / "x.txt").read_text() == "hi"
    page.send(m.Prompt("s", "slow"))
    await page.until(lambda: len(page.of(m.Prompted)) == 2)
    pid = child(tmp_path)

    assert await trio.to_thread.run_sync(daemon.terminate, signal.SIGINT, 20.0) == 0
    await gone(pid)
    assert page.of(m.SessionState)[-1].state == "ended"
    told = await trio.to_thread.run_sync(node.json, "connect", "sessions")
    (row,) = told["sessions"]
    assert (row["reason"], row["turns"], row["unsettled"]) == ("the tunnel was closed on the machine", 1, True)
    assert row["counts"] == {"prompt": 2, "approved": 1, "turn": 1}

    written = [path for path in node.root.rglob("*") if path.is_file()]
    assert node.root / "logs" / "tunnel.log" in written
    for path in [*written, daemon.output]:
        assert b"token=good" not in path.read_bytes(), path
    assert "token=good" not in (tmp_path / "claude.log").read_text()
    # What the page asked to loosen is in the log.
    assert "autonomy stays supervised" in (node.root / "logs" / "tunnel.log").read_text()


async def test_killed_it_leaves_no_child_and_a_record_that_says_so(page, url, connect, node, tmp_path):
    daemon = await connect(PYLON_TUNNEL_URL=url, deaf=True)
    listed = await trio.run_process(["ps", "-ww", "-o", "args=", "-p", str(daemon.pid)], capture_stdout=True)
    assert b"connect" in listed.stdout
    assert b"token" not in listed.stdout
    page.send(m.CreateSession("s", m.SessionRequest(initial_prompt="write")))
    await page.wait_for(m.ToolApproval)
    pid = child(tmp_path)
    daemon.kill()
    await gone(pid)
    again = await connect("--tunnel-url", url)
    await page.until(lambda: page.connections == 2)
    assert page.of(m.TunnelConnected)[1].sessions == ()
    told = await trio.to_thread.run_sync(node.json, "connect", "sessions")
    (row,) = told["sessions"]
    assert (row["reason"], row["unsettled"]) == ("pylon ended without a word", True)
    assert await trio.to_thread.run_sync(again.terminate) == 0


async def test_a_refused_token(url, node, tmp_path):
    executable = install(tmp_path)
    run = functools.partial(
        node.run, "connect", "--tunnel-url", url.replace("good", "bad"), "--executable-path", str(executable), "--json"
    )
    done = await trio.to_thread.run_sync(run)
    assert (done.returncode, done.stdout) == (1, "")
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert (error["code"], "refuses the token" in error["message"], "new address" in error["hint"]) == (
        "tunnel",
        True,
        True,
    )
    assert "token=bad" not in done.stderr
