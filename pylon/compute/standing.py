"""What was observed of providers: how often they answered, how fast, and when one failed us last.

Rules
-----
1. An observation fades: a week halves its weight, so that no failure counts for ever, and no success does.
2. All owners of a home share what is observed; it says nothing of whose purchases those were, or for what.
3. Somebody new is believed to answer four times in five, within ten seconds: better than one that has failed us,
   worse than one that has not.
4. Who has just failed (refused, quoted badly, been silent, kept money) is asked behind the others for a quarter of an
   hour, or until it answers. One that told us that it failed, and owes for it, is not: its debt is to be used.
"""

from __future__ import annotations

import sqlite3

import attrs

from pylon.store.database import Reads, Tx

HALF_LIFE = 7 * 86_400.0
"""Seconds in which an observation loses half of its weight."""
REST_SECONDS = 900.0
"""How long one that has just failed is asked behind the others."""
LONGEST_SECONDS = 600.0
"""An answer that took longer counts as if it took this."""
KEPT_SECONDS = 8 * HALF_LIFE
"""Older than this, an observation weighs nothing, and goes."""
MOST_READ = 1_000
"""Providers that are remembered at once, those of the newest observations."""
_LEAST_RELIABLE = 0.5
_BELIEF = 2.0
"""How many good answers one begins with ..."""
_DOUBT = 0.5
"""... and how many failures."""
_GUESSED_SECONDS = 10.0
"""What an answer takes of one about whom nothing is known."""


@attrs.frozen
class Standing:
    """What was observed of one provider, with the weights that the observations had at ``at``."""

    good: float = 0.0
    """Answers."""
    bad: float = 0.0
    """Failures."""
    seconds: float = 0.0
    """What the answers took together."""
    failed_at: float = 0.0
    """When it failed last without owing for it; 0: not since its last answer."""
    at: float = 0.0
    """Unix seconds."""

    @property
    def reliability(self) -> float:
        """How likely it answers, more than 0 and less than 1."""
        return (self.good + _BELIEF) / (self.good + self.bad + _BELIEF + _DOUBT)

    @property
    def latency(self) -> float:
        """Seconds from a request to its answer."""
        return (self.seconds + _GUESSED_SECONDS) / (self.good + 1.0)

    @property
    def proven(self) -> bool:
        """Whether it has answered at all, not too long ago."""
        return self.good >= 0.25

    def rests(self, now: float) -> bool:
        """Whether it is to be asked behind the others: it has just failed, or fails more often than it answers."""
        return (self.failed_at > 0 and 0 <= now - self.failed_at < REST_SECONDS) or self.reliability < _LEAST_RELIABLE

    def decayed(self, now: float) -> Standing:
        """The same, as it weighs at ``now``. A clock that was set back makes nothing heavier."""
        weight = 0.5 ** (max(now - self.at, 0.0) / HALF_LIFE)
        return attrs.evolve(
            self, good=self.good * weight, bad=self.bad * weight, seconds=self.seconds * weight, at=max(now, self.at)
        )

    def answered(self, seconds: float, now: float) -> Standing:
        """With one more answer, which took ``seconds``."""
        faded = self.decayed(now)
        took = min(max(seconds, 0.0), LONGEST_SECONDS)
        return attrs.evolve(faded, good=faded.good + 1.0, seconds=faded.seconds + took, failed_at=0.0)

    def failed(self, now: float, *, owes: bool) -> Standing:
        """With one more failure. ``owes``: it has said so, and what it owes."""
        faded = self.decayed(now)
        return attrs.evolve(faded, bad=faded.bad + 1.0, failed_at=faded.failed_at if owes else now)


UNKNOWN = Standing()
"""Of whom nothing is known."""


def standings(source: Reads, now: float) -> dict[str, Standing]:
    """What is known of providers, as it weighs now."""
    rows = source.read(
        "SELECT provider, good, bad, seconds, failed_at, at FROM observed_providers ORDER BY at DESC LIMIT ?",
        (MOST_READ,),
    )
    return {row["provider"]: _standing(row).decayed(now) for row in rows}


def standing(source: Reads, provider: str) -> Standing:
    """What is known of one, as it was written."""
    row = source.one("SELECT good, bad, seconds, failed_at, at FROM observed_providers WHERE provider = ?", (provider,))
    return UNKNOWN if row is None else _standing(row)


def note_answer(tx: Tx, provider: str, seconds: float, now: float) -> None:
    """It has answered, ``seconds`` after it was asked."""
    _write(tx, provider, standing(tx, provider).answered(seconds, now))


def note_failure(tx: Tx, provider: str, now: float, *, owes: bool = False) -> None:
    """It has refused, failed, quoted badly, or been silent."""
    _write(tx, provider, standing(tx, provider).failed(now, owes=owes))


def _write(tx: Tx, provider: str, now: Standing) -> None:
    tx.execute("DELETE FROM observed_providers WHERE at < ?", (now.at - KEPT_SECONDS,))
    tx.execute(
        "INSERT OR REPLACE INTO observed_providers (provider, good, bad, seconds, failed_at, at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (provider, now.good, now.bad, now.seconds, now.failed_at, now.at),
    )


def _standing(row: sqlite3.Row) -> Standing:
    return Standing(*(row[name] for name in ("good", "bad", "seconds", "failed_at", "at")))
