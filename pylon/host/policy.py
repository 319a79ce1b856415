"""What an agent may do of what it wishes to do. Pure: wishes in, verdicts out; the purse has the last word on money.

Rules
-----
1. What concerns the agent alone (its goals, memory, heartbeat within bounds) always passes; but where strangers have a
   word, it neither sets its heartbeat nor begins or ends a goal, unless by a grant that holds for strangers.
2. Money leaves by a grant of the operator's only, at every level of autonomy, and never beyond it.
3. In a tick in which strangers have a word, a grant counts only if it says that it holds for strangers.
4. *Supervised*: whatever others would notice waits for the operator. *Bounded*: it passes within daily counts, and
   speaks only to whoever woke the agent, to the operator and to those it trusts. *Autonomous*: as bounded, without
   counts of its own, to anybody.
5. A grant's ``per_day`` bounds its action at every level.
6. Where what a tick would say tells a secret, it says nothing (``pylon.host.disclosure``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs

from protocols.nip_sa import Autonomy
from pylon.host.acting import Admitted, Barred, Held
from pylon.host.replies import Proposed
from pylon.host.settings import MONEY, OUTWARD, ActionKind, AgentSettings
from pylon.money import Msat, format_msat, sats

Verdict = Admitted | Held | Barred

BOUNDED_A_DAY: Mapping[ActionKind, int] = {
    ActionKind.POST: 24,
    ActionKind.REPLY: 100,
    ActionKind.REACT: 100,
    ActionKind.DM: 50,
    ActionKind.REQUEST_PAYMENT: 10,
}
"""How often a bounded agent does what it has no grant for, in any 24 hours."""

LAPSE_SECONDS = 3 * 86_400.0
"""How long the operator is waited for."""

_SPEAKS = frozenset({ActionKind.DM, ActionKind.REQUEST_PAYMENT, ActionKind.ZAP})
_ANSWERS = frozenset({ActionKind.REPLY, ActionKind.REACT})


@attrs.frozen(kw_only=True)
class Circumstances:
    """What the verdict on one wish depends on, beside the settings."""

    now: float
    strangers: bool
    """Whether strangers have a word in the tick."""
    partners: Collection[str] = ()
    """Public keys that may be spoken to: whoever woke the agent, the operator, those it trusts."""
    to: str | None = None
    """Whom the wish speaks to, hex, as far as it says."""
    answers: bool = False
    """Whether what it answers is there."""
    today: int = 0
    """How many of its kind were done or begun in the last 24 hours."""
    cost: Msat = Msat(0)
    """What an invoice asks for, where the wish names one that reads."""
    tells: bool = False
    """Whether what the tick would say, all together, gives a secret away."""


def judge(wish: Proposed, settings: AgentSettings, around: Circumstances) -> Verdict:
    """The verdict on one wish."""
    barred = _barred(wish, settings, around) if wish.kind in OUTWARD else _barred_within(wish, settings, around)
    if barred:
        return Barred(barred)
    if wish.kind not in OUTWARD:
        return Admitted()
    if settings.autonomy is Autonomy.SUPERVISED:
        return Held(around.now + LAPSE_SECONDS)
    return Admitted()


def allowed(settings: AgentSettings, *, strangers: bool, answerable: bool) -> tuple[ActionKind, ...]:
    """What a reply may name at all, in the order of ``ActionKind``: what is sure to be barred is not offered."""
    offered = []
    for kind in ActionKind:
        grant = settings.grant(kind)
        if kind in MONEY and (grant is None or (strangers and not grant.strangers) or grant.each <= 0):
            continue
        if grant is not None and grant.per_day == 0:
            continue
        if kind is ActionKind.SET_HEARTBEAT and strangers and not (grant is not None and grant.strangers):
            continue
        if kind in _ANSWERS and not answerable:
            continue
        offered.append(kind)
    return tuple(offered)


def _barred(wish: Proposed, settings: AgentSettings, around: Circumstances) -> str:
    """Why the operator need not even be asked; empty: nothing against it."""
    grant = settings.grant(wish.kind)
    if around.tells:
        return "it would tell a secret"
    if wish.kind in MONEY:
        if grant is None:
            return f"no grant for {wish.kind.value}"
        if around.strangers and not grant.strangers:
            return f"the grant for {wish.kind.value} does not hold where strangers have a word"
        cost = around.cost or sats(wish.sats)
        if cost > grant.each:
            return f"{format_msat(cost)} is more than the grant's {format_msat(grant.each)}"
    limit = None if grant is None else grant.per_day
    if limit is None and grant is None and settings.autonomy is not Autonomy.AUTONOMOUS:
        limit = BOUNDED_A_DAY.get(wish.kind)
    if limit is not None and around.today >= limit:
        return f"{wish.kind.value} was done {around.today} times in 24 hours, which is the limit"
    if wish.kind in _ANSWERS and not around.answers:
        return "there is nothing that it answers"
    if wish.kind in _SPEAKS:
        if around.to is None:
            return "it names nobody"
        if settings.autonomy is not Autonomy.AUTONOMOUS and around.to not in around.partners:
            return "it would speak to somebody who has nothing to do with it"
    return ""


def _barred_within(wish: Proposed, settings: AgentSettings, around: Circumstances) -> str:
    """The same of what nobody notices: strangers do not steer an agent."""
    grant = settings.grant(wish.kind)
    if not around.strangers or (grant is not None and grant.strangers):
        return ""
    if wish.kind is ActionKind.SET_HEARTBEAT:
        return "strangers have a word: the heartbeat stays as it is"
    return "strangers have a word: no goal begins or ends" if wish.status else ""
