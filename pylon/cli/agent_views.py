"""What ``pylon agent`` says for people: the verbs' JSON as text. Pure; ``now`` is Unix seconds.

Words that the model or others wrote (thoughts, posts, goals, memories, errors) stand on one line, or indented, so that
none of them can look like a row of ours, and without the marks that turn the direction of writing. Control characters
are taken out at the end, by ``output.emit``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pylon.cli.output import in_sats
from pylon.cli.times import ago, in_days, span, until

Json = Mapping[str, Any]

ASLEEP = ("spawning", "hibernating", "dormant")
"""States in which an agent waits for funds alone."""

NO_AGENTS = "No agents."
NOT_MONEY = "simnet sats are not money"

_TURNS = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
"""What makes a terminal show letters in another order than they stand in."""


def line(text: object, most: int = 100) -> str:
    """Anybody's words on one line, cut at ``most`` characters."""
    words = " ".join(str(text).translate(_TURNS).split())
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"


def block(text: object, indent: str = "    ") -> str:
    """Anybody's words in full, each of their lines indented."""
    return "\n".join(indent + part for part in str(text).translate(_TURNS).splitlines() if part.strip())


def columns(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows under one another, two spaces apart; the columns numbered in ``right`` end at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    flush = set(right)
    return [
        "  ".join(
            cell.rjust(width) if number in flush else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def labelled(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """``name:  value``, the values under one another; pairs without a value are left out."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0) + 1
    return [f"{name + ':':<{width}} {value}" for name, value in shown]


# --- one agent ------------------------------------------------------------------------------------------------


def state_of(agent: Json) -> str:
    """The lifecycle's state, and what keeps the agent from ticking in spite of it."""
    if agent.get("moved"):
        return f"{agent['state']}, moved"
    return f"{agent['state']}, {agent['paused']}" if agent.get("paused") else str(agent["state"])


def runway(agent: Json) -> str:
    """How long the balance lasts, in days."""
    days = agent.get("runway_days")
    if days is None:
        return "unknown" if agent.get("balance_msats") is None else "unlimited"
    return in_days(days)


def next_tick(agent: Json, now: float) -> str:
    if agent.get("moved") or agent.get("paused"):
        return "none"
    if agent.get("next_tick") is not None:
        return until(agent["next_tick"], now)
    return "on funds" if agent.get("state") in ASLEEP else "not yet"


def table(agents: Sequence[Json], now: float) -> str:
    """``pylon agent list``."""
    rows = [
        (agent["name"], state_of(agent), in_sats(agent["balance_msats"]), runway(agent), next_tick(agent, now),
         agent["npub"])
        for agent in agents
    ]  # fmt: skip
    return "\n".join(columns([("NAME", "STATE", "BALANCE", "RUNWAY", "NEXT TICK", "NPUB"), *rows], right=(2, 3)))


def brief(agent: Json, now: float) -> str:
    """How an agent is, in one sentence."""
    name, state = agent["name"], agent["state"]
    if agent["moved"]:
        return f"{name} does not run here: {line(agent['moved'])}."
    if agent["paused"]:
        again = "start" if agent["paused"] == "stopped" else "resume"
        return f"{name} is {agent['paused']}: no tick begins until pylon agent {again} {name}."
    if state in ASLEEP:
        return (
            f"{name} is {state}, with {in_sats(agent['balance_msats'])}: it wakes on funds (pylon agent fund {name})."
        )
    ahead = "" if agent["next_tick"] is None else f", next tick {until(agent['next_tick'], now)}"
    return f"{name} is {state}: {in_sats(agent['balance_msats'])}, runway {runway(agent)}{ahead}."


def details(agent: Json, now: float) -> str:
    """``pylon agent info``."""
    schedule, budgets = agent["schedule"], agent["budgets"]
    reason = str(agent["reason"]).removeprefix(f"{agent['state'].replace('_', ' ')}: ").removeprefix("moved: ")
    state = state_of(agent) + (f" ({line(reason, 200)})" if reason else "")
    beats = span(schedule["heartbeat_seconds"])
    if schedule["interval_seconds"] and schedule["interval_seconds"] != schedule["heartbeat_seconds"]:
        beats += f", now every {span(schedule['interval_seconds'])}"
    rows = [
        ("name", agent["name"]),
        ("npub", agent["npub"]),
        ("about", line(agent.get("about", ""), 200)),
        ("network", agent["network"] + (f" ({NOT_MONEY})" if agent["network"] == "simnet" else "")),
        ("state", state),
        ("balance", _balance(agent, now)),
        ("runway", f"{runway(agent)}, at {in_sats(agent['burn_msats'])} a day"),
        ("next tick", next_tick(agent, now)),
        ("last tick", f"{ago(agent['last_tick'], now)}, {agent['ticks']:,} in all"),
        ("heartbeat", beats),
        ("wakes for", ", ".join(schedule["triggers"]) or "nothing but its heartbeat"),
        ("budget", _budget(budgets)),
        ("strangers", f"at most {in_sats(budgets['stranger_day_msats'])} a day for thoughts that they cause"),
        ("autonomy", agent["autonomy"]),
        ("trusts", ", ".join(str(key)[:16] for key in agent.get("settings", {}).get("trusted", ()))),
        ("model", line(agent["model"] or "any")),
        ("relays", line(", ".join(agent["relays"]) or "the home's", 300)),
        ("address", line(agent["lud16"] or "")),
        ("created", ago(agent["created_at"], now)),
        ("epoch", str(agent["epoch"])),
        ("last error", line(agent["last_error"] or "", 200)),
    ]
    lines = labelled(rows)
    if agent["approvals"]:
        lines.append(f"{_count(agent['approvals'], 'action')} waiting: pylon agent approvals {agent['name']}")
    if agent.get("payments_waiting"):
        lines.append(f"{_count(agent['payments_waiting'], 'payment')} waiting: pylon wallet approvals")
    lines += _section("Nearly gone", [_nearly(entry, now) for entry in budgets.get("warnings", ())])
    lines += _section("Grants", [grant_words(grant) for grant in agent["grants"]])
    lines += _section("Goals", goals(agent.get("goal_list", ()), now))
    lines += _section("Trouble", [_child(child) for child in agent["children"] if _is_trouble(child)])
    return "\n".join(lines)


def _balance(agent: Json, now: float) -> str:
    text = in_sats(agent["balance_msats"])
    if agent["pending_msats"]:
        text += f", {in_sats(agent['pending_msats'])} on its way out"
    known_at = agent["known_at"]
    return text if known_at is None or now - known_at < 60 else f"{text} (known {ago(known_at, now)})"


def _budget(budgets: Json) -> str:
    text = f"{in_sats(budgets['tick_msats'])} a tick, {in_sats(budgets['day_msats'])} a day"
    text += f" ({in_sats(budgets['spent_day_msats'])} spent)"
    if budgets.get("payee_day_msats") is not None:
        text += f"; {in_sats(budgets['payee_day_msats'])} a day to one payee"
    if budgets.get("approve_above_msats") is not None:
        text += f"; more than {in_sats(budgets['approve_above_msats'])} at once waits for you"
    return text + (f"; {in_sats(budgets['reserve_msats'])} stay" if budgets["reserve_msats"] else "")


def _nearly(warning: Json, now: float) -> str:
    """A budget that was nearly gone: ``day: 850 of 1,000 sat, 2h ago``."""
    used = f"{in_sats(warning['used_msats'])} of {in_sats(warning['bound_msats'])}"
    return f"{line(warning['budget'], 40)}: {used}, {ago(warning['at'], now)}"


def _section(title: str, rows: list[str]) -> list[str]:
    return [f"{title}:", *(f"  {row}" for row in rows)] if rows else []


def _is_trouble(child: Json) -> bool:
    return child["state"] in ("waiting", "quarantined")


def _child(child: Json) -> str:
    return f"{child['name']}  {child['state']}: {line(child['last_error'] or 'ended', 200)}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def grant_words(grant: Json) -> str:
    """A grant as a sentence: ``zap: at most 21 sat each, 100 sat a day, fees included``."""
    limits = []
    if grant["each_msats"] or grant["day_msats"]:
        limits.append(f"at most {in_sats(grant['each_msats'])} each")
        limits.append(f"{in_sats(grant['day_msats'])} a day")
    if grant["per_day"] is not None:
        limits.append(f"at most {grant['per_day']:,} a day" if not limits else f"{grant['per_day']:,} times a day")
    if grant["strangers"]:
        limits.append("also where strangers had a word")
    return f"{grant['action']}: {', '.join(limits)}" if limits else str(grant["action"])


# --- what it wants and knows ----------------------------------------------------------------------------------


def goal_row(goal: Json, now: float) -> tuple[str, ...]:
    review = goal["review_at"]
    looks = f"  (looks at it {until(review, now)})" if isinstance(review, int | float) else ""
    return (
        goal["id"],
        goal["status"],
        f"{round(goal['progress'] * 100)} %",
        f"priority {goal['priority']}",
        line(goal["description"], 200) + (looks if goal["status"] == "active" else ""),
    )


def goals(found: Sequence[Json], now: float) -> list[str]:
    return columns([goal_row(goal, now) for goal in found], right=(2,)) if found else []


def memories(report: Json, now: float) -> str:
    used = f"{report['bytes']:,} of {report['budget_bytes']:,} bytes"
    if not report["memories"]:
        return f"It remembers nothing yet ({used})."
    return "\n".join([*columns([_memory(memory, now) for memory in report["memories"]]), used])


def _memory(memory: Json, now: float) -> tuple[str, ...]:
    age = ago(memory["timestamp"], now) if memory["timestamp"] else "long ago"
    return memory["id"], age, f"{memory['type']}, {memory['origin']}", line(memory["content"], 200)


# --- what it did ----------------------------------------------------------------------------------------------


def tick_row(tick: Json, now: float) -> tuple[str, ...]:
    """A tick as a row: what it did, or why it did not."""
    if tick["status"] in ("error", "abandoned") and tick["reason"]:
        did = line(tick["reason"], 80)
    else:
        did = ", ".join(_short(action) for action in tick["actions"])
    return (
        f"#{tick['n']}", ago(tick["started_at"], now), tick["status"], line(_cause(tick), 40),
        in_sats(tick["cost_msats"]), did,
    )  # fmt: skip


def _short(action: Json) -> str:
    return action["kind"] if action["state"] == "done" else f"{action['kind']} ({action['state']})"


def _cause(tick: Json) -> str:
    return str(tick["trigger"] or tick["cause"])


def tick_text(tick: Json) -> str:
    """A tick in full."""
    took = "" if tick["ended_at"] is None else f", {span(tick['ended_at'] - tick['started_at'])}"
    lines = [f"tick {tick['n']} ({line(_cause(tick), 60)}): {tick['status']}, {in_sats(tick['cost_msats'])}{took}"]
    if tick["reason"]:
        lines.append(f"reason: {line(tick['reason'], 300)}")
    if tick["thought"]:
        lines.append(f"thought: {line(tick['thought'], 500)}")
    lines += [f"  {action_row(action)}" for action in tick["actions"]]
    if tick["status"] == "quiet":
        lines.append("nothing was due: no thought was bought")
    return "\n".join(lines)


def action_row(action: Json) -> str:
    cost = f", {in_sats(action['cost_msats'])}" if action["cost_msats"] else ""
    outcome = f" -> {line(action['outcome'], 120)}" if action["outcome"] else ""
    text = action["text"].removeprefix(action["kind"].replace("_", " ")).lstrip(": ")
    return f"{action['kind']}: {action['state']}{cost}  {line(text, 200)}".rstrip() + outcome


def tick_steps(before: Json | None, tick: Json) -> list[str]:
    """What is new in a tick under way, since ``before``."""
    steps = [] if before is not None else [f"tick {tick['n']} begins ({line(_cause(tick), 60)})"]
    old = before or {"provider": None, "thought": "", "actions": []}
    if tick["provider"] and not old["provider"]:
        steps.append(f"asks {str(tick['provider'])[:16]} for a thought")
    if tick["thought"] and not old["thought"]:
        steps.append(f"thinks: {line(tick['thought'], 200)}")
    known = {action["id"]: action["state"] for action in old["actions"]}
    steps += [action_row(action) for action in tick["actions"] if known.get(action["id"]) != action["state"]]
    return steps


# --- what waits -----------------------------------------------------------------------------------------------


def approval_text(approval: Json, now: float) -> str:
    """What an agent would do, in full: it is what the operator answers for."""
    cost = "" if not approval["cost_msats"] else f", {in_sats(approval['cost_msats'])}"
    head = f"{approval['id']}  {approval['agent']}  {approval['kind']}{cost}  {ago(approval['at'], now)}"
    if approval["expires_at"] is not None:
        head += f", lapses {until(approval['expires_at'], now)}"
    return f"{head}\n{block(approval['text'])}".rstrip()
