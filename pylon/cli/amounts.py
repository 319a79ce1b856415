"""Amounts on the command line: sats unless the unit says otherwise."""

from __future__ import annotations

import re

import click

from pylon.money import MAX_MSAT, Msat


class Amount(click.ParamType[Msat]):
    """``25``, ``25sat`` or ``1500msat`` -> millisatoshi. Whole numbers only, more than nothing.

    Thousands may be set apart (``1,000``, ``1_000``); a comma anywhere else is a mistake, not a fraction.
    """

    name = "amount"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Msat:
        text = str(value).strip().lower()
        match = re.fullmatch(r"([0-9]+|[0-9]{1,3}(?:[_,][0-9]{3})+)\s*(sats?|msats?)?", text)
        if match is None:
            self.fail(f"{value!r} is no amount: write whole sats (25, 25sat) or millisatoshi (1500msat)", param, ctx)
        number = int(re.sub("[_,]", "", match[1])) if len(match[1]) <= 30 else MAX_MSAT + 1
        amount = number if (match[2] or "").startswith("msat") else number * 1_000
        if not 0 < amount <= MAX_MSAT:
            self.fail(f"{value!r} is out of range: more than 0, at most {MAX_MSAT // 1_000:,} sat", param, ctx)
        return Msat(amount)


AMOUNT = Amount()
