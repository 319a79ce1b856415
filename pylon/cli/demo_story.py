"""The story that ``pylon demo`` plays: every word of it is what really happened.

A home hosts an agent and sells thoughts; a stranger sells them cheaper, in a home and a process of its own. The agent
lives on few sats: it thinks for them, is woken, runs low, hibernates; its operator takes the rest, which leaves it
dormant; a deposit revives it. In the end the books of everybody are held against each other.
"""

from __future__ import annotations

import random
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from protocols.keys import SecretKey
from protocols.nip01 import sign_event
from pylon import identity
from pylon.cli.demo_cast import Player, free_port, publish, stop, until
from pylon.clock import SystemClock
from pylon.errors import MarketError, PylonError
from pylon.inference.models import DEFAULT_MODEL, from_file, installed, models_directory, pull
from pylon.money import Msat, format_msat, sats
from pylon.wallets.simnet_ledger import LedgerFile

GOAL = "Post a short note about the sea"
MENTION = "Do you like the sea?"
AGENT = "ada"

CHEAP, DEAR = sats(10), sats(25)
_FEE = Msat(50)
"""Of a thought at the cheap price."""
_LEFT_SATS = 30
"""What is left when the agent hibernates."""
_HIBERNATE_SATS = 35
_LOW_SATS = 45
_DEPOSIT = sats(100)
_THOUGHT_WITHIN = 120.0
_TOKENS = 240
_NOT_OFFERED = ("react", "dm", "request_payment", "update_goal", "add_memory", "set_heartbeat")
_ENDED = {"success", "partial", "error"}


class Story:
    """One play. ``run`` returns what ``--json`` prints.

    :param ticks: how many thoughts the agent has; the last one after its revival.
    """

    def __init__(
        self, directory: Path, *, tell: Callable[[str], None], ticks: int, goal: str | None, model_file: str | None
    ) -> None:
        self._directory = directory
        self._tell = tell
        self._thoughts = ticks
        self._goal = goal or GOAL
        self._model_file = model_file
        self._ledger = directory / "simnet.db"
        self._home = Player("home", directory, DEAR, "both")
        self._stranger = Player("cheap", directory, CHEAP, "provider")
        self._relay = ""
        self._state = ""
        self._withdrawn = 0
        self._moved = 0
        """Msats that the operator has put into the agent's wallet, less those taken out, fees of that included."""

    def run(self) -> dict[str, Any]:
        self._tell("An agent that lives on its own sats, on this machine. They are simnet's: not money.")
        with ExitStack() as stack:
            stack.callback(stop, [self._home, self._stranger])
            self._open()
            self._born()
            self._lives()
            self._falls_asleep()
            self._rises()
            ended = self._look_back()
        return self._close_books(ended)

    # --- the cast ---------------------------------------------------------------------------------------------

    def _open(self) -> None:
        model, now, port = self._model(), SystemClock().now(), free_port()
        self._relay = f"ws://127.0.0.1:{port}"
        self._home.make(
            relay=f'enabled = true\nbind = "127.0.0.1:{port}"', relays=[], ledger=self._ledger, model=model, now=now
        )
        self._stranger.make(relay="enabled = false", relays=[self._relay], ledger=self._ledger, model=model, now=now)
        for player in (self._home, self._stranger):
            player.start()
        for player in (self._home, self._stranger):
            player.ready()
            self._tell(f"{player.name:<9} pid {player.pid}, sells a thought for {format_msat(player.price)}")
        self._tell(f"relay     {self._relay}")
        # Whoever is ready may not have been heard yet.
        until(lambda: len(self._home.ask("compute", swarm=True)["swarm_providers"]) == 2, 30, "not both announced")

    def _model(self) -> Path:
        if self._model_file is not None:
            return from_file(self._model_file).path
        directory = models_directory()
        present = installed(directory)
        if not present:
            self._tell(f"fetching the model {DEFAULT_MODEL} (once)")
            import trio

            present = [trio.run(pull, DEFAULT_MODEL, directory).file]
        self._tell(f"model     {present[0].name}")
        return present[0].path

    # --- the play ---------------------------------------------------------------------------------------------

    def _born(self) -> None:
        before = self._thoughts - 1
        born = self._home.ask(
            "agent.spawn",
            name=AGENT,
            about="a small robot that thinks for sats",
            goals=[self._goal],
            heartbeat=3_600,
            thought_tokens=_TOKENS,
            # A very small model does best with little to choose from: it may write notes, and nothing else.
            grants=[{"action": name, "per_day": 0} for name in _NOT_OFFERED],
            lifecycle={
                "assumed_daily_burn_sats": _LOW_SATS if before > 1 else _HIBERNATE_SATS + 3,
                "low_balance_days": 1,
                "hibernate_threshold_sats": _HIBERNATE_SATS,
            },
            schedule={"min_gap": 0.5, "debounce": 0.3, "patience": 1, "catch_up": 0.5, "late": 1, "jitter": 0},
        )
        self._state = born["state"]
        self._tell(f"\nspawned   {AGENT}, {born['npub']}: {born['reason']}")
        self._tell(f"goal      {self._goal}")
        funds = Msat(sats(_LEFT_SATS) + before * (CHEAP + _FEE))
        self._fund(funds)

    def _lives(self) -> None:
        """Thoughts bought from the stranger, who is cheaper: by the heartbeat, by a mention, and on until it is low."""
        self._thought(1)
        if self._thoughts > 2:
            self._tell(f"\nsleeps    until {self._next()}; then somebody mentions it: {MENTION}")
            visitor = SecretKey.generate()
            text = f"{MENTION}"
            pubkey = self._agent()["pubkey"]
            event = sign_event(visitor, kind=1, content=text, tags=[["p", pubkey]], created_at=int(time.time()))
            publish(self._relay, event)
            self._thought(2)
        if self._thoughts > 3:
            self._tell("\nits operator has it think again: it spends, and runs low")
            for number in range(3, self._thoughts):
                self._ask_for(number)

    def _falls_asleep(self) -> None:
        view = until(lambda: self._is("hibernating"), 30.0, "the agent did not hibernate")
        ticks = view["ticks"]
        time.sleep(2.5)
        if self._agent()["ticks"] != ticks:
            raise PylonError("it hibernates, and ticked all the same")
        self._tell("          and no longer ticks")
        done = self._home.ask("agent.withdraw", agent=AGENT, amount_msats=None)
        self._withdrawn = done["withdrawn_msats"]
        self._moved -= self._withdrawn + done["fee_msats"]
        self._tell(
            f"\nwithdrew  {format_msat(Msat(done['withdrawn_msats']))} to its operator,"
            f" fee {format_msat(Msat(done['fee_msats']))}"
        )
        self._see(done["agent"])
        until(lambda: self._is("dormant"), 10.0, "the agent was not dormant")

    def _rises(self) -> None:
        """The stranger is gone for good: the agent's next thought comes from its own home's provider."""
        pid = self._stranger.pid
        self._stranger.kill()
        self._tell(f"\nkilled    {self._stranger.name}, pid {pid} (SIGKILL)")
        self._fund(_DEPOSIT)
        until(lambda: self._is("active"), 10.0, "the agent was not revived")
        self._ask_for(self._thoughts)

    def _ask_for(self, number: int) -> None:
        """The operator wants a thought now, whatever the schedule says."""
        self._home.ask("agent.tick", agent=AGENT, within=_THOUGHT_WITHIN)
        self._thought(number)

    def _fund(self, amount: Msat) -> None:
        done = self._home.ask("agent.fund", agent=AGENT, amount_msats=amount, source="faucet")
        self._moved += amount
        self._tell(f"funded    {AGENT} with {format_msat(amount)} from the simnet faucet")
        self._see(done["agent"])

    def _agent(self) -> dict[str, Any]:
        self._home.check_alive()
        view: dict[str, Any] = self._home.ask("agent.info", agent=AGENT)
        self._see(view)
        return view

    def _see(self, view: dict[str, Any]) -> None:
        """Tell a state that is new."""
        if view["state"] != self._state:
            self._state = view["state"]
            self._tell(f"          {view['reason']}")

    def _is(self, state: str) -> dict[str, Any] | None:
        view = self._agent()
        return view if view["state"] == state else None

    def _next(self) -> str:
        at = self._agent()["next_tick"]
        return "its heartbeat" if at is None else f"its heartbeat in {max(0, int(at - time.time())) // 60} min"

    def _ticks(self) -> list[dict[str, Any]]:
        """Those in which it thought, oldest first."""
        found: list[dict[str, Any]] = self._home.ask("agent.ticks", agent=AGENT, limit=1_000)["ticks"]
        return found[::-1]

    def _thought(self, number: int) -> None:
        """Wait for the end of its ``number``-th thought, and tell it."""

        def look() -> dict[str, Any] | None:
            self._agent()
            ticks = self._ticks()
            return ticks[number - 1] if len(ticks) >= number and ticks[number - 1]["status"] in _ENDED else None

        tick = until(look, _THOUGHT_WITHIN, f"thought {number} did not come")
        self._tell(f"\ntick {tick['n']}    because of {tick['trigger']}, {tick['state']}")
        job = self._job(tick)
        if job is None or tick["status"] == "error":
            raise MarketError(f"thought {number} failed: {tick['reason']}", "look into the logs with --keep DIR")
        self._tell(
            f"bought    from {self._name(job['provider'])}: {format_msat(Msat(job['paid_msats']))}"
            f" + {format_msat(Msat(job['fee_msats']))} fee, request {job['request'][:16]}"
        )
        self._say("thought", tick["thought"])
        for action in tick["actions"]:
            self._say(action["kind"], f"{action['content']} [{action['state']}]")

    def _say(self, what: str, words: str) -> None:
        for number, line in enumerate(textwrap.wrap(" ".join(words.split()), 78) or [""]):
            self._tell(f"{what if not number else '':<9} {line}")

    def _name(self, pubkey: str) -> str:
        for player in (self._home, self._stranger):
            if player.pubkey == pubkey:
                return f"{player.name} ({pubkey[:16]})"
        return pubkey[:16]

    def _job(self, tick: dict[str, Any]) -> dict[str, Any] | None:
        jobs: list[dict[str, Any]] = self._home.ask("job.list", limit=10_000, agents=True)
        return next((job for job in jobs if job["id"] == tick["purchase"]), None)

    # --- the end ----------------------------------------------------------------------------------------------

    def _look_back(self) -> dict[str, Any]:
        ticks = self._ticks()
        jobs = [job for job in (self._job(tick) for tick in ticks) if job is not None]
        view = self._agent()
        if view["state"] != "active":
            raise PylonError(f"it was revived, and is {view['state']}")
        return {"ticks": ticks, "jobs": jobs, "agent": view}

    def _close_books(self, ended: dict[str, Any]) -> dict[str, Any]:
        jobs, ticks = ended["jobs"], ended["ticks"]
        paid, fees = (sum(job[key] for job in jobs) for key in ("paid_msats", "fee_msats"))
        with closing(LedgerFile(self._ledger, rng=random.Random())) as ledger:
            accounts = ledger.accounts()
        books = {player.name: player.books() for player in (self._home, self._stranger)}
        # What the operator moved is no trade: it is left out here.
        delta = {
            "customer": accounts[ended["agent"]["wallet"]] - self._moved,
            "home": accounts[identity.load(self._home.home).simnet_node] - self._withdrawn,
            "cheap": accounts[identity.load(self._stranger.home).simnet_node],
        }
        earned = sum(entry["accounts"]["earned_msats"] for entry in books.values())
        owed = sum(entry["accounts"]["owed_msats"] for entry in books.values())
        clean = all(entry["clean"] for entry in books.values())
        balanced = clean and delta["customer"] == -(paid + fees) and delta["home"] + delta["cheap"] == earned + owed
        balanced = balanced and earned + owed == paid
        self._tell("\nthe books")
        self._tell(f"  {AGENT} paid           {paid:>12,} msats, and {fees:,} msats of fees")
        self._tell(f"  providers earned   {earned:>12,} msats, and owe {owed:,} msats")
        for name, amount in delta.items():
            self._tell(f"  wallet {name:<11} {amount:>+12,} msats")
        self._tell("  they agree to the millisatoshi" if balanced else "  THEY DO NOT AGREE")
        if not balanced:
            raise PylonError("the books do not balance", "run it again with --keep DIR and look: pylon books --check")
        return {
            "jobs": [
                {
                    "request": job["request"],
                    "provider": job["provider"],
                    "invoice_msats": job["invoice_msats"],
                    "paid_msats": job["paid_msats"],
                    "fee_msats": job["fee_msats"],
                    "payment_hash": job["payment_hash"],
                    "result": job["result"],
                    "prompt": job["prompt"],
                    "text": job["text"],
                }
                for job in jobs
            ],
            "notes": [
                {"id": action["events"][0], "text": action["content"]}
                for tick in ticks
                for action in tick["actions"]
                if action["kind"] in ("post", "reply") and action["state"] == "done" and action["events"]
            ],
            "ticks": [
                {
                    "n": tick["n"],
                    "trigger": tick["trigger"],
                    "state": tick["state"],
                    "cost_msats": tick["cost_msats"],
                    "actions": [{"kind": action["kind"], "state": action["state"]} for action in tick["actions"]],
                }
                for tick in ticks
            ],
            "books": {
                "customer_paid_msats": paid,
                "provider_earned_msats": earned,
                "owed_msats": owed,
                "fees_msats": fees,
                "wallets_delta_msats": delta,
                "balanced": balanced,
            },
        }
