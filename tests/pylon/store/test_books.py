from __future__ import annotations

import hashlib

import pytest

from pylon.money import Msat
from pylon.store import books, claims, intents, ledger
from pylon.store.vault import Vault
from tests.pylon.store.conftest import NOW, make_event

PREIMAGE = "11" * 32
HASH = hashlib.sha256(bytes.fromhex(PREIMAGE)).hexdigest()


def sell(tx, sale="s1", amount=500, payment_id=None, preimage=None):
    claims.take(
        tx, wallet="w", payment_id=payment_id or sale, payment_hash=HASH if preimage else sale, sale_id=sale,
        amount=Msat(amount), preimage=preimage, at=NOW,
    )  # fmt: skip
    ledger.sale_moved(tx, cause=sale, paid=(0, amount), earned=(0, 0), owed=(0, 0), at=NOW)


def buy(tx, amount=300, fee=2, preimage=PREIMAGE):
    intent = intents.reserve(
        tx, tx.vault, cause="p1", payment_hash=HASH, invoice="lnsb1", amount=Msat(300), max_fee=Msat(9), at=NOW
    )
    intents.settle(tx, tx.vault, intent.id, amount=Msat(300), fee=Msat(2), preimage=preimage, at=NOW)
    ledger.payment_settled(tx, cause="p1", payment_hash=HASH, amount=amount, fee=fee, at=NOW)


def good(tx):
    ledger.deposit(tx, "d1", 1_000, NOW)
    sell(tx, "s1", preimage=PREIMAGE)
    sell(tx, "s2")
    ledger.sale_moved(tx, cause="s1", paid=(500, 500), earned=(0, 400), owed=(0, 100), at=NOW)
    buy(tx)


async def found(store, *steps):
    for step in steps:
        await store.write(step)
    return [str(problem) for problem in books.check(store)]


async def test_good_books_have_no_problems(store):
    assert await found(store) == []
    assert await found(store, good) == []
    assert ledger.balances(store)["wallet"] == 1_000 + 500 + 500 - 300 - 2


def entry(debit, credit, msats, cause="c", kind="k"):
    return lambda tx: tx.execute(
        "INSERT INTO entries (at, cause, kind, debit, credit, msats) VALUES (1, ?, ?, ?, ?, ?)",
        (cause, kind, debit, credit, msats),
    )


def sql(statement):
    return lambda tx: tx.execute(statement)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (entry("wallet", "nowhere", 5), "unknown accounts"),
        (entry("unearned", "wallet", 5_000), "unearned is below zero"),
        (entry("unearned", "owed", 5_000, cause="s1"), "sale s1: its entries do not add up"),
        (entry("spent", "unearned", 5), "not what was earned"),
        (sql("DELETE FROM entries WHERE kind LIKE 'purchase_fee%'"), "settled with a fee of 0.002 sat, booked 0 sat"),
        (sql("DELETE FROM entries WHERE kind LIKE 'purchase:%'"), "booked with 0 sat"),
        (sql("UPDATE entries SET msats = 301 WHERE kind LIKE 'purchase:%'"), "booked with 0.301 sat"),
        (sql("UPDATE intents SET state = 'pending'"), "it is pending, and booked as paid"),
        (sql("DELETE FROM intents"), "without an intent"),
        (sql("UPDATE intents SET preimage = x'0102'"), "cut short"),
        (sql("DELETE FROM claims WHERE sale_id = 's2'"), "sale s2: 0 payments of 0 sat were claimed, 1 of 0.5 sat"),
        (sql("DELETE FROM entries WHERE cause = 's2'"), "sale s2: 1 payments of 0.5 sat were claimed, 0 of 0 sat"),
        (sql("UPDATE claims SET amount_msats = 499 WHERE sale_id = 's2'"), "sale s2"),
        (sql("UPDATE claims SET payment_id = 'other' WHERE sale_id = 's1'"), "does not open"),
        (sql("INSERT INTO claims VALUES ('w', 'again', 's2', 's9', 500, NULL, 1)"), "one invoice pays for two sales"),
    ],
)
async def test_each_damage_is_found(store, spoil, words):
    problems = await found(store, good, spoil)
    assert any(words in problem for problem in problems), problems


OWNER = "aa" * 32


def agent_pays(tx, purpose="zap", booked_as=None):
    """An agent has funds, and has paid once."""
    ledger.deposit(tx, "d1", 1_000, NOW, OWNER)
    payment_hash = hashlib.sha256(b"its").hexdigest()
    intent = intents.reserve(
        tx, tx.vault, cause="p1", payment_hash=payment_hash, invoice="lnsb1", amount=Msat(300), max_fee=Msat(9), at=NOW,
        owner=OWNER, scope="tick", purpose=purpose,
    )  # fmt: skip
    intents.settle(tx, tx.vault, intent.id, amount=Msat(300), fee=Msat(2), preimage=None, at=NOW)
    ledger.payment_settled(
        tx, cause="p1", payment_hash=payment_hash, amount=300, fee=2, at=NOW, owner=OWNER, purpose=booked_as or purpose
    )


@pytest.mark.parametrize("purpose", intents.PURPOSES)
async def test_the_books_of_all_owners_are_checked(store, purpose):
    assert await found(store, good, lambda tx: agent_pays(tx, purpose)) == []
    balances = ledger.balances_by_owner(store)
    assert balances[OWNER]["wallet"] == 698
    assert balances[""]["wallet"] == ledger.balances(store, "")["wallet"] == 1_698
    assert balances[OWNER]["spent"] == (0 if purpose == "withdrawal" else 300)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (sql("DELETE FROM entries WHERE owner <> '' AND kind LIKE 'zap:%'"), "booked with 0 sat"),
        (sql("DELETE FROM entries WHERE kind LIKE 'zap_fee:%'"), "booked 0 sat"),
        (sql("DELETE FROM intents WHERE owner <> ''"), "booked as paid, without an intent"),
        (sql("UPDATE intents SET owner = 'bb' WHERE owner <> ''"), "booked as paid, without an intent"),
        (sql("UPDATE entries SET owner = '' WHERE kind LIKE 'zap%'"), "booked as paid, without an intent"),
        (sql("UPDATE intents SET purpose = 'invoice' WHERE owner <> ''"), "is invoice, and it is booked as zap"),
        (
            sql("INSERT INTO entries (at, owner, cause, kind, debit, credit, msats)"
                " VALUES (1, 'bb', 's', 'paid', 'wallet', 'unearned', 5)"),
            "ledger of bb: it sells",
        ),
    ],
)  # fmt: skip
async def test_each_damage_of_another_owners_is_found(store, spoil, words):
    problems = await found(store, good, agent_pays, spoil)
    assert any(words in problem for problem in problems), problems


async def test_a_withdrawal_is_not_spent(store):
    (problem,) = await found(store, lambda tx: agent_pays(tx, "withdrawal", "purchase"))
    assert problem.endswith("its purpose is withdrawal, and it is booked as purchase")


async def test_a_preimage_that_proves_nothing(store):
    problems = await found(store, lambda tx: buy(tx, preimage="22" * 32))
    assert problems == [f"payment {HASH[:16]}: the wallet's preimage does not hash to the payment hash"]


async def test_another_vault_is_said_and_does_not_raise(opened):
    async with opened() as store:
        await store.write(good)
    async with opened(vault=Vault(bytes(32))) as store:
        assert all("does not open" in problem for problem in await found(store))


async def test_nothing_secret_in_the_files(tmp_path, opened):
    """Invoices, preimages and records are sealed; so are they in the write-ahead log."""
    canaries = [b"canary-invoice", b"canary-preimage", b"canary-prompt"]

    def job(tx):
        intent = intents.reserve(
            tx, tx.vault, cause="p1", payment_hash=HASH, invoice="canary-invoice", amount=Msat(1), max_fee=Msat(0),
            at=NOW,
        )  # fmt: skip
        intents.settle(tx, tx.vault, intent.id, amount=Msat(1), fee=Msat(0), preimage="canary-preimage", at=NOW)
        claims.take(
            tx, wallet="w", payment_id="p", payment_hash="h", sale_id="s", amount=Msat(1), at=NOW,
            preimage="canary-preimage",
        )  # fmt: skip
        record = tx.vault.seal("canary-prompt", "purchases.record:p1")
        tx.execute(
            "INSERT INTO purchases (id, state, paid_msats, fee_msats, created_at, updated_at, record)"
            " VALUES ('p1', 'new', 0, 0, 1, 1, ?)",
            (record,),
        )
        tx.execute("INSERT INTO settings VALUES ('plain', ?)", (make_event(content="plain-text").to_json(),))

    async with opened() as store:
        await store.write(job)
        raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    raw += b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"plain-text" in raw  # what is not sealed would be found
    assert not [canary for canary in canaries if canary in raw]
