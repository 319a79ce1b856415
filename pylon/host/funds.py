"""What reaches agents' wallets: booked once, told to the lifecycle, and the zaps among it receipted.

Unknown is not zero: where a wallet does not say, nothing changes, and it is asked again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from pylon.errors import NotFound, brief
from pylon.host import registry, triggers
from pylon.host.agents import Agents
from pylon.store import cursors
from pylon.store.database import Tx
from pylon.wallets.history import PAGE, all_payments, book_outside_in, unbooked
from pylon.wallets.port import Direction, Payment, PaymentState

log = logging.getLogger(__name__)

WALLET_SECONDS = 20.0
_OVERLAP = 60

PaidZap = Callable[[str, Payment], Awaitable[bool]]
"""Told of each payment that an agent has received; true if it was a zap, which has a receipt of its own."""


class AgentFunds:
    """See the module.

    :param paid_zap: see ``PaidZap``.
    """

    def __init__(self, agents: Agents, *, paid_zap: PaidZap) -> None:
        self._agents = agents
        self._store = agents.store
        self._clock = agents.clock
        self._paid_zap = paid_zap
        self._looking: dict[str, trio.Lock] = {}

    async def look(self, agent_id: str) -> bool:
        """Ask the wallet, book what came in, follow the lifecycle. False: the wallet did not say."""
        # One look at a time: two would book from two pictures of one wallet.
        lock = self._looking.setdefault(agent_id, trio.Lock())
        async with lock:
            try:
                with trio.fail_after(WALLET_SECONDS):
                    wallet = self._agents.wallet(agent_id)
                    balance = await wallet.balance()
                    payments = await self._history(agent_id)
            except NotFound:
                return True
            except Exception as error:
                log.warning("the wallet of agent %s does not say: %s", agent_id[:16], brief(error))
                return False
            await self._book(agent_id, payments)
            await self._agents.know(agent_id, balance.spendable)
        if not lock.statistics().tasks_waiting:
            self._looking.pop(agent_id, None)
        return True

    async def _history(self, agent_id: str) -> list[Payment]:
        """What the wallet has done since it was read last; all of it, the first time."""
        wallet = self._agents.wallet(agent_id)
        since = cursors.since(self._store, _cursor(agent_id), _OVERLAP)
        if since is None:
            return await all_payments(wallet)
        page = await wallet.payments(since=since, limit=PAGE)
        return page if len(page) < PAGE else await all_payments(wallet)

    async def _book(self, agent_id: str, payments: Sequence[Payment]) -> None:
        """Book what came from outside, each once; what came since the agent is here, and is no zap, may wake it.

        In one transaction: who dies in between must not have booked what wakes nobody.
        """
        settled = [payment for payment in payments if payment.state is PaymentState.SETTLED]
        agent = registry.load(self._store, agent_id)
        fresh = unbooked(self._store, settled, agent_id, agent.created_at)
        if not fresh and cursors.since(self._store, _cursor(agent_id), 0) is not None:
            return
        now = self._clock.now()
        received = {
            payment.payment_id
            for payment in fresh
            if payment.direction is Direction.RECEIVED and payment.created_at >= agent.created_at
        }
        zaps = {
            payment.payment_id
            for payment in fresh
            if payment.payment_id in received and await self._paid_zap(agent_id, payment)
        }
        waking = received - zaps if agent.settings.funds and agent.deleted_at is None else set()

        def job(tx: Tx) -> None:
            for payment in book_outside_in(tx, fresh, owner=agent_id, began=agent.created_at, now=now):
                if payment.payment_id in waking:
                    heard = triggers.of_payment(
                        payment_id=payment.payment_id,
                        amount=payment.amount,
                        at=payment.created_at,
                        text=payment.description,
                    )
                    # Nobody knows who has paid, and what stands on an invoice may be anybody's words.
                    triggers.note(tx, tx.vault, agent_id, heard, at=now, stranger=True)
            # Only what has settled: what is pending is read again.
            cursors.advance(tx, _cursor(agent_id), int(max((p.created_at for p in settled), default=agent.created_at)))

        await self._store.write(job)
        if received:
            self._agents.tell(agent_id)


def _cursor(agent_id: str) -> str:
    return f"wallet:{agent_id}"
