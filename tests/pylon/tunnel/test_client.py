"""The machine's end of the tunnel with real children: a page that works with it, and one that does not mean well."""

from __future__ import annotations

import json
import os

import pytest
import trio

from pylon.errors import RelayError, StoreError, TunnelError
from pylon.relays import websocket
from pylon.tunnel import claude as driver
from pylon.tunnel import client, policy, record
from pylon.tunnel import messages as m
from pylon.tunnel import session as sessions

HELLO = [{"when": "hello", "do": [{"text": "Good day to you. "}, {"text": "And good night.", "cost": 0.02}]}]


def create(session="s", **request):
    return m.CreateSession(session, m.SessionRequest(**request))


def writing(work, name="x.txt", content="hi"):
    return {"tool": "Write", "input": {"file_path": str(work / name), "content": content}, "output": "written"}


async def test_a_prompt_is_answered_once_in_pieces_with_usage_and_cost(page, open_tunnel):
    await open_tunnel(HELLO)
    page.send(create(initial_prompt="hello"))
    done = await page.done()
    assert page.text() == "Good day to you. And good night."
    assert len(page.chunks("text")) > 3
    assert done.usage == m.Usage(input_tokens=12, output_tokens=34, cache_read=5, cache_write=6, total=57)
    assert done.cost_usd == 20_000
    (connected,) = page.of(m.TunnelConnected)
    assert (connected.capabilities, connected.protocol, connected.sessions) == (("claude",), m.PROTOCOL, ())
    created = page.of(m.SessionCreated)[0]
    assert (created.autonomy, created.cwd, created.approval_required_tools) == (
        "supervised",
        ".",
        ("Write", "Edit", "Bash"),
    )
    await page.state("idle")
    numbers = [x.seq for x in page.heard if getattr(x, "seq", None)]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_turn_follows_turn_and_cost_is_what_the_process_says(page, open_tunnel):
    await open_tunnel(HELLO)
    page.send(create(initial_prompt="hello"), m.Prompt("s", "hello again"), m.Prompt("s", "what?"))
    assert (await page.done(3)).cost_usd == 50_000
    assert [x.content for x in page.of(m.Prompted)] == ["hello", "hello again", "what?"]
    assert page.text().endswith("You said: what?")


async def test_a_yes_lets_the_tool_run_and_everything_is_recorded_first(page, open_tunnel, work, store):
    await open_tunnel([{"when": "write", "do": [writing(work), {"text": "Done."}]}])
    page.send(create(initial_prompt="write"))
    asked = await page.wait_for(m.ToolApproval)
    assert (asked.tool, asked.params["content"], asked.expires_in) == ("Write", "hi", 300)
    assert not (work / "x.txt").exists()
    await page.state("waiting")
    page.send(m.ToolApprovalResponse("s", True))
    await page.done()
    assert (work / "x.txt").read_text() == "hi"
    assert page.of(m.ToolApprovalClosed)[0].outcome == "approved"
    started, output, ended = (page.chunks(kind)[0].tool for kind in ("tool_start", "tool_output", "tool_done"))
    assert started.params == {"file_path": str(work / "x.txt"), "content": "hi"}
    assert (output.result, ended.error) == ("written", None)
    assert started.id == output.id == ended.id
    (row,) = record.sessions(store)
    acts = record.acts(store, row.id)
    assert [(act.kind, act.tool) for act in acts] == [("prompt", ""), ("approved", "Write"), ("turn", "")]
    assert json.loads(acts[1].text)["content"] == "hi"
    assert (row.name, row.turns, row.cost_usd, row.unsettled) == ("s", 1, 10_000, False)


async def test_a_no_keeps_it_from_running(page, open_tunnel, work, store):
    await open_tunnel([{"when": "write", "do": [writing(work), {"text": "Then not."}]}])
    page.send(create(initial_prompt="write"))
    asked = await page.wait_for(m.ToolApproval)
    page.send(m.ToolApprovalResponse("s", False, asked.approval_id))
    await page.done()
    assert not (work / "x.txt").exists()
    assert page.chunks("tool_done")[0].tool.error == "the user said no"
    assert page.text() == "Then not."
    assert record.sessions(store)[0].counts["denied"] == 1


async def test_no_answer_is_a_no(page, open_tunnel, work, store):
    await open_tunnel([{"when": "write", "do": [writing(work)]}], approval_seconds=0.3)
    page.send(create(initial_prompt="write"))
    await page.done()
    assert not (work / "x.txt").exists()
    assert page.of(m.ToolApprovalClosed)[0].outcome == "timed_out"
    page.send(m.ToolApprovalResponse("s", True))
    await page.until(lambda: "too late" in " ".join(page.errors()))
    assert not (work / "x.txt").exists()
    assert record.sessions(store)[0].counts["timed_out"] == 1


async def test_several_wait_at_once_and_answers_go_by_name_or_by_order(page, open_tunnel, work):
    tools = [writing(work, name) for name in ("a", "b", "c")]
    await open_tunnel([{"when": "write", "do": [{"tools": tools}]}])
    page.send(create(initial_prompt="write"))
    await page.wait_for(m.ToolApproval, count=3)
    by_file = {os.path.basename(x.params["file_path"]): x.approval_id for x in page.of(m.ToolApproval)}
    first = page.of(m.ToolApproval)[0]
    others = [name for name in "abc" if name != os.path.basename(first.params["file_path"])]
    page.send(m.ToolApprovalResponse("s", True, by_file[others[1]]), m.ToolApprovalResponse("s", False))
    page.send(m.ToolApprovalResponse("s", True))
    await page.done()
    written = {path.name for path in work.iterdir() if path.is_file()}
    assert written == set(others)


async def test_no_more_wait_at_once_than_can_be_looked_through(page, open_tunnel, work, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_APPROVALS", 2)
    await open_tunnel([{"when": "write", "do": [{"tools": [writing(work, name) for name in ("a", "b", "c")]}]}])
    page.send(create(initial_prompt="write"))
    await page.wait_for(m.ToolApproval, count=2)
    await trio.sleep(0.1)
    page.send(m.ToolApprovalResponse("s", True), m.ToolApprovalResponse("s", True))
    await page.done()
    errors = [chunk.tool.error for chunk in page.chunks("tool_done")]
    assert sorted(errors, key=bool) == [None, None, "2 approvals wait already"]


async def test_the_rules_deny_without_asking(page, open_tunnel, work, store):
    script = [{"when": "x", "do": [writing(work), {"tool": "Read", "input": {"file_path": "sub"}, "output": "read"}]}]
    await open_tunnel(script, autonomy="read_only")
    page.send(create(initial_prompt="x"))
    await page.done()
    assert not page.of(m.ToolApproval)
    assert not (work / "x.txt").exists()
    refused, read = page.chunks("tool_done")
    assert "read-only" in refused.tool.error
    assert read.tool.error is None
    assert record.sessions(store)[0].counts == {"prompt": 1, "refused": 1, "allowed": 1, "turn": 1}


async def test_the_users_own_rules_want_a_yes_even_where_ours_do_not(page, open_tunnel, work):
    await open_tunnel([{"when": "x", "do": [writing(work)]}], {"ask_rules": ["Write"]}, autonomy="full")
    page.send(create(initial_prompt="x"))
    await page.wait_for(m.ToolApproval)
    page.send(m.ToolApprovalResponse("s", True))
    await page.done()
    assert (work / "x.txt").exists()


async def test_who_has_said_yes_is_not_asked_again_for_the_same_use(page, open_tunnel, work):
    await open_tunnel([{"when": "x", "do": [writing(work)]}], {"ask_rules": ["Write"]})
    page.send(create(initial_prompt="x"))
    await page.wait_for(m.ToolApproval)
    page.send(m.ToolApprovalResponse("s", True))
    await page.done()
    assert (work / "x.txt").exists()
    assert len(page.of(m.ToolApproval)) == 1


async def test_without_hooks_everything_that_claude_asks_for_is_asked_for(page, open_tunnel, work):
    await open_tunnel([{"when": "x", "do": [writing(work)]}], {"without_hooks": True}, autonomy="full")
    page.send(create(initial_prompt="x"))
    await page.wait_for(m.ToolApproval)
    page.send(m.ToolApprovalResponse("s", False))
    await page.done()
    assert not (work / "x.txt").exists()


async def test_a_session_in_which_a_tool_runs_unasked_ends(page, open_tunnel, store):
    script = [{"when": "x", "do": [{"tool": "Read", "input": {"file_path": "x"}}, {"text": "more", "each": 5}]}]
    await open_tunnel(script, {"without_hooks": True}, autonomy="restricted")
    page.send(create(initial_prompt="x"))
    await page.state("ended")
    assert "Read was used without having been asked for" in page.of(m.SessionState)[-1].reason


async def test_a_session_that_asks_what_cannot_be_read_ends(page, open_tunnel):
    hook = '{"subtype":"hook_callback","callback_id":"pylon","input":{"tool_name":"Bash","tool_input":{"x":"\\ud800"}}}'
    raw = f'{{"type":"control_request","request_id":"r","request":{hook}}}'
    await open_tunnel([{"when": "x", "do": [{"raw": raw}, {"wait": 5}]}])
    page.send(create(initial_prompt="x"))
    await page.state("ended")
    assert "cannot be read" in page.of(m.SessionState)[-1].reason


SLOW = [{"when": "slow", "do": [{"text": "one two three four five", "each": 0.5}]}]


BRISK = [{"when": "slow", "do": [{"text": "one two three four five", "each": 0.15}]}]


async def test_stop_ends_the_session_and_its_child(page, open_tunnel, claude_log, store):
    await open_tunnel(SLOW)
    page.send(create(initial_prompt="slow"))
    await page.until(lambda: page.chunks("text"))
    page.send(m.Stop("s"))
    ended = await page.state("ended")
    assert ended.reason == "stopped"
    assert page.errors() == ["stopped"]
    assert page.text() != "one two three four five"
    pid = dict(claude_log())["process"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    (row,) = record.sessions(store)
    assert row.reason == "stopped"
    assert row.ended_at is not None
    page.send(m.Prompt("s", "still there?"))
    await page.until(lambda: "the session has ended" in page.errors())


async def test_pause_interrupts_and_resume_goes_on(page, open_tunnel, work):
    script = [*SLOW, {"when": "Go on", "do": [{"text": "Where was I?"}]}, {"when": "write", "do": [writing(work)]}]
    await open_tunnel(script)
    page.send(create(initial_prompt="slow"))
    await page.until(lambda: page.chunks("text"))
    page.send(m.Pause("s"), m.Prompt("s", "and then"))
    await page.state("paused")
    await page.done()
    assert len(page.of(m.Prompted)) == 1
    page.send(m.Resume("s"))
    await page.done(3)
    assert [x.content for x in page.of(m.Prompted)] == ["slow", sessions.CONTINUE, "and then"]
    page.send(m.Prompt("s", "write"))
    await page.wait_for(m.ToolApproval)
    page.send(m.Pause("s"))
    closed = await page.wait_for(m.ToolApprovalClosed)
    assert closed.outcome == "withdrawn"
    await page.done(4)
    assert not (work / "x.txt").exists()


async def test_a_session_ends_at_its_cap(page, open_tunnel, store):
    dear = [{"when": "dear", "do": [{"text": "x", "cost": 0.30}]}]
    await open_tunnel([*dear, *HELLO], {"spendthrift": True}, max_cost_usd=500_000)
    page.send(create(initial_prompt="hello", max_cost_usd=250_000), m.Prompt("s", "dear"), m.Prompt("s", "hello"))
    ended = await page.state("ended")
    assert ended.reason == "the cap is reached: it has cost $0.32 of $0.25"
    assert len(page.of(m.Prompted)) == 2
    assert record.sessions(store)[0].cost_usd == 320_000


async def test_a_cost_that_counts_anew_is_added_to_what_it_was(page, open_tunnel):
    told = {"type": "result", "subtype": "success", "is_error": False, "usage": {}}
    steps = [{"raw": json.dumps({**told, "total_cost_usd": cost})} for cost in (0.05, 0.02)]
    await open_tunnel([{"when": "x", "do": steps}])
    page.send(create(initial_prompt="x"))
    assert (await page.done(3)).cost_usd == 50_000 + 20_000 + 10_000


async def test_a_cap_of_nothing_starts_nothing(page, open_tunnel, tmp_path):
    await open_tunnel(HELLO)
    page.send(create(initial_prompt="hello", max_cost_usd=0))
    assert (await page.state("ended")).reason.startswith("max_cost_usd is 0")
    assert not (tmp_path / "claude.log").exists()


async def test_a_cost_that_nobody_tells_ends_a_session_with_a_cap(page, open_tunnel, store):
    silent = {"type": "result", "subtype": "success", "is_error": False, "usage": {}}
    await open_tunnel([{"when": "x", "do": [{"raw": json.dumps(silent)}, {"wait": 5}]}], max_cost_usd=10)
    page.send(create(initial_prompt="x"))
    assert "does not say what it has cost" in (await page.state("ended")).reason
    assert record.sessions(store)[0].unsettled


async def test_what_is_in_the_child_is_not_ours(page, open_tunnel, claude_log, monkeypatch, tmp_path):
    home = (tmp_path / "home").resolve()
    for name in ("PYLON_PASSPHRASE_FILE", "PYLON_TUNNEL_URL", "NWC_URI", "BREEZ_API_KEY", "MY_MNEMONIC", "CLAUDECODE"):
        monkeypatch.setenv(name, "topsecret")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "theirs")
    await open_tunnel(HELLO, blocked_tools=("WebFetch", "mcp__x__*"), max_cost_usd=250_000)
    page.send(create(initial_prompt="hello", system_prompt="You are topsecret.", blocked_tools=("--evil",)))
    await page.done()
    log = claude_log()
    arguments, names = dict(log)["arguments"], dict(log)["environment"]
    assert "topsecret" not in " ".join(arguments)
    assert not {"PYLON_PASSPHRASE_FILE", "PYLON_TUNNEL_URL", "NWC_URI", "BREEZ_API_KEY", "MY_MNEMONIC"} & set(names)
    assert "CLAUDECODE" not in names
    assert "ANTHROPIC_API_KEY" in names
    blocked = arguments[arguments.index("--disallowedTools") + 1].split(",")
    assert blocked == [*policy.NEVER, "WebFetch", f"Read(/{home}/**)", f"Edit(/{home}/**)"]
    assert arguments[arguments.index("--max-budget-usd") + 1] == "0.250000"
    assert "--setting-sources=user" in arguments
    assert '{"disableAllHooks":false}' in arguments
    prompt_file = arguments[arguments.index("--append-system-prompt-file") + 1]
    page.send(m.Stop("s"))
    await page.state("ended")
    with pytest.raises(FileNotFoundError):
        os.stat(prompt_file)


async def test_one_session_that_dies_harms_no_other(page, open_tunnel, store):
    await open_tunnel([{"when": "die", "do": [{"text": "x"}, {"exit": 3}]}, *BRISK])
    page.send(create("one", initial_prompt="slow"), create("two", initial_prompt="die"))
    assert (await page.state("ended", "two")).reason == "claude ended with exit code 3"
    await page.done(session="one")
    assert page.text("one") == "one two three four five"
    assert {row.name: row.unsettled for row in record.sessions(store)} == {"one": False, "two": True}


async def test_a_connection_lost_in_the_middle_loses_nothing(page, open_tunnel, server, work):
    script = [{"when": "x", "do": [{"text": "one two three four", "each": 0.2}, writing(work), {"text": "Done."}]}]
    tunnel = await open_tunnel(script)
    page.send(create(initial_prompt="x"))
    await page.until(lambda: page.chunks("text"))
    server.hang_up()
    await page.until(lambda: page.connections == 2)
    connected = await page.wait_for(m.TunnelConnected, count=2)
    (info,) = connected.sessions
    assert (info.session_id, info.state in ("running", "waiting"), info.first_seq) == ("s", True, 1)
    asked = await page.wait_for(m.ToolApproval)
    page.send(m.ListSessions())
    listed = (await page.wait_for(m.Sessions)).sessions
    assert [x.approval_id for x in listed[0].approvals] == [asked.approval_id]
    page.send(m.ToolApprovalResponse("s", True, asked.approval_id))
    await page.done()
    await page.state("idle")
    assert page.text() == "one two three fourDone."
    before = len(page.heard)
    page.send(m.Replay("s", 2))
    last = tunnel.sessions["s"].journal.last
    await page.until(lambda: any(getattr(x, "seq", 0) == last for x in page.heard[before:]))
    again = [x.seq for x in page.heard[before:] if getattr(x, "seq", None)]
    assert again == list(range(3, tunnel.sessions["s"].journal.last + 1))


async def test_without_a_connection_what_wants_a_yes_is_denied(page, open_tunnel, server, work):
    await open_tunnel([{"when": "x", "do": [writing(work)]}], approval_seconds=0.3)
    page.send(create(initial_prompt="x"))
    server.refuse = [RelayError("no connection")] * 1
    await page.wait_for(m.ToolApproval)
    server.hang_up()
    await page.until(lambda: page.connections == 2)
    await page.done()
    assert page.of(m.ToolApprovalClosed)[0].outcome == "timed_out"
    assert not (work / "x.txt").exists()


async def test_who_reads_nothing_cannot_have_it_written_without_end(page, open_tunnel, server):
    tunnel = await open_tunnel(HELLO)
    page.send(create(initial_prompt="hello"))
    await page.done()
    server.refuse = [RelayError("no connection")] * 1_000
    server.hang_up()
    session = tunnel.sessions["s"]
    for _ in range(3_000):
        session.pause()
        session.resume()
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
    assert session.journal.unsent < 1_200
    session.stop()
    server.refuse.clear()
    await page.state("ended")


async def test_orphans_end(page, open_tunnel, server, monkeypatch, store):
    monkeypatch.setattr(client, "ORPHAN_SECONDS", 0.2)
    tunnel = await open_tunnel(HELLO)
    page.send(create(initial_prompt="hello"))
    await page.done()
    server.refuse = [RelayError("no connection")] * 3
    server.hang_up()
    await page.state("ended")
    assert not tunnel.living
    assert record.sessions(store)[0].reason.startswith("no connection for")


async def test_a_child_that_heeds_nothing_is_ended_with_its_own_children(page, open_tunnel, claude_log, monkeypatch):
    monkeypatch.setattr(driver, "PATIENCE", 0.3)
    monkeypatch.setattr(sessions, "HEED_SECONDS", 0.3)
    await open_tunnel([{"when": "x", "do": [{"spawn": 60}, {"text": "x"}]}], {"deaf": True})
    page.send(create(initial_prompt="x"))
    await page.done()
    page.send(m.Stop("s"))
    await page.state("ended")
    group = dict(claude_log())["process"]
    with trio.fail_after(5):
        while True:
            try:
                os.killpg(group, 0)
            except (ProcessLookupError, PermissionError):
                break
            await trio.sleep(0.02)


async def test_closing_ends_the_sessions_and_lets_the_page_know(page, open_tunnel):
    tunnel = await open_tunnel(SLOW)
    page.send(create(initial_prompt="slow"))
    await page.until(lambda: page.chunks("text"))
    await tunnel.close("closed")
    assert page.of(m.SessionState)[-1].state == "ended"
    page.send(create("late"))
    await page.until(lambda: page.errors("late") == ["the tunnel is being closed"])


async def test_a_turn_that_claude_begins_by_itself_is_a_turn(page, open_tunnel, work, store):
    later = [{"text": "It has ended. "}, writing(work), {"text": "a b c d", "each": 0.3}]
    await open_tunnel([{"when": "begin", "do": [{"text": "It runs. "}], "then": later}, *HELLO])
    page.send(create(initial_prompt="begin"))
    await page.done()
    await page.wait_for(m.ToolApproval)
    assert record.sessions(store)[0].unsettled  # whoever dies now has not seen its cost
    page.send(m.Prompt("s", "hello"), m.ToolApprovalResponse("s", True))
    await page.until(lambda: "a b " in page.text())
    assert len(page.of(m.Prompted)) == 1
    page.send(m.Pause("s"))
    await page.done(2)
    await page.state("paused")
    assert not page.text().endswith("d")
    page.send(m.Resume("s"))
    await page.done(4)
    assert record.sessions(store)[0].turns == 4


async def test_a_session_that_nobody_prompts_ends(page, open_tunnel, monkeypatch):
    monkeypatch.setattr(sessions, "IDLE_SECONDS", 0.2)
    await open_tunnel(BRISK)
    page.send(create(initial_prompt="slow"))
    assert (await page.state("ended")).reason == "nobody has prompted it for an hour"
    assert page.text() == "one two three four five"  # a turn that takes its time is no idleness


# A page that does not mean well.


async def test_a_prompt_is_a_text_and_no_more(page, open_tunnel, tmp_path):
    (tmp_path / "secret.txt").write_text("topsecret")
    await open_tunnel()
    prompts = [f"look at @{tmp_path}/secret.txt", f'@"{tmp_path}/secret.txt"', "/config permissions=all", "/clear"]
    page.send(create(initial_prompt=prompts[0]), *(m.Prompt("s", prompt) for prompt in prompts[1:]))
    await page.done(4)
    assert "topsecret" not in page.text()
    assert "settings were changed" not in page.text()
    assert page.text().count("You said: ") == 4


@pytest.mark.parametrize("cwd", ["..", "/", "/etc", "sub/../../..", "~", "link", "no\0where"])
async def test_no_session_works_elsewhere(page, open_tunnel, work, tmp_path, cwd):
    (work / "link").symlink_to("/etc")
    tunnel = await open_tunnel(HELLO)
    page.send(create(cwd=cwd, initial_prompt="hello"))
    await page.until(lambda: page.errors())
    assert "within" in page.errors()[0]
    assert not tunnel.sessions
    assert not (tmp_path / "claude.log").exists()


async def test_wishes_that_loosen_are_as_if_they_were_not_made(page, open_tunnel, work):
    await open_tunnel([{"when": "x", "do": [writing(work)]}], max_cost_usd=1_000_000)
    page.send(create(initial_prompt="x", autonomy="full", approval_required_tools=(), max_cost_usd=10**9))
    created = await page.wait_for(m.SessionCreated)
    assert (created.autonomy, created.max_cost_usd) == ("supervised", 1_000_000)
    assert len(created.refused) == 3
    await page.wait_for(m.ToolApproval)
    assert not (work / "x.txt").exists()


async def test_a_directory_below_is_where_the_child_works(page, open_tunnel, claude_log, work):
    await open_tunnel([{"when": "x", "do": [{"tool": "Read", "input": {"file_path": str(work / "y")}}]}])
    page.send(create(initial_prompt="x", cwd="sub", autonomy="read_only"))
    await page.done()
    assert page.of(m.SessionCreated)[0].cwd == "sub"
    assert "out of the session's directory" in page.chunks("tool_done")[0].tool.error


async def test_there_are_no_more_sessions_than_allowed(page, open_tunnel):
    await open_tunnel(HELLO, max_sessions=2)
    page.send(*(create(str(n)) for n in range(4)), create("0"))
    await page.until(lambda: page.errors("2") and page.errors("3") and page.errors("0"))
    assert "2 sessions run already" in page.errors("2")[0]
    assert "already" in page.errors("0")[0]
    page.send(m.Stop("0"))
    await page.state("ended", "0")
    page.send(create("4", initial_prompt="hello"))
    await page.done(session="4")


async def test_the_day_has_a_cap_that_many_sessions_do_not_get_around(page, open_tunnel, store):
    dear = [{"when": "dear", "do": [{"text": "x", "cost": 0.30}]}]
    tunnel = await open_tunnel([*dear, *HELLO], {"spendthrift": True}, max_cost_day_usd=500_000, max_cost_usd=400_000)
    page.send(create("1", initial_prompt="dear"))
    await page.done(session="1")
    page.send(create("2", initial_prompt="hello"))
    assert (await page.wait_for(m.SessionCreated, "2")).max_cost_usd == 100_000
    page.send(create("3", initial_prompt="hello"))
    await page.until(lambda: page.errors("3"))
    assert "$0.50 is all that sessions may cost in 24 hours" in page.errors("3")[0]
    page.send(m.Stop("1"), m.Stop("2"))
    await page.state("ended", "1")
    await page.state("ended", "2")
    with trio.fail_after(10):
        while tunnel._unfinished:  # noqa: ASYNC110 - the page is told before the record is
            await trio.sleep(0.01)
    page.send(create("4", initial_prompt="dear"))
    created = await page.wait_for(m.SessionCreated, "4")
    assert created.max_cost_usd == 500_000 - 300_000 - record.sessions(store)[1].cost_usd
    assert (await page.state("ended", "4")).reason.startswith("the cap is reached")
    page.send(create("5"))
    await page.until(lambda: page.errors("5"))


async def test_a_session_whose_end_is_not_recorded_still_counts(page, open_tunnel, monkeypatch):
    async def fail(*_, **__):
        raise StoreError("the disk is full", "")

    monkeypatch.setattr(record.Record, "end", fail)
    await open_tunnel(HELLO, max_cost_day_usd=250_000)
    page.send(create(initial_prompt="hello"))
    await page.done()
    page.send(m.Stop("s"))
    await page.state("ended")
    await trio.sleep(0.3)  # the page is told before the record is
    page.send(create("t"))
    await page.until(lambda: page.errors("t"))
    assert "is all that sessions may cost" in page.errors("t")[0]


async def test_sessions_do_not_begin_one_after_the_other_for_ever(page, open_tunnel, monkeypatch):
    monkeypatch.setattr(client, "CREATIONS", 2.0)
    await open_tunnel(HELLO)
    for n in range(3):
        page.send(create(str(n), max_cost_usd=0))
        await page.until(lambda n=n: page.errors(str(n)))
    assert "try again in" in page.errors("2")[0]


async def test_what_has_ended_is_kept_for_a_while(page, open_tunnel, monkeypatch):
    monkeypatch.setattr(client, "ENDED_KEPT", 2)
    tunnel = await open_tunnel()
    for n in range(4):
        page.send(create(str(n), max_cost_usd=0))
        await page.state("ended", str(n))
    with trio.fail_after(10):
        while tunnel._unfinished:  # noqa: ASYNC110 - the page is told before the record is
            await trio.sleep(0.01)
    assert list(tunnel.sessions) == ["2", "3"]


async def test_who_is_refused_again_and_again_does_not_fill_the_log(page, open_tunnel, caplog):
    await open_tunnel()
    page.send(*(create(str(n), cwd="..") for n in range(40)))
    await page.wait_for(m.SessionError, count=40)
    assert caplog.text.count("refused: ") == 20


async def test_what_is_no_message_ends_neither_session_nor_tunnel(page, open_tunnel):
    tunnel = await open_tunnel(BRISK)
    page.send(create(initial_prompt="slow"))
    await page.until(lambda: page.chunks("text"))
    page.send("{", "[]", '{"type":"claude_fly"}', '{"type":"start_task"}', '{"type":"claude_prompt","session_id":"s"}')
    page.send('{"type":"claude_stop","session_id":["s"]}', m.SessionCreated("s"), m.Prompt("other", "x"))
    page.send(m.ToolApprovalResponse("s", True), m.Ping(7), m.Prompt("s", "  "))
    assert await page.wait_for(m.Pong) == m.Pong(7)
    await page.done()
    assert page.text() == "one two three four five"
    assert tunnel.refused == 7
    assert page.connections == 1
    assert any("content is missing" in error for error in page.errors())
    assert page.errors("other") == ["there is no such session"]


async def test_a_connection_that_brings_nothing_else_is_given_up(page, open_tunnel, monkeypatch):
    monkeypatch.setattr(client, "RATE", 10_000.0)
    tunnel = await open_tunnel(BRISK)
    page.send(create(initial_prompt="slow"))
    await page.until(lambda: page.chunks("text"))
    page.send(*['{"type":"claude_fly"}'] * 150)
    await page.until(lambda: page.connections == 2)
    await page.done()
    assert tunnel.refused == client.MAX_REFUSED + 1


async def test_a_flood_waits(page, open_tunnel, monkeypatch):
    monkeypatch.setattr(client, "BURST", 5.0)
    monkeypatch.setattr(client, "RATE", 20.0)
    await open_tunnel(HELLO)
    began = trio.current_time()
    page.send(*(m.Ping(n) for n in range(25)))
    await page.wait_for(m.Pong, count=25)
    assert trio.current_time() - began > 0.8
    assert [x.timestamp for x in page.of(m.Pong)] == list(range(25))


async def test_prompts_wait_in_line_but_not_without_end(page, open_tunnel):
    await open_tunnel(SLOW)
    page.send(create(initial_prompt="slow"))
    await page.until(lambda: page.chunks("text"))
    page.send(*(m.Prompt("s", f"more {n}") for n in range(sessions.MAX_PROMPTS + 3)))
    await page.until(lambda: any("wait already" in error for error in page.errors()))


async def test_what_cannot_be_shown_cannot_be_approved(page, open_tunnel, work):
    await open_tunnel([{"when": "x", "do": [writing(work, content="\U0001f600" * 300_000)]}])
    page.send(create(initial_prompt="x"))
    await page.done()
    assert not page.of(m.ToolApproval)
    assert not (work / "x.txt").exists()
    assert "too much to be shown" in page.chunks("tool_done")[0].tool.error


# Real sockets.


async def test_over_a_real_websocket(page, open_tunnel, address):
    tunnel = await open_tunnel(HELLO, url=address + "good", connect=client.dial)
    page.send(create(initial_prompt="hello"))
    await page.done()
    page.send_text(m.write(m.Prompt("s", "hello")))
    await page.done(2)
    await page.connection.aclose()
    await page.until(lambda: page.connections == 2)
    page.send(m.Prompt("s", "hello"))
    await page.done(3)
    assert page.text() == "Good day to you. And good night." * 3
    assert len(tunnel.living) == 1


async def test_a_message_beyond_all_bounds_ends_the_connection_and_no_session(page, open_tunnel, address):
    tunnel = await open_tunnel(BRISK, url=address + "good", connect=client.dial)
    page.send(create(initial_prompt="slow"))
    await page.until(lambda: page.chunks("text"))
    page.send_text("x" * (m.MAX_FRAME_BYTES + 1))
    await page.until(lambda: page.connections == 2)
    await page.done()
    assert page.text() == "one two three four five"
    assert len(tunnel.living) == 1


async def test_a_refused_token_is_said_with_its_remedy_and_not_repeated(open_tunnel, address):
    with pytest.raises(TunnelError) as error:
        await open_tunnel(HELLO, url=address + "bad", connect=client.dial)
    assert "refuses the token" in error.value.message
    assert "new address" in error.value.hint
    assert "token=bad" not in error.value.message + error.value.hint + repr(error.value)


async def test_a_server_that_is_not_there_is_said(open_tunnel):
    with pytest.raises(TunnelError) as error:
        await open_tunnel(HELLO, url="ws://127.0.0.1:1/?token=topsecret", connect=client.dial)
    assert "ws://127.0.0.1:1" in error.value.message
    assert "topsecret" not in error.value.message


@pytest.mark.parametrize("code", ["version", "unauthorized", "replaced"])
async def test_what_a_server_says_is_final_ends_the_tunnel(page, open_tunnel, code):
    with pytest.RaisesGroup(pytest.RaisesExc(TunnelError, match="tunnel.example")):
        async with trio.open_nursery() as nursery:
            await open_tunnel(HELLO, within=nursery)
            page.send(m.Error("busy", "wait"), m.Error(code, "no"))


async def test_a_token_that_is_refused_later_ends_the_tunnel_and_its_sessions(page, open_tunnel, server, store):
    with pytest.RaisesGroup(pytest.RaisesExc(TunnelError, match="refuses the token")):
        async with trio.open_nursery() as nursery:
            await open_tunnel(HELLO, within=nursery)
            page.send(create(initial_prompt="hello"))
            await page.done()
            server.refuse = [websocket.Rejected("x", "y", 401)]
            server.hang_up()
    assert record.sessions(store)[0].reason == "the tunnel was closed"
