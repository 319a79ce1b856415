"""Do ledger, intents and claims of all owners agree? Every disagreement in words; nothing is corrected by itself.

What only other rooms know (a sale's state, a wallet's balance) is held against them in ``pylon.daemon.books``.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator

import attrs

from pylon.errors import SealError
from pylon.money import Msat, format_msat
from pylon.store import claims, credits, intents, ledger
from pylon.store.aside import Snapshots
from pylon.store.intents import Intent, TargetForm
from pylon.store.ledger import Account


@attrs.frozen
class Problem:
    """One thing that does not add up."""

    subject: str
    """What it is about: ``ledger``, ``payment <hash>``, ``sale <id>`` ..."""
    words: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.words}"


_OF_SALES = (Account.UNEARNED, Account.OWED, Account.EARNED, Account.PAID_OUT, Account.REFUNDS)
_REFUND = "refund"


def check(store: Snapshots) -> list[Problem]:
    """Everything that does not add up, as of one moment; an empty list where all is well."""
    with store.snapshot():
        return [*_arithmetic(store), *_payments_made(store), *_payments_received(store)]


def remarks(store: Snapshots) -> Iterator[Problem]:
    """What adds up, and is worth knowing all the same: payments that a wallet has told two stories of."""
    rows = store.read(
        "SELECT id FROM intents WHERE error IS NOT NULL AND state <> 'failed' AND instr(cause, ':late:') > 0"
    )
    for row in rows:
        intent = intents.get(store, row["id"])
        yield Problem(payment_words(intent), f"{intent.error} ({_amount(intent.amount_msats)}, {intent.purpose})")


def payment_words(intent: Intent) -> str:
    """A payment, for people."""
    return f"payment {intent.payment_hash[:16]}"


def _arithmetic(store: Snapshots) -> Iterator[Problem]:
    known = {account.value for account in Account}
    rows = store.read("SELECT id, cause, kind, debit, credit FROM entries")
    strange = [row for row in rows if not {row["debit"], row["credit"]} <= known or row["debit"] == row["credit"]]
    for row in strange:
        yield Problem("ledger", f"entry {row['id']} ({row['kind']} of {row['cause']}) is between unknown accounts")
    if strange:
        return
    for owner, found in ledger.balances_by_owner(store).items():
        subject = _ledger_of(owner)
        grown = sum(found[account.value] for account in Account if account.type.grows_by_debit)
        if grown != sum(found[account.value] for account in Account if not account.type.grows_by_debit):
            yield Problem(subject, "debits and credits are not equal")
        if owner and any(found[account.value] for account in _OF_SALES):
            yield Problem(subject, "it sells: only the home itself does")
        elif not ledger.sale_totals(store, owner=owner).balanced:
            yield Problem(subject, "what customers paid is not what was earned, owed, paid out and is unearned")
        for account in (Account.UNEARNED, Account.OWED):
            if found[account.value] < 0:
                yield Problem(subject, f"{account.value} is below zero: {_amount(found[account.value])}")
    used = {
        row["cause"]: row["n"]
        for row in store.read(
            "SELECT cause, SUM(CASE WHEN debit = 'owed' THEN msats ELSE -msats END) AS n FROM entries"
            " WHERE owner = '' AND kind LIKE 'credit_%' GROUP BY cause"
        )
    }
    for row in store.read(
        "SELECT DISTINCT cause FROM entries WHERE owner = '' AND (debit = 'unearned' OR credit = 'unearned')"
    ):
        totals, credit = ledger.sale_totals(store, row["cause"]), used.get(row["cause"], 0)
        if not totals.balanced or min(totals.unearned, totals.earned, totals.owed + credit, credit) < 0:
            yield Problem(f"sale {row['cause']}", "its entries do not add up")
    yield from _credits(store)


def _credits(store: Snapshots) -> Iterator[Problem]:
    """What is owed to each customer is what the entries say, and never less than nothing."""
    kept = {credit.customer: credit.owed for credit in credits.listed(store)}
    told = credits.derived(store)
    for customer in sorted(kept.keys() | told.keys()):
        owed = told.get(customer, 0)
        if owed != kept.get(customer, 0) or owed < 0:
            yield Problem(
                f"customer {customer[:16]}",
                f"{_amount(kept.get(customer, 0))} are noted as owed, by the entries it is {_amount(owed)}",
            )


def _payments_made(store: Snapshots) -> Iterator[Problem]:
    """Every settled intent has its entries, its owner's, of its purpose and amounts; no other payment has any."""
    booked: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    purposes: dict[tuple[str, str], str] = {}
    # Only what an intent has caused has a payment hash in its kind.
    for row in store.read("SELECT owner, kind, msats FROM entries WHERE credit = 'wallet' AND instr(kind, ':') > 0"):
        kind, _, payment_hash = row["kind"].rpartition(":")
        purpose, part = (kind[:-4], "fee") if kind.endswith("_fee") else (kind, "amount")
        payment = (row["owner"], payment_hash)
        booked[payment][part] = booked[payment].get(part, 0) + row["msats"]
        purposes[payment] = purpose
    for row in store.read(
        "SELECT id, owner, purpose, payment_hash, state, amount_msats, fee_msats, target FROM intents"
    ):
        subject = f"payment {row['payment_hash'][:16]}"
        payment = (row["owner"], row["payment_hash"])
        entries = booked.pop(payment, {})
        if entries and purposes[payment] not in (row["purpose"], _REFUND):
            yield Problem(subject, f"its purpose is {row['purpose']}, and it is booked as {purposes[payment]}")
        if row["state"] != "settled":
            if entries:
                yield Problem(subject, f"it is {row['state']}, and booked as paid")
            continue
        if entries.get("amount", 0) != row["amount_msats"]:
            yield Problem(
                subject, f"settled with {_amount(row['amount_msats'])}, booked with {_amount(entries.get('amount', 0))}"
            )
        if entries.get("fee", 0) != row["fee_msats"]:
            yield Problem(
                subject, f"settled with a fee of {_amount(row['fee_msats'])}, booked {_amount(entries.get('fee', 0))}"
            )
        if row["target"] != TargetForm.ADDRESS.value:
            yield from _proof(store, subject, row["id"], row["payment_hash"])
    for _owner, payment_hash in booked:
        yield Problem(f"payment {payment_hash[:16]}", "booked as paid, without an intent")


def _proof(store: Snapshots, subject: str, intent_id: str, payment_hash: str) -> Iterator[Problem]:
    try:
        preimage = intents.preimage(store, store.vault, intent_id)
    except SealError as error:
        yield Problem(subject, error.message)
        return
    if preimage is not None and not _opens(preimage, payment_hash):
        yield Problem(subject, "the wallet's preimage does not hash to the payment hash")


def _payments_received(store: Snapshots) -> Iterator[Problem]:
    """Every claim has exactly one entry, of its amount; and no entry is without a claim."""
    claimed: dict[str, list[int]] = defaultdict(list)
    hashes: dict[tuple[str, str], str] = {}
    for row in store.read("SELECT wallet, payment_id, payment_hash, sale_id, amount_msats, preimage FROM claims"):
        claimed[row["sale_id"]].append(row["amount_msats"])
        subject = f"payment received {row['payment_id'][:16]}"
        twin = hashes.setdefault((row["wallet"], row["payment_hash"]), row["sale_id"])
        if twin != row["sale_id"]:
            yield Problem(subject, f"one invoice pays for two sales, {twin} and {row['sale_id']}")
        if row["preimage"] is not None:
            place = claims.where(row["wallet"], row["payment_id"])
            try:
                proven = _opens(store.vault.open(row["preimage"], place), row["payment_hash"])
            except SealError as error:
                yield Problem(subject, error.message)
                continue
            if not proven:
                yield Problem(subject, "its preimage does not hash to the payment hash")
    booked: dict[str, list[int]] = defaultdict(list)
    for row in store.read(
        "SELECT cause, msats FROM entries WHERE owner = '' AND debit = 'wallet' AND credit = 'unearned'"
    ):
        booked[row["cause"]].append(row["msats"])
    for sale_id in sorted(claimed.keys() | booked.keys()):
        if sorted(claimed.get(sale_id, [])) != sorted(booked.get(sale_id, [])):
            yield Problem(
                f"sale {sale_id}",
                f"{len(claimed.get(sale_id, []))} payments of {_amount(sum(claimed.get(sale_id, [])))} were claimed,"
                f" {len(booked.get(sale_id, []))} of {_amount(sum(booked.get(sale_id, [])))} booked",
            )


def _opens(preimage: str, payment_hash: str) -> bool:
    try:
        return hashlib.sha256(bytes.fromhex(preimage)).hexdigest() == payment_hash
    except ValueError:
        return False


def _ledger_of(owner: str) -> str:
    return f"ledger of {owner[:16]}" if owner else "ledger"


def _amount(msats: int) -> str:
    return format_msat(Msat(msats))
