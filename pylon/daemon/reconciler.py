"""Sees to every payment intent that nobody else sees to: at start, now and then, and when the operator has decided.

Rules
-----
1. A thought is driven by the buyer, what an agent does by the deeds of a running host, what the operator pays by the
   call that was asked for it. Whatever is pending without such a driver (a host that does not run, a record that is
   gone or does not read, a call that ended) is driven here: every open intent, whosever and whatever it is for.
2. What the wallet has never heard of is not sent later on, for whoever wanted it has been told that it failed, or has
   gone. It fails when its invoice has long expired, or its address is a day old. Only what the operator has approved
   since is sent.
3. A wallet that said "failed" may be wrong, and money may leave all the same: for a week it is asked again, ever more
   seldom. What is on its way after all counts against the budgets again; what has settled is booked.
4. Freezing stops no question, only the sending (``pylon.wallets.purse``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import trio

from protocols import bolt11
from pylon.clock import Clock
from pylon.errors import PylonError, StoreError, brief
from pylon.store import approvals, intents
from pylon.store.database import RECORD_SECONDS, Store, Tx
from pylon.store.intents import Approval, Intent, IntentState, TargetForm
from pylon.wallets.nwc_records import LATE
from pylon.wallets.purse import DAY, Failed, Outcome, Purse, Settled, Unknown, being_sent, book_outcome

log = logging.getLogger(__name__)

PurseOf = Callable[[str], Purse]
"""The purse of an owner. Raises ``NotFound`` for one that is gone."""
Driven = Callable[[Intent], bool]
"""Whether somebody else sees to an intent. Raises ``StoreError``."""

EVERY = 60.0
"""Seconds between two looks at what is not known."""
DOUBT = 7 * DAY
"""How long a wallet's "failed" is doubted."""
_FIRST_DOUBT = 60.0
"""Seconds after which it is asked again; four times as long each time."""
_ASKED_AT_ONCE = 100


_LAPSED = Failed("the operator did not approve it in time", ours=True)


@attrs.define
class _Doubt:
    """When a failed payment is asked about next."""

    at: float
    wait: float = _FIRST_DOUBT


class Reconciler:
    """See the module. One for a home."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._held: set[str] = set()
        self._doubts: dict[str, _Doubt] = {}

    @contextmanager
    def holding(self, intent: Intent) -> Iterator[bool]:
        """See to an intent oneself; gives False where somebody does already, which is no leave to send it."""
        free = intent.id not in self._held
        self._held.add(intent.id)
        try:
            yield free
        finally:
            if free:
                self._held.discard(intent.id)

    async def run(self, purse_of: PurseOf, driven: Driven) -> None:
        """``settle`` and ``doubt`` at once, and now and then, until cancelled."""
        with self._store.listen(approvals.DECIDED) as decided:
            while True:
                try:
                    await self.settle(purse_of, driven)
                    await self.doubt(purse_of)
                except StoreError as error:
                    log.error("payments cannot be looked into: %s", error.message)
                with trio.move_on_after(EVERY):
                    await decided.receive()

    async def settle(self, purse_of: PurseOf, driven: Driven = lambda intent: False) -> None:
        """Ask the wallets what became of each pending intent that nobody drives."""
        for intent in intents.pending(self._store):
            if intent.id in self._held or driven(intent):
                continue
            with self.holding(intent):
                try:
                    purse = purse_of(intent.owner)
                    outcome = await self._became(purse, intent)
                    if outcome is not None:
                        await self._record(intent, outcome)
                except PylonError as error:
                    log.warning("%s %s: %s", intent.purpose, intent.payment_hash[:16], error.message)

    async def doubt(self, purse_of: PurseOf) -> None:
        """Ask again about payments that a wallet has reported as failed."""
        now = self._clock.now()
        failed = {intent.id: intent for intent in intents.failed(self._store, now - DOUBT) if _was_sent(intent)}
        self._doubts = {name: self._doubts.get(name, _Doubt(now)) for name in failed}
        due = sorted((doubt.at, name) for name, doubt in self._doubts.items() if doubt.at <= now)
        for _, name in due[:_ASKED_AT_ONCE]:
            doubt = self._doubts[name]
            doubt.at, doubt.wait = now + doubt.wait, doubt.wait * 4
            await self._doubt_one(purse_of, failed[name])

    async def _doubt_one(self, purse_of: PurseOf, intent: Intent) -> None:
        try:
            outcome = await purse_of(intent.owner).ask(intent)
            if isinstance(outcome, Settled):
                log.error("payment %s has settled after it was reported as failed", intent.payment_hash[:16])
                await self._record(intent, outcome)
            elif isinstance(outcome, Unknown) and outcome.moving:
                log.error("payment %s is on its way after it was reported as failed", intent.payment_hash[:16])
                await self._store.write(lambda tx: intents.reopen(tx, intent.id, at=self._clock.now()))
        except PylonError as error:
            log.warning("failed payment %s: %s", intent.payment_hash[:16], error.message)

    async def _became(self, purse: Purse, intent: Intent) -> Outcome | None:
        """``None``: still nobody knows."""
        found = await purse.look(intent)
        if isinstance(found, Unknown):
            log.info("%s %s: %s", intent.purpose, intent.payment_hash[:16], found.reason)
            return None
        if found is not None:
            return found
        # The wallet may have taken its time, and the operator or somebody who drives it may not.
        now, intent = self._clock.now(), intents.get(self._store, intent.id)
        if intent.state is not IntentState.PENDING or being_sent(self._store, intent.id):
            return None
        if intent.lapsed(now):
            return _LAPSED
        if intent.waits:
            return None
        if self._is_over(intent, now):
            return Failed("it was never sent")
        if intent.approval is Approval.GIVEN:
            sent = await purse.send(intent)
            return None if isinstance(sent, Unknown) else sent
        return None

    def _is_over(self, intent: Intent, now: float) -> bool:
        """Whether nobody can pay it any more, whatever is on its way to the wallet."""
        if intent.target is not TargetForm.ADDRESS:
            try:
                invoice = bolt11.decode(intents.invoice(self._store, self._store.vault, intent.id))
                return now > invoice.expires_at + LATE
            except bolt11.Bolt11Invalid as error:
                log.warning("payment %s: its invoice does not read: %s", intent.payment_hash[:16], brief(error))
        return now > intent.created_at + DAY

    async def _record(self, intent: Intent, outcome: Outcome) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + RECORD_SECONDS):
            await self._store.write(lambda tx: self._book(tx, intent, outcome))

    def _book(self, tx: Tx, intent: Intent, outcome: Outcome) -> None:
        """That it failed counts only if that is still so: nobody sends it by now, and no yes came since."""
        if isinstance(outcome, Failed):
            now = self._clock.now()
            lapsed = outcome is not _LAPSED or intents.get(tx, intent.id).lapsed(now)
            if being_sent(self._store, intent.id) or not lapsed:
                return
        book_outcome(tx, intent, outcome, self._clock.now())


def _was_sent(intent: Intent) -> bool:
    """Whether a wallet may have been called for an intent that has failed."""
    return intent.approval in (Approval.NONE, Approval.GIVEN)
