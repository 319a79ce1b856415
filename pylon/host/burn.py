"""The burn: what an agent would spend in a day at its normal heartbeat.

Mean cost of the ticks run at the normal heartbeat, times the ticks of a day at that heartbeat, plus the mean daily
cost of triggered thoughts. It is projected, not what a slowed agent happens to spend: else an agent that saves would
seem to need less, be called active, and spend again. A tick in low balance therefore tells nothing about heartbeats
(it has collected what several would have found); its time still counts for the triggers that came in it.

The burn changes by ticks run and by nothing else; there is no clock in it. An agent that may not tick keeps its last
value, also when its heartbeat is set anew: that counts from the next tick. Until there is a day of active history the
burn is the one assumed. Ticks that failed have cost what they have cost; quiet ticks have cost nothing, and count.
"""

from __future__ import annotations

import math

import attrs

from pylon.money import Msat

DAY = 86_400.0
"""Seconds."""

KEPT_DAYS = 7
"""Whole days of history beside the one that is running; older ones are forgotten."""


@attrs.frozen
class Span:
    """What was run in about a day."""

    seconds: float = 0.0
    ticks: int = 0
    cost: Msat = Msat(0)


@attrs.frozen
class Burn:
    """The history that the burn is drawn from. Serialisable (cattrs), at most ``2 * (KEPT_DAYS + 1)`` spans."""

    heartbeat: float = 0.0
    """The normal heartbeat of the last tick run by it, seconds."""
    last_at: float | None = None
    """Wall time of the last tick run by the heartbeat, slowed or not."""
    normal: tuple[Span, ...] = ()
    """Ticks run at the normal heartbeat, over the time between them. The last span is the running one."""
    triggered: tuple[Span, ...] = ()
    """Thoughts that triggers caused, over the time between all ticks run by the heartbeat."""

    def beaten(self, *, at: float, cost: Msat, heartbeat: float, factor: float = 1) -> Burn:
        """A tick was run by the heartbeat.

        :param at: wall time at which it began.
        :param heartbeat: the normal one, seconds.
        :param factor: how many times slower it was.
        """
        # Time in which nothing could be run is no history: downtime, sleep, days without funds, a clock set anew. The
        # half more than an interval is for ticks that were late.
        longest = heartbeat * factor * 1.5
        seconds = min(max(at - self.last_at, 0.0), longest) if self.last_at is not None else 0.0
        normal = _run(self.normal, Span(seconds, 1, cost)) if factor == 1 else self.normal
        triggered = _run(self.triggered, Span(seconds))
        return attrs.evolve(self, heartbeat=heartbeat, last_at=at, normal=normal, triggered=triggered)

    def prompted(self, *, cost: Msat) -> Burn:
        """A tick was run because of a trigger, between heartbeats."""
        return attrs.evolve(self, triggered=_run(self.triggered, Span(0.0, 1, cost)))

    def per_day(self, assumed: Msat) -> Msat:
        """The burn per day, rounded up; ``assumed`` until there is a day of active history."""
        history = _sum(self.normal)
        if history.seconds < DAY or not history.ticks:
            return assumed
        awake = _sum(self.triggered)
        by_heartbeat = history.cost / history.ticks * (DAY / self.heartbeat)
        by_triggers = awake.cost / max(awake.seconds, DAY) * DAY
        return Msat(math.ceil(round(by_heartbeat + by_triggers, 6)))


def _run(spans: tuple[Span, ...], more: Span) -> tuple[Span, ...]:
    """``spans`` with ``more`` in the running one; a span that is a day long is followed by a new one."""
    *whole, running = spans or (Span(),)
    if running.seconds >= DAY:
        whole, running = [*whole, running], Span()
    running = Span(running.seconds + more.seconds, running.ticks + more.ticks, Msat(running.cost + more.cost))
    return (*whole[-KEPT_DAYS:], running)


def _sum(spans: tuple[Span, ...]) -> Span:
    return Span(
        sum(span.seconds for span in spans), sum(span.ticks for span in spans), Msat(sum(span.cost for span in spans))
    )
