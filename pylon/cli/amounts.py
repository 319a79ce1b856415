"""Amounts on the command line: sats unless the unit says otherwise."""

from __future__ import annotations

import re

import click

from pylon.money import MAX_MSAT, Msat

_NUMBER = r"[0-9]+|[0-9]{1,3}(?:[_,][0-9]{3})+"


class Amount(click.ParamType[Msat]):
    """``25``, ``25sat`` or ``1500msat`` -> millisatoshi. Whole numbers only, more than nothing.

    Thousands may be set apart (``1,000``, ``1_000``); a comma anywhere else is a mistake, not a fraction.
    """

    name = "amount"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Msat:
        text = str(value).strip().lower()
        match = re.fullmatch(rf"({_NUMBER})\s*(sats?|msats?)?", text)
        if match is None:
            self.fail(f"{value!r} is no amount: write whole sats (25, 25sat) or millisatoshi (1500msat)", param, ctx)
        number = int(re.sub("[_,]", "", match[1])) if len(match[1]) <= 30 else MAX_MSAT + 1
        amount = number if (match[2] or "").startswith("msat") else number * 1_000
        if not 0 < amount <= MAX_MSAT:
            self.fail(f"{value!r} is out of range: more than 0, at most {MAX_MSAT // 1_000:,} sat", param, ctx)
        return Msat(amount)


class WholeSats(click.ParamType[int]):
    """``25`` or ``25sat`` -> 25: what budgets and limits are set in. 0 is allowed, and means nothing."""

    name = "sats"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip().lower()
        match = re.fullmatch(rf"({_NUMBER})\s*(?:sats?)?", text)
        if match is None:
            self.fail(f"{value!r} is no number of sats: write whole sats (25, 25sat); 0 means nothing", param, ctx)
        most = MAX_MSAT // 1_000
        number = int(re.sub("[_,]", "", match[1])) if len(match[1]) <= 30 else most + 1
        if number > most:
            self.fail(f"{value!r} is out of range: at most {most:,} sat", param, ctx)
        return number


class Bound(click.ParamType[int | str]):
    """``25``, ``25sat`` -> 25, or ``none``: what is not bounded unless somebody says so."""

    name = WholeSats.name

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        return "none" if str(value).strip().lower() == "none" else SATS.convert(value, param, ctx)


AMOUNT = Amount()
BOUND = Bound()
SATS = WholeSats()
