"""The verbs ``provider.status``, ``jobs``, ``trust``, ``untrust``, ``block`` and ``unblock``: the desk, for its owner.

What is said of a customer stands in the store, and counts from the next request on; the configuration is what counts
for those of whom nothing was said. No prompt and no answer is told here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from protocols.keys import KeyInvalid, PublicKey
from protocols.nip19 import encode_npub
from pylon.clock import Clock
from pylon.config import Config
from pylon.daemon import agent_params as reading
from pylon.daemon.control import Method, Notify
from pylon.daemon.provider_money import customer_key
from pylon.daemon.reload import terms_of
from pylon.daemon.runtime import Runtime
from pylon.errors import UsageError
from pylon.money import Msat
from pylon.provider import customers
from pylon.provider.earnings import earnings
from pylon.provider.pricing import Standing, Terms
from pylon.provider.sale import SaleState
from pylon.store.database import Store

MOST_JOBS = 10_000
_STATES = [state.value for state in SaleState]
_OPEN = (SaleState.PRICED, SaleState.QUOTED, SaleState.HELD, SaleState.WORKING, SaleState.SERVED)
"""States of which ``status`` says how many there are: none of them grows without bound."""


@attrs.frozen
class ProviderDesk:
    """The verbs. Without ``runtime`` they speak of a home that does not run."""

    config: Config
    store: Store
    clock: Clock
    runtime: Runtime | None = None

    def table(self) -> dict[str, Method]:
        return {
            "provider.status": self.status,
            "provider.jobs": self.jobs,
            "provider.trust": self.trust,
            "provider.untrust": self.untrust,
            "provider.block": self.block,
            "provider.unblock": self.unblock,
        }

    async def status(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """Prices, what is open, and of whom something was said."""
        terms, provider = self._terms(), None if self.runtime is None else self.runtime.provider
        models = [] if provider is None else sorted({model.id for model in await provider.router.models(healthy=True)})
        total, _ = customers.open_sales(self.store, "")
        now = self.clock.now()
        earned = earnings(self.store, now)
        return {
            "selling": provider is not None,
            "why_not": "no daemon is running" if self.runtime is None else self.runtime.provider_off,
            "models": models,
            "prices": {
                "payments": terms.payments,
                "min_price_msats": terms.min_price,
                "price_in_msats": terms.price_in,
                "price_out_msats": terms.price_out,
                "cheapest_msats": terms.cheapest(models or [""]),
                "multipliers": {model: float(times) for model, times in terms.multipliers.items()},
                "free_per_day": terms.free_per_day,
                "max_tokens": terms.max_tokens,
            },
            "unpaid": total,
            "unpaid_most": terms.max_open,
            "waiting": 0 if provider is None else provider.waiting,
            "jobs": {state.value: self._count(state) for state in _OPEN},
            "earned_today_msats": earned.today,
            "owed_msats": earned.owed,
            "customers": [
                {"customer": key, "npub": _npub(key), "standing": standing.value}
                for key, standing in sorted(customers.standings(self.store, terms.standings).items())
            ],
        }

    def _count(self, state: SaleState) -> int:
        row = self.store.one("SELECT COUNT(*) AS n FROM sales WHERE state = ?", (state.value,))
        return 0 if row is None else int(row["n"])

    async def jobs(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """The newest sales, ``limit`` of them; ``state`` and ``customer``: of these alone."""
        limit = 20 if params.get("limit") is None else reading.whole(params, "limit", 1, MOST_JOBS)
        states = _STATES if params.get("state") is None else [reading.one_of(params, "state", _STATES)]
        condition, given = "state = ?", list[str]()
        if params.get("customer") is not None:
            condition, given = "state = ? AND customer = ?", [customer_key(params["customer"])]
        rows = [
            row
            for state in states
            for row in self.store.read(
                "SELECT id, state, customer, model, price_msats, paid_msats, attempts, created_at, updated_at"
                f" FROM sales WHERE {condition} ORDER BY created_at DESC LIMIT ?",
                (state, *given, limit),
            )
        ]
        rows.sort(key=lambda row: (-row["created_at"], row["id"]))
        return {"jobs": [{**dict(row), "npub": _npub(row["customer"])} for row in rows[:limit]]}

    async def trust(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """No cap holds this ``customer`` back; ``free``: nor is anything asked for."""
        free = params.get("free") is not None and reading.flag(params, "free")
        return await self._say(params, Standing.FREE if free else Standing.TRUSTED)

    async def block(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """This ``customer`` is not heard any more. What was paid is done nevertheless."""
        return await self._say(params, Standing.BLOCKED)

    async def untrust(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        return await self._unsay(params, Standing.TRUSTED, Standing.FREE)

    async def unblock(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        return await self._unsay(params, Standing.BLOCKED)

    async def _say(self, params: Mapping[str, Any], standing: Standing) -> dict[str, Any]:
        customer = customer_key(params.get("customer"))
        now = self.clock.now()
        await self.store.write(lambda tx: customers.set_standing(tx, customer, standing, now))
        return {"customer": customer, "npub": _npub(customer), "standing": standing.value}

    async def _unsay(self, params: Mapping[str, Any], *standings: Standing) -> dict[str, Any]:
        """Make a stranger of whom this was said, here or in the configuration."""
        customer = customer_key(params.get("customer"))
        found = customers.standing_of(self.store, customer, self._terms().standings)
        if found in standings:
            return await self._say(params, Standing.STRANGER)
        if found is not Standing.STRANGER:
            raise UsageError(f"{_npub(customer)} is {found.value}", "see pylon provider status")
        return {"customer": customer, "npub": _npub(customer), "standing": found.value}

    def _terms(self) -> Terms:
        if self.runtime is not None and self.runtime.provider is not None:
            return self.runtime.provider.terms
        return terms_of(self.config if self.runtime is None else self.runtime.live.config, Msat(1))


def _npub(customer: str) -> str:
    try:
        return encode_npub(PublicKey.from_hex(customer))
    except KeyInvalid:
        return ""
