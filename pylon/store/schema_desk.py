"""What the provider's desk goes by, as ``m009_desk`` makes it: who is owed a hearing, and how full the book is.

The conventions are those of ``pylon.store.schema``. ``quote_book`` counts, for each customer and in all (customer ''),
the sales that are quoted or worked on and for which nothing was paid. Triggers keep it, so that no look at it ever
counts rows, whichever way a sale moves.
"""

from __future__ import annotations

_OPEN = "{row}.state IN ('priced', 'quoted', 'working') AND {row}.paid_msats = 0"
_NEW, _OLD = _OPEN.format(row="NEW"), _OPEN.format(row="OLD")

_ENTER = (
    "INSERT INTO quote_book (customer, sales) VALUES (NEW.customer, 1), ('', 1)"
    " ON CONFLICT (customer) DO UPDATE SET sales = sales + 1;"
)
_LEAVE = (
    "UPDATE quote_book SET sales = sales - 1 WHERE customer IN (OLD.customer, '');"
    " DELETE FROM quote_book WHERE customer IN (OLD.customer, '') AND sales <= 0;"
)

DESK = (
    "ALTER TABLE sales ADD COLUMN paid_msats INTEGER NOT NULL DEFAULT 0",
    "UPDATE sales SET paid_msats = COALESCE((SELECT SUM(amount_msats) FROM claims WHERE sale_id = sales.id), 0)",
    # Who has ever paid.
    "CREATE INDEX sales_paid ON sales (customer) WHERE paid_msats > 0",
    # Whose invoices are asked about.
    "CREATE INDEX sales_unpaid ON sales (expires_at, id) WHERE paid_msats = 0 AND expires_at IS NOT NULL",
    "CREATE TABLE quote_book (customer TEXT PRIMARY KEY, sales INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    f"INSERT INTO quote_book (customer, sales) SELECT customer, COUNT(*) FROM sales WHERE {_OPEN.format(row='sales')}"
    " GROUP BY customer",
    "INSERT INTO quote_book (customer, sales) SELECT '', total FROM (SELECT SUM(sales) AS total FROM quote_book)"
    " WHERE total > 0",
    f"CREATE TRIGGER quote_book_begun AFTER INSERT ON sales WHEN {_NEW} BEGIN {_ENTER} END",
    "CREATE TRIGGER quote_book_entered AFTER UPDATE OF state, paid_msats ON sales"
    f" WHEN ({_NEW}) AND NOT ({_OLD}) BEGIN {_ENTER} END",
    "CREATE TRIGGER quote_book_left AFTER UPDATE OF state, paid_msats ON sales"
    f" WHEN ({_OLD}) AND NOT ({_NEW}) BEGIN {_LEAVE} END",
    f"CREATE TRIGGER quote_book_forgotten AFTER DELETE ON sales WHEN {_OLD} BEGIN {_LEAVE} END",
    # Whom the owner trusts or will not hear, whatever the configuration says.
    """
    CREATE TABLE standings (
        customer TEXT PRIMARY KEY, at REAL NOT NULL,
        standing TEXT NOT NULL CHECK (standing IN ('stranger', 'trusted', 'free', 'blocked'))
    ) STRICT, WITHOUT ROWID
    """,
    # Jobs that a key has had free, by the day (days since 1970, UTC).
    """
    CREATE TABLE allowances (
        day INTEGER NOT NULL, customer TEXT NOT NULL, used INTEGER NOT NULL, PRIMARY KEY (day, customer)
    ) STRICT, WITHOUT ROWID
    """,
)
