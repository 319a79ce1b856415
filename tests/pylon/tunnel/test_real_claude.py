"""The tunnel with the real Claude Code, which thinks with a scripted Messages API of ours and talks to nobody else.

``PYLON_TEST_CLAUDE`` names the executable (the ``claude-agent-sdk`` wheel holds one); without it nothing is done.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import trio

from pylon.tunnel import messages as m
from pylon.tunnel import record
from tests.pylon.tunnel.messages_api import messages_api

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif("PYLON_TEST_CLAUDE" not in os.environ, reason="PYLON_TEST_CLAUDE names no Claude Code"),
]


@pytest.fixture
def target(work):
    return work / "x.txt"


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The user's own settings of Claude Code."""
    (tmp_path / "user" / ".claude").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))

    def write(**told):
        (tmp_path / "user" / ".claude" / "settings.json").write_text(json.dumps(told))

    return write


@pytest.fixture
def api(target, settings, monkeypatch):
    with messages_api(target) as (api, url):
        quiet = ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_TELEMETRY", "DISABLE_AUTOUPDATER")
        for name in (*quiet, "DISABLE_ERROR_REPORTING"):
            monkeypatch.setenv(name, "1")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-none")
        yield api


@pytest.fixture
def open_real(open_tunnel, api):
    async def open_it(**config):
        return await open_tunnel(executable=Path(os.environ["PYLON_TEST_CLAUDE"]), **config)

    return open_it


def create(prompt, **request):
    return m.CreateSession("s", m.SessionRequest(initial_prompt=prompt, **request))


async def test_text_approval_and_cost(page, open_real, target, store, api):
    await open_real(max_cost_usd=250_000)
    page.send(create("please WRITE", system_prompt="Be brief."))
    await page.wait_for(m.ToolApproval)
    assert not target.exists()
    page.send(m.ToolApprovalResponse("s", True))
    first = await page.done()
    assert target.read_text() == "hi"
    assert page.text() == "I will. All done. "
    assert "Be brief." in api.systems[0]
    assert [chunk.tool.error for chunk in page.chunks("tool_done")] == [None]
    assert 0 < first.cost_usd < 250_000
    page.send(m.Prompt("s", "hello"))
    second = await page.done(2)
    assert page.text().endswith("Good day to you. ")
    assert first.cost_usd < second.cost_usd < 2 * first.cost_usd
    assert record.sessions(store)[0].counts == {"prompt": 2, "approved": 1, "turn": 2}


@pytest.mark.parametrize("rule", ["allow", "ask", None])
async def test_whatever_the_users_settings_say_a_no_is_a_no_and_a_yes_is_asked_for_once(
    page, open_real, target, settings, work, rule
):
    if rule is None:
        settings(permissions={"defaultMode": "bypassPermissions"})
    else:
        settings(permissions={rule: ["Write"]})
    # What stands in the directory means nothing: a session could have written it.
    (work / ".claude").mkdir()
    hook = {"type": "command", "command": f"touch {work}/hooked"}
    project = {"permissions": {"allow": ["Write"]}, "hooks": {"PreToolUse": [{"matcher": "*", "hooks": [hook]}]}}
    (work / ".claude" / "settings.json").write_text(json.dumps(project))
    await open_real()
    page.send(create("please WRITE"))
    await page.wait_for(m.ToolApproval)
    page.send(m.ToolApprovalResponse("s", False))
    await page.done()
    assert not target.exists()
    page.send(m.Prompt("s", "please WRITE"))
    await page.wait_for(m.ToolApproval, count=2)
    page.send(m.ToolApprovalResponse("s", True))
    await page.done(2)
    assert target.exists()
    assert len(page.of(m.ToolApproval)) == 2
    assert not (work / "hooked").exists()


@pytest.mark.parametrize("off", ["settings", "environment"])
async def test_hooks_that_the_user_has_turned_off_are_called(page, open_real, target, settings, monkeypatch, off):
    if off == "environment":
        monkeypatch.setenv("CLAUDE_CODE_SIMPLE", "1")
    settings(permissions={"allow": ["Write"]}, disableAllHooks=off == "settings")
    await open_real()
    page.send(create("please WRITE"))
    await page.wait_for(m.ToolApproval)
    page.send(m.ToolApprovalResponse("s", False))
    await page.done()
    assert not target.exists()


async def test_a_prompt_is_a_text_and_no_more(page, open_real, api, tmp_path, settings):
    (tmp_path / "secret.txt").write_text("topsecret")
    await open_real(autonomy="full")
    prompts = [f"look at @{tmp_path}/secret.txt", f'and @"{tmp_path}/secret.txt"', "/config autoScroll=false", "/clear"]
    page.send(create(prompts[0]), *(m.Prompt("s", prompt) for prompt in prompts[1:]))
    await page.done(4)
    assert page.text().count("Good day to you.") == 4
    assert not any("topsecret" in seen for seen in api.seen)


async def test_what_a_subagent_does_is_asked_for(page, open_real, target):
    await open_real()
    page.send(create("AGENT"))
    await page.wait_for(m.ToolApproval)
    page.send(m.ToolApprovalResponse("s", False))
    await page.until(lambda: any(chunk.tool.error for chunk in page.chunks("tool_done")))
    assert not target.exists()


async def test_read_only(page, open_real, target, api):
    target.write_text("what it read")
    await open_real(autonomy="read_only")
    page.send(create("READ"), m.Prompt("s", "please WRITE"))
    await page.done(2)
    assert "what it read" in page.chunks("tool_output")[0].tool.result
    assert page.chunks("tool_done")[1].tool.error
    assert target.read_text() == "what it read"
    assert {"Read", "Glob", "Grep"} <= api.tools
    assert not {"Bash", "Write", "Edit"} & api.tools


async def test_pause_resume_stop(page, open_real):
    await open_real()
    page.send(create("SLOW"))
    await page.until(lambda: len(page.chunks("text")) > 3)
    page.send(m.Pause("s"))
    await page.done()
    await page.state("paused")
    page.send(m.Resume("s"))
    await page.done(2)
    assert page.text().endswith("Good day to you. ")
    page.send(m.Prompt("s", "please WRITE"))
    await page.wait_for(m.ToolApproval)
    page.send(m.Stop("s"))
    assert (await page.state("ended")).reason == "stopped"


async def test_the_cap(page, open_real):
    await open_real(max_cost_usd=1)
    page.send(create("hello"))
    assert "the cap is reached" in (await page.state("ended")).reason


async def test_it_ends_with_the_tunnel(page, open_real):
    tunnel = await open_real()
    page.send(create("SLOW"))
    await page.until(lambda: page.chunks("text"))
    with trio.fail_after(10):
        await tunnel.close("over")
