"""What bounds the home's own purse: ``[wallet]`` of the configuration.

What the operator pays by hand (withdrawals, a job submitted on the command line) is bounded by nothing but the wallet.
What programs buy on the home's account names the part that it belongs to, its *scope*, and is bounded.
"""

from __future__ import annotations

import attrs

from pylon.config import ApiConfig, WalletConfig
from pylon.money import Msat, sats
from pylon.store.database import Reads
from pylon.store.intents import PURCHASE
from pylon.wallets.budgets import UNBOUNDED, Budget, Limits, Spend

API_SCOPE = "api"
"""Of what the HTTP API buys for its callers."""


def home_limits(config: WalletConfig, api: ApiConfig | None = None) -> Limits:
    """The budgets of the home; its day counts everything that the home buys, by hand or not.

    :param api: what bounds ``API_SCOPE`` beside them; without it nothing more does.
    """
    budget = Budget(
        per_scope=None,
        per_day=_bound(config.budget_day_sats),
        reserve=sats(config.reserve_sats),
        each=_bound(config.budget_each_sats),
        payee_day=_bound(config.payee_day_sats),
        max_fee=_bound(config.max_fee_sats),
        approve_above=_bound(config.approve_above_sats),
    )
    gateway = budget
    if api is not None:
        each = min(bound for bound in (api.budget_each_msats, budget.each) if bound is not None)
        gateway = attrs.evolve(budget, each=each, scope_day=api.budget_day_msats)

    def limits(source: Reads, spend: Spend) -> Budget:
        if _by_hand(spend):
            return UNBOUNDED
        return gateway if spend.scope == API_SCOPE else budget

    return limits


def _by_hand(spend: Spend) -> bool:
    return spend.purpose == PURCHASE and not spend.scope


def _bound(amount: int | None) -> Msat | None:
    return None if amount is None else sats(amount)
