"""What is owed to a customer's key pays for its next jobs first."""

from __future__ import annotations

import attrs

from pylon.money import Msat
from pylon.provider import sale as machine
from pylon.store import credits
from pylon.store.database import Reads


def usable(credit: Msat, price: Msat, unit: Msat) -> Msat:
    """What of a credit pays for a job: all of the price, or so much that the rest is an amount that can be invoiced."""
    if credit >= price:
        return price
    rest = -(-(price - credit) // unit) * unit
    return Msat(max(0, price - rest))


def use_credit(source: Reads, customer: str, verdict: object, unit: Msat) -> object:
    """A verdict with what the customer's credit carries of it; to be booked in the same transaction."""
    if not isinstance(verdict, machine.Priced | machine.OnTrust):
        return verdict
    credit = usable(credits.available(source, customer), verdict.price, unit)
    return attrs.evolve(verdict, credit=credit) if credit else verdict
