"""What must hold of a simulated home with agents: each rule a named function, that tells in words where it is broken.

Those with a number are the incidents of other systems: an agent paid twice, was declared dead, woke forty times.
``at_any_moment`` are looked at while things go wrong, ``at_the_end`` once everything has come to its rest. What a rule
says is worked out here anew, from rows, from the ledger and from what was done, never by the code that it is about.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import trio

from protocols.nip01 import Filter
from protocols.nip_sa import SCHEDULE
from pylon.compute.purchase import PURCHASE
from pylon.host import registry, triggers
from pylon.host.acting import ACTION, ActionState
from pylon.host.lifecycle import LifecycleState
from pylon.host.settings import MONEY, OUTWARD
from pylon.host.ticking import TICK, TickState
from pylon.money import MSATS_PER_SAT, Msat, sats
from pylon.store import inbox
from pylon.store.database import Store
from pylon.supervision import ChildState
from pylon.testing.sim.history import AWAKE, History, expected_state
from pylon.wallets.port import Direction, PaymentState

if TYPE_CHECKING:
    from pylon.testing.sim.hosting import HostWorld
    from pylon.testing.sim.told import Span

HOUR, DAY = 3_600.0, 86_400.0
POLL = 60.0
"""Seconds within which a home follows what its wallets hold."""
SETTLING = 400.0
"""Seconds after a restart, a set clock or a repair, in which heartbeats that were missed are spread."""
LATENESS = 90.0
"""Seconds by which a heartbeat may be late: what listens first is waited for, and the minimum gap is kept."""
_PUBLISHED = OUTWARD - MONEY


def at_any_moment(world: HostWorld) -> Iterator[str]:
    """What is broken now; nothing can be said of a home that is dead."""
    store = world.node.store
    if store is None or not world.node.ready or not world.lives:
        return
    for check in (h09_revival, h11_punctual, h13_never_crashed, h14_nobody_parked, h16_backoff_grows):
        for problem in check(world, store):
            yield f"{check.__name__}: {problem}"


def at_the_end(world: HostWorld, store: Store) -> Iterator[str]:
    """Everything that is broken once all has come to rest."""
    history = History.of(world, store)
    for check in _AT_THE_END:
        for problem in check(world, history):
            yield f"{check.__name__}: {problem}"


def _within(span: Span, at: float) -> bool:
    """Strictly: what happens in the very moment in which something begins may be older than it."""
    return span.start < at < span.end


def _set_between(world: HostWorld, start: float, end: float) -> bool:
    return any(start <= jump <= end for jump in world.jumps)


def _last(times: Sequence[float], otherwise: float = -math.inf) -> float:
    return max(times, default=otherwise)


# --- the numbered ones -----------------------------------------------------------------------------------------


def h06_budgets(world: HostWorld, history: History) -> Iterator[str]:
    """Concurrent buys, in a tick and beside it, never exceed a budget: of the tick, of 24 hours, of a grant."""
    for agent in world.ids:
        settings = world.newcomers[agent].settings
        bounds = {tick.id: settings.budget_tick for tick in history.ticks[agent]}
        for tick in history.ticks[agent]:
            if tick.allowance is not None:
                bounds[tick.id] = Msat(min(settings.budget_tick, tick.allowance))
        own = history.of_owner(agent)
        for place, paid in enumerate(own):
            if paid.cost == 0:
                continue
            earlier = [other for other in own[: place + 1] if other.cost]
            lately = [other for other in earlier if other is paid or other.updated_at > paid.created_at - DAY]
            day = sum(other.cost for other in lately)
            if day > settings.budget_day:
                yield f"{settings.name} spent {day} msat in 24 hours, of {settings.budget_day}"
            action = history.actions.get(paid.cause)
            if action is not None and action.approved:
                continue
            scope = sum(other.cost for other in earlier if other is paid or (paid.scope and other.scope == paid.scope))
            if scope > bounds.get(paid.scope, settings.budget_tick):
                yield f"{settings.name} spent {scope} msat in {paid.scope or 'one buy'}"
            if action is None:
                continue
            grant = settings.grant(action.kind)
            if grant is None or paid.amount > grant.each:
                yield f"{action.id} paid {paid.amount} msat without a grant for it"
            elif sum(other.cost for other in lately if other.purpose == paid.purpose) > grant.day:
                yield f"{action.id} exceeds the grant's day"


def h07_nothing_means_nothing(world: HostWorld, history: History) -> Iterator[str]:
    """A budget of 0 buys nothing; where the budget cannot be read, nothing is paid."""
    for agent in world.ids:
        settings = world.newcomers[agent].settings
        for paid in history.of_owner(agent):
            if settings.budget_day == 0 or (settings.budget_tick == 0 and paid.purpose == "purchase"):
                yield f"{settings.name} has a budget of 0, and an intent for {paid.purpose}"
    owners = {tick.purchase: agent for agent, ticks in history.ticks.items() for tick in ticks}
    owners |= {action.id: action.agent for action in history.actions.values()}
    spans = [damage for damage in [*world.damaged.values(), *world.repaired] if damage.what == "settings"]
    for passage in world.chronicle.passages:
        if passage.after == "paying" and passage.before != "paying":
            for damage in spans:
                if damage.agent == owners.get(passage.subject) and _within(damage.span, passage.at):
                    yield f"{passage.subject} was paid for though no budget could be read"


def h08_outage_changes_nothing(world: HostWorld, history: History) -> Iterator[str]:
    """While no wallet says what it holds, no agent's state changes: unknown is not zero."""
    for passage in world.chronicle.passages:
        if passage.machine == "lifecycle" and any(_within(span, passage.at) for span in world.outages):
            yield f"{passage.subject[:8]} went from {passage.before} to {passage.after} at {passage.at:.0f}"


def h09_revival(world: HostWorld, store: Store, agents: Sequence[str] | None = None) -> Iterator[str]:
    """What a wallet holds is known within a poll, and the state is the one that it carries: who sleeps and is funded
    is back by itself."""
    now = trio.current_time()
    if world.outages and world.outages[-1].lasts:
        return
    known_from = max(world.lives[-1].start + POLL, _last([span.end for span in world.outages]) + world.sweep + POLL)
    for agent in world.ids if agents is None else agents:
        repaired = [damage.span.end for damage in world.repaired if damage.agent == agent]
        if agent in world.damaged or now < max(known_from, _last(repaired) + world.sweep + POLL):
            continue
        if now < world.moved_at.get(world.wallets[agent].node_pubkey, 0.0) + POLL:
            continue
        settled, leaving = world.ledger._file.balance(world.wallets[agent].node_pubkey)
        if leaving:
            continue
        known = registry.lifecycle_records(store).load(store, agent)
        assert known is not None, "it was spawned"
        if known.balance != settled and not (known.state is LifecycleState.SPAWNING and settled < MSATS_PER_SAT):
            yield f"{_name(world, agent)} holds {settled} msat, {known.balance} are known"
        elif known.state is not expected_state(known.state, known):
            yield f"{_name(world, agent)} is {known.state.value} with {known.balance} msat and a burn of {known.burn}"


def h10_no_flapping(world: HostWorld, history: History) -> Iterator[str]:
    """A state goes down below its line and up from 1.1 times that line; each change is told once."""
    changes: Counter[str] = Counter()
    for moved in world.chronicle.followed:
        changes[moved.agent] += moved.jumps > 0
        before, after = moved.before, moved.after
        if before is None or before.state is after.state or moved.jumps > 3:
            continue
        if after.state is not expected_state(before.state, after):
            yield (
                f"{_name(world, moved.agent)} went from {before.state.value} to {after.state.value} with"
                f" {after.balance} msat and a burn of {after.burn}"
            )
    steps = Counter(p.subject for p in world.chronicle.passages if p.machine == "lifecycle" and p.message != "Spawned")
    rows = history.store.read("SELECT address, COUNT(*) AS n FROM outbox WHERE kind = ? GROUP BY address", (SCHEDULE,))
    told = {row["address"]: row["n"] for row in rows}
    for agent in world.ids:
        if not world.newcomers[agent].settings.publish:
            continue
        # Not of the spawn, nor of pauses; two changes of one moment may be one or two.
        announced = told.get(f"{SCHEDULE}:{agent}:schedule", 0) - 1 - world.marked[agent]
        if not changes[agent] - world.maybe_marked[agent] <= announced + world.maybe_marked[agent]:
            yield f"{_name(world, agent)} changed {changes[agent]} times and told it {announced} times"
        if announced > steps[agent] + world.maybe_marked[agent] + history.heartbeats_set(agent):
            yield f"{_name(world, agent)} told {announced} changes of {steps[agent]}"


def h11_punctual(world: HostWorld, store: Store) -> Iterator[str]:
    """Whoever is awake and well beats in time, whatever breaks for others."""
    now = trio.current_time()
    quiet_since = max(world.lives[-1].start, _last(world.jumps))
    if now < quiet_since + SETTLING:
        return
    rows = store.read(
        "SELECT a.id, a.beat, l.updated_at FROM agents a JOIN lifecycles l ON l.id = a.id"
        " WHERE l.state IN ('active', 'low_balance') AND a.paused = '' AND NOT EXISTS"
        " (SELECT 1 FROM ticks t WHERE t.agent = a.id AND t.state NOT IN ('done', 'failed', 'quiet'))"
    )
    wall = world.home_clock.now()
    for row in rows:
        agent = row["id"]
        busy = max(
            _last([damage.span.end for damage in world.repaired if damage.agent == agent]),
            world.paused_at.get(agent, -math.inf),
            _last([f.at for f in world.chronicle.followed if f.agent == agent and f.jumps]),
        )
        if agent in world.damaged or now < busy + SETTLING:
            continue
        if row["beat"] is None or row["beat"] < wall - LATENESS:
            late = "never" if row["beat"] is None else f"{wall - row['beat']:.0f} s late"
            yield f"{_name(world, agent)} is awake and its heartbeat is {late}"


def h11_costs_recorded(world: HostWorld, history: History) -> Iterator[str]:
    """Every tick ends, also by failing, and has recorded its cost: its thought, and what else it had paid by then."""
    for agent in world.ids:
        for tick in history.ticks[agent]:
            if tick.state not in TICK.final or tick.ended_at is None:
                continue
            spent = sum(
                paid.cost
                for paid in history.scopes.get(tick.id, ())
                if paid.purpose == "purchase" or paid.created_at < tick.ended_at
            )
            if tick.cost < spent:
                yield f"{tick.id} ({tick.status}, {tick.reason}) cost {spent} msat and says {tick.cost}"
            if tick.state is TickState.FAILED and not tick.reason:
                yield f"{tick.id} failed for no reason"


def h12_storm(world: HostWorld, history: History) -> Iterator[str]:
    """Many triggers make few ticks: the cap of an hour and the minimum gap hold."""
    for agent in world.ids:
        chosen = world.newcomers[agent].settings.schedule
        woken = [history.begun[tick.id] for tick in history.ticks[agent] if tick.cause == "trigger"]
        for place, at in enumerate(woken):
            first = max(0, place - chosen.triggered_per_hour)
            crowded = place >= chosen.triggered_per_hour and at - woken[first] < HOUR - 0.01
            if crowded and not _set_between(world, woken[first], at):
                yield f"{_name(world, agent)}: {place - first + 1} triggered ticks in {at - woken[first]:.0f} s"
        thoughts = [tick for tick in history.ticks[agent] if not tick.quiet]
        for before, after in itertools.pairwise(thoughts):
            gap = history.begun[after.id] - history.begun[before.id]
            if after.asked or _set_between(world, history.begun[before.id], history.begun[after.id]):
                continue
            if gap < chosen.min_gap - 0.01:
                yield f"{after.id} began {gap:.1f} s after {before.id}"


def h13_idle_costs_nothing(world: HostWorld, history: History) -> Iterator[str]:
    """With nothing to think about nothing is bought, and nothing told."""
    for agent in world.ids:
        newcomer = world.newcomers[agent]
        for tick in history.ticks[agent]:
            if not tick.quiet:
                if not (newcomer.goals or tick.triggers or tick.asked):
                    yield f"{tick.id} thinks about nothing"
                continue
            if tick.state is not TickState.QUIET or tick.cost or history.spent(tick.id):
                yield f"quiet {tick.id} is {tick.state.value} and cost {tick.cost} msat"
            if history.store.one("SELECT 1 FROM purchases WHERE id = ?", (tick.purchase,)) is not None:
                yield f"quiet {tick.id} has bought something"
            if history.store.one("SELECT 1 FROM outbox WHERE subject = ?", (tick.id,)) is not None:
                yield f"quiet {tick.id} has told something"


def h13_never_crashed(world: HostWorld, store: Store) -> Iterator[str]:
    """No child of an agent ends but of those whose rows do not read."""
    host = world.node.host
    assert host is not None, "it lives"
    for agent in world.ids:
        runner = host.runner(agent)
        if runner is None or agent in world.harmed:
            continue
        for status in runner.statuses():
            if status.starts > 1 or status.last_error:
                yield f"{_name(world, agent)}'s {status.name} ended: {status.last_error}"
        own = host.status(agent)
        if own is not None and (own.starts > 1 or own.last_error):
            yield f"{_name(world, agent)}'s nursery ended: {own.last_error}"


def h14_nobody_parked(world: HostWorld, store: Store) -> Iterator[str]:
    """Whoever waits is not declared dead: none is parked or quarantined, however long all wait for one vendor."""
    host = world.node.host
    assert host is not None, "it lives"
    for row in store.read("SELECT id, moved FROM agents WHERE moved <> ''"):
        yield f"{_name(world, row['id'])} was parked: {row['moved']}"
    for agent in world.ids:
        runner = host.runner(agent)
        if runner is not None and agent not in world.harmed:
            for status in runner.statuses():
                if status.state is ChildState.QUARANTINED:
                    yield f"{_name(world, agent)}'s {status.name} is quarantined"


def h15_restart_spreads(world: HostWorld, history: History) -> Iterator[str]:
    """After a restart the heartbeats that were missed do not come together."""
    for life in world.lives:
        if life.end < life.start + SETTLING or _set_between(world, life.start, life.start + SETTLING):
            continue
        first = []
        for agent in life.overdue:
            after = [
                history.begun[tick.id]
                for tick in history.ticks[agent]
                if tick.cause == "heartbeat" and life.start <= history.begun[tick.id] < life.start + SETTLING
            ]
            first += after[:1]
        if len(first) >= 3 and max(first) - min(first) < 0.05:
            yield f"{len(first)} heartbeats came together {first[0] - life.start:.2f} s after a restart"


def h15_one_beat_for_many(world: HostWorld, history: History) -> Iterator[str]:
    """However many heartbeats were missed, one is run, and the next after half an interval at the earliest."""
    for agent in world.ids:
        jitter = world.newcomers[agent].settings.schedule.jitter
        beats = [tick for tick in history.ticks[agent] if tick.cause == "heartbeat"]
        for before, after in itertools.pairwise(beats):
            interval = min(before.heartbeat * before.factor, after.heartbeat * after.factor)
            began, then = history.begun[before.id], history.begun[after.id]
            if then - began < (0.5 - jitter) * interval - 0.01 and not _set_between(world, began, then):
                yield f"{after.id} began {then - began:.1f} s after {before.id}, the heartbeat being {interval:.0f} s"


def h16_backoff_grows(world: HostWorld, store: Store) -> Iterator[str]:
    """A child that ends at once for ever is started ever more rarely."""
    host, now = world.node.host, trio.current_time()
    assert host is not None, "it lives"
    for agent, damage in world.damaged.items():
        runner = host.runner(agent)
        seconds = now - max(damage.span.start, world.lives[-1].start)
        for status in [] if runner is None else runner.statuses():
            if status.starts > 9 + seconds / 40:
                yield f"{_name(world, agent)}'s {status.name} was started {status.starts} times in {seconds:.0f} s"


def h17_once(world: HostWorld, history: History) -> Iterator[str]:
    """The same event over again, and after restarts, is one trigger, one tick, one action."""
    for agent in world.ids:
        taken = Counter(name for tick in history.ticks[agent] for name in tick.triggers)
        for name, count in taken.items():
            if count > 1:
                yield f"{_name(world, agent)} was woken {count} times by {name[:16]}"
        rows = history.store.read("SELECT id, tick FROM triggers WHERE agent = ?", (agent,))
        takers = {name: tick.id for tick in history.ticks[agent] for name in tick.triggers}
        for row in rows:
            taker = takers.get(row["id"])
            if row["tick"] != taker:
                yield f"{_name(world, agent)}'s trigger {row['id'][:16]} is of {row['tick']}, not {taker}"
        numbers = [tick.n for tick in history.ticks[agent]]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"{_name(world, agent)}'s ticks are not numbered one by one"
        agents_row = registry.load(history.store, agent)
        if agents_row.ticks != len(numbers):
            yield f"{_name(world, agent)} counts {agents_row.ticks} ticks, and has {len(numbers)}"
    bought = Counter(paid.scope for paid in history.paid if paid.cost and paid.scope and paid.purpose == "purchase")
    for scope, count in bought.items():
        if count > 1:
            yield f"{scope} bought {count} thoughts"


def h18_poison_is_put_aside(world: HostWorld, history: History) -> Iterator[str]:
    """An event that breaks whoever handles it is recorded as such, and does nothing."""
    for said in world.crowd.said:
        if not (said.poison and said.wanted):
            continue
        aside = inbox.seen(history.store, f"agent:{said.agent}", said.event.id)
        if not aside and not _excused(world, said.agent, said.at):
            yield f"{_name(world, said.agent)} has not put {said.event.id[:16]} aside"
        if history.store.one("SELECT 1 FROM triggers WHERE id = ?", (said.trigger,)) is not None:
            yield f"{_name(world, said.agent)} was woken by poison"


# --- those without a number ------------------------------------------------------------------------------------


def only_the_awake_tick(world: HostWorld, history: History) -> Iterator[str]:
    """No tick begins in hibernating, dormant or spawning, and none while the agent is paused."""
    states: dict[str, str] = {}
    agents = {agent[:16]: agent for agent in world.ids}
    for passage in world.chronicle.passages:
        if passage.machine == "lifecycle":
            states[passage.subject] = passage.after
        elif passage.machine == TICK.name and passage.message == "Begun":
            agent = agents[passage.subject.partition(":")[0]]
            if states.get(agent) not in AWAKE:
                yield f"{passage.subject} began while {states.get(agent)}"
            if any(_within(span, passage.at) for span in world.pauses[agent]):
                yield f"{passage.subject} began while paused"


def actions_once(world: HostWorld, history: History) -> Iterator[str]:
    """No action is done twice: its events are on the relay exactly once, its payment has left once."""
    published: dict[str, str] = {}
    refused = {row["event_id"] for row in history.store.read("SELECT event_id FROM deliveries WHERE state = 'refused'")}
    on_relay = {
        event.id
        for event in world.relay.events(Filter(kinds=[1, 7], authors=world.ids), Filter(kinds=[1059]))
        if event.id not in {said.event.id for said in world.crowd.said}
    }
    names = {
        f"{tick.id}:{place}"
        for ticks in history.ticks.values()
        for tick in ticks
        for place, _ in enumerate(tick.proposed)
    }
    for name in history.actions.keys() - names:
        yield f"{name} is what no tick has wished for"
    for action in history.actions.values():
        if action.events and (action.state is not ActionState.DONE or action.kind not in _PUBLISHED):
            yield f"{action.id} is {action.state.value}, and was published"
        for event in action.events:
            published[event] = action.id
            if event not in on_relay and event not in refused:
                yield f"{action.id} is done, and on no relay"
    for event in on_relay - published.keys():
        yield f"event {event[:16]} on the relay is no action's"
    causes = Counter((paid.owner, paid.cause) for paid in history.paid if paid.cost)
    for (_, cause), count in causes.items():
        if count > 1:
            yield f"{cause} was paid {count} times"
    begun = Counter(action.tick for action in history.actions.values())
    for agent in world.ids:
        for tick in history.ticks[agent]:
            if tick.state is TickState.DONE and begun[tick.id] != len(tick.proposed):
                yield f"{tick.id} proposed {len(tick.proposed)} actions, and began {begun[tick.id]}"


def payments_have_intents(world: HostWorld, history: History) -> Iterator[str]:
    """Whatever left a wallet was written down before, once, by its owner."""
    known = {(paid.owner, paid.payment_hash) for paid in history.paid if paid.state == "settled"}
    for agent, payments in world.payments.items():
        settled = [p for p in payments if p.direction is Direction.SENT and p.state is PaymentState.SETTLED]
        if len({payment.payment_hash for payment in settled}) != len(settled):
            yield f"{_name(world, agent)} paid one invoice twice"
        for payment in settled:
            if (agent, payment.payment_hash) not in known:
                yield f"{_name(world, agent)} paid {payment.amount} msat that nobody wrote down as settled"


def triggers_kept(world: HostWorld, history: History) -> Iterator[str]:
    """Whatever an agent listens for is taken by a tick or waits for one, however it came and whatever failed."""
    known = {(row["agent"], row["id"]) for row in history.store.read("SELECT agent, id FROM triggers")}
    for agent in world.ids:
        if triggers.dropped(history.store, agent):
            yield f"{_name(world, agent)} was spoken to too often for this rule"
    for said in world.crowd.said:
        missed = said.wanted and not said.poison and (said.agent, said.trigger) not in known
        if missed and not _excused(world, said.agent, said.at):
            yield f"{_name(world, said.agent)} has not heard {said.trigger[:16]}, said at {said.at:.0f}"
    for agent, payments in world.payments.items():
        for payment in payments if world.newcomers[agent].settings.funds else ():
            if payment.direction is Direction.RECEIVED and (agent, f"payment:{payment.payment_id}") not in known:
                yield f"{_name(world, agent)} has not noticed {payment.amount} msat"


def strangers_budget(world: HostWorld, history: History) -> Iterator[str]:
    """What strangers alone have caused costs no more in 24 hours than they have."""
    for agent in world.ids:
        settings = world.newcomers[agent].settings
        budget = sats(settings.schedule.stranger_budget_sats)
        strangers = {
            row["id"]
            for row in history.store.read("SELECT id FROM triggers WHERE agent = ? AND stranger = 1", (agent,))
        }
        alone = [
            tick
            for tick in history.ticks[agent]
            if tick.triggers and not tick.goals and not tick.asked and strangers.issuperset(tick.triggers)
        ]
        for place, tick in enumerate(alone):
            if tick.allowance is None:
                yield f"{tick.id} was caused by strangers alone, and has no allowance"
            lately = [other for other in alone[: place + 1] if other.created_at > tick.created_at - DAY]
            spent = sum(history.spent(other.id) for other in lately)
            if history.spent(tick.id) and spent > budget:
                yield f"strangers made {settings.name} spend {spent} msat in 24 hours, of {budget}"


def grants_hold(world: HostWorld, history: History) -> Iterator[str]:
    """Nothing is paid or said beyond what the operator allows."""
    for action in history.actions.values():
        settings = world.newcomers[action.agent].settings
        if action.state is not ActionState.DONE or action.kind not in OUTWARD:
            continue
        if settings.autonomy.value == "supervised" and not action.approved:
            yield f"{action.id} was done, and nobody approved it"
        strangers = any(tick.id == action.tick and tick.strangers for tick in history.ticks[action.agent])
        grant = settings.grant(action.kind)
        free = grant is not None and (grant.strangers or not strangers)
        if action.kind in MONEY and not (action.approved or free):
            yield f"{action.id} paid without a grant"


def conserved(world: HostWorld, history: History) -> Iterator[str]:
    """No sat was made or lost."""
    total = sum(world.ledger.accounts().values())
    if total:
        yield f"the ledger sums to {total} msat"


def books_agree(world: HostWorld, history: History) -> Iterator[str]:
    """Ledger, intents, records and all wallets say the same."""
    if world.report is None:
        yield "nobody has looked"
        return
    yield from world.report.problems


def comes_to_rest(world: HostWorld, history: History) -> Iterator[str]:
    """Once nothing goes wrong any more, nothing is left unfinished, and the operator has had every answer."""
    yield from unfinished(world)
    for action in history.actions.values():
        if action.state not in ACTION.final and action.state is not ActionState.WAITING:
            yield f"{action.id} is {action.state.value}"
    if world.asking[world.chronicle.life]:
        yield f"the operator waits for {world.asking[world.chronicle.life]} answers"


def unfinished(world: HostWorld) -> list[str]:
    """What has not come to its end yet, in words."""
    store = world.node.store
    if store is None or not world.node.ready:
        return ["the home is dead"]
    found = []
    for table, ends in (
        ("ticks", TICK.final),
        ("actions", ACTION.final | {ActionState.WAITING}),
        ("purchases", PURCHASE.final),
        ("intents", {"settled", "failed"}),
        ("deliveries", {"accepted", "refused", "cancelled", "expired"}),
    ):
        marks = ",".join("?" * len(ends))
        excused = _need_not_end(world, table)
        rows = store.read(
            f"SELECT state, COUNT(*) AS n FROM {table} WHERE state NOT IN ({marks}){excused} GROUP BY state",
            [str(state) for state in sorted(ends)],
        )
        found += [f"{row['n']} {table} are {row['state']}" for row in rows]
    return found


def _need_not_end(world: HostWorld, table: str) -> str:
    """What need not have come to its end, as a condition."""
    now = world.home_clock.now()
    # Deadlines are wall time: what was begun while the clock was ahead waits until it is there again.
    ahead = {"purchases": "deadline", "deliveries": "next_at"}.get(table) if world.jumps else None
    excused = f" AND NOT COALESCE({ahead}, 0) > {now + HOUR!r}" if ahead else ""
    if table == "deliveries":
        # Nobody keeps house here.
        excused += f" AND event_id NOT IN (SELECT event_id FROM outbox WHERE expires_at <= {now!r})"
    return excused


def _excused(world: HostWorld, agent: str, at: float) -> bool:
    """Whether what was said then may have been missed: the clock was far off, or the agent's settings did not read."""
    if at <= world.odd_until:
        return True
    return any(
        damage.agent == agent and damage.what == "settings" and damage.span.end >= at for damage in world.repaired
    )


def _name(world: HostWorld, agent: str) -> str:
    return world.newcomers[agent].settings.name


_AT_THE_END: tuple[Callable[[HostWorld, History], Iterator[str]], ...] = (
    h06_budgets,
    h07_nothing_means_nothing,
    h08_outage_changes_nothing,
    h10_no_flapping,
    h11_costs_recorded,
    h12_storm,
    h13_idle_costs_nothing,
    h15_restart_spreads,
    h15_one_beat_for_many,
    h17_once,
    h18_poison_is_put_aside,
    only_the_awake_tick,
    actions_once,
    payments_have_intents,
    triggers_kept,
    strangers_budget,
    grants_hold,
    conserved,
    books_agree,
    comes_to_rest,
)
NAMES = tuple(check.__name__ for check in _AT_THE_END)
