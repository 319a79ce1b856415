"""Those who think for the agents of a simulated home: vendors, and the model that they all sell."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from protocols.keys import SecretKey
from protocols.nip90 import JobRequest
from pylon.testing.sim.steps import Market
from pylon.testing.vendor import Manners, Vendor


class Thinkers:
    """A market of vendors, and what it answers. ``word`` is a number that was not used before."""

    def __init__(
        self, rng: random.Random, *, operator: SecretKey, people: Sequence[SecretKey], word: Callable[[], int]
    ) -> None:
        self.vendors: list[Vendor] = []
        self.invoices: list[str] = []
        """That a model may wish to be paid."""
        self.calm = False
        """Whether it wishes for nothing any more."""
        self._rng = rng
        self._operator = operator
        self._people = people
        self._word = word
        self._market = Market.FINE

    def market_is(self, market: Market) -> None:
        self._market = market
        for vendor in self.vendors:
            vendor.up = market is not Market.DOWN
            vendor.seconds = 100.0 if market is Market.SLOW else 0.0
            vendor.manners = {Market.DEAR: Manners.DEAR, Market.LYING: Manners.FALSE}.get(market, Manners.FAIR)

    def answer(self, job: JobRequest) -> str | None:
        if self.calm:
            return '{"thought": "all is well", "actions": []}'
        match self._market:
            case Market.SILENT:
                return None
            case Market.NOISE:
                return self._rng.choice(["what?", "{", "[1]", '{"actions": 3}', '{"actions": [{"do": "fly"}, 7]}'])
            case Market.EMPTY:
                return " "
            case _:
                return self._reply()

    def _reply(self) -> str:
        """A reply of a model that wishes for all sorts of things, allowed or not."""
        actions = [self._wish() for _ in range(self._rng.choice([0, 1, 2, 2, 3]))]
        reply: dict[str, Any] = {"actions": actions, "thought": f"thought {self._word()}"}
        if self._rng.random() < 0.5:
            reply["review_minutes"] = self._rng.choice([0, 20, 300])
        return orjson.dumps(reply).decode()

    def _wish(self) -> dict[str, Any]:
        rng, text = self._rng, f"words {self._word()}"
        to = rng.choice([self._people[0], self._people[0], self._people[1], self._operator]).public.hex
        match rng.choice(
            ["post", "reply", "reply", "react", "dm", "zap", "zap", "pay_invoice", "request_payment", "inward"]
        ):
            case "post":
                return {"do": "post", "text": text}
            case "reply":
                return {"do": "reply", "about": rng.randint(1, 3), "text": text}
            case "react":
                return {"do": "react", "about": rng.randint(1, 3), "text": rng.choice(["+", "🔥"])}
            case "dm":
                return {"do": "dm", "to": to, "text": text}
            case "zap":
                return {"do": "zap", "to": to, "sats": rng.choice([1, 8, 15, 500]), "text": text}
            case "pay_invoice":
                return {"do": "pay_invoice", "invoice": rng.choice(self.invoices)}
            case "request_payment":
                return {"do": "request_payment", "to": to, "sats": rng.randint(1, 9), "text": text}
            case _:
                return rng.choice(
                    [
                        {"do": "update_goal", "goal": "g1", "progress": rng.randint(0, 100)},
                        {"do": "add_memory", "text": text},
                        {"do": "set_heartbeat", "seconds": rng.choice([300, 600, 1_200])},
                        {"do": "nothing"},
                    ]
                )
