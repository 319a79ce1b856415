"""Amounts on the command line: sats unless the unit says otherwise."""

from __future__ import annotations

import re

import click

from pylon.money import MAX_MSAT, Msat


class Amount(click.ParamType[Msat]):
    """``25``, ``25sat`` or ``1500msat`` -> millisatoshi. Whole numbers only, more than nothing."""

    name = "amount"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Msat:
        if isinstance(value, int):
            return Msat(value)
        match = re.fullmatch(r"([0-9][0-9_,]*)\s*(sats?|msats?)?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no amount: write whole sats (25, 25sat) or millisatoshi (1500msat)", param, ctx)
        number = int(re.sub("[_,]", "", match[1])) if len(match[1]) <= 30 else MAX_MSAT + 1
        amount = number if (match[2] or "").startswith("msat") else number * 1_000
        if not 0 < amount <= MAX_MSAT:
            self.fail(f"{value!r} must be more than nothing, and no more than there is", param, ctx)
        return Msat(amount)


AMOUNT = Amount()
