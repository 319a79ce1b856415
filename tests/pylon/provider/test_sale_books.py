"""Many sales of few customers, moved at random in one store: at every step the books add up, and no credit is lost."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given, settings

from pylon.clock import VirtualClock
from pylon.daemon import books as audit
from pylon.money import Msat
from pylon.provider import sale as m
from pylon.provider.credits import use_credit
from pylon.provider.sale import SALE, Sale
from pylon.provider.sales import sale_records
from pylon.store import books, claims, credits, ledger
from pylon.store.database import open_store
from pylon.store.vault import Vault

PRICES = (Msat(1_000), Msat(3_000), Msat(5_000))
CUSTOMERS = ("aa" * 32, "bb" * 32)

begins = st.one_of(
    st.builds(m.Priced, st.sampled_from(PRICES), preimage=st.sampled_from([None, "5a" * 32])),
    st.builds(m.OnTrust, st.sampled_from(PRICES)),
    st.just(m.Free()),
)
moves = st.one_of(
    # What happens as a rule, so that sales come far; and whatever else.
    st.just("next"),
    st.just("next"),
    st.just("next"),
    st.builds(m.Paid, st.sampled_from([Msat(1), Msat(1_000), Msat(4_000)]), by_hold=st.booleans()),
    st.builds(m.Held, st.sampled_from([Msat(1_000), Msat(5_000)])),
    st.sampled_from(
        [m.MintFailed("no"), m.InvoiceExpired(), m.Cancelled(), m.HoldGone(), m.HoldOverdue(), m.Undeliverable()]
    ),
    st.just("fails"),
)
steps = st.one_of(
    st.tuples(st.just("owe"), st.sampled_from(CUSTOMERS), st.sampled_from(PRICES)),
    st.tuples(st.just("begin"), st.sampled_from(CUSTOMERS), begins),
    st.tuples(st.just("move"), st.integers(0, 7), moves),
    st.tuples(st.just("move"), st.integers(0, 7), moves),
    st.tuples(st.just("payout"), st.sampled_from(CUSTOMERS), st.integers(1, 6_000)),
)


def natural(sale: Sale) -> object | None:
    """What happens to a sale if nothing goes wrong."""
    match sale.state.value:
        case "priced" | "billing":
            return m.Minted(f"lnsb{sale.id[:8]}", sale.id, 100.0, 200.0)
        case "quoted" if sale.preimage is not None:
            return m.Held(sale.asked)
        case "quoted" | "expired" | "cancelled":
            return m.Paid(sale.asked)
        case "working" | "held":
            return m.Answered("words")
        case "settling":
            return m.Paid(sale.held, by_hold=True)
        case "cancelling":
            return m.HoldGone()
        case "served":
            return m.Delivered()
        case "delivered" if sale.on_trust and not sale.paid:
            return m.Paid(sale.asked)
    return None


def book(tx, before, after):
    money = attrs.fields(Sale)
    pairs = {f: (getattr(before, f), getattr(after, f)) for f in ("paid", "earned", "owed")}
    assert money.paid is not None
    if any(one != other for one, other in (*pairs.values(), (before.credit_used, after.credit_used))):
        credit = (before.credit_used, after.credit_used)
        ledger.sale_moved(tx, cause=after.id, customer=after.customer, credit=credit, at=0.0, **pairs)


class Walk:
    def __init__(self, store):
        self.store, self.records, self.ids, self.payments = store, sale_records(store), [], 0

    def begin(self, tx, customer, message):
        sale = Sale(id=f"{len(self.ids) + 1:064x}", customer=customer, kind=5050, created_at=0.0, prompt="think")
        step = self.records.begin(tx, sale, use_credit(tx, customer, message, Msat(1)), 0.0)
        self.ids.append(sale.id)
        book(tx, step.before, step.after)

    def move(self, tx, number, message):
        if not self.ids:
            return
        sale = self.records.load(tx, self.ids[number % len(self.ids)])
        if message == "next":
            message = natural(sale)
        elif message == "fails":
            sale = attrs.evolve(sale, attempts=m.MAX_ATTEMPTS)
            self.records.amend(tx, sale, 0.0)
            message = m.AttemptFailed("broken")
        if isinstance(message, m.Paid | m.Held) and sale.state.value in ("expired", "cancelled"):
            message = attrs.evolve(message, credit=credits.available(tx, sale.customer))
        if isinstance(message, m.Paid):
            if message.amount <= 0 or (sale.state, m.Paid) not in SALE.table:
                return
            self.payments += 1
            ident = f"{self.payments:064x}"
            claims.take(
                tx,
                wallet="own",
                payment_id=ident,
                payment_hash=ident,
                sale_id=sale.id,
                amount=message.amount,
                at=0.0,
            )
        step = None if message is None else self.records.step(tx, sale.id, message, 0.0)
        if step is not None:
            book(tx, step.before, step.after)
        assert step is not None or not isinstance(message, m.Paid), "money is never an error"

    def owe(self, tx, customer, price):
        """A job that was paid and has failed, at once: what credit comes of."""
        self.begin(tx, customer, m.Priced(price))
        for message in ("next", "next", "fails"):
            self.move(tx, len(self.ids) - 1, message)

    def payout(self, tx, customer, msats):
        amount = min(msats, credits.available(tx, customer))
        if amount > 0:
            self.payments += 1
            # As the books see it: the intent behind it is another's story.
            cause = f"{credits.payout_kind(customer)}:{self.payments:x}"
            ledger.post(tx, cause, "paid_out:x", ledger.Account.OWED, ledger.Account.PAID_OUT, amount, 0.0)
            ledger.post(tx, cause, "refund", ledger.Account.REFUNDS, ledger.Account.WALLET, amount, 0.0)
            credits.move(tx, customer, -amount, 0.0)

    def check(self):
        assert [str(problem) for problem in books.check(self.store)] == []
        assert list(audit._sales(self.store)) == []
        for customer in CUSTOMERS:
            sales = list(self.records.where(self.store, "customer = ?", (customer,)))
            out = self.store.one(
                "SELECT COALESCE(SUM(msats), 0) AS n FROM entries WHERE kind = 'paid_out:x' AND cause LIKE ?",
                (f"payout:{customer}:%",),
            )["n"]
            left = sum(sale.owed - sale.credit_used for sale in sales) - out
            assert credits.owed(self.store, customer) == left >= 0
            for sale in sales:
                assert sale.paid + sale.credit_used == sale.earned + sale.owed + sale.unearned
                if sale.state in SALE.final:
                    assert sale.unearned == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=40))
def test_the_books_add_up_whatever_happens(tmp_path_factory, walk):
    async def run():
        path = tmp_path_factory.mktemp("books") / "pylon.db"
        async with open_store(
            path, vault=Vault(bytes(32)), clock=VirtualClock(), executor="inline", durable=False
        ) as store:
            walker = Walk(store)
            for what, *arguments in walk:
                await store.write(lambda tx, what=what, given=arguments: getattr(walker, what)(tx, *given))
            walker.check()

    trio.run(run)


async def test_a_walk_that_uses_a_debt_twice_is_refused(autojump_clock, tmp_path):
    async with open_store(
        tmp_path / "pylon.db", vault=Vault(bytes(32)), clock=VirtualClock(), executor="inline", durable=False
    ) as store:
        walker = Walk(store)

        def walk(tx):
            walker.begin(tx, CUSTOMERS[0], m.Priced(PRICES[0]))
            for message in ("next", "next", "fails"):
                walker.move(tx, 0, message)
            debt = credits.owed(tx, CUSTOMERS[0])
            assert debt == PRICES[0]
            for _ in range(2):
                before = Sale(id=f"{len(walker.ids) + 1:064x}", customer=CUSTOMERS[0], kind=5050, created_at=0.0)
                step = walker.records.begin(tx, before, m.Priced(debt, credit=debt), 0.0)
                walker.ids.append(before.id)
                book(tx, step.before, step.after)

        with pytest.raises(Exception, match="of credit cannot be used"):
            await store.write(walk)
