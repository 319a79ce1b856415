"""What an operator decides for an agent. The agent itself can change nothing of it but its heartbeat, within bounds.

Grants are the operator's leave to do what costs money or reaches people; the purse and the policy
(``pylon.host.actions``) hold an agent to them, whatever its model says.
"""

from __future__ import annotations

import enum
import functools
import re
from typing import Any

import attrs
import cattrs
import orjson

from protocols.nip_sa import Autonomy
from pylon.errors import ConfigError
from pylon.host.lifecycle import LifecycleSettings
from pylon.host.schedule import ScheduleSettings
from pylon.money import Msat, sats

MAX_NAME_CHARS = 64
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_MOST = {"about": 2_000, "picture": 500, "capabilities": 20, "kinds": 50, "trusted": 100, "grants": 20, "relays": 20}
"""Settings travel sealed in the agent's state, where there is not much room."""
_LEAST_HEARTBEAT = 1
_MOST_HEARTBEAT = 30 * 86_400
_READ = 16_384
"""Settings that are kept as they were read, about a kilobyte each."""


class ActionKind(enum.StrEnum):
    """What an agent can do after a thought. The values are what replies, grants and the command line say."""

    POST = "post"
    """A note of its own: kind 1."""
    REPLY = "reply"
    """An answer to a note that woke it (NIP-10)."""
    REACT = "react"
    """A reaction to a note that woke it (NIP-25)."""
    DM = "dm"
    """A private message (NIP-17)."""
    REQUEST_PAYMENT = "request_payment"
    """An invoice of its own, sent as a private message."""
    ZAP = "zap"
    """Sats to somebody's lightning address (NIP-57)."""
    PAY_INVOICE = "pay_invoice"
    UPDATE_GOAL = "update_goal"
    ADD_MEMORY = "add_memory"
    SET_HEARTBEAT = "set_heartbeat"
    NOTHING = "nothing"


MONEY = frozenset({ActionKind.ZAP, ActionKind.PAY_INVOICE})
"""What spends sats: never without a grant."""
OUTWARD = frozenset(
    {ActionKind.POST, ActionKind.REPLY, ActionKind.REACT, ActionKind.DM, ActionKind.REQUEST_PAYMENT, *MONEY}
)
"""What others notice. The rest concerns the agent alone."""


@attrs.frozen(kw_only=True)
class Grant:
    """Leave for one kind of action."""

    action: ActionKind
    each: Msat = Msat(0)
    """The most that one action may cost, fee not included; of what costs money."""
    day: Msat = Msat(0)
    """The most for any 24 hours, fees included; of what costs money."""
    per_day: int | None = None
    """How many in any 24 hours; ``None``: as many as the budgets carry."""
    strangers: bool = False
    """Whether it may be used in a tick that strangers had a word in."""


@attrs.frozen(kw_only=True)
class AgentSettings:
    """Amounts in whole sats where the name says so; times in seconds."""

    name: str
    about: str = "A sovereign AI agent"
    picture: str = ""
    capabilities: tuple[str, ...] = ("general",)
    autonomy: Autonomy = Autonomy.BOUNDED
    model: str | None = None
    """The model that its thoughts are bought from; ``None``: any."""
    heartbeat: int = 900
    heartbeat_least: int = 60
    """What the agent itself may set its heartbeat to, at least and at most."""
    heartbeat_most: int = 86_400
    mentions: bool = True
    dms: bool = True
    zaps: bool = True
    funds: bool = False
    """Whether a deposit, beside waking one that sleeps, is something to think about."""
    kinds: tuple[int, ...] = ()
    """Kinds of events, naming the agent in a ``p`` tag, that wake it."""
    budget_tick_sats: int = 100
    budget_day_sats: int = 1_000
    """For any 24 hours. 0 means nothing."""
    payee_day_sats: int | None = None
    """To one payee in any 24 hours; ``None``: no such bound."""
    approve_above_sats: int | None = None
    """A larger payment waits for the operator; ``None``: none does. An approved action waits no more."""
    thought_tokens: int = 400
    """The longest reply that is bought."""
    max_steps: int = 5
    """The most actions of one tick."""
    trusted: tuple[str, ...] = ()
    """Public keys whose words are not a stranger's, beside the operator's."""
    grants: tuple[Grant, ...] = ()
    relays: tuple[str, ...] = ()
    """Where it publishes and listens; none: the home's relays."""
    publish: bool = True
    """Whether ticks, state and schedule are published (NIP-SA); what it posts is, in any case."""
    lifecycle: LifecycleSettings = attrs.field(factory=LifecycleSettings)
    schedule: ScheduleSettings = attrs.field(factory=ScheduleSettings)

    def __attrs_post_init__(self) -> None:
        check_name(self.name)
        if not _LEAST_HEARTBEAT <= self.heartbeat <= _MOST_HEARTBEAT:
            raise ConfigError(
                f"a heartbeat of {self.heartbeat} s", f"give {_LEAST_HEARTBEAT} to {_MOST_HEARTBEAT:,} seconds"
            )
        for name in ("budget_tick_sats", "budget_day_sats", "payee_day_sats", "approve_above_sats", "max_steps"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}", "give 0 or more")
        for name, most in _MOST.items():
            if len(getattr(self, name)) > most:
                raise ConfigError(f"{name} has {len(getattr(self, name))} entries", f"give at most {most}")
        if not 16 <= self.thought_tokens <= 100_000:
            raise ConfigError(f"thought_tokens = {self.thought_tokens}", "give 16 to 100,000")

    @property
    def budget_tick(self) -> Msat:
        return sats(self.budget_tick_sats)

    @property
    def budget_day(self) -> Msat:
        return sats(self.budget_day_sats)

    @property
    def payee_day(self) -> Msat | None:
        return None if self.payee_day_sats is None else sats(self.payee_day_sats)

    @property
    def approve_above(self) -> Msat | None:
        return None if self.approve_above_sats is None else sats(self.approve_above_sats)

    def grant(self, action: ActionKind) -> Grant | None:
        """The operator's leave for ``action``, if there is one."""
        return next((grant for grant in self.grants if grant.action is action), None)

    def to_json(self) -> str:
        return orjson.dumps(_converter().unstructure(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> AgentSettings:
        """Keys of another version are passed over. Raises ``ConfigError`` for what are no settings."""
        return _read(text)


def check_name(name: str) -> str:
    """``name``, if an agent can be called so: it is also the first half of its lightning address (LUD-16).

    Raises ``ConfigError``.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{name[:80]!r} is no name for an agent",
            f"use 1 to {MAX_NAME_CHARS} of a-z, 0-9, '.', '_' and '-', a letter or digit at both ends",
        )
    return name


@functools.lru_cache(_READ)
def _read(text: str) -> AgentSettings:
    # Rows are read at every turn, and settings change a few times in a life.
    try:
        settings = _converter().structure(orjson.loads(text), AgentSettings)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"these are no settings of an agent ({type(error).__name__})") from None
    return attrs.evolve(settings, lifecycle=_shared(settings.lifecycle), schedule=_shared(settings.schedule))


@functools.lru_cache(256)
def _shared(value: Any) -> Any:
    """The first of all values that are equal: most agents have the same."""
    return value


@functools.cache
def _converter() -> cattrs.Converter:
    return cattrs.Converter(forbid_extra_keys=False)
