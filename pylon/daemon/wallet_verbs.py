"""The operator's hand on the money of a home: freeze and thaw it, say yes or no to payments that wait.

Parameters and results are JSON; amounts are ``*_msats``, ids hex, times Unix seconds. They need the store alone, so
that a wallet that is away, or a network without one, keeps nobody from freezing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from pylon.clock import Clock
from pylon.daemon.agent_params import text
from pylon.daemon.control import Method, Notify
from pylon.errors import UsageError
from pylon.store import approvals, freeze
from pylon.store.database import Store, Tx
from pylon.store.freeze import Frozen
from pylon.store.intents import Intent
from pylon.wallets import budgets
from pylon.wallets.budgets import Warned


@attrs.frozen
class WalletGuard:
    store: Store
    clock: Clock

    def table(self) -> dict[str, Method]:
        """The verbs by their names."""
        return {
            "wallet.freeze": self.freeze,
            "wallet.thaw": self.thaw,
            "wallet.approvals": self.approvals,
            "wallet.approve": self.approve,
            "wallet.deny": self.deny,
        }

    async def freeze(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        reason = "" if params.get("reason") is None else text(params, "reason").strip()
        before = freeze.mark(self.store)
        frozen = await self.store.write(lambda tx: freeze.freeze(tx, reason, self.clock.now()))
        return {"frozen": frozen_json(frozen), "already": before is not None}

    async def thaw(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        ended = await self.store.write(freeze.thaw)
        return {"frozen": None, "ended": None if ended is None else frozen_json(ended)}

    async def approvals(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """The payments that wait. What agents want to *do* is listed by ``agent.approvals``."""
        return {"approvals": [self._view(intent) for intent in approvals.waiting(self.store)]}

    async def approve(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """``amount_msats`` and ``payee``, where they are given, are what the yes is to."""
        wanted = text(params, "id")

        def approve(tx: Tx) -> Intent:
            intent = approvals.named(tx, wanted)
            meant = (params.get("amount_msats", intent.amount_msats), params.get("payee", intent.payee))
            if meant != (intent.amount_msats, intent.payee):
                raise UsageError("this is another payment than the one that was shown", "pylon wallet approvals")
            owner = tx.one("SELECT moved, deleted_at FROM agents WHERE id = ?", (intent.owner,))
            if owner is not None and (owner["moved"] or owner["deleted_at"] is not None):
                raise UsageError("its agent is not of this home any more", f"pylon wallet deny {wanted}")
            return approvals.approve(tx, intent.id, self.clock.now())

        return {"approval": self._view(await self.store.write(approve))}

    async def deny(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        wanted = text(params, "id")
        reason = "" if params.get("reason") is None else text(params, "reason")
        intent = await self.store.write(
            lambda tx: approvals.deny(tx, approvals.named(tx, wanted).id, reason, self.clock.now())
        )
        return {"approval": self._view(intent)}

    def summary(self) -> dict[str, Any]:
        """For ``status``: the freeze, how many payments wait, and which of the home's own budgets are nearly gone."""
        frozen = freeze.mark(self.store)
        nearly = budgets.warnings(self.store, self.clock.now(), owner="")
        return {
            "frozen": None if frozen is None else frozen_json(frozen),
            "approvals": len(approvals.waiting(self.store)),
            "warnings": [warning_json(warned) for warned in nearly.get("", [])],
        }

    def _view(self, intent: Intent) -> dict[str, Any]:
        return {
            "id": intent.id,
            "owner": intent.owner,
            "name": self._name(intent.owner),
            "purpose": intent.purpose,
            "cause": intent.cause,
            "amount_msats": intent.amount_msats,
            "max_fee_msats": intent.max_fee_msats,
            "payee": intent.payee,
            "payment_hash": intent.payment_hash,
            "approval": intent.approval.value,
            "state": intent.state.value,
            "reason": intent.error or "",
            "at": intent.created_at,
            "expires_at": intent.lapses_at,
        }

    def _name(self, owner: str) -> str:
        """As people know an owner; empty: the home itself."""
        row = self.store.one("SELECT name FROM agents WHERE id = ?", (owner,)) if owner else None
        return owner[:16] if row is None or row["name"] is None else str(row["name"])


def frozen_json(frozen: Frozen) -> dict[str, Any]:
    return {"reason": frozen.reason, "at": frozen.at}


def warning_json(warned: Warned) -> dict[str, Any]:
    return {
        "budget": warned.budget,
        "used_msats": warned.used,
        "bound_msats": warned.bound,
        "at": warned.at,
    }
