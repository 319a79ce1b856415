"""What happens in a soak: agents live, people buy, and somebody dies every ``every`` seconds."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import psutil

from pylon.compute.purchase import PURCHASE
from pylon.provider.sale import SALE
from pylon.testing.soak import looks
from pylon.testing.soak.cast import PRICE, HomePlayer, Player, RelayPlayer, SoakFailed, Troupe, lives, until

HIBERNATE_SATS, LOW_DAYS, BURN_SATS = 30, 1.0, 100
"""So that an agent passes all states within a dozen thoughts: active from 100 sats on, low from 30."""
NEVER_FUNDED, FUNDED_AT_FIRST = 0.1, 0.4
"""Parts of the agents. Who is funded thinks at once; the others get their first sats while it goes on."""
SAMPLE_EVERY, THINK_EVERY, FUND_EVERY, BUY_EVERY = 2.0, 2.0, 6.0, 15.0
MOST_UNDER_WAY = 6
"""Purchases, beyond which nobody is asked to think: one small model serves a hundred agents."""
DRAIN = 900.0
FLAT_FROM = 10.0
"""Minutes from which on the memory of a run says something."""
_PURCHASE_ENDS = tuple(state.value for state in PURCHASE.final)
_SALE_ENDS = (*(state.value for state in SALE.final), "quoted")
"""A quote that nobody pays is open until it expires."""
SPAWN_WITH: dict[str, Any] = {
    "goals": ["Say something true about the sea."],
    "heartbeat": 900,
    "thought_tokens": 48,
    "max_steps": 1,
    "budget_day_sats": 100_000,
    "lifecycle": {
        "hibernate_threshold_sats": HIBERNATE_SATS,
        "low_balance_days": LOW_DAYS,
        "assumed_daily_burn_sats": BURN_SATS,
    },
    "schedule": {"min_gap": 1.0, "debounce": 0.5, "patience": 2.0, "catch_up": 60.0},
}


@attrs.frozen
class Plan:
    """What is asked for. Times in seconds."""

    seconds: float
    seed: int
    agents: int = 100
    every: float = 20.0
    model: Path | None = None


class Soak:
    """One run. ``report`` is what came of it; its ``problems`` are what should not have been."""

    def __init__(self, directory: Path, plan: Plan, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._rng = random.Random(plan.seed)
        self._troupe = Troupe(directory)
        self._relay = RelayPlayer(self._troupe)
        self._both = HomePlayer(self._troupe, "both", "both")
        self._neighbour = HomePlayer(self._troupe, "neighbour", "host")
        self._homes = {"both": self._both, "neighbour": self._neighbour}
        self._agents: list[tuple[HomePlayer, str]] = []
        self._began = time.monotonic()
        self._over = threading.Event()
        self._memory: dict[str, list[list[float]]] = {"both": [], "engine": [], "neighbour": [], "relay": []}
        self._kills: list[dict[str, Any]] = []
        self._problems: list[str] = []
        self._bought = 0

    def run(self) -> dict[str, Any]:
        """Play, look and tell. Every process has ended when it returns or raises."""
        sampler = threading.Thread(target=self._sample, daemon=True)
        try:
            self._open()
            sampler.start()
            self._play()
            found = self._close()
        finally:
            self._over.set()
            self._troupe.end()
            if sampler.is_alive():
                sampler.join(10)
        self._problems += [f"orphan: {each}" for each in self._troupe.left()]
        self._problems += [f"orphan: {each}" for each in looks.strangers_of(self._troupe.directory)]
        return {
            "seconds": round(time.monotonic() - self._began, 1),
            "seed": self._plan.seed,
            "agents": len(self._agents),
            "kills": self._kills,
            "killed": dict(Counter(kill["victim"] for kill in self._kills)),
            "recovery_seconds": _spread([kill["back_after"] for kill in self._kills]),
            "refused_calls": {name: home.refused for name, home in self._homes.items()},
            **found,
            "memory_mib": self._memory,
            "problems": self._problems,
        }

    @property
    def _at(self) -> float:
        return round(time.monotonic() - self._began, 1)

    # --- the cast -------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._relay.start()
        self._relay.ready()
        model = "" if self._plan.model is None else f'model_file = "{self._plan.model}"\n'
        self._both.make(self._relay.url, f"[provider]\n{model}max_tokens = 64\n")
        self._neighbour.make(self._relay.url, "")
        for home in self._homes.values():
            home.start()
        for home in self._homes.values():
            home.ready()
        until(self._sells, 120, "the model is loaded")
        self._neighbour.ask("wallet.fund", amount_msats=1_000_000_000)
        for number in range(self._plan.agents):
            home = self._neighbour if number % 10 == 9 else self._both
            name = f"agent{number:03}"
            home.ask("agent.spawn", name=name, **SPAWN_WITH)
            self._agents.append((home, name))
            if NEVER_FUNDED <= number / self._plan.agents < NEVER_FUNDED + FUNDED_AT_FIRST:
                home.ask("agent.fund", agent=name, amount_msats=self._rng.randint(5, 160) * 1_000)
        self._tell(f"{len(self._agents)} agents live after {self._at:.0f} s; relay {self._relay.url}")

    def _sells(self) -> bool:
        status = self._both.try_("status")
        return bool(status) and any(backend["ok"] for backend in status["backends"])

    # --- the play -------------------------------------------------------------------------------------------------

    def _play(self) -> None:
        """Every so often each of these; whatever comes late because somebody was away comes once."""
        doings: list[tuple[float, Callable[[], None]]] = [
            (self._plan.every, self._kill_somebody),
            (THINK_EVERY, self._think),
            (FUND_EVERY, self._fund),
            (BUY_EVERY, self._buy),
        ]
        begins, ends = time.monotonic(), time.monotonic() + self._plan.seconds
        due = [begins + every for every, _ in doings]
        while (now := time.monotonic()) < ends:
            for number, (every, do) in enumerate(doings):
                if now >= due[number]:
                    due[number] = max(due[number] + every, now)
                    do()
            time.sleep(0.2)

    def _think(self) -> None:
        """Somebody wants a thought of an agent now, beside its heartbeat; one that sleeps refuses."""
        if self._open_purchases() >= MOST_UNDER_WAY:
            return
        home, name = self._rng.choice(self._agents)
        home.tell("agent.tick", agent=name)

    def _fund(self) -> None:
        """A deposit; those who never had any keep to that."""
        home, name = self._rng.choice(self._agents[int(NEVER_FUNDED * len(self._agents)) :])
        home.try_("agent.fund", agent=name, amount_msats=self._rng.randint(1, 120) * 1_000)

    def _buy(self) -> None:
        """A job bought by hand, of the provider next door."""
        self._bought += 1
        prompt = f"Question {self._bought}: what is the sea?"
        self._neighbour.try_(
            "job.submit", prompt=prompt, bid_msats=2 * PRICE, max_tokens=32, provider=self._both.pubkey
        )

    def _kill_somebody(self) -> None:
        """And see it come back: the daemon and the relay by our hand, the model's process by the daemon's."""
        victim = self._rng.choice(["both", "relay", "engine"])
        down, at = self._rng.uniform(0.0, 3.0), self._at
        began = time.monotonic()
        if victim == "engine":
            engine = self._both.engine()
            if engine is None:
                self._tell(f"{at:7.1f} s  no engine to kill yet")
                return
            pid = engine.pid
            engine.kill()
            until(lambda: self._is_back(engine), 120, "another engine")
        else:
            player: Player = self._both if victim == "both" else self._relay
            pid = player.pid
            children = player.kill()
            self._expect_gone(children)
            time.sleep(down)
            player.start()
            player.ready()
        back = round(time.monotonic() - began, 2)
        self._kills.append({"at": at, "victim": victim, "pid": pid, "back_after": back})
        self._tell(f"{at:7.1f} s  killed {victim} ({pid}), back after {back:.1f} s")

    def _is_back(self, before: psutil.Process) -> bool:
        now = self._both.engine()
        return now is not None and now != before and lives(now) and self._sells()

    def _expect_gone(self, children: list[psutil.Process]) -> None:
        try:
            until(lambda: not any(map(lives, children)), 15, "the end of a killed daemon's children")
        except SoakFailed as error:
            self._problems.append(error.message)

    # --- the memory -----------------------------------------------------------------------------------------------

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_EVERY):
            for name, player in {**self._homes, "relay": self._relay}.items():
                self._measure(name, player.pid)
            pid = self._both.pid
            engine = self._troupe.see(pid) if pid else []
            if engine:
                self._measure("engine", engine[0].pid)

    def _measure(self, name: str, pid: int) -> None:
        try:
            rss = psutil.Process(pid).memory_info().rss if pid else 0
        except psutil.NoSuchProcess:
            return
        if rss:
            self._memory[name].append([self._at, round(rss / (1 << 20), 1), pid])

    # --- the end --------------------------------------------------------------------------------------------------

    def _close(self) -> dict[str, Any]:
        """Let what is under way end, look at everybody, then end as a user does and hold the books together."""
        self._tell(f"{self._at:7.1f} s  no more kills; what is under way may end")
        self._over.set()  # what is idle says nothing about memory
        until(self._sells, 120, "everything is up")
        for home, name in self._agents:
            home.ask("agent.pause", agent=name)
        open_ = self._drain()
        if open_:
            self._problems.append(f"still open after {DRAIN:.0f} s: {open_}")
        agents = [agent for home in self._homes.values() for agent in home.ask("agent.list", within=60.0)["agents"]]
        self._problems += looks.wrong_states(agents, hibernate_sats=HIBERNATE_SATS, low_days=LOW_DAYS)
        quarantined = {
            name: [entry["name"] for entry in home.ask("status")["quarantined"]] for name, home in self._homes.items()
        }
        self._problems += [f"quarantined in {name}: {who}" for name, who in quarantined.items() if who]
        for name, player in {**self._homes, "relay": self._relay}.items():
            code = player.stop()
            if code:
                self._problems.append(f"{name} has ended with {code}: {player.last_words()}")
        found = self._count()
        if self._plan.seconds >= FLAT_FROM * 60:
            for name, samples in self._memory.items():
                self._problems += looks.grown([(at, mib) for at, mib, _ in samples], name)
        return {
            **found,
            "states": dict(Counter(agent["state"] for agent in agents)),
            "thoughts": sum(agent["ticks"] for agent in agents),
        }

    def _drain(self) -> str:
        """Wait until nothing is under way; what still is."""
        end, told = time.monotonic() + DRAIN, 0.0
        while (left := self._under_way()) and time.monotonic() < end:
            if self._at >= told + 20:
                told = self._at
                self._tell(f"{told:7.1f} s  under way: {left}")
            time.sleep(1.0)
        return left

    def _open_purchases(self) -> int:
        return sum(len(_open(home, "purchases", _PURCHASE_ENDS)) for home in self._homes.values())

    def _under_way(self) -> str:
        found = []
        for name, home in self._homes.items():
            for table, ends in (("purchases", _PURCHASE_ENDS), ("sales", _SALE_ENDS)):
                if states := _open(home, table, ends):
                    found.append(f"{name}: {len(states)} {table} {sorted(set(states))}")
        return "; ".join(found)

    def _count(self) -> dict[str, Any]:
        """Books, purchases and sales, of homes that do not run."""
        books: dict[str, Any] = {}
        purchases: list[dict[str, Any]] = []
        for name, home in self._homes.items():
            done = home.run("books", "--check", "--json")
            with contextlib.suppress(ValueError, KeyError):
                told = json.loads(done.stdout)
                books[name] = {"clean": told["clean"], "accounts": told["accounts"], "problems": told["problems"]}
            if done.returncode:
                self._problems.append(f"the books of {name} do not agree: {done.stdout.strip()} {done.stderr.strip()}")
            purchases += home.rows("SELECT id, state, request_id, paid_msats, fee_msats FROM purchases")
        sales = self._both.rows("SELECT id, state FROM sales")
        self._problems += looks.lost_purchases(purchases, {row["id"]: row["state"] for row in sales})
        paid = [row for row in purchases if row["paid_msats"]]
        return {
            "purchases": dict(Counter(row["state"] for row in purchases)),
            "paid_purchases": len(paid),
            "paid_msats": sum(row["paid_msats"] for row in paid),
            "sales": dict(Counter(row["state"] for row in sales)),
            "bought_by_hand": self._bought,
            "books": books,
        }


def _open(home: HomePlayer, table: str, ends: Sequence[str]) -> list[str]:
    """The states of its rows that have not come to an end."""
    marks = ",".join("?" * len(ends))
    return [row["state"] for row in home.rows(f"SELECT state FROM {table} WHERE state NOT IN ({marks})", *ends)]


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": ordered[len(ordered) // 2], "most": ordered[-1]} if ordered else {}
