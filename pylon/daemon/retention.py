"""What is forgotten, and when: one row for everything that would otherwise grow without bound.

Money is never forgotten: the ledger's entries, intents, claims, credits, sales and purchases that were paid or promised
something, and what agents have received. Nothing open is forgotten either, however old. What is bounded by its nature
(one row an agent, a relay, a provider that is remembered) is in ``BOUNDED``, with what bounds it.

Everything goes in small batches, each a transaction of its own: the writer is never kept from others for long.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import attrs

from pylon.compute.purchase import PURCHASE, PurchaseState
from pylon.config import RetentionConfig
from pylon.host import triggers
from pylon.host.acting import ACTION
from pylon.host.ticking import TICK
from pylon.provider.sale import SALE, SaleState
from pylon.store import inbox, outbox, wallet_connections
from pylon.store.database import Store, Tx

DAY = 86_400.0
BATCH = 200
"""Rows deleted in one transaction: a bound on how long the loop is kept from everything else."""

_UNSOLD = tuple(state.value for state in (SaleState.REFUSED, SaleState.EXPIRED, SaleState.CANCELLED, SaleState.FAILED))
_THOUGHT = tuple(sorted(state.value for state in TICK.final if state.value != "quiet"))
_DID = tuple(sorted(state.value for state in ACTION.final))

Forget = Callable[[Tx, float, int], int]
"""Forgets at most so many of what is older than a time; how many. Fewer than the limit: there are no more."""


@attrs.frozen
class Rule:
    """What one thing's forgetting is."""

    what: str
    tables: tuple[str, ...]
    """From which rows go."""
    key: str
    """Of ``[retention]``: how many days it is kept."""
    forget: Forget


def _unsold(tx: Tx, before: float, limit: int) -> int:
    """Sales that came to nothing."""
    rows = tx.all(
        f"SELECT id FROM sales WHERE state IN ({_marks(_UNSOLD)}) AND created_at < ? AND updated_at < ?"
        " AND paid_msats = 0 AND NOT EXISTS (SELECT 1 FROM claims WHERE sale_id = sales.id)"
        " AND NOT EXISTS (SELECT 1 FROM entries WHERE owner = '' AND cause = sales.id) LIMIT ?",
        (*_UNSOLD, before, before, limit),
    )
    for row in rows:
        _transitions(tx, SALE.name, row["id"])
        tx.execute("DELETE FROM sales WHERE id = ?", (row["id"],))
    return len(rows)


def _unbought(tx: Tx, before: float, limit: int, *, agents: bool) -> int:
    """Purchases for which nothing was paid, and nothing is under way: the home's own, or its agents'."""
    rows = tx.all(
        f"SELECT id FROM purchases WHERE state = ? AND owner {'<>' if agents else '='} '' AND created_at < ?"
        " AND updated_at < ? AND paid_msats = 0 AND fee_msats = 0 AND credit_msats = 0 AND credit_used_msats = 0"
        " AND NOT EXISTS (SELECT 1 FROM intents WHERE cause = purchases.id AND state <> 'failed')"
        " AND NOT EXISTS (SELECT 1 FROM entries WHERE owner = purchases.owner AND cause = purchases.id) LIMIT ?",
        (PurchaseState.FAILED.value, before, before, limit),
    )
    for row in rows:
        _transitions(tx, PURCHASE.name, row["id"])
        tx.execute("DELETE FROM purchase_requests WHERE purchase_id = ?", (row["id"],))
        tx.execute("DELETE FROM purchases WHERE id = ?", (row["id"],))
    return len(rows)


def _quiet(tx: Tx, before: float, limit: int) -> int:
    """Ticks in which nothing was thought; what they count for stands in the agent's row."""
    rows = tx.all("SELECT id FROM ticks WHERE state = 'quiet' AND created_at < ? LIMIT ?", (before, limit))
    for row in rows:
        _transitions(tx, TICK.name, row["id"])
        tx.execute("DELETE FROM ticks WHERE id = ?", (row["id"],))
    return len(rows)


def _thoughts(tx: Tx, before: float, limit: int) -> int:
    """Ticks with what was thought and done in them, once all of that has ended. The last one of an agent stays."""
    rows = tx.all(
        f"SELECT id FROM ticks WHERE state IN ({_marks(_THOUGHT)}) AND created_at < ? AND updated_at < ?"
        " AND n < (SELECT MAX(n) FROM ticks t WHERE t.agent = ticks.agent)"
        f" AND NOT EXISTS (SELECT 1 FROM actions a WHERE a.tick = ticks.id AND a.state NOT IN ({_marks(_DID)}))"
        " AND NOT EXISTS (SELECT 1 FROM intents i WHERE i.scope = ticks.id AND i.scope <> '' AND i.state = 'pending')"
        " LIMIT ?",
        (*_THOUGHT, before, before, *_DID, limit),
    )
    for row in rows:
        for action in tx.all("SELECT id FROM actions WHERE tick = ?", (row["id"],)):
            _transitions(tx, ACTION.name, action["id"])
        tx.execute("DELETE FROM actions WHERE tick = ?", (row["id"],))
        _transitions(tx, TICK.name, row["id"])
        tx.execute("DELETE FROM ticks WHERE id = ?", (row["id"],))
    return len(rows)


def _asked_for(tx: Tx, before: float, limit: int) -> int:
    """Invoices that a wallet connection asked for, and that nobody has paid."""
    return tx.execute(
        "DELETE FROM connection_invoices WHERE rowid IN (SELECT rowid FROM connection_invoices"
        " WHERE settled_at IS NULL AND told = '' AND expires_at < ? LIMIT ?)",
        (before, limit),
    ).rowcount


def _made_elsewhere(tx: Tx, before: float, limit: int) -> int:
    """Invoices that a foreign wallet made for sales that are forgotten, and that nobody has paid."""
    return tx.execute(
        "DELETE FROM nwc_invoices WHERE rowid IN (SELECT rowid FROM nwc_invoices n WHERE created_at < ?"
        " AND NOT EXISTS (SELECT 1 FROM sales s WHERE s.payment_hash = n.payment_hash)"
        " AND NOT EXISTS (SELECT 1 FROM claims c WHERE c.payment_hash = n.payment_hash)"
        " AND NOT EXISTS (SELECT 1 FROM zap_invoices z WHERE z.payment_hash = n.payment_hash) LIMIT ?)",
        (before, limit),
    ).rowcount


def _transitions(tx: Tx, machine: str, subject: str) -> None:
    tx.execute("DELETE FROM transitions WHERE machine = ? AND subject = ?", (machine, subject))


def _marks(values: tuple[str, ...]) -> str:
    return ", ".join("?" * len(values))


RULES: tuple[Rule, ...] = (
    Rule("events that every relay has answered", ("outbox", "deliveries"), "events_days", outbox.prune),
    Rule("that an event was taken", ("inbox",), "requests_days", inbox.prune),
    Rule("what has woken an agent", ("triggers",), "requests_days", triggers.prune),
    Rule("requests of apps that were answered", ("connection_requests",), "requests_days", wallet_connections.prune),
    Rule("invoices of apps that nobody paid", ("connection_invoices",), "requests_days", _asked_for),
    Rule("sales that came to nothing", ("sales", "transitions"), "requests_days", _unsold),
    Rule("invoices of a foreign wallet that nobody paid", ("nwc_invoices",), "requests_days", _made_elsewhere),
    Rule(
        "purchases that came to nothing",
        ("purchases", "purchase_requests", "transitions"),
        "requests_days",
        functools.partial(_unbought, agents=False),
    ),
    Rule("ticks in which nothing was thought", ("ticks", "transitions"), "quiet_days", _quiet),
    Rule("thoughts, and what was done", ("ticks", "actions", "transitions"), "thoughts_days", _thoughts),
    Rule(
        "thoughts that nobody sold",
        ("purchases", "purchase_requests", "transitions"),
        "thoughts_days",
        functools.partial(_unbought, agents=True),
    ),
)

NEVER = frozenset({"entries", "intents", "claims", "credits", "nwc_payments", "wallet_connections", "agents"})
"""Tables of which no row is forgotten for its age."""

BOUNDED = {
    "cursors": "one a subscription",
    "settings": "named in the code, and a few an agent",
    "lifecycles": "one an agent",
    "agent_states": "one an agent, and its memory has a limit",
    "budget_warnings": "one an owner and budget",
    "observed_providers": "forgotten as it loses its weight (pylon.compute.standing)",
    "disowned_debts": "one an owner and provider that was paid",
    "zap_invoices": "unpaid ones are forgotten as new ones come (pylon.host.zaps); paid ones are money",
    "sale_zaps": "unpaid ones are forgotten as new ones come (pylon.provider.zaps); paid ones are money",
    "quote_book": "one a customer with an open quote",
    "standings": "set by the operator",
    "allowances": "those of the day (pylon.provider.customers)",
    "tunnel_sessions": "old ones are forgotten as a tunnel is opened (pylon.tunnel.record)",
    "tunnel_acts": "those of such a session",
    "_sqlite_migrations": "one a migration",
}
"""Tables without a rule, and what bounds them."""


async def forget(store: Store, now: float, config: RetentionConfig) -> dict[str, int]:
    """All that is due; how much of what was forgotten."""
    batch = BATCH
    counts: dict[str, int] = {}
    for rule in RULES:
        before = now - getattr(config, rule.key) * DAY
        while True:
            count = await store.write(functools.partial(_once, rule=rule, before=before, limit=batch))
            counts[rule.what] = counts.get(rule.what, 0) + count
            if count < batch:
                break
    return counts


def _once(tx: Tx, *, rule: Rule, before: float, limit: int) -> int:
    return rule.forget(tx, before, limit)


# --- the size of the file -----------------------------------------------------------------------------------------

_FEW_PAGES = 2_048
"""What may lie unused: 8 MiB, which the next days fill again."""
_PAGES_AT_ONCE = 128


async def give_back(store: Store, few: int = _FEW_PAGES) -> int:
    """Give the disk back what more than a quarter of the file is: pages that nothing uses. How many.

    Only a database that was made for it can (since ``m010``); another one keeps its size, and uses those pages again.
    """
    if _pragma(store, "auto_vacuum") != 2:
        return 0
    before = _pragma(store, "freelist_count")
    if before <= few or 4 * before <= _pragma(store, "page_count"):
        return 0
    left = before
    while left > few // 2:
        await store.write(lambda tx: tx.all(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})"))
        now = _pragma(store, "freelist_count")
        if now >= left:
            break
        left = now
    return before - left


def _pragma(store: Store, name: str) -> int:
    row = store.one(f"PRAGMA {name}")
    return 0 if row is None else int(row[0])
