"""Does what agents have decided: the driver of ``pylon.host.acting``, for all agents of a home.

What is published is signed in the transaction that makes the action *done*. What is paid goes through the agent's
purse: its grant and its budgets are checked in the transaction that writes the intent. A payment whose outcome is not
known is asked about until the wallet knows, also after a restart, and also for an agent that sleeps by then.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

import attrs
import trio

from protocols import bolt11, nip10, nip17
from protocols.keys import KeyInvalid, PublicKey, SecretKey
from protocols.lnurl import LnurlInvalid
from protocols.nip01 import Event, EventInvalid, sign_event
from protocols.nip19 import Nip19Error, decode_public_key
from pylon.driver import Driver
from pylon.errors import NotFound, PylonError, UsageError, WalletError
from pylon.host import acting, policy, registry, triggers
from pylon.host.acting import Action, ActionEffect, ActionState
from pylon.host.agents import Agents, action_records
from pylon.host.disclosure import Secrets
from pylon.host.registry import Agent
from pylon.host.replies import Proposed
from pylon.host.settings import MONEY, OUTWARD, ActionKind, AgentSettings
from pylon.host.ticking import TickRecord
from pylon.host.triggers import Heard
from pylon.machine import Effect
from pylon.money import Msat, format_msat, sats
from pylon.store import intents
from pylon.store.database import Reads, Tx
from pylon.store.records import Step
from pylon.wallets.purse import Failed, Outcome, Settled, Unknown

log = logging.getLogger(__name__)

NOTE, REACTION = 1, 7
DAY = 86_400.0
PREPARE_SECONDS = 45.0
"""For everything that an invoice takes: a profile, two calls to a service, or one's own wallet."""
PREPARE_AGAIN_SECONDS = 3_600.0
"""How long an invoice is asked for again after an error that nobody expects."""
_INVOICE_LIFE = 86_400
_LEAST_LIFE = 5.0
"""Seconds an invoice must still live when we start to pay it."""
_FIRST_LOOK = 0.2
_LONGEST_LOOK = 30.0
_PURPOSE = {ActionKind.ZAP: "zap", ActionKind.PAY_INVOICE: "invoice"}
_COUNTED = tuple(
    state.value
    for state in ActionState
    if state not in (ActionState.REFUSED, ActionState.DENIED, ActionState.EXPIRED, ActionState.FAILED)
)

ZapInvoice = Callable[[Agent, SecretKey, str, Msat, str, Event | None], Awaitable[str]]
"""An invoice by which an agent zaps somebody: (agent, its key, whom, amount, comment, the note) -> bolt11. Raises
``WalletError``, ``LnurlInvalid``, ``PylonError``; pays nothing."""


class Deeds:
    """See the module. ``run`` must be running for anything that is prepared or paid."""

    def __init__(self, agents: Agents, *, zap_invoice: ZapInvoice, invoice_prefix: str) -> None:
        self._agents = agents
        self._store = agents.store
        self._clock = agents.clock
        self._rng: random.Random = agents.rng
        self._zap_invoice = zap_invoice
        self._prefix = invoice_prefix
        self.records = action_records(self._store)
        self._driver: Driver[Action] = Driver(
            self.records,
            self._store,
            self._clock,
            self._rng,
            handlers={
                ActionEffect.PREPARE: self._prepare,
                ActionEffect.PAY: self._pay,
                ActionEffect.RECONCILE: self._reconcile,
            },
            compose=self._compose,
            book=self._book,
            due=_due,
            attend=self._attend,
            relays=self._relays,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Resume what is unfinished, then serve until cancelled."""
        await self._driver.run(task_status=task_status)

    # --- for a tick -------------------------------------------------------------------------------------------

    async def begin(self, tick: TickRecord) -> list[str]:
        """Write all wishes of a tick down, each with its verdict, in one transaction; again: only those missing.

        Returns the ids of the tick's actions, in order.
        """
        names = [f"{tick.id}:{place}" for place in range(len(tick.proposed))]

        def job(tx: Tx) -> list[Step[Action]]:
            agent = registry.load(tx, tick.agent)
            known = {row["id"] for row in tx.all("SELECT id FROM actions WHERE tick = ?", (tick.id,))}
            heard = {entry.id: entry for entry in triggers.heard(tx, tx.vault, tick.triggers, tick.agent)}
            today = self._today(tx, tick.agent)
            tells = self._tells(tx, tick)
            steps = []
            for place, wish in enumerate(tick.proposed):
                if names[place] in known:
                    continue
                answered = _answered(wish, tick, heard)
                action = Action(
                    id=names[place],
                    agent=tick.agent,
                    tick=tick.id,
                    seq=place,
                    created_at=self._clock.now(),
                    wish=wish,
                    about=None if answered is None else answered.id,
                )
                verdict = policy.judge(
                    wish,
                    agent.settings,
                    policy.Circumstances(
                        now=self._clock.now(),
                        strangers=tick.strangers,
                        partners=_partners(heard.values(), agent.settings, self._agents.operator),
                        to=addressee(wish, answered),
                        answers=_answerable(wish, answered),
                        today=today[wish.kind.value],
                        cost=cost_of(wish),
                        tells=tells,
                    ),
                )
                if agent.moved or agent.deleted_at is not None:
                    verdict = acting.Barred("it is not run here any more")
                if not isinstance(verdict, acting.Barred):
                    today[wish.kind.value] += 1
                steps.append(self._driver.begin_in(tx, action, verdict))
            return steps

        for step in await self._store.write(job):
            self._driver.acted(step)
        return names

    async def settle(self, names: Sequence[str], seconds: float) -> None:
        """Wait until these actions rest, at most so long."""
        with trio.move_on_after(seconds):
            for name in names:
                with self._store.listen(f"actions:{name}") as changed:
                    while not self.load(name).at_rest:
                        await changed.receive()

    def load(self, action_id: str, source: Reads | None = None) -> Action:
        """Raises ``NotFound``."""
        action = self.records.load(source or self._store, action_id)
        if action is None:
            raise NotFound(f"there is no action {action_id[:60]}", "pylon agent approvals")
        return action

    def pays(self, action_id: str) -> bool:
        """Whether it is paying for this action, and sees to the payment's end. Raises ``SealError``."""
        action = self.records.load(self._store, action_id)
        return action is not None and action.state is ActionState.PAYING

    def of_tick(self, source: Reads, tick_id: str) -> list[Action]:
        """The actions of a tick, in order."""
        return list(self.records.where(source, "tick = ? ORDER BY seq", (tick_id,)))

    # --- for the operator -------------------------------------------------------------------------------------

    def waiting(self, agent_id: str | None = None) -> list[Action]:
        """What waits for a yes or a no, oldest first."""
        condition, params = ("", ()) if agent_id is None else (" AND agent = ?", (agent_id,))
        return list(self.records.where(self._store, f"state = 'waiting'{condition} ORDER BY created_at, id", params))

    async def approve(self, action_id: str) -> Action:
        """Raises ``UsageError`` for what does not wait any more, and for an agent that is not run here any more."""

        def admit(tx: Tx) -> bool:
            agent = registry.load(tx, self.load(action_id, tx).agent)
            if agent.moved or agent.deleted_at is not None:
                raise UsageError(
                    f"{agent.name or agent.npub} is not run here any more", f"pylon agent deny {action_id[:60]}"
                )
            return True

        return await self._decide(action_id, acting.Approved(), admit)

    async def deny(self, action_id: str, reason: str) -> Action:
        return await self._decide(action_id, acting.Denied(reason or "the operator said no"))

    async def _decide(
        self,
        action_id: str,
        message: acting.Approved | acting.Denied,
        admit: Callable[[Tx], bool] | None = None,
    ) -> Action:
        moved = await self._driver.advance(action_id, message, admit)
        if moved is None:
            raise UsageError(
                f"action {action_id} does not wait any more: it is {self.load(action_id).state.value}",
                "pylon agent approvals",
            )
        return moved

    # --- effects ----------------------------------------------------------------------------------------------

    async def _prepare(self, action: Action) -> acting.Prepared | acting.Missed | None:
        try:
            with trio.fail_after(PREPARE_SECONDS):
                prepared = await self._invoice(action)
            if action.kind not in MONEY:
                return prepared
            # Here and not by the driver, for the purse may refuse it: then nothing was written.
            await self._driver.advance(action.id, prepared)
        except trio.TooSlowError:
            return acting.Missed("nobody answered in time")
        except (WalletError, LnurlInvalid, NotFound) as error:
            return acting.Missed(str(error))
        except PylonError:
            raise
        except Exception as error:
            # Whatever a service does to break us, we do not ask it for ever.
            if self._clock.now() - action.created_at < PREPARE_AGAIN_SECONDS:
                raise
            return acting.Missed(f"it broke ({type(error).__name__})")
        return None

    async def _invoice(self, action: Action) -> acting.Prepared:
        agent = registry.load(self._store, action.agent)
        if agent.moved or agent.deleted_at is not None:
            raise NotFound(f"{agent.name or agent.id[:16]} is not run here any more")
        wish = action.wish
        heard = self._about(self._store, action)
        if action.kind is ActionKind.REQUEST_PAYMENT:
            issued = await self._agents.wallet(agent.id).receive(
                sats(wish.sats), wish.text[:200], _INVOICE_LIFE, key=action.id
            )
            return acting.Prepared(issued.bolt11, issued.payment_hash, issued.amount)
        if action.kind is ActionKind.ZAP:
            to = addressee(wish, heard)
            if to is None:
                raise NotFound("the zap names nobody")
            secret = self._agents.keys(agent.id).nostr
            note = None if heard is None or heard.author != to else _event(heard)
            text = await self._zap_invoice(agent, secret, to, sats(wish.sats), wish.text[:200], note)
        else:
            text = wish.invoice
        return self._payable(agent, text, sats(wish.sats))

    def _payable(self, agent: Agent, text: str, expected: Msat) -> acting.Prepared:
        """An invoice held against what was decided. ``expected`` 0: whatever the invoice says, within the grant."""
        try:
            invoice = bolt11.decode(text)
        except bolt11.Bolt11Invalid as error:
            raise NotFound(f"the invoice does not decode ({error})") from None
        if invoice.prefix != self._prefix:
            raise NotFound(f"the invoice is for {invoice.network}")
        amount = invoice.amount_msats
        if amount is None or amount <= 0:
            raise NotFound("the invoice names no amount")
        if expected and amount > expected:
            raise NotFound(f"the invoice asks {format_msat(Msat(amount))}, {format_msat(expected)} was decided")
        if invoice.expires_at - self._clock.now() < _LEAST_LIFE:
            raise NotFound("the invoice has expired")
        if invoice.payee == agent.wallet:
            raise NotFound("the invoice would pay the agent itself")
        return acting.Prepared(text, invoice.payment_hash, Msat(amount))

    async def _pay(self, action: Action) -> acting.Settled | acting.PaymentFailed:
        purse = self._agents.purse(action.agent)
        outcome = await purse.send(intents.by_hash(self._store, _hash(action)))
        if isinstance(outcome, Unknown):
            return await self._reconcile(action)
        return _input(outcome)

    async def _reconcile(self, action: Action) -> acting.Settled | acting.PaymentFailed:
        """Ask until the wallet knows; a pending payment may take as long as it likes."""
        purse = self._agents.purse(action.agent)
        wait = _FIRST_LOOK
        while True:
            intent = intents.by_hash(self._store, _hash(action))
            outcome = await purse.reconcile(intent)
            if not isinstance(outcome, Unknown):
                return _input(outcome)
            await trio.sleep(wait * (0.5 + self._rng.random()))
            wait = min(wait * 2, _LONGEST_LOOK)

    async def _attend(self, action: Action) -> acting.Lapsed:
        return acting.Lapsed()

    def _book(self, tx: Tx, step: Step[Action]) -> None:
        before, after = step.before, step.after
        if after.state is ActionState.PAYING:
            self._agents.purse(after.agent).reserve(
                tx,
                cause=after.id,
                bolt11=_bolt11(after),
                payment_hash=_hash(after),
                amount=after.amount,
                scope=after.tick,
                purpose=_PURPOSE[after.kind],
            )
        elif before.state is ActionState.PAYING:
            intent = intents.by_hash(tx, _hash(before))
            outcome: Outcome = (
                Settled(after.paid, after.fee, after.preimage) if after.paid > 0 else Failed(after.reason)
            )
            self._agents.purse(after.agent).record(tx, intent, outcome)

    # --- what is published ------------------------------------------------------------------------------------

    def _relays(self, action: Action) -> Sequence[str]:
        return self._agents.relays(registry.load(self._store, action.agent))

    def _compose(self, tx: Tx, action: Action, effect: Effect) -> list[Event]:
        """The events of a deed; their ids are kept with it."""
        agent = registry.load(tx, action.agent)
        secret = self._agents.keys(agent.id, tx).nostr
        events = self._events(tx, action, secret)
        self.records.amend(tx, attrs.evolve(action, events=tuple(event.id for event in events)), self._clock.now())
        return events

    def _events(self, tx: Tx, action: Action, secret: SecretKey) -> list[Event]:
        now, wish = int(self._clock.now()), action.wish
        heard = self._about(tx, action)
        note = None if heard is None else _event(heard)
        match action.kind:
            case ActionKind.POST:
                return [sign_event(secret, kind=NOTE, content=wish.text, created_at=now)]
            case ActionKind.REPLY if note is not None and note.kind == NOTE:
                tags = nip10.build_reply(note, me=secret.public.hex)
                return [sign_event(secret, kind=NOTE, content=wish.text, tags=tags, created_at=now)]
            case ActionKind.REACT if note is not None:
                tags = [["e", note.id], ["p", note.pubkey], ["k", str(note.kind)]]
                return [sign_event(secret, kind=REACTION, content=wish.text[:20] or "+", tags=tags, created_at=now)]
            case ActionKind.REPLY | ActionKind.DM | ActionKind.REQUEST_PAYMENT:
                to = addressee(wish, heard)
                text = wish.text if action.bolt11 is None else f"{wish.text}\n\nlightning:{action.bolt11}".strip()
                return [] if to is None else self._private(secret, to, text, now)
            case _:
                return []

    def _private(self, secret: SecretKey, to: str, text: str, now: int) -> list[Event]:
        """A private message, wrapped for its reader and for its writer (NIP-17)."""
        rumor = nip17.build_message(secret.public, [PublicKey.from_hex(to)], text, created_at=now)
        return list(nip17.wrap_message(rumor, secret, now=now, random=self._rng).values())

    def _about(self, source: Reads, action: Action) -> Heard | None:
        if action.about is None:
            return None
        found = triggers.heard(source, self._store.vault, [action.about], action.agent)
        return found[0] if found else None

    def _tells(self, tx: Tx, tick: TickRecord) -> bool:
        """Whether what a tick would say, one wish after the other, gives a secret of its agent's, or of ours, away."""
        said = [words for wish in tick.proposed if wish.kind in OUTWARD for words in wish.words()]
        if not said:
            return False
        keys = registry.keys(tx, tx.vault, tick.agent)
        secrets = Secrets((keys.nostr, keys.wallet, self._agents.runner), [registry.phrase(tx, tx.vault, tick.agent)])
        return secrets.told_by(said)

    def _today(self, source: Reads, agent_id: str) -> Counter[str]:
        marks = ",".join("?" * len(_COUNTED))
        rows = source.read(
            f"SELECT kind, COUNT(*) AS n FROM actions WHERE agent = ? AND created_at > ? AND state IN ({marks})"
            " GROUP BY kind",
            (agent_id, self._clock.now() - DAY, *_COUNTED),
        )
        return Counter({row["kind"]: row["n"] for row in rows})


def addressee(wish: Proposed, answered: Heard | None) -> str | None:
    """Whom a wish speaks to, hex: as it says, else the author of what it answers; ``None`` where that is nobody."""
    if wish.to:
        with suppress(Nip19Error, KeyInvalid, ValueError):
            return decode_public_key(wish.to).hex
        return None
    return None if answered is None else answered.author or None


def cost_of(wish: Proposed) -> Msat:
    """What a wish would cost, fee not included, as far as it says: what its invoice asks for counts, not its words."""
    if wish.invoice:
        with suppress(bolt11.Bolt11Invalid):
            return Msat(bolt11.decode(wish.invoice).amount_msats or 0)
    return sats(wish.sats) if wish.kind in MONEY else Msat(0)


def describe(action: Action) -> str:
    """What an action does, in words for the operator."""
    wish = action.wish
    parts = [action.kind.value.replace("_", " ")]
    amount = cost_of(wish) or sats(wish.sats)
    if amount:
        parts.append(format_msat(amount))
    if wish.to:
        parts.append(f"to {wish.to}")
    if action.about:
        parts.append(f"about {action.about[:16]}")
    if wish.invoice:
        parts.append(f"invoice {wish.invoice[:24]}…")
    return " ".join(parts) + (f": {wish.text}" if wish.text else "")


def _answered(wish: Proposed, tick: TickRecord, heard: dict[str, Heard]) -> Heard | None:
    """What a wish refers to by its number in the prompt; the only one there is, where it gives none."""
    if wish.kind not in OUTWARD or wish.kind is ActionKind.POST:
        return None
    listed = [heard[name] for name in tick.triggers if name in heard]
    if 1 <= wish.about <= len(listed):
        return listed[wish.about - 1]
    return listed[0] if len(listed) == 1 and not wish.to else None


def _answerable(wish: Proposed, answered: Heard | None) -> bool:
    """Whether what a wish answers is there: a public event, or for words at least somebody to write to."""
    if answered is None:
        return False
    return bool(answered.event or (wish.kind is ActionKind.REPLY and answered.author))


def _partners(heard: Iterable[Heard], settings: AgentSettings, operator: str) -> frozenset[str]:
    return frozenset([operator, *settings.trusted, *(entry.author for entry in heard if entry.author)])


def _event(heard: Heard) -> Event | None:
    """The note that was heard, where it was kept."""
    if not heard.event:
        return None
    try:
        return Event.from_json(heard.event)
    except EventInvalid:
        return None


def _due(action: Action) -> float | None:
    return action.lapses_at if action.state is ActionState.WAITING else None


def _input(outcome: Settled | Failed) -> acting.Settled | acting.PaymentFailed:
    match outcome:
        case Settled(amount, fee, preimage):
            return acting.Settled(amount, fee, preimage)
        case Failed(reason):
            return acting.PaymentFailed(reason)


def _hash(action: Action) -> str:
    assert action.payment_hash is not None, "it was prepared"
    return action.payment_hash


def _bolt11(action: Action) -> str:
    assert action.bolt11 is not None, "it was prepared"
    return action.bolt11
