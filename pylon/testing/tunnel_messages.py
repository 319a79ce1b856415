"""Hypothesis strategies for the messages of the Claude tunnel. Needs ``hypothesis``.

``messages`` and its parts make what may be written. ``broken_messages`` makes ``(what is wrong, text)``.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from pylon.tunnel import messages as m

texts: st.SearchStrategy[str] = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
names: st.SearchStrategy[str] = st.one_of(
    st.sampled_from(["Read", "Write", "Bash", "mcp__db__query", "claude-sonnet-4-20250514"]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
)
session_ids: st.SearchStrategy[str] = st.from_regex(r"[A-Za-z0-9._:~-]{1,40}", fullmatch=True)
counts: st.SearchStrategy[int] = st.integers(0, m.MAX_COUNT)
amounts: st.SearchStrategy[int] = st.integers(0, m.MAX_MICRO_USD)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
_several = st.lists(names, max_size=4).map(tuple)
_seqs = st.none() | counts

tool_wishes = st.builds(m.ToolWish, names, description=st.none() | texts, config=json_values)
session_requests: st.SearchStrategy[m.SessionRequest] = st.builds(
    m.SessionRequest,
    model=st.none() | names,
    system_prompt=st.none() | texts,
    initial_prompt=st.none() | texts,
    tools=st.lists(tool_wishes, max_size=3).map(tuple),
    max_cost_usd=st.none() | amounts,
    autonomy=st.none() | st.sampled_from(["full", "supervised", "restricted", "read_only", "read-only", "god"]),
    approval_required_tools=st.none() | _several,
    blocked_tools=_several,
    cwd=st.none() | texts,
)
pending_approvals = st.builds(m.PendingApproval, names, names, params=json_values, expires_in=st.none() | counts)
session_infos = st.builds(
    m.SessionInfo,
    session_id=session_ids,
    state=st.sampled_from(m.SESSION_STATES),
    last_seq=counts,
    first_seq=counts,
    cost_usd=amounts,
    model=st.none() | names,
    autonomy=st.none() | names,
    max_cost_usd=st.none() | amounts,
    cwd=st.none() | texts,
    approvals=st.lists(pending_approvals, max_size=2).map(tuple),
)
tool_uses = st.builds(
    m.ToolUse,
    name=names,
    params=json_values,
    result=json_values,
    error=st.none() | texts,
    id=st.none() | names,
)
usages = st.builds(m.Usage, **dict.fromkeys(("input_tokens", "output_tokens", "cache_read", "total"), counts))
chunks = st.builds(
    m.Chunk,
    st.builds(
        m.ChunkBody,
        session_id=session_ids,
        chunk_type=st.sampled_from(m.CHUNK_TYPES),
        delta=st.none() | texts,
        tool=st.none() | tool_uses,
        usage=st.none() | usages,
        cost_usd=st.none() | amounts,
    ),
    seq=_seqs,
)

by_kind: dict[type[Any], st.SearchStrategy[Any]] = {
    m.CreateSession: st.builds(m.CreateSession, session_ids, session_requests),
    m.Prompt: st.builds(m.Prompt, session_ids, texts),
    m.ToolApprovalResponse: st.builds(
        m.ToolApprovalResponse, session_ids, st.booleans(), approval_id=st.none() | names
    ),
    m.Stop: st.builds(m.Stop, session_ids),
    m.Pause: st.builds(m.Pause, session_ids),
    m.Resume: st.builds(m.Resume, session_ids),
    m.ListSessions: st.just(m.ListSessions()),
    m.Replay: st.builds(m.Replay, session_ids, counts),
    m.Ping: st.builds(m.Ping, counts),
    m.Pong: st.builds(m.Pong, counts),
    m.TunnelConnected: st.builds(
        m.TunnelConnected, names, _several, counts, st.lists(session_infos, max_size=2).map(tuple)
    ),
    m.SessionCreated: st.builds(
        m.SessionCreated,
        session_ids,
        st.none() | names,
        st.none() | names,
        st.none() | amounts,
        st.none() | texts,
        st.none() | _several,
        _several,
        _several,
        st.lists(texts, max_size=2).map(tuple),
        seq=_seqs,
    ),
    m.SessionError: st.builds(m.SessionError, session_ids, texts, seq=_seqs),
    m.Chunk: chunks,
    m.ToolApproval: st.builds(
        m.ToolApproval, session_ids, names, json_values, st.none() | names, st.none() | counts, seq=_seqs
    ),
    m.ToolApprovalClosed: st.builds(
        m.ToolApprovalClosed, session_ids, names, st.sampled_from(m.APPROVAL_OUTCOMES), seq=_seqs
    ),
    m.Prompted: st.builds(m.Prompted, session_ids, texts, seq=_seqs),
    m.SessionState: st.builds(
        m.SessionState,
        session_ids,
        st.sampled_from(m.SESSION_STATES),
        st.none() | texts,
        st.none() | amounts,
        seq=_seqs,
    ),
    m.Sessions: st.builds(m.Sessions, st.lists(session_infos, max_size=2).map(tuple)),
    m.Error: st.builds(m.Error, names, texts),
    m.TunnelDisconnected: st.builds(m.TunnelDisconnected, st.none() | texts),
}
from_page: st.SearchStrategy[m.FromPage] = st.one_of([by_kind[kind] for kind in m.FROM_PAGE])
from_machine: st.SearchStrategy[m.FromMachine] = st.one_of([by_kind[kind] for kind in m.FROM_MACHINE])
from_server: st.SearchStrategy[m.FromServer] = st.one_of([by_kind[kind] for kind in m.FROM_SERVER])
messages: st.SearchStrategy[m.Message] = st.one_of(list(by_kind.values()))


def _said(**fields: Any) -> str:
    return json.dumps(fields)


def _request(**fields: Any) -> str:
    return _said(type="claude_create_session", session_id="s", request=fields)


_nested: Any = "x"
for _ in range(m.MAX_DEPTH + 1):
    _nested = [_nested]

broken_messages: st.SearchStrategy[tuple[str, str]] = st.sampled_from(
    [
        ("no JSON", "{"),
        ("nothing", ""),
        ("a list", "[]"),
        ("a lone surrogate", '{"type":"claude_stop","session_id":"\\ud800"}'),
        ("no type", _said(session_id="s")),
        ("a type that is a number", _said(type=1)),
        ("more bytes than a message has", _said(type="claude_prompt", session_id="s", content="x" * m.MAX_FRAME_BYTES)),
        ("a prompt beyond its bound", _said(type="claude_prompt", session_id="s", content="x" * (m.MAX_TEXT + 1))),
        ("no session", _said(type="claude_stop")),
        ("an empty session id", _said(type="claude_stop", session_id="")),
        ("a session id that is a path", _said(type="claude_stop", session_id="../../etc/passwd")),
        ("a session id that is long", _said(type="claude_stop", session_id="s" * (m.MAX_SESSION_ID + 1))),
        ("a session id with a line in it", _said(type="claude_stop", session_id="s\n")),
        ("a yes that is a 1", _said(type="claude_tool_approval_response", session_id="s", approved=1)),
        ("a yes that is a text", _said(type="claude_tool_approval_response", session_id="s", approved="true")),
        ("no request", _said(type="claude_create_session", session_id="s")),
        ("a request that is a text", _said(type="claude_create_session", session_id="s", request="full")),
        ("a cost that is a fraction", _request(max_cost_usd=0.25)),
        ("a cost below nothing", _request(max_cost_usd=-1)),
        ("a cost that is a yes", _request(max_cost_usd=True)),
        ("a cost that is endless", _request(max_cost_usd=10**30)),
        ("tools that are texts", _request(tools=["Bash"])),
        ("a tool without a name", _request(tools=[{"description": "x"}])),
        ("too many tools", _request(tools=[{"name": "x"}] * (m.MAX_LIST + 1))),
        ("autonomy that is a list", _request(autonomy=["full"])),
        ("approvals that are a text", _request(approval_required_tools="Bash")),
        ("a directory that is a number", _request(cwd=7)),
        ("settings without a floor", _request(tools=[{"name": "x", "config": _nested}])),
    ]
)
