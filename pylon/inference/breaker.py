"""When to leave a backend alone. Pure: time comes in, and nothing else.

Rules
-----
1. ``FAILURES`` failures in a row open the breaker; a success in between starts the count anew.
2. While it is open nobody is let through, for ``FIRST_WAIT`` seconds at first.
3. After that, one request is let through as a probe, and nobody else until it has ended.
4. A probe that succeeds closes the breaker, and the next wait is the first again.
5. A probe that fails opens it for twice as long as before, at most ``LONGEST_WAIT`` seconds.
6. A probe that ends without a verdict, because the customer left, proves nothing: the next may probe at once.
7. What comes in late from before it opened changes neither the wait nor the count.
"""

from __future__ import annotations

import enum

import attrs

FAILURES = 3
FIRST_WAIT = 5.0
LONGEST_WAIT = 300.0


class State(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


@attrs.frozen
class Breaker:
    """The state of one backend. ``until``: when an open one lets a probe through."""

    state: State = State.CLOSED
    failures: int = 0
    wait: float = 0.0
    """Seconds that it was opened for the last time; 0 while it has never been, or has been closed since."""
    until: float = 0.0

    def lets_through(self, now: float) -> bool:
        """Whether a request may go out now."""
        return self.state is State.CLOSED or (self.state is State.OPEN and now >= self.until)


def begin(breaker: Breaker, now: float) -> tuple[Breaker, bool]:
    """A request goes out, which ``lets_through`` has allowed. Returns whether it is the probe."""
    if breaker.state is State.OPEN and now >= breaker.until:
        return attrs.evolve(breaker, state=State.PROBING), True
    return breaker, False


def succeed(breaker: Breaker, *, probe: bool) -> Breaker:
    """A request has been answered."""
    return Breaker() if probe or breaker.state is State.CLOSED else breaker


def fail(breaker: Breaker, now: float, *, probe: bool) -> Breaker:
    """A request has failed, and it was the backend's fault."""
    if probe:
        wait = min(LONGEST_WAIT, 2 * breaker.wait)
        return Breaker(State.OPEN, breaker.failures + 1, wait, now + wait)
    if breaker.state is not State.CLOSED:
        return breaker
    failures = breaker.failures + 1
    if failures < FAILURES:
        return attrs.evolve(breaker, failures=failures)
    return Breaker(State.OPEN, failures, FIRST_WAIT, now + FIRST_WAIT)


def abandon(breaker: Breaker, *, probe: bool) -> Breaker:
    """A request has ended without a verdict: cancelled, or refused for a reason of its own."""
    return attrs.evolve(breaker, state=State.OPEN) if probe else breaker
