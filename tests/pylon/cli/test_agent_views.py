"""What is said of agents, as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.cli import agent_views as views
from pylon.cli.output import plain
from tests.pylon.cli.agent_json import EVIL, NOW, action, agent, approval, goal, memory, tick

WORDS = st.text(max_size=300) | st.sampled_from([EVIL, "a\u2028b", "\r\n\r\nx", "x" * 1_000, "\x85\x0b\x0c"])


@given(WORDS, st.integers(1, 50))
def test_a_line_is_one_line_and_not_longer(text, most):
    shown = plain(views.line(text, most))
    assert len(shown.splitlines()) <= 1
    assert len(shown) <= most
    assert "\u202e" not in shown


def test_what_is_cut_says_so():
    assert views.line("abcdef", 6) == "abcdef"
    assert views.line("abcdefg", 6) == "abcde…"


@given(WORDS)
def test_a_block_is_indented_on_every_line(text):
    shown = plain(views.block(text))
    assert all(part.startswith("    ") for part in shown.splitlines() if part.strip())
    for word in text.split():
        assert plain(word.translate(views._TURNS)) in shown


@given(WORDS)
def test_nobody_can_fake_a_row(text):
    """Each word that others have a say in, everywhere at once: the number of lines stays what it is."""

    def shown(words):
        child = {"name": "alice/heartbeat", "state": "waiting", "starts": 3, "last_error": words}
        view = agent(
            reason=words, moved=words, model=words, relays=[words], last_error=words, children=[child], about=words,
            goal_list=[goal(description=words)],
        )  # fmt: skip
        done = tick(thought=words, reason=words, trigger=words, actions=[action(text=words, outcome=words)])
        knows = {"memories": [memory(content=words)], "bytes": 10, "budget_bytes": 20}
        return plain(
            "\n".join(
                [
                    views.details(view, NOW), views.brief(view, NOW), views.tick_text(done), *views.tick_row(done, NOW),
                    *views.tick_steps(None, done), views.memories(knows, NOW),
                ]
            )
        )  # fmt: skip

    lines = shown(f"x{text}").splitlines()
    assert len(lines) == len(shown("x").splitlines())
    assert not any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 for part in lines for letter in part)
    assert "\u202e" not in "".join(lines)


def test_the_table():
    others = [
        agent(name="bob", state="dormant", balance_msats=0, runway_days=0.0, next_tick=None),
        agent(name="carol", paused="paused"),
        agent(name="dave", moved="run by another since noon"),
        agent(name="e", balance_msats=None, runway_days=None, known_at=None, next_tick=None, paused="stopped"),
        agent(name="f", state="low_balance", runway_days=None, next_tick=NOW - 5),
    ]
    head, first, *rest = views.table([agent(), *others], NOW).splitlines()
    assert head.split() == ["NAME", "STATE", "BALANCE", "RUNWAY", "NEXT", "TICK", "NPUB"]
    assert "12,345 sat    12 days  in 12m" in first
    assert first.startswith("alice  active")
    for row, parts in zip(
        rest,
        [
            ("bob dormant 0 sat 0 days on funds",),
            ("active, paused", "none"),
            ("active, moved", "none"),
            ("active, stopped", "unknown unknown none"),
            ("low_balance", "unlimited", "due now"),
        ],
        strict=True,
    ):
        assert all(part in " ".join(row.split()) for part in parts)
    starts = {row.index("npub1") for row in (first, *rest)}
    assert starts == {head.index("NPUB")}


def test_details():
    view = agent(
        state="low_balance", reason="low balance: 890 sat, 0.9 days", balance_msats=890_000, pending_msats=2_000,
        runway_days=0.89,
        known_at=NOW - 720, about="a poet", settings={"trusted": ["ab" * 32, "cd" * 32]}, model="smol",
        relays=["wss://a.example", "wss://b.example"],
        lud16="alice@example.com", approvals=2, last_error="no provider", epoch=3,
        schedule={"heartbeat_seconds": 900, "interval_seconds": 1_800, "triggers": []},
        budgets={**agent()["budgets"], "reserve_msats": 500_000},
        grants=[{"action": "zap", "each_msats": 21_000, "day_msats": 100_000, "per_day": 5, "strangers": True}],
        goal_list=[goal(), goal(status="completed", progress=1.0)],
        children=[
            {"name": "heartbeat", "state": "running", "starts": 1, "last_error": "old news"},
            {"name": "listener", "state": "quarantined", "starts": 9, "last_error": "OSError: no luck"},
        ],
    )  # fmt: skip
    text = views.details(view, NOW)
    for part in (
        "name:       alice\n", "about:      a poet\n", "simnet (simnet sats are not money)",
        "low_balance (890 sat, 0.9 days)", "890 sat, 2 sat on its way out (known 12m ago)",
        "0.9 days, at 1,000 sat a day", "next tick:  in 12m", "3m ago, 1,234 in all", "15m, now every 30m",
        "nothing but its heartbeat", "trusts:     abababababababab, cdcdcdcdcdcdcdcd\n",
        "100 sat a tick, 1,000 sat a day (37.5 sat spent); 500 sat stay",
        "at most 100 sat a day",
        "bounded", "smol", "wss://a.example, wss://b.example", "alice@example.com", "epoch:      3", "no provider",
        "2 actions waiting: pylon agent approvals alice",
        "Grants:\n  zap: at most 21 sat each, 100 sat a day, 5 times a day, also where strangers had a word\n",
        "25 %  priority 1  post a haiku a day", "completed  100 %",
        "Trouble:\n  listener  quarantined: OSError: no luck",
    ):  # fmt: skip
        assert part in text
    assert "old news" not in text


def test_details_of_one_of_whom_little_is_known():
    view = agent(balance_msats=None, pending_msats=None, known_at=None, runway_days=None, last_tick=None, ticks=0)
    text = views.details(view, NOW)
    assert "balance:   unknown\n" in text
    assert "runway:    unknown" in text
    assert "last tick: never, 0 in all" in text
    assert "None" not in text
    for absent in ("address", "last error", "about", "moved", "Goals", "Grants", "Trouble", "waiting", "stay"):
        assert absent not in text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "alice is active: 12,345 sat, runway 12 days, next tick in 12m."),
        ({"next_tick": None}, "alice is active: 12,345 sat, runway 12 days."),
        ({"paused": "stopped"}, "alice is stopped: no tick begins until pylon agent start alice."),
        ({"moved": "run elsewhere"}, "alice does not run here: run elsewhere."),
        ({"state": "dormant", "balance_msats": 0},
         "alice is dormant, with 0 sat: it wakes on funds (pylon agent fund alice)."),
        ({"state": "spawning", "balance_msats": None},
         "alice is spawning, with unknown: it wakes on funds (pylon agent fund alice)."),
    ],
)  # fmt: skip
def test_brief(changes, text):
    assert views.brief(agent(**changes), NOW) == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "post"),
        ({"per_day": 3}, "post: at most 3 a day"),
        ({"strangers": True}, "post: also where strangers had a word"),
        ({"action": "zap", "each_msats": 21_000, "day_msats": 0}, "zap: at most 21 sat each, 0 sat a day"),
    ],
)
def test_grants_in_words(changes, text):
    blank = {"action": "post", "each_msats": 0, "day_msats": 0, "per_day": None, "strangers": False}
    assert views.grant_words({**blank, **changes}) == text


def test_ticks():
    assert views.tick_row(tick(), NOW)[2:] == ("success", "mention, zap", "3.2 sat", "post")
    waiting = tick(actions=[action(), action(1, kind="zap", state="waiting")], trigger="", cause="asked")
    assert views.tick_row(waiting, NOW)[3::2] == ("asked", "post, zap (waiting)")
    failed = tick(status="error", reason="no provider", actions=[], cost_msats=0)
    assert views.tick_row(failed, NOW)[-1] == "no provider"
    assert views.tick_text(failed).splitlines()[:2] == [
        "tick 7 (mention, zap): error, 0 sat, 4s", "reason: no provider"
    ]  # fmt: skip
    quiet = tick(status="quiet", actions=[], thought="", ended_at=None, trigger="heartbeat", cost_msats=0)
    assert views.tick_text(quiet) == "tick 7 (heartbeat): quiet, 0 sat\nnothing was due: no thought was bought"
    assert views.tick_text(tick(actions=[action(kind="zap", cost_msats=21_000, outcome="paid")])).splitlines()[-1] == (
        "  zap: done, 21 sat  an old pond -> paid"
    )


def test_a_tick_under_way_is_told_once():
    stages = [
        tick(status="running", provider=None, thought="", actions=[]),
        tick(status="running", thought="", actions=[]),
        tick(status="running", actions=[action(state="planned")]),
        tick(status="running", actions=[action(state="planned")]),
        tick(),
    ]
    told = [views.tick_steps(before, now) for before, now in zip([None, *stages], stages, strict=False)]
    assert told == [
        ["tick 7 begins (mention, zap)"],
        [f"asks {'bb' * 8} for a thought"],
        ["thinks: somebody asks for a haiku", "post: planned  an old pond"],
        [],
        ["post: done  an old pond"],
    ]


def test_an_approval_is_shown_in_full():
    shown = views.approval_text(approval(text="one\ntwo " + "x" * 900), NOW)
    head, *rest = shown.splitlines()
    assert head.endswith("alice  zap, 21 sat  10m ago, lapses in 2h 1m")
    assert rest == ["    one", "    two " + "x" * 900]
    assert "sat" not in views.approval_text(approval(text="a note", kind="post", cost_msats=None), NOW)


def test_memories():
    report = {"memories": [memory(), memory(timestamp=0)], "bytes": 1_024, "budget_bytes": 40_000}
    first, second, last = views.memories(report, NOW).splitlines()
    assert first == f"{'5e' * 8}  2h ago    observation, stranger  bob likes haiku"
    assert "  long ago  " in second
    assert last == "1,024 of 40,000 bytes"
    assert views.memories({**report, "memories": []}, NOW).startswith("It remembers nothing yet")


def test_goals():
    found = [goal(), goal(id="g2", status="completed", progress=1.0)]
    assert views.goals(found, NOW) == [
        "9a9a9a9a9a9a9a9a  active      25 %  priority 1  post a haiku a day",
        "g2                completed  100 %  priority 1  post a haiku a day",
    ]
    assert views.goals([], NOW) == []
    assert "looks at it in 1h" in views.goal_row(goal(review_at=NOW + 3_601), NOW)[-1]
    assert "looks" not in views.goal_row(goal(review_at="x\n", status="active"), NOW)[-1]
    assert "looks" not in views.goal_row(goal(review_at=NOW + 3_601, status="paused"), NOW)[-1]


def test_what_is_nearly_gone_and_what_waits_is_told():
    warning = {"budget": "day", "used_msats": 850_000, "bound_msats": 1_000_000, "at": NOW - 7_230}
    budgets = {**agent()["budgets"], "warnings": [warning], "payee_day_msats": 5_000, "approve_above_msats": 0}
    told = views.details({**agent(budgets=budgets), "payments_waiting": 2}, NOW)
    assert "Nearly gone:\n  day: 850 sat of 1,000 sat, 2h ago" in told
    assert "2 payments waiting: pylon wallet approvals" in told
    assert "5 sat a day to one payee; more than 0 sat at once waits for you" in told
    assert "Nearly gone" not in views.details(agent(), NOW)
