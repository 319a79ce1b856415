"""Do ledger, records, events and wallets agree? ``pylon books --check`` in one place; also run at every start.

The home's own wallet is asked itself; those of its agents, which may be ten thousand, are asked for their balances all
at once. Only a wallet that does not hold what the ledger says is opened and read, to book what came from outside and to
explain what is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import attrs
import trio

from pylon.clock import Clock
from pylon.compute.purchase import PurchaseState
from pylon.compute.purchases import purchase_records
from pylon.errors import NotFound, PylonError, SealError, StoreError, brief
from pylon.money import Msat, format_msat
from pylon.provider.sale import SaleState
from pylon.provider.sales import sale_records
from pylon.store import books, intents, ledger
from pylon.store.aside import Snapshots, look_aside
from pylon.store.books import payment_words
from pylon.store.database import Store
from pylon.store.intents import IntentState
from pylon.wallets.history import all_payments, book_late, book_outside, intent_hash, is_of_a_sale
from pylon.wallets.keeper import WalletKeeper
from pylon.wallets.port import Balance, Direction, Payment, PaymentState, Wallet

_LOOKS = 7
"""How often a wallet is asked anew where it seems to disagree; the pauses between come to about 3 s."""
_FIRST_PAUSE = 0.05
"""Seconds; twice as long each time."""


@attrs.frozen
class Owned:
    """An agent's wallet, as the audit needs it."""

    wallet_id: str
    """As ``WalletKeeper.wallet_id`` has it."""
    open: Callable[[], AbstractAsyncContextManager[Wallet]]
    """Asked only where wallet and ledger disagree. Raises ``NotFound`` for one that is gone."""
    began: float = 0.0
    """When this home took it over; what it had sent by then is not this home's doing."""


@attrs.frozen
class Accounts:
    """The books of one owner, in msats."""

    balances: dict[str, int]
    wallet_msats: int | None


@attrs.frozen
class Report:
    """The books of all owners together in msats, and what is wrong with them in words."""

    balances: dict[str, int]
    wallet_msats: int | None
    """What the wallets hold that could be asked."""
    problems: tuple[str, ...]
    owners: dict[str, Accounts] | None = None
    """By owner, where that was asked for."""
    remarks: tuple[str, ...] = ()
    """What is no problem, and worth knowing all the same."""
    unknown: tuple[str, ...] = ()
    """Of which wallets nothing can be said, and why: neither that they agree nor that they do not."""


@attrs.frozen
class _Look:
    """What a wallet has said, and what it should have said by the ledger of that very moment, in msats."""

    holds: int
    expected: int
    trouble: str = ""
    """Why it could not be looked into."""
    moving: bool = False
    """Money moved at every look: nothing can be said, which is no problem by itself."""
    denied: tuple[str, ...] = ()
    """Payments that had settled, and of which the wallet says that they failed."""


async def audit(
    store: Store,
    wallet: Wallet | None,
    clock: Clock,
    *,
    keeper: WalletKeeper | None = None,
    agents: Mapping[str, Owned] | None = None,
    owners: bool = False,
) -> Report:
    """Book what came from outside, ask the wallets, and report; a payment under way meanwhile is no false alarm.

    :param wallet: the home's own, where it is Pylon's alone and can be asked.
    :param keeper: where the agents' wallets are.
    :param agents: those, by owner.
    :param owners: whether to give the accounts of each owner, too.
    """
    looks: dict[str, _Look] = {}
    silent = ""
    unknown: list[str] = []
    if wallet is not None:
        try:
            looks[""] = await _look_into(store, wallet, clock, "", 0.0)
        except StoreError:
            raise
        except PylonError as error:
            silent = f"not compared with the wallet, which does not say what it holds: {error.message}"
            unknown.append(silent)
    if keeper is not None and agents:
        looks |= await _look_at_agents(store, keeper, agents, clock, unknown)
    unknown += [f"{_whose(owner)}money moved at every look into its wallet" for owner in looks if looks[owner].moving]
    # All that there is: a year of it takes longer than the loop may be kept.
    found = await look_aside(store, lambda aside: _report(aside, looks, owners))
    found = attrs.evolve(found, unknown=tuple(unknown))
    # What is not known is no problem of the books.
    return attrs.evolve(found, remarks=(*found.remarks, silent)) if silent else found


async def _look_into(store: Store, wallet: Wallet, clock: Clock, owner: str, began: float) -> _Look:
    """A wallet's balance and history of one moment, with what came from outside booked.

    Life goes on while a wallet answers: a balance and a history that were asked for one after the other may be of two
    moments, also where the balance is the same before and after (one payment went, another came). Only a difference
    that is there in two looks in a row, each with a history that stood still, is one.
    """
    wrong: _Look | None = None
    for look_number in range(_LOOKS):
        payments = await all_payments(wallet)
        await book_outside(store, payments, owner=owner, began=began, now=clock.now())
        await book_late(store, payments, now=clock.now())
        balance = await wallet.balance()
        # Nothing is awaited between this answer and the look into the ledger.
        look = _compare(store, owner, balance, payments)
        if look.holds == look.expected:
            return look
        still = await all_payments(wallet) == payments and _compare(store, owner, balance, payments) == look
        if still and wrong is not None and wrong.holds - wrong.expected == look.holds - look.expected:
            return look
        wrong = look if still else None
        await trio.sleep(_FIRST_PAUSE * 2**look_number)
    return attrs.evolve(look, moving=True)


def _compare(store: Store, owner: str, balance: Balance, payments: Sequence[Payment]) -> _Look:
    """What a wallet holds, and what it should hold by the ledger as it is now."""
    expected = ledger.held(store, owner) + _under_way(store, payments)
    return _Look(balance.settled, expected, denied=tuple(_denied(store, payments)))


def _denied(store: Store, payments: Iterable[Payment]) -> Iterator[str]:
    """Payments of ours that have settled, and of which the wallet says by now that they failed."""
    for payment in payments:
        if payment.state is PaymentState.FAILED and payment.direction is Direction.SENT:
            intent = intents.find(store, intent_hash(payment))
            if intent is not None and intent.state is IntentState.SETTLED:
                yield payment_words(intent)


async def _look_at_agents(
    store: Store, keeper: WalletKeeper, agents: Mapping[str, Owned], clock: Clock, unknown: list[str]
) -> dict[str, _Look]:
    """What the agents' wallets hold. One that agrees with the ledger at this moment needs no second look.

    Those that do not say, or not yet, are added to ``unknown``.
    """
    balances = await keeper.balances([owned.wallet_id for owned in agents.values()])
    held = ledger.held_by_owner(store)
    looks: dict[str, _Look] = {}
    for owner, owned in agents.items():
        balance = balances.get(owned.wallet_id)
        if balance is None:
            unknown.append(f"{_whose(owner)}its wallet does not say what it holds")
            continue  # unknown is not zero
        looks[owner] = _Look(balance.settled, held.get(owner, 0))
        if looks[owner].holds == looks[owner].expected:
            continue
        try:
            async with owned.open() as wallet:
                looks[owner] = await _look_into(store, wallet, clock, owner, owned.began)
        except NotFound:
            del looks[owner]
        except Exception as error:
            looks[owner] = attrs.evolve(looks[owner], trouble=brief(error))
    return looks


def report(store: Store, wallet: Balance | None, payments: Sequence[Payment] = ()) -> Report:
    """Check everything that can be checked without the network, all as of one moment.

    :param wallet: the balance of the home's wallet, where that is Pylon's alone and could be asked.
    :param payments: the wallet's history, which explains what is settled there and not booked yet.
    """
    looks: dict[str, _Look] = {}
    if wallet is not None:
        looks[""] = _Look(wallet.settled, ledger.held(store, "") + _under_way(store, payments))
    return _report(store, looks)


def _report(store: Snapshots, looks: Mapping[str, _Look], owners: bool = False) -> Report:
    total = sum(look.holds for look in looks.values()) if looks else None
    with store.snapshot():
        problems = [str(problem) for problem in books.check(store)]
        remarks = [str(remark) for remark in books.remarks(store)]
        try:
            by_owner = ledger.balances_by_owner(store)
        except StoreError:  # named among the problems; nothing else can be said of such a ledger
            return Report({}, total, tuple(problems))
        problems.extend(_sales(store))
        problems.extend(_purchases(store))
    problems.extend(_wallets(looks))
    balances = ledger.no_balances()
    for accounts in by_owner.values():
        for name, amount in accounts.items():
            balances[name] += amount
    told = None
    if owners:
        told = {
            owner: Accounts(
                by_owner.get(owner) or ledger.no_balances(),
                looks[owner].holds if owner in looks else None,
            )
            for owner in sorted(by_owner.keys() | looks.keys())
        }
    return Report(balances, total, tuple(problems), told, tuple(remarks))


def _wallets(looks: Mapping[str, _Look]) -> Iterator[str]:
    for owner, look in looks.items():
        whose = _whose(owner)
        for words in look.denied:
            yield f"{whose}{words} has settled, and the wallet says by now that it failed: ask its support"
        if look.moving:
            continue
        if look.trouble:
            yield f"{whose}its wallet and the ledger disagree, and it cannot be looked into: {look.trouble}"
        elif look.holds != look.expected:
            yield (
                f"{whose}the ledger has {format_msat(Msat(look.expected))} in the wallet,"
                f" the wallet itself {format_msat(Msat(look.holds))}"
            )


def _whose(owner: str) -> str:
    return f"agent {owner[:16]}: " if owner else ""


def _under_way(store: Store, payments: Sequence[Payment]) -> int:
    """What has settled in the wallet for a sale or an intent of ours, and waits to be booked."""
    waiting = 0
    # Two questions for all of them: a wallet may have a year of payments, and the loop waits.
    pending = {row["payment_hash"] for row in store.read("SELECT payment_hash FROM intents WHERE state = 'pending'")}
    claimed = {row["payment_hash"] for row in store.read("SELECT payment_hash FROM claims")}
    for payment in payments:
        if payment.state is not PaymentState.SETTLED or payment.outside:
            continue
        if payment.direction is Direction.SENT:
            if intent_hash(payment) in pending:
                waiting -= payment.amount + payment.fee
        elif intent_hash(payment) not in claimed and is_of_a_sale(store, payment):
            waiting += payment.amount
    return waiting


async def book_deposits(store: Store, wallet: Wallet, now: float, owner: str = "") -> None:
    """Book what reached an owner's wallet and is no customer's, and is not booked yet; each payment once."""
    await book_outside(store, await all_payments(wallet), owner=owner, now=now)


def _sales(store: Snapshots) -> Iterator[str]:
    damaged: list[str] = []
    for sale in sale_records(store).where(store, "1 = 1", damaged=_note(damaged, "sale")):
        booked = ledger.sale_totals(store, sale.id)
        if (booked.paid, booked.earned, booked.owed) != (sale.paid, sale.earned, sale.owed - sale.credit_used):
            yield f"sale {sale.id[:16]}: record and ledger disagree"
        claimed = store.one("SELECT COALESCE(SUM(amount_msats), 0) AS n FROM claims WHERE sale_id = ?", (sale.id,))
        if claimed is None or claimed["n"] != sale.paid:
            yield f"sale {sale.id[:16]}: claimed payments and record disagree"
        if sale.state in (SaleState.SERVED, SaleState.DELIVERED) and not sale.result:
            yield f"sale {sale.id[:16]}: {sale.state.value} without a result"
        if sale.state is SaleState.OWED and sale.owed == 0:
            yield f"sale {sale.id[:16]}: owed, but nothing is"
    yield from damaged


def _purchases(store: Snapshots) -> Iterator[str]:
    damaged: list[str] = []
    for purchase in purchase_records(store).where(store, "1 = 1", damaged=_note(damaged, "purchase")):
        row = store.one(
            "SELECT COALESCE(SUM(amount_msats), 0) AS paid, COALESCE(SUM(fee_msats), 0) AS fee, COUNT(*) AS n"
            " FROM intents WHERE cause = ? AND state = 'settled'",
            (purchase.id,),
        )
        if row is None or (row["paid"], row["fee"]) != (purchase.paid, purchase.fee):
            yield f"purchase {purchase.id[:16]}: intents and record disagree"
        if row is not None and row["n"] > 1:
            yield f"purchase {purchase.id[:16]}: paid {row['n']} times"
        if purchase.state is PurchaseState.ANSWERED and not purchase.text:
            yield f"purchase {purchase.id[:16]}: answered without words"
        under_way = store.one("SELECT 1 FROM intents WHERE cause = ? AND state = 'pending'", (purchase.id,))
        if (purchase.state is PurchaseState.PAYING) != (under_way is not None):
            yield f"purchase {purchase.id[:16]}: {purchase.state.value}, and its payment is not"
    yield from damaged


def _note(damaged: list[str], what: str) -> Callable[[str, SealError], None]:
    return lambda record_id, error: damaged.append(f"{what} {record_id[:16]}: {error.message}")
