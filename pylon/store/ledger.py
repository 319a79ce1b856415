"""Where every millisatoshi is: double entry. An entry is written once and never changed.

Rules
-----
1. An entry moves an amount above zero from one account (credit) to another (debit), and names its cause.
2. An entry belongs to an *owner*: '' is the home itself, else an agent's public key (hex). (owner, cause, kind) is
   unique. The same entry again changes nothing; another one under the same name is refused. What one owner of a home
   pays to another is booked twice, once by each.
3. A payment received is *unearned*; a stored result makes it *earned*; a failure makes it *owed*; paying it out
   clears the debt. So always ``paid = earned + owed + paid_out + unearned``. What is owed to a customer from other
   sales may pay for one (*credit*): it is unearned again, and stands against that sale's own debts, which may be below
   zero for that. Over all sales of a customer what is owed never is (``pylon.store.credits``).
4. What Pylon did not cause (deposits, another app on the same wallet) is booked against *outside*; what was there
   before the books began against *brought_forward*. A withdrawal is the operator's: it goes outside, and is not spent.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable

import attrs

from pylon import events
from pylon.errors import StoreError
from pylon.money import MAX_MSAT, Msat
from pylon.store import credits
from pylon.store.database import Reads, Tx
from pylon.store.intents import PURCHASE, WITHDRAWAL


class AccountType(enum.StrEnum):
    """Assets and expenses grow by debits, the others by credits."""

    ASSET = "asset"
    LIABILITY = "liability"
    INCOME = "income"
    EXPENSE = "expense"
    EQUITY = "equity"

    @property
    def grows_by_debit(self) -> bool:
        return self in (AccountType.ASSET, AccountType.EXPENSE)


class Account(enum.StrEnum):
    """The value is what the store keeps."""

    WALLET = "wallet"
    UNEARNED = "unearned"
    """Received for work that is not done."""
    OWED = "owed"
    """Received for work that failed: it belongs to the customer."""
    EARNED = "earned"
    PAID_OUT = "paid_out"
    """Debts to customers that were cleared; ``refunds`` is the money that this took."""
    REFUNDS = "refunds"
    SPENT = "spent"
    FEES = "fees"
    OUTSIDE = "outside"
    BROUGHT_FORWARD = "brought_forward"

    @property
    def type(self) -> AccountType:
        return _TYPES[self]


_TYPES = {
    Account.WALLET: AccountType.ASSET,
    Account.UNEARNED: AccountType.LIABILITY,
    Account.OWED: AccountType.LIABILITY,
    Account.EARNED: AccountType.INCOME,
    Account.PAID_OUT: AccountType.INCOME,
    Account.REFUNDS: AccountType.EXPENSE,
    Account.SPENT: AccountType.EXPENSE,
    Account.FEES: AccountType.EXPENSE,
    Account.OUTSIDE: AccountType.EQUITY,
    Account.BROUGHT_FORWARD: AccountType.EQUITY,
}


@attrs.frozen
class SaleTotals:
    """What became of the money that was received: of one sale, or of all."""

    paid: Msat
    earned: Msat
    owed: Msat
    paid_out: Msat
    unearned: Msat

    @property
    def balanced(self) -> bool:
        return self.paid == self.earned + self.owed + self.paid_out + self.unearned


def post(
    tx: Tx, cause: str, kind: str, debit: Account, credit: Account, msats: int, at: float, owner: str = ""
) -> bool:
    """Write an entry. True if it is new, False if the very same is there already.

    Raises ``StoreError`` where (owner, cause, kind) stands for another entry, ``ValueError`` for an amount or a pair
    of accounts that cannot be.
    """
    if not 0 < msats <= MAX_MSAT:
        raise ValueError(f"an entry of {msats} msat cannot be")
    if debit is credit:
        raise ValueError(f"an entry from {credit.value} to itself means nothing")
    done = tx.execute(
        "INSERT INTO entries (at, owner, cause, kind, debit, credit, msats) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (owner, cause, kind) DO NOTHING",
        (at, owner, cause, kind, debit.value, credit.value, msats),
    )
    if done.rowcount == 1:
        tx.touch("ledger")
        if owner:
            tx.touch(f"ledger:{owner}")
        if debit is Account.WALLET and credit is not Account.BROUGHT_FORWARD:
            purpose = "sale" if credit is Account.UNEARNED else "deposit"
            tx.tell(events.PaymentReceived(agent=owner, cause=cause, purpose=purpose, amount_msats=msats))
        return True
    there = tx.one(
        "SELECT debit, credit, msats FROM entries WHERE owner = ? AND cause = ? AND kind = ?", (owner, cause, kind)
    )
    if there is None or tuple(there) != (debit.value, credit.value, msats):
        raise StoreError(f"{kind} of {cause} is booked already, with another amount or other accounts")
    return False


# --- what happens, by name ------------------------------------------------------------------------------------------


def sale_moved(
    tx: Tx,
    *,
    cause: str,
    customer: str = "",
    paid: tuple[Msat, Msat],
    earned: tuple[Msat, Msat],
    owed: tuple[Msat, Msat],
    at: float,
    credit: tuple[Msat, Msat] = (Msat(0), Msat(0)),
) -> None:
    """Book one step of a sale from its amounts (before, after), whichever way they moved.

    :param customer: whose debts move with it (hex).
    :param credit: what of the customer's credit pays for it.

    Raises ``StoreError`` where the ledger does not arrive at the amounts after the step, and where more credit would be
    used than there is.
    """
    if paid[1] < paid[0]:
        raise StoreError(f"sale {cause}: what was paid cannot become less")

    def move(kind: str, step: tuple[Msat, Msat], debit: Account, credit: Account) -> None:
        """An entry for a step upwards. The totals in its kind tell the steps of one sale apart."""
        if step[1] > step[0]:
            post(tx, cause, f"{kind}:{step[0]}:{step[1]}", debit, credit, step[1] - step[0], at)

    move("paid", paid, Account.WALLET, Account.UNEARNED)
    # What is taken back goes through unearned, before it is given to another account.
    move("earned_reversed", (earned[1], earned[0]), Account.EARNED, Account.UNEARNED)
    move("owed_reversed", (owed[1], owed[0]), Account.OWED, Account.UNEARNED)
    if credit[1] != credit[0]:
        # Used, given back, and used again: the same totals may come twice.
        row = tx.one(
            "SELECT COUNT(*) AS n FROM entries WHERE owner = '' AND cause = ? AND kind LIKE 'credit_%'", (cause,)
        )
        nth = 1 if row is None else row["n"] + 1
        move(f"credit_{nth}", credit, Account.OWED, Account.UNEARNED)
        move(f"credit_returned_{nth}", (credit[1], credit[0]), Account.UNEARNED, Account.OWED)
    move("earned", earned, Account.UNEARNED, Account.EARNED)
    move("owed", owed, Account.UNEARNED, Account.OWED)
    credits.move(tx, customer, (owed[1] - owed[0]) - (credit[1] - credit[0]), at)
    totals = sale_totals(tx, cause)
    if (totals.paid, totals.earned, totals.owed + totals.paid_out) != (paid[1], earned[1], owed[1] - credit[1]):
        raise StoreError(f"sale {cause}: the ledger does not follow the record", "run `pylon books --check`")


def debt_paid_out(tx: Tx, cause: str, payment_hash: str, msats: int, fee: int, at: float) -> bool:
    """What was owed went back to the customer; we bear the fee. ``cause`` is the intent's (``credits.payout_kind``).

    More than is owed by now (the wallet had said that it failed, and the credit was used meanwhile) is our loss.
    """
    new = _paid(tx, cause, "refund", payment_hash, Account.REFUNDS, msats, fee, at)
    customer = credits.customer_of(cause)
    cleared = min(msats, credits.owed(tx, customer))
    if new and cleared > 0:
        post(tx, cause, f"paid_out:{payment_hash}", Account.OWED, Account.PAID_OUT, cleared, at)
        credits.move(tx, customer, -cleared, at)
    return new


def payment_settled(
    tx: Tx,
    *,
    cause: str,
    payment_hash: str,
    amount: int,
    fee: int,
    at: float,
    purpose: str = PURCHASE,
    owner: str = "",
) -> bool:
    """A payment of ours has settled. ``cause`` and ``purpose`` are the intent's; the hash tells its payments apart.

    A withdrawal went outside; everything else is spent.
    """
    account = Account.OUTSIDE if purpose == WITHDRAWAL else Account.SPENT
    return _paid(tx, cause, purpose, payment_hash, account, amount, fee, at, owner)


def deposit(tx: Tx, cause: str, msats: int, at: float, owner: str = "") -> bool:
    """Money came in that is no customer's. ``cause`` is the payment's id in the owner's wallet."""
    return post(tx, cause, "deposit", Account.WALLET, Account.OUTSIDE, msats, at, owner)


def withdrawal(tx: Tx, cause: str, msats: int, fee: int, at: float, owner: str = "") -> bool:
    """Money went out, and not by a payment of Pylon's. ``cause`` is the payment's id in the owner's wallet."""
    return _paid(tx, cause, "withdrawal", "", Account.OUTSIDE, msats, fee, at, owner)


def brought_forward(tx: Tx, cause: str, msats: int, at: float, owner: str = "") -> bool:
    """What the wallet held before its books began."""
    return post(tx, cause, "brought_forward", Account.WALLET, Account.BROUGHT_FORWARD, msats, at, owner)


def _paid(
    tx: Tx,
    cause: str,
    kind: str,
    payment_hash: str,
    account: Account,
    msats: int,
    fee: int,
    at: float,
    owner: str = "",
) -> bool:
    suffix = f":{payment_hash}" if payment_hash else ""
    new = post(tx, cause, kind + suffix, account, Account.WALLET, msats, at, owner)
    if new:
        tx.tell(
            events.PaymentSent(
                agent=owner, cause=cause, purpose=kind, payment_hash=payment_hash, amount_msats=msats, fee_msats=fee
            )
        )
    fee_kind = f"{kind}_fee{suffix}"
    if new and fee > 0:
        post(tx, cause, fee_kind, Account.FEES, Account.WALLET, fee, at, owner)
    elif not new:
        there = tx.one("SELECT msats FROM entries WHERE owner = ? AND cause = ? AND kind = ?", (owner, cause, fee_kind))
        if (0 if there is None else there["msats"]) != fee:
            raise StoreError(f"{fee_kind} of {cause} is booked already, with another amount")
    return new


# --- questions ------------------------------------------------------------------------------------------------------


def no_balances() -> dict[str, int]:
    """Every account with nothing on it."""
    return dict.fromkeys((account.value for account in Account), 0)


def balances(source: Reads, owner: str | None = None, *, until: float | None = None) -> dict[str, int]:
    """The balance of every account in msats, of one owner or of all together; positive is the account's own side.

    ``until``: entries before then.
    """
    conditions, params = [], []
    for condition, value in (("owner = ?", owner), ("at < ?", until)):
        if value is not None:
            conditions.append(condition)
            params.append(value)
    rows = source.read(
        "SELECT debit, credit, SUM(msats) AS msats FROM entries"
        f" WHERE {' AND '.join(conditions) or '1 = 1'} GROUP BY debit, credit",
        params,
    )
    return _balances((row["debit"], row["credit"], row["msats"]) for row in rows)


def balances_by_owner(source: Reads) -> dict[str, dict[str, int]]:
    """``balances`` of everybody who has an entry."""
    rows = source.read(
        "SELECT owner, debit, credit, SUM(msats) AS msats FROM entries GROUP BY owner, debit, credit ORDER BY owner"
    )
    return {
        owner: _balances((row["debit"], row["credit"], row["msats"]) for row in group)
        for owner, group in itertools.groupby(rows, key=lambda row: str(row["owner"]))
    }


def held(source: Reads, owner: str) -> int:
    """What an owner has in its wallet by the ledger, in msats: below zero where a deposit is not booked yet."""
    row = source.one(
        "SELECT (SELECT COALESCE(SUM(msats), 0) FROM entries WHERE owner = ?1 AND debit = 'wallet')"
        " - (SELECT COALESCE(SUM(msats), 0) FROM entries WHERE owner = ?1 AND credit = 'wallet') AS n",
        (owner,),
    )
    return 0 if row is None else int(row["n"])


def held_by_owner(source: Reads) -> dict[str, int]:
    """``held`` of everybody who has an entry."""
    rows = source.read(
        "SELECT owner, SUM(CASE WHEN debit = 'wallet' THEN msats ELSE -msats END) AS n FROM entries"
        " WHERE debit = 'wallet' OR credit = 'wallet' GROUP BY owner"
    )
    return {row["owner"]: row["n"] for row in rows}


@attrs.frozen
class Outgoing:
    """What left a wallet for one purpose: of an owner's, or of one cause of it."""

    owner: str
    purpose: str
    """As the intent has it; ``refund`` for what customers got back."""
    cause: str
    """Empty where it is a sum over causes."""
    payments: int
    msats: Msat
    fees: Msat


def outgoing(source: Reads, *, since: float = 0.0, by_cause: bool = False, limit: int = 1_000) -> list[Outgoing]:
    """What left the wallets at ``since`` or later, the most first: by owner and purpose, or by cause, too."""
    cause = "cause" if by_cause else "''"
    rows = source.read(
        f"SELECT owner, purpose, {cause} AS cause, SUM(NOT fee) AS n, SUM(CASE WHEN fee THEN 0 ELSE msats END) AS paid,"
        " SUM(CASE WHEN fee THEN msats ELSE 0 END) AS fees FROM ("
        " SELECT owner, cause, msats, debit = 'fees' AS fee,"
        " replace(substr(kind || ':', 1, instr(kind || ':', ':') - 1), '_fee', '') AS purpose"
        " FROM entries WHERE credit = 'wallet' AND at >= ?)"
        " GROUP BY 1, 2, 3 ORDER BY paid + fees DESC, owner, purpose, cause LIMIT ?",
        (since, limit),
    )
    return [
        Outgoing(row["owner"], row["purpose"], row["cause"], row["n"], Msat(row["paid"]), Msat(row["fees"]))
        for row in rows
    ]


def sale_totals(source: Reads, cause: str | None = None, owner: str = "") -> SaleTotals:
    """What became of one sale's money, by the entries of its cause; of all the owner's sales if there is none given."""
    condition, params = ("owner = ?", (owner,)) if cause is None else ("owner = ? AND cause = ?", (owner, cause))
    rows = source.read(
        f"SELECT debit, credit, SUM(msats) AS msats FROM entries WHERE {condition} GROUP BY debit, credit", params
    )
    paid = 0
    sums = dict.fromkeys((Account.EARNED, Account.OWED, Account.PAID_OUT, Account.UNEARNED), 0)
    for row in rows:
        debit, credit = _account(row["debit"]), _account(row["credit"])
        if (debit, credit) == (Account.WALLET, Account.UNEARNED):
            paid += row["msats"]
        if debit in sums:
            sums[debit] -= row["msats"]
        if credit in sums:
            sums[credit] += row["msats"]
    return SaleTotals(
        Msat(paid),
        Msat(sums[Account.EARNED]),
        Msat(sums[Account.OWED]),
        Msat(sums[Account.PAID_OUT]),
        Msat(sums[Account.UNEARNED]),
    )


def _balances(moved: Iterable[tuple[str, str, int]]) -> dict[str, int]:
    """Account balances from (debit, credit, msats)."""
    found = no_balances()
    for debit, credit, msats in moved:
        for name, amount in ((debit, msats), (credit, -msats)):
            account = _account(name)
            found[name] += amount if account.type.grows_by_debit else -amount
    return found


def _account(name: str) -> Account:
    try:
        return Account(name)
    except ValueError:
        raise StoreError(
            f"the ledger has an entry of an unknown account: {name}", "run `pylon books --check`"
        ) from None
