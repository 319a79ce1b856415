"""The rules: a page can tighten them, and never loosen them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.config import AUTONOMY, ClaudeConfig
from pylon.errors import ConfigError
from pylon.tunnel.messages import SessionRequest, ToolWish
from pylon.tunnel.policy import NEVER, READ_TOOLS, READS, Decision, RequestRefused, rules_of, tighten

TOOLS = ["Read", "Glob", "Grep", "Write", "Edit", "MultiEdit", "Bash", "WebFetch", "Task", "mcp__db__query", "read"]
tool_lists = st.lists(st.sampled_from([*TOOLS, "mcp__*", "*", "Agent", "bash"]), max_size=3, unique=True).map(tuple)


@pytest.fixture(scope="module")
def tree():
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        work = root / "work"
        for directory in ("work/sub/deep", "work/.pylon/keys", "elsewhere"):
            (root / directory).mkdir(parents=True)
        (work / "out").symlink_to(root / "elsewhere")
        (work / "sub" / "up").symlink_to(work)
        (work / "sub" / "home").symlink_to(work / ".pylon")
        (work / "file").write_text("x")
        yield root


configs = st.builds(
    ClaudeConfig,
    autonomy=st.sampled_from(AUTONOMY),
    approval_required_tools=tool_lists,
    allowed_tools=tool_lists,
    blocked_tools=tool_lists,
    max_cost_usd=st.none() | st.integers(0, 1_000),
)
CWDS = [
    ".",
    "sub",
    "sub/deep",
    "sub/..",
    "sub/up/sub",
    "..",
    "/",
    "out",
    "sub/up/..",
    "../work",
    "../work2",
    "~",
    "file",
]
wishes = st.builds(
    SessionRequest,
    model=st.none() | st.sampled_from(["opus", ""]),
    tools=st.lists(st.builds(ToolWish, st.sampled_from(TOOLS)), max_size=3).map(tuple),
    max_cost_usd=st.none() | st.integers(0, 2_000),
    autonomy=st.none() | st.sampled_from([*AUTONOMY, "read-only", "Full"]),
    approval_required_tools=st.none() | tool_lists,
    blocked_tools=tool_lists,
    cwd=st.none() | st.sampled_from([*CWDS, "no\0thing", "missing"]),
)
PATHS = ["", "/file", "/sub", "/sub/deep/x", "/out/x", "/../elsewhere", "/sub/up/sub", "/sub/home/keys", "/.pylon/x"]


@settings(max_examples=250)
@given(configs, wishes, st.sampled_from(TOOLS), st.sampled_from(PATHS), st.booleans())
def test_a_page_only_tightens(tree, config, wish, tool, path, above):
    local = rules_of(config, default_cwd=tree / "work", closed=[tree / "work" / ".pylon"])
    try:
        tightened = tighten(local, wish).rules
    except RequestRefused:
        return
    base = str(tree if above else tree / "work") + path
    params = {"file_path": base, "path": base, "command": "ls"}
    assert tightened.decide(tool, params).decision >= local.decide(tool, params).decision

    assert tightened.cwd == tightened.cwd.resolve()
    assert local.cwd == tightened.cwd or local.cwd in tightened.cwd.parents
    if local.max_cost_usd is not None:
        assert tightened.max_cost_usd is not None
        assert tightened.max_cost_usd <= local.max_cost_usd
    assert tightened.closed == local.closed
    assert AUTONOMY.index(tightened.autonomy) >= AUTONOMY.index(local.autonomy)


@given(configs, wishes)
def test_to_tighten_twice_is_to_tighten_once(tree, config, wish):
    local = rules_of(config, default_cwd=tree / "work")
    wish = attrs.evolve(wish, cwd=None)
    once = tighten(local, wish).rules
    assert tighten(once, wish).rules == once


@given(configs, wishes, st.sampled_from(TOOLS))
def test_what_a_page_asks_for_it_gets_where_it_is_tighter(tree, config, wish, tool):
    local = rules_of(config, default_cwd=tree / "work")
    rules = tighten(local, attrs.evolve(wish, cwd=None)).rules
    got = rules.decide(tool, {}).decision
    if wish.tools and tool not in [entry.name for entry in wish.tools] and tool.casefold() != "read":
        assert got is Decision.DENY
    if tool in wish.blocked_tools:
        assert got is Decision.DENY
    if tool in (wish.approval_required_tools or ()):
        assert got >= Decision.ASK
    if wish.max_cost_usd is not None:
        assert rules.max_cost_usd is not None
        assert rules.max_cost_usd <= wish.max_cost_usd


def rules(tree, **config):
    return rules_of(ClaudeConfig(**config), default_cwd=tree / "work", closed=[tree / "work" / ".pylon"])


def decide(tree, tool, params=None, **config):
    return rules(tree, **config).decide(tool, params or {}).decision


@pytest.mark.parametrize("tool", sorted(READS))
def test_read_only_lets_reads_through(tree, tool):
    assert decide(tree, tool, {"file_path": "file", "path": "sub"}, autonomy="read_only") is Decision.ALLOW


@pytest.mark.parametrize(
    "tool", ["Write", "Edit", "Bash", "Task", "WebFetch", "WebSearch", "mcp__fs__read", "Anything"]
)
def test_read_only_denies_the_rest(tree, tool):
    assert decide(tree, tool, autonomy="read_only") is Decision.DENY


@pytest.mark.parametrize(
    ("autonomy", "read", "write", "fetch"),
    [
        ("full", Decision.ALLOW, Decision.ALLOW, Decision.ALLOW),
        ("supervised", Decision.ALLOW, Decision.ASK, Decision.ALLOW),
        ("restricted", Decision.ASK, Decision.ASK, Decision.ASK),
        ("read_only", Decision.ALLOW, Decision.DENY, Decision.DENY),
    ],
)
def test_the_table(tree, autonomy, read, write, fetch):
    assert decide(tree, "Read", {"file_path": "file"}, autonomy=autonomy) is read
    assert decide(tree, "Write", {"file_path": "new"}, autonomy=autonomy) is write
    assert decide(tree, "WebFetch", autonomy=autonomy) is fetch


@given(configs, wishes)
def test_whatever_claude_need_not_know_of_it_may_not_use(tree, config, wish):
    rules = tighten(rules_of(config, default_cwd=tree / "work"), attrs.evolve(wish, cwd=None)).rules
    if rules.known_tools is not None:
        for tool in [*TOOLS, *READ_TOOLS]:
            if tool.casefold() not in map(str.casefold, rules.known_tools):
                assert rules.decide(tool, {}).decision is Decision.DENY


@pytest.mark.parametrize("tool", [*NEVER, "sendmessage"])
def test_what_is_for_no_session(tree, tool):
    assert decide(tree, tool, autonomy="full") is Decision.DENY


def test_read_only_asked_of_a_restricted_machine_still_asks(tree):
    tightened = tighten(rules(tree, autonomy="restricted"), SessionRequest(autonomy="read_only")).rules
    assert tightened.decide("Read", {"file_path": "file"}).decision is Decision.ASK
    assert tightened.decide("Bash", {}).decision is Decision.DENY


def test_kin_of_a_tool_are_asked_for_and_blocked_with_it(tree):
    assert decide(tree, "MultiEdit", approval_required_tools=("Edit",)) is Decision.ASK
    assert decide(tree, "NotebookEdit", blocked_tools=("edit",)) is Decision.DENY
    assert decide(tree, "NotebookEdit", allowed_tools=("edit",)) is Decision.DENY
    assert decide(tree, "mcp__db__drop", blocked_tools=("mcp__db__*",)) is Decision.DENY


@pytest.mark.parametrize(
    ("tool", "params", "decision"),
    [
        ("Read", {"file_path": "file"}, Decision.ALLOW),
        ("Read", {"file_path": "sub/../file"}, Decision.ALLOW),
        ("Read", {"file_path": "../elsewhere/x"}, Decision.ASK),
        ("Read", {"file_path": "out/x"}, Decision.ASK),
        ("Read", {"file_path": "/etc/passwd"}, Decision.ASK),
        ("Read", {"file_path": "~/x"}, Decision.ASK),
        ("Read", {"file_path": "sub/home/keys/data.key"}, Decision.DENY),
        ("Read", {"file_path": ".PYLON/identity.mnemonic"}, Decision.DENY),
        ("Read", {"file_path": ["file"]}, Decision.DENY),
        ("Read", {"file_path": "a\0b"}, Decision.DENY),
        # Claude Code cuts off what JavaScript takes for white space, at both ends.
        ("Read", {"file_path": " /etc/passwd"}, Decision.ASK),
        ("Read", {"file_path": "\ufeff/etc/passwd"}, Decision.ASK),
        ("Read", {"file_path": "\n~/x"}, Decision.ASK),
        ("Read", {"file_path": "\u2003.pylon/identity.mnemonic\u3000"}, Decision.DENY),
        ("Grep", {"pattern": "x", "path": "\t.."}, Decision.DENY),
        ("Glob", {"pattern": "*", "path": " /"}, Decision.ASK),
        ("Glob", {"pattern": " /etc/*"}, Decision.ASK),
        ("Read", {"file_path": "file "}, Decision.ALLOW),
        ("Grep", {"pattern": "abandon"}, Decision.DENY),
        ("Grep", {"pattern": "abandon", "path": "sub"}, Decision.ALLOW),
        ("Grep", {"pattern": "x", "path": ".."}, Decision.DENY),
        ("Glob", {"pattern": "**/*.py"}, Decision.ALLOW),
        ("Glob", {"pattern": "sub/**"}, Decision.ALLOW),
        ("Glob", {"pattern": "{sub,other}/*.{a,b}"}, Decision.ALLOW),
        ("Glob", {"pattern": "/etc/*"}, Decision.ASK),
        ("Glob", {"pattern": "/*"}, Decision.ASK),
        ("Glob", {"pattern": "../*"}, Decision.ASK),
        ("Glob", {"pattern": "sub/../../*"}, Decision.ASK),
        ("Glob", {"pattern": "{/etc,sub}/*"}, Decision.ASK),
        ("Glob", {"pattern": "out/*"}, Decision.ASK),
        ("Glob", {"pattern": "*", "path": "/"}, Decision.ASK),
        ("Glob", {"pattern": ".pylon/**"}, Decision.DENY),
    ],
)
def test_where_file_tools_may_reach(tree, tool, params, decision):
    assert decide(tree, tool, params) is decision
    if decision is Decision.ASK:
        assert decide(tree, tool, params, autonomy="read_only") is Decision.DENY
        assert decide(tree, tool, params, autonomy="full") is Decision.ALLOW
    if decision is Decision.DENY:
        assert decide(tree, tool, params, autonomy="full") is Decision.DENY


@pytest.mark.parametrize(
    "cwd", ["..", "/", "out", "sub/up/..", "missing", "file", "~", "~root", "a\0b", "../work2", "x" * 5_000]
)
def test_a_directory_outside_or_nowhere_is_refused_alike(tree, cwd):
    (tree / "work2").mkdir(exist_ok=True)
    with pytest.raises(RequestRefused, match="within"):
        tighten(rules(tree), SessionRequest(cwd=cwd))


def test_a_directory_within_is_told_from_the_machines_own(tree):
    rules_there = tighten(rules(tree), SessionRequest(cwd="sub/up/sub/deep")).rules
    assert rules_there.cwd == tree / "work" / "sub" / "deep"
    assert rules_there.shown_cwd == "sub/deep"
    assert rules(tree).shown_cwd == "."
    assert tighten(rules(tree), SessionRequest(cwd=str(tree / "work" / "sub"))).rules.shown_cwd == "sub"


@pytest.mark.parametrize(
    "wish",
    [
        SessionRequest(autonomy="god"),
        SessionRequest(tools=(ToolWish("Bash(rm *)"),)),
        SessionRequest(blocked_tools=("Bash(rm *)",)),
        SessionRequest(approval_required_tools=("Bash(rm *)",)),
        SessionRequest(model="--dangerously-skip-permissions"),
        SessionRequest(model="a b"),
    ],
)
def test_wishes_without_sense_are_refused(tree, wish):
    with pytest.raises(RequestRefused):
        tighten(rules(tree), wish)


def test_what_was_not_granted_is_told(tree):
    wish = SessionRequest(autonomy="full", max_cost_usd=10, approval_required_tools=())
    found = tighten(rules(tree, max_cost_usd=5), wish)
    assert found.refused == ("autonomy stays supervised", "still asked for: Write, Edit, Bash", "max_cost_usd stays 5")


@pytest.mark.parametrize(
    "config",
    [
        {"blocked_tools": ("Bash(rm:*)",)},
        {"model": "--print"},
        {"cwd": Path("/nowhere/at/all")},
    ],
)
def test_rules_that_mean_nothing_are_an_error(tree, config):
    with pytest.raises(ConfigError) as error:
        rules(tree, **config)
    assert error.value.hint


def test_the_home_of_pylon_is_no_place_to_work_in(tree):
    with pytest.raises(ConfigError, match="home of Pylon"):
        rules(tree, cwd=tree / "work" / ".pylon" / "keys")
    assert os.path.isdir(tree)
