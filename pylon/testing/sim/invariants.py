"""What must hold at the end of every simulated market, each with a name.

``charged_once``      a purchase has moved money at most once, its owner's, and only for an invoice that it was quoted
``budget``            nothing was paid above what was announced and bid, nor above what its owner's budgets carry
``debts``             no customer believes to be owed what it has used already, or what nobody owes
``delivery``          what was paid to a foreigner's hold has been answered; what was not answered was not paid
``conserved``         no sat was made or lost: wallets, fees and faucet sum to zero
``answered_truly``    an answer is the chosen provider's own, for this very prompt; nothing from strangers
``strangers_unpaid``  no stranger has received anything
``result_or_debt``    a sale that was paid has ended in a published result, or in a debt of all that it held
``held_ends``         what was held has been taken for a result, or given back; nothing is held at the end
``credit``            what is owed to a customer is what its jobs have left of it, and never less than nothing
``one_result``        at most one result event was published for a request
``books``             paid = earned + owed + paid out + unearned, and ledger, claims, records and wallet agree
``moves_on``          nothing is left unfinished once everybody lives and nothing goes wrong
``both_sides``        what the customer has paid is what the provider was paid
"""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from protocols.nip01 import Filter
from pylon.compute.debts import owed_to
from pylon.compute.purchase import PURCHASE, Purchase, PurchaseState
from pylon.compute.purchases import purchase_records
from pylon.daemon import books
from pylon.provider.sale import SALE, Sale, SaleState
from pylon.provider.sales import sale_records
from pylon.store import credits, ledger
from pylon.store.database import Store
from pylon.testing.sim.node import Node
from pylon.testing.sim.stranger import WORDS
from pylon.wallets.port import Direction, Payment, PaymentState

if TYPE_CHECKING:
    from pylon.testing.sim.world import World


_Sales = Mapping[tuple[str, str], tuple[Node, Sale]]
"""By request and seller: what everybody is asked, several may have sold."""


def answer_of(seller: str, prompt: str) -> str:
    """The only right answer of a seller to a prompt."""
    return f"{seller} thinks {hashlib.sha256(prompt.encode()).hexdigest()[:12]}"


def purchases_of(node: Node) -> list[Purchase]:
    store = node.store
    return [] if store is None else list(purchase_records(store).where(store, "1 = 1"))


def sales_of(node: Node) -> list[Sale]:
    store = node.store
    return [] if store is None else list(sale_records(store).where(store, "1 = 1"))


def broken(world: World) -> Iterator[str]:
    """Every invariant that does not hold, in words."""
    purchases = purchases_of(world.buyer)
    sales = {
        (sale.id, seller.secret.public.hex): (seller, sale) for seller in world.sellers for sale in sales_of(seller)
    }
    if world.buyer.store is None or any(seller.store is None for seller in world.sellers):
        yield "moves_on: a node is not alive at the end"
        return
    yield from _purchases(world, purchases)
    yield from _sales(world, sales)
    yield from _both_sides(world, purchases, sales)
    yield from _deliveries(world, purchases)
    yield from _debts(world, world.buyer.store)
    yield from _visits(world, sales)
    yield from _holds(world, sales)
    yield from _conserved(world)
    for node in (*world.sellers, world.buyer):
        assert node.store is not None
        yield from _books(world, node, node.store)


def _purchases(world: World, purchases: list[Purchase]) -> Iterator[str]:
    names = {seller.secret.public.hex: seller.name for seller in world.sellers}
    names[world.foreigner.pubkey] = world.foreigner.name
    sent = {customer.owner: _settled(world.payments[customer.name]) for customer in world.buyer.customers}
    by_hash = {(owner, payment.payment_hash): payment for owner, paid in sent.items() for payment in paid}
    if len({payment_hash for _, payment_hash in by_hash}) != sum(len(paid) for paid in sent.values()):
        yield "charged_once: one payment hash was paid twice"
    known = set()
    spent: dict[str, int] = {}
    for purchase in purchases:
        label = f"purchase {purchase.id[:8]} ({purchase.state.value})"
        if purchase.state not in PURCHASE.final:
            yield f"moves_on: {label} is unfinished"
        settled = by_hash.get((purchase.owner, purchase.payment_hash or ""))
        if purchase.paid and settled is None:
            yield f"charged_once: {label} believes it has paid"
        if settled is not None:
            known.add(settled.payment_hash)
            spent[purchase.scope] = spent.get(purchase.scope, 0) + settled.amount + settled.fee
            if (settled.amount, settled.fee) != (purchase.paid, purchase.fee):
                yield f"charged_once: {label} has paid {settled.amount}, and believes {purchase.paid}"
        if purchase.paid + purchase.credit_used > min(purchase.bid, purchase.ceiling):
            yield f"budget: {label} paid {purchase.paid} of a bid of {purchase.bid}"
        if purchase.state is PurchaseState.ANSWERED:
            right = answer_of(names.get(purchase.provider or "", "a stranger"), purchase.prompt)
            if purchase.text != right or purchase.text == WORDS:
                yield f"answered_truly: {label} took {purchase.text!r}"
    for payment in itertools.chain.from_iterable(sent.values()):
        if payment.payment_hash not in known:
            yield f"charged_once: payment {payment.payment_hash[:8]} belongs to no purchase's present quote"
    for customer in world.buyer.customers:
        budget, paid = customer.budget, sent[customer.owner]
        if budget is None:
            continue
        # All of it is less than a day.
        if budget.per_day is not None and sum(payment.amount + payment.fee for payment in paid) > budget.per_day:
            yield f"budget: {customer.name} has spent more than its {budget.per_day} a day"
        for scope, amount in spent.items():
            if budget.per_scope is not None and scope.startswith(customer.owner[:16]) and amount > budget.per_scope:
                yield f"budget: {customer.name} has spent {amount} of {budget.per_scope} in {scope}"


def _settled(payments: list[Payment]) -> list[Payment]:
    """What a wallet has sent, and what has arrived."""
    return [p for p in payments if p.direction is Direction.SENT and p.state is PaymentState.SETTLED]


def _sales(world: World, sales: _Sales) -> Iterator[str]:
    results: dict[tuple[str, str], set[str]] = {}
    for event in world.relay.events(Filter(kinds=[6050])):
        results.setdefault((event.tag("e") or "", event.pubkey), set()).add(event.id)
    for asked, (seller, sale) in sales.items():
        label = f"{seller.name}'s sale {sale.id[:8]} ({sale.state.value})"
        if sale.state not in SALE.final:
            yield f"moves_on: {label} is unfinished"
        if sale.unearned:
            yield f"result_or_debt: {label} still holds {sale.unearned} msats"
        if (sale.paid or sale.credit_used) and sale.state not in (SaleState.DELIVERED, SaleState.OWED):
            yield f"result_or_debt: {label} was paid"
        if sale.state is SaleState.DELIVERED and not results.get(asked):
            yield f"result_or_debt: {label} is on no relay"
        if len(results.get(asked, ())) > 1:
            yield f"one_result: {label} has {len(results[asked])}"


def _both_sides(world: World, purchases: list[Purchase], sales: _Sales) -> Iterator[str]:
    elsewhere = {payment.payment_hash: payment for payment in world.payments["foreigner"]}
    for purchase in purchases:
        if purchase.paid and purchase.provider == world.foreigner.pubkey:
            payment = elsewhere.get(purchase.payment_hash or "")
            if payment is None or payment.amount != purchase.paid:
                yield f"both_sides: purchase {purchase.id[:8]} paid {purchase.paid}, the foreigner has {payment}"
        elif purchase.paid:
            _, sale = sales.get((purchase.request_id or "", purchase.provider or ""), (None, None))
            if sale is None or sale.paid != purchase.paid:
                received = None if sale is None else sale.paid
                yield f"both_sides: purchase {purchase.id[:8]} paid {purchase.paid}, its provider has {received}"


def _deliveries(world: World, purchases: list[Purchase]) -> Iterator[str]:
    """Of what a foreigner holds: taken for an answer, or given back."""
    by_hash = {purchase.payment_hash: purchase for purchase in purchases}
    for job in world.foreigner.jobs:
        purchase = by_hash.get(job.payment_hash) if job.preimage else None
        if purchase is None or purchase.provider != world.foreigner.pubkey:
            continue
        label = f"purchase {purchase.id[:8]} ({purchase.state.value})"
        if (purchase.paid > 0) != job.delivered:
            yield f"delivery: {label} has paid {purchase.paid}, and delivered is {job.delivered}"
        if purchase.state is not (PurchaseState.ANSWERED if job.delivered else PurchaseState.FAILED):
            yield f"delivery: {label}, and delivered is {job.delivered}"


def _debts(world: World, store: Store) -> Iterator[str]:
    """Beliefs, against what was promised, and against what the foreigner knows of it."""
    rows = store.read(
        "SELECT owner, provider, SUM(CASE WHEN state = 'credited' THEN credit_msats ELSE 0 END) AS promised,"
        " SUM(CASE WHEN state IN ('credited', 'failed') THEN 0 ELSE credit_used_msats END) AS used"
        " FROM purchases WHERE provider IS NOT NULL GROUP BY owner, provider"
    )
    keys = {customer.owner: customer.secret.public.hex for customer in world.buyer.customers}
    answered = {
        purchase.request_id
        for purchase in purchases_of(world.buyer)
        if purchase.state is PurchaseState.ANSWERED and purchase.provider == world.foreigner.pubkey
    }
    for row in rows:
        left = row["promised"] - row["used"]
        if left < 0:
            yield f"debts: {row['owner'][:8]} has used {row['used']} of {row['promised']} that it was owed"
        if row["provider"] == world.foreigner.pubkey:
            key = keys[row["owner"]]
            # What came for nothing after its buyer had turned away, or unasked, was used as its provider sees it.
            late = sum(
                job.credit_used
                for job in world.foreigner.jobs
                if job.request.customer == key and job.delivered and job.request.id not in answered
            )
            believed = owed_to(store, row["owner"]).get(world.foreigner.pubkey, 0)
            if believed > world.foreigner.owes.get(key, 0) + late:
                yield f"debts: {row['owner'][:8]} believes that it is owed {believed}, and {world.foreigner.owes} is"


def _visits(world: World, sales: _Sales) -> Iterator[str]:
    """What the visitor's wallet has sent is what its sales were paid, each for its own."""
    sent = {payment.payment_hash: payment.amount for payment in _settled(world.payments["visitor"])}
    known: set[str] = set()
    for errand in world.visitor.errands:
        _, sale = sales.get((errand.request.id, errand.provider), (None, None))
        known |= errand.paid
        paid = sum(sent.get(payment_hash, 0) for payment_hash in errand.paid)
        if paid != (0 if sale is None else sale.paid):
            yield f"both_sides: visit {errand.request.id[:8]} paid {paid}, its sale was paid {sale and sale.paid}"
    for payment_hash in sent.keys() - known:
        yield f"charged_once: the visitor's payment {payment_hash[:8]} is for nothing that it asked for"


def _holds(world: World, sales: _Sales) -> Iterator[str]:
    results = {(event.tag("e"), event.pubkey) for event in world.relay.events(Filter(kinds=[6050]))}
    payments = {
        payment.payment_hash: payment
        for payment in itertools.chain.from_iterable(world.payments.values())
        if payment.direction is Direction.SENT
    }
    owed: dict[tuple[str, str], int] = {}
    for asked, (seller, sale) in sales.items():
        account = (seller.name, sale.customer)
        owed[account] = owed.get(account, 0) + sale.owed - sale.credit_used
        payment = payments.get(sale.payment_hash or "")
        if sale.preimage is None or payment is None:
            continue
        label = f"{seller.name}'s sale {sale.id[:8]} ({sale.state.value})"
        if payment.state is PaymentState.PENDING:
            yield f"held_ends: {label} still holds {payment.amount} msats"
        taken = payment.state is PaymentState.SETTLED
        if taken and asked not in results and sale.owed < sale.paid:
            yield f"held_ends: {label} was taken, and nothing was delivered"
        if not taken and sale.earned:
            yield f"held_ends: {label} has earned what was given back"
    for (name, customer), msats in owed.items():
        seller = next(seller for seller in world.sellers if seller.name == name)
        assert seller.store is not None, "it lives"
        if msats < 0 or msats != credits.owed(seller.store, customer):
            yield f"credit: {name} owes {customer[:8]} {msats}, and notes {credits.owed(seller.store, customer)}"


def _conserved(world: World) -> Iterator[str]:
    accounts = world.sums()
    if sum(accounts.values()) != 0:
        yield f"conserved: the ledger sums to {sum(accounts.values())} msats"
    for payment in world.payments["stranger"]:
        yield f"strangers_unpaid: a stranger has a payment of {payment.amount} msats"


def _books(world: World, node: Node, store: Store) -> Iterator[str]:
    try:
        report = books.report(store, None)
    except sqlite3.Error as error:
        yield f"books: {node.name}: {error}"
        return
    for problem in report.problems:
        yield f"books: {node.name}: {problem}"
    totals = ledger.sale_totals(store)
    if totals.paid != totals.earned + totals.owed + totals.paid_out + totals.unearned:
        yield f"books: {node.name}: what was paid is not what was earned, owed, paid out and held"
    wallets = {"": node.name}
    if node is world.buyer:
        wallets = {customer.owner: customer.name for customer in world.buyer.customers}
    for owner, name in wallets.items():
        deposits = sum(payment.amount for payment in world.payments[name] if payment.outside)
        holds = world.balances[name] - deposits
        if ledger.held(store, owner) != holds:
            yield f"books: {name}: the ledger has {ledger.held(store, owner)}, the wallet {holds}"
