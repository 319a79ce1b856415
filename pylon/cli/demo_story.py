"""The story that ``pylon demo`` plays: every word of it is what really happened.

The customer and the relay live in this process; each provider is a process of the installed command, with a home of
its own. All of them share one simnet ledger.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import trio

from protocols.nip90 import JOB_TEXT
from pylon import config as configuration
from pylon import identity
from pylon.clock import SystemClock
from pylon.compute.discovery import announcements
from pylon.compute.purchase import PURCHASE, Purchase, PurchaseState
from pylon.daemon import books
from pylon.daemon.process import hold_home
from pylon.daemon.runtime import Runtime, open_runtime
from pylon.errors import MarketError, PylonError
from pylon.inference.models import DEFAULT_MODEL, from_file, installed, models_directory, pull
from pylon.money import Msat, format_msat, sats
from pylon.paths import Home

QUESTIONS = (
    "What is the capital of France? Answer in one sentence.",
    "Write one sentence about why the sky is blue.",
    "Name three things that a robot could buy with a coin.",
    "What is a lightning bolt? Answer in one sentence.",
)
_FUNDS = sats(10_000)
_BID = sats(50)
_READY_WITHIN = 90.0
_QUOTE_WITHIN = 5.0


@attrs.define
class Seller:
    """A provider of the play, in a process of its own once it is started."""

    name: str
    home: Home
    price: Msat
    pubkey: str = ""
    process: subprocess.Popen[bytes] | None = None


class Story:
    """One play. ``run`` returns what ``--json`` prints."""

    def __init__(
        self,
        directory: Path,
        *,
        tell: Callable[[str], None],
        jobs: int,
        prompt: str | None,
        model_file: str | None,
    ) -> None:
        self._directory = directory
        self._tell = tell
        self._jobs = jobs
        self._prompt = prompt
        self._model_file = model_file
        self._ledger = directory / "simnet.db"
        self._told_paid = False
        self._words = ""
        self._sellers = [
            Seller("cheap", Home(directory / "cheap"), sats(10)),
            Seller("dear", Home(directory / "dear"), sats(25)),
        ]

    async def run(self) -> dict[str, Any]:
        self._tell("A market on this machine. Its sats are simnet's: they are not money.")
        model = await self._model()
        clock = SystemClock()
        customer = Home(self._directory / "customer")
        config = self._make_home(customer, "", 'enabled = true\nbind = "127.0.0.1:0"', clock.now())
        async with AsyncExitStack() as stack:
            stack.enter_context(hold_home(customer))
            stack.callback(self._stop_sellers)
            runtime = await stack.enter_async_context(open_runtime(customer, config, quote_seconds=_QUOTE_WITHIN))
            wallet, buyer = runtime.wallet, runtime.buyer
            assert wallet is not None
            assert buyer is not None
            relay = runtime.pool.urls[0]
            self._tell(f"relay     {relay}")
            for seller in self._sellers:
                self._start(seller, relay, model, clock.now())
            await wallet.fund(_FUNDS)
            await books.book_deposits(runtime.store, wallet, clock.now())
            self._tell(f"customer  {runtime.identity.npub}, {format_msat(_FUNDS)} from the simnet faucet")
            await self._announced(runtime)
            before = self._wallets(runtime)

            done = []
            for number in range(1, self._jobs + 1):
                if number == self._jobs:
                    self._kill(self._sellers[0])
                done.append(await self._buy(runtime, number))
            await self._delivered()
            self._stop_sellers()
            return await self._close_books(runtime, done, before)

    # --- the cast ---------------------------------------------------------------------------------------------

    async def _model(self) -> Path:
        if self._model_file is not None:
            return from_file(self._model_file).path
        directory = models_directory()
        present = installed(directory)
        if not present:
            self._tell(f"fetching the model {DEFAULT_MODEL} (once)")
            present = [(await pull(DEFAULT_MODEL, directory)).file]
        self._tell(f"model     {present[0].name}")
        return present[0].path

    def _make_home(self, home: Home, relays: str, relay: str, now: float, more: str = "") -> configuration.Config:
        identity.create(home, now=now)
        home.config.write_text(
            f'network = "simnet"  # not money\nrelays = [{relays}]\n{more}'
            f"[relay]\n{relay}\n\n[simnet]\nledger = {json.dumps(str(self._ledger))}\n"
        )
        return configuration.load(home.config, environ={}).config

    def _start(self, seller: Seller, relay: str, model: Path, now: float) -> None:
        self._make_home(
            seller.home, json.dumps(relay), "enabled = false", now, more=f"min_price_msats = {seller.price}\n\n"
        )
        with seller.home.config.open("a") as file:
            file.write(
                f'\n[provider]\nname = "{seller.name}"\nmodel_file = {json.dumps(str(model))}\nmax_tokens = 64\n'
            )
        seller.pubkey = identity.load(seller.home).pubkey
        output = (self._directory / f"{seller.name}.out").open("wb")
        with output:
            seller.process = subprocess.Popen(
                [*_command(), "--home", str(seller.home.root), "start", "-m", "provider"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
            )
        self._tell(f"{seller.name:<9} pid {seller.process.pid}, sells an answer for {format_msat(seller.price)}")

    async def _announced(self, runtime: Runtime) -> None:
        """Wait until both sell; a provider that ended is told with its own last words."""
        missing = {seller.pubkey: seller for seller in self._sellers}
        with trio.move_on_after(_READY_WITHIN):
            while missing:
                for announcement in await announcements(runtime.pool, JOB_TEXT, 1.0):
                    seller = missing.pop(announcement.provider, None)
                    if seller is not None:
                        models = ", ".join(announcement.models)
                        self._tell(f"announced {seller.pubkey[:16]} ({seller.name}): {models}, kind {JOB_TEXT}")
                for seller in missing.values():
                    if seller.process is not None and seller.process.poll() is not None:
                        raise MarketError(f"the provider {seller.name} ended: {self._last_words(seller)}")
                if missing:
                    await trio.sleep(0.1)
            return
        names = ", ".join(seller.name for seller in missing.values())
        raise MarketError(f"not ready within {_READY_WITHIN:.0f} s: {names}", "look into the logs with --keep DIR")

    def _last_words(self, seller: Seller) -> str:
        lines = (self._directory / f"{seller.name}.out").read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])

    def _kill(self, seller: Seller) -> None:
        if seller.process is not None and seller.process.poll() is None:
            seller.process.send_signal(signal.SIGKILL)
            seller.process.wait()
            self._tell(f"\nkilled    {seller.name}, pid {seller.process.pid} (SIGKILL)")

    def _stop_sellers(self) -> None:
        for seller in self._sellers:
            if seller.process is not None and seller.process.poll() is None:
                seller.process.terminate()
        for seller in self._sellers:
            if seller.process is not None:
                try:
                    seller.process.wait(15)
                except subprocess.TimeoutExpired:
                    seller.process.kill()
                    seller.process.wait()

    # --- the play ---------------------------------------------------------------------------------------------

    async def _buy(self, runtime: Runtime, number: int) -> Purchase:
        buyer = runtime.buyer
        assert buyer is not None
        prompt = self._prompt or QUESTIONS[(number - 1) % len(QUESTIONS)]
        self._tell(f"\njob {number}: {prompt}")
        record = await buyer.buy(prompt, bid=_BID, max_tokens=64)
        told: PurchaseState | None = None
        self._told_paid = False
        self._words = ""
        with runtime.store.listen(f"purchases:{record.id}") as changed, buyer.watch(record.id) as words:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear, words)
                while True:
                    record = buyer.records.load(runtime.store, record.id) or record
                    if record.state is not told:
                        told = record.state
                        self._scene(record)
                    if record.state in PURCHASE.final:
                        break
                    await changed.receive()
                nursery.cancel_scope.cancel()
        if record.state is not PurchaseState.ANSWERED:
            raise MarketError(f"job {number} {record.state.value}: {record.reason}")
        return record

    async def _hear(self, words: trio.MemoryReceiveChannel[str]) -> None:
        """The model's words while it speaks: whole lines as soon as they cannot change any more."""
        async for text in words:
            self._speak(text, complete=False)

    def _speak(self, text: str, *, complete: bool) -> None:
        lines = textwrap.wrap(" ".join(text.split()), 78)
        spoken = self._words.splitlines()
        if lines[: len(spoken)] != spoken:  # another attempt, with other words
            if not complete:
                return
            spoken = []
        for line in lines[len(spoken) :] if complete else lines[len(spoken) : -1]:
            self._words += line + "\n"
            self._tell(f"          {line}")

    def _scene(self, record: Purchase) -> None:
        match record.state:
            case PurchaseState.SEEKING if record.tried:
                self._tell(f"          {self._name(record.tried[-1])}: {record.reason}; asking the next")
            case PurchaseState.REQUESTED:
                self._tell(f"requested {_short(record.request_id)} (kind 5050) from {self._name(record.provider)}")
            case PurchaseState.PAYING:
                self._tell(f"quoted    {format_msat(record.quoted)}, payment hash {_short(record.payment_hash)}")
            case PurchaseState.PAID:
                self._told_paid = True
                self._tell(f"paid      {format_msat(record.paid)} + {format_msat(record.fee)} fee")
            case PurchaseState.ANSWERED:
                if record.paid and not self._told_paid:
                    self._tell(f"paid      {format_msat(record.paid)} + {format_msat(record.fee)} fee")
                self._speak(record.text or "", complete=True)
                self._tell(f"answered  {_short(record.result_id)} (kind 6050)")
                self._tell(f"earned    {format_msat(record.paid)} by {self._name(record.provider)}")
            case _:
                pass

    def _name(self, pubkey: str | None) -> str:
        for seller in self._sellers:
            if seller.pubkey == pubkey:
                return f"{seller.name} ({_short(pubkey)})"
        return _short(pubkey)

    async def _delivered(self) -> None:
        """Let the last provider write down that its result is delivered."""
        await trio.sleep(0.3)

    # --- the books --------------------------------------------------------------------------------------------

    def _wallets(self, runtime: Runtime) -> dict[str, int]:
        """Each wallet's own balance, read from the ledger that all share."""
        assert runtime.wallet is not None
        accounts = runtime.wallet.ledger.accounts()
        nodes = {"customer": runtime.wallet.node_pubkey}
        for seller in self._sellers:
            nodes[seller.name] = identity.load(seller.home).simnet_node
        return {name: accounts.get(node, Msat(0)) for name, node in nodes.items()}

    async def _close_books(self, runtime: Runtime, done: list[Purchase], before: dict[str, int]) -> dict[str, Any]:
        after = self._wallets(runtime)
        delta = {name: after[name] - before[name] for name in after}
        assert runtime.wallet is not None
        mine = books.report(runtime.store, await runtime.wallet.balance())
        sold = [_books_of(seller) for seller in self._sellers]
        paid, fees = mine.balances.get("spent", 0), mine.balances.get("fees", 0)
        earned = sum(entry["accounts"]["earned_msats"] for entry in sold)
        owed = sum(entry["accounts"]["owed_msats"] for entry in sold)
        gained = sum(delta[seller.name] for seller in self._sellers)
        clean = not mine.problems and all(entry["clean"] for entry in sold)
        balanced = clean and delta["customer"] == -(paid + fees) and gained == earned + owed == paid
        self._tell("\nthe books")
        self._tell(f"  customer paid      {paid:>12,} msats, and {fees:,} msats of fees")
        self._tell(f"  providers earned   {earned:>12,} msats, and owe {owed:,} msats")
        for name, amount in delta.items():
            self._tell(f"  wallet {name:<11} {amount:>+12,} msats")
        self._tell("  they agree to the millisatoshi" if balanced else "  THEY DO NOT AGREE")
        if not balanced:
            raise PylonError("the books do not balance", "run it again with --keep DIR and look: pylon books --check")
        return {
            "jobs": [
                {
                    "request": record.request_id,
                    "provider": record.provider,
                    "invoice_msats": record.quoted,
                    "paid_msats": record.paid,
                    "fee_msats": record.fee,
                    "payment_hash": record.payment_hash,
                    "result": record.result_id,
                    "prompt": record.prompt,
                    "text": record.text,
                }
                for record in done
            ],
            "notes": [],
            "books": {
                "customer_paid_msats": paid,
                "provider_earned_msats": earned,
                "owed_msats": owed,
                "fees_msats": fees,
                "wallets_delta_msats": delta,
                "balanced": balanced,
            },
        }


def _books_of(seller: Seller) -> Any:
    """A provider's own books, from its own command."""
    done = subprocess.run(
        [*_command(), "--home", str(seller.home.root), "books", "--json"],
        capture_output=True,
        check=False,
        timeout=30,
        env=_environment(),
    )
    if done.returncode != 0:
        raise PylonError(f"the books of {seller.name} cannot be read: {done.stderr.decode(errors='replace').strip()}")
    return json.loads(done.stdout)


def _environment() -> dict[str, str]:
    """This shell's, without what it says of other homes."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYLON_")}


def _command() -> list[str]:
    """The installed command of this very installation."""
    beside = shutil.which("pylon", path=str(Path(sys.executable).parent))
    return [beside] if beside else [sys.executable, "-m", "pylon"]


def _short(value: str | None) -> str:
    return (value or "-")[:16]
