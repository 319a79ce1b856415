"""What can be asked of a home: one function a verb, the same over the control socket and in a command of its own.

Parameters and results are JSON. Amounts are ``*_msats``, ids hex, times Unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import trio

from protocols.nip19 import Nip19Error, decode_public_key
from pylon.clock import Clock
from pylon.compute.buyer import Buyer
from pylon.compute.purchase import PURCHASE, Purchase
from pylon.config import Config
from pylon.daemon import books, earned, integrity, status
from pylon.daemon.agents import AgentVerbs
from pylon.daemon.backup_verb import BackupVerb
from pylon.daemon.compute import ComputeVerbs
from pylon.daemon.control import Method, Notify
from pylon.daemon.events import EventVerbs
from pylon.daemon.infer import InferVerbs
from pylon.daemon.jobs import Cancelling, ended, find_purchase, listed, read_params, read_seconds
from pylon.daemon.provider_desk import ProviderDesk
from pylon.daemon.provider_money import ProviderMoney
from pylon.daemon.relay_check import RelayVerbs
from pylon.daemon.reload import Reloading
from pylon.daemon.runtime import Runtime
from pylon.daemon.trace import Tracing
from pylon.daemon.wallet_connections import ConnectVerbs
from pylon.daemon.wallet_money import WALLET_VERBS, WalletVerbs
from pylon.daemon.wallet_verbs import WalletGuard
from pylon.daemon.withdrawals import Withdrawals
from pylon.errors import PylonError, StoreError, UsageError
from pylon.money import MAX_MSAT, Msat
from pylon.store import ledger
from pylon.store.database import Store
from pylon.wallets.port import Wallet
from pylon.wallets.purse import Purse

MAX_PROMPT_CHARS = 32_000


@attrs.frozen
class Verbs:
    """The verbs of one home, over the parts that happen to be open."""

    config: Config
    clock: Clock
    store: Store
    wallet: Wallet | None = None
    buyer: Buyer | None = None
    agents: AgentVerbs | None = None
    runtime: Runtime | None = None

    @classmethod
    def of(cls, runtime: Runtime) -> Verbs:
        """Those of a home that runs whole."""
        agents = None
        if runtime.hosting is not None and runtime.wallet is not None:
            agents = AgentVerbs(
                runtime.home,
                runtime.config,
                runtime.hosting,
                Purse(runtime.wallet, runtime.store, runtime.clock),
                host=runtime.host,
                pool=runtime.pool,
            )
        return cls(runtime.config, runtime.clock, runtime.store, runtime.wallet, runtime.buyer, agents, runtime)

    def table(self) -> dict[str, Method]:
        """The verbs by their names, for the control socket."""
        verbs: dict[str, Method] = {
            "job.submit": self.job_submit,
            "job.list": self.job_list,
            "job.status": self.job_status,
            "job.cancel": self.job_cancel,
            "trace": Tracing(self.store).trace,
            "earnings": self.earnings,
            "books": self.books,
            **ComputeVerbs(self.config, self.runtime).table(),
            **WalletGuard(self.store, self.clock).table(),
            **self._wallet_verbs(),
            **self._provider_money().table(),
            **ProviderDesk(self.config, self.store, self.clock, self.runtime).table(),
            **ConnectVerbs(self.config, self.store, self.clock, self._relays).table(),
        }
        if self.agents is not None:
            verbs |= self.agents.table()
        if self.runtime is not None:
            verbs["status"] = self.status
            verbs |= EventVerbs(self.runtime.events, self.store).table()
            verbs |= InferVerbs(self.runtime).table()
            verbs |= Reloading(self.runtime).table()
            verbs |= BackupVerb(self.runtime).table()
            own = self.runtime.identity.nostr
            verbs |= RelayVerbs(self.clock, own, lambda: self.runtime.pool.urls if self.runtime else []).table()
        return verbs

    def _relays(self) -> list[str] | None:
        """Where others meet this home: the relays of its configuration as it is now, else those that it has."""
        if self.runtime is None:
            return None
        return list(self.runtime.live.config.relays) or self.runtime.pool.urls

    # --- jobs -------------------------------------------------------------------------------------------------

    async def job_submit(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """Buy an answer.

        ``params``: pairs of what else the request asks for. ``wait``: return when it has ended, or after
        ``wait_seconds``, with its history; ``job`` and ``partial`` notifications come before.
        """
        if self.buyer is None:
            raise UsageError("this daemon does not buy", "start it with -m host or -m both")
        prompt = check_prompt(params.get("prompt"))
        model = None if params.get("model") is None else _text(params, "model")
        if model is not None and not model.strip():
            raise UsageError("the model has no name", "leave it out, and any will do")
        provider = _public_key(params.get("provider"))
        if provider is not None and self.runtime is not None and provider == self.runtime.identity.pubkey:
            raise UsageError("a home does not buy from itself", "name another provider, or none")
        everybody = params.get("open") is True
        if everybody and provider is not None:
            raise UsageError("either everybody is asked, or one provider", "leave out --open, or --provider")
        patience = read_seconds(params.get("wait_seconds"), "wait_seconds")
        purchase = await self.buyer.buy(
            prompt,
            params=read_params(params.get("params")),
            bid=Msat(_whole(params, "bid_msats", 1, MAX_MSAT)),
            max_tokens=_whole(params, "max_tokens", 1, 1_000_000),
            model=model,
            provider=provider,
            open_market=everybody,
        )
        if params.get("wait") is not True:
            return job_json(purchase)
        with self.buyer.watch(purchase.id) as words:
            async with trio.open_nursery() as nursery:
                nursery.cancel_scope.deadline = trio.current_time() + patience
                nursery.start_soon(_tell_words, purchase.id, words, notify)
                await self._follow(self.buyer, purchase, notify)
                nursery.cancel_scope.cancel()
        record = self.buyer.records.load(self.store, purchase.id) or purchase
        return {**job_json(record), "history": self._history(record.id)}

    async def _follow(self, buyer: Buyer, purchase: Purchase, notify: Notify) -> None:
        """A ``job`` notification for every change of state, until the end."""
        with self.store.listen(f"purchases:{purchase.id}") as changed:
            shown = None
            while True:
                record = buyer.records.load(self.store, purchase.id) or purchase
                if record.state is not shown:
                    shown = record.state
                    await notify("job", job_json(record))
                if record.state in PURCHASE.final:
                    return
                await changed.receive()

    async def job_list(self, params: Mapping[str, Any], notify: Notify) -> list[dict[str, Any]]:
        """Those that were submitted by hand, and fit; see ``jobs.listed``."""
        given = {**params, "provider": _public_key(params.get("provider"))}
        return [job_json(record) for record in listed(self.store, given)]

    async def job_status(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """A purchase by its id, its request's id, or the beginning of either; at its end, if that comes within
        ``wait_seconds``.
        """
        record = find_purchase(self.store, params.get("id"))
        if params.get("wait_seconds") is not None:
            await ended(self.store, record.id, read_seconds(params["wait_seconds"], "wait_seconds"))
            record = find_purchase(self.store, record.id)
        return {**job_json(record), "history": self._history(record.id)}

    async def job_cancel(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """Give up what is not being paid yet; see ``Cancelling``."""
        return job_json(await Cancelling(self.store, self.buyer).cancel(params, notify))

    def _history(self, subject: str) -> list[dict[str, Any]]:
        rows = self.store.read(
            "SELECT at, from_state, input, to_state FROM transitions WHERE subject = ? ORDER BY id", (subject,)
        )
        return [dict(row) for row in rows]

    # --- money ------------------------------------------------------------------------------------------------

    async def earnings(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """What the provider has earned; see ``earned.report``."""
        return earned.report(self.store, self.clock.now(), params)

    async def books(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """The accounts, and what has left the wallets: by owner and purpose, with ``causes`` by cause.

        ``since``: Unix seconds; what left before is not told, and ``moved`` is what each account has changed by since.
        """
        since = params.get("since")
        if since is not None and (isinstance(since, bool) or not isinstance(since, int | float)):
            raise UsageError("since must be a time in Unix seconds")
        if self.runtime is not None:
            await integrity.look(self.store, at_most=integrity.AT_ONCE_BYTES)
        if self.store.damaged is not None:
            raise StoreError(self.store.damaged.message, self.store.damaged.hint)
        hosting = None if self.agents is None else self.agents.hosting
        found = await books.audit(
            self.store,
            None if self.config.wallet.kind == "nwc" else self.wallet,  # others may use it, too
            self.clock,
            keeper=None if hosting is None else hosting.agents.keeper,
            agents=None if hosting is None else hosting.owned(),
        )
        return {
            "accounts": {f"{name}_msats": amount for name, amount in found.balances.items()},
            "wallet_msats": found.wallet_msats,
            "spent": self._spent(0.0 if since is None else float(since), params.get("causes") is True),
            **({} if since is None else {"since": since, "moved": self._moved(float(since))}),
            "remarks": list(found.remarks),
            "problems": list(found.problems),
            "clean": not found.problems,
        }

    def _spent(self, since: float, by_cause: bool) -> list[dict[str, Any]]:
        names = {row["id"]: row["name"] for row in self.store.read("SELECT id, name FROM agents")}
        return [
            {
                "owner": entry.owner,
                "name": names.get(entry.owner) or entry.owner[:16],
                "purpose": entry.purpose,
                **({"cause": entry.cause} if by_cause else {}),
                "payments": entry.payments,
                "amount_msats": entry.msats,
                "fee_msats": entry.fees,
            }
            for entry in ledger.outgoing(self.store, since=since, by_cause=by_cause)
        ]

    def _moved(self, since: float) -> dict[str, int]:
        now, then = ledger.balances(self.store), ledger.balances(self.store, until=since)
        return {f"{name}_msats": amount - then[name] for name, amount in now.items()}

    def _wallet_verbs(self) -> dict[str, Method]:
        if self.wallet is None:
            return dict.fromkeys(WALLET_VERBS, self._no_wallet)
        hosting = None if self.agents is None else self.agents.hosting
        return WalletVerbs(
            self.config,
            self.store,
            Purse(self.wallet, self.store, self.clock),
            Withdrawals(self.store, self.clock) if hosting is None else hosting.withdrawals,
            None if hosting is None else hosting.agents,
        ).table()

    def _provider_money(self) -> ProviderMoney:
        if self.wallet is None:
            return ProviderMoney(self.store, self.clock)
        return ProviderMoney(
            self.store,
            self.clock,
            Purse(self.wallet, self.store, self.clock),
            Withdrawals(self.store, self.clock) if self.agents is None else self.agents.hosting.withdrawals,
            simnet=self.config.network == "simnet",
        )

    async def _no_wallet(self, params: Mapping[str, Any], notify: Notify) -> None:
        raise PylonError("no wallet is open", "this home sells for nothing; set enable_payments = true")

    # --- the daemon itself ------------------------------------------------------------------------------------

    async def status(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """See ``pylon.daemon.status``."""
        assert self.runtime is not None, "only a whole runtime has this verb"
        return await status.report(self.runtime, self.agents)


async def _tell_words(purchase_id: str, words: trio.MemoryReceiveChannel[str], notify: Notify) -> None:
    async for text in words:
        await notify("partial", {"id": purchase_id, "text": text})


def job_json(record: Purchase) -> dict[str, Any]:
    """A purchase as users see it."""
    return {
        "id": record.id,
        "state": record.state.value,
        "request": record.request_id,
        "provider": record.provider,
        "model": record.model,
        "max_tokens": record.max_tokens,
        "bid_msats": record.bid,
        "invoice_msats": record.quoted,
        "paid_msats": record.paid,
        "fee_msats": record.fee,
        "payment_hash": record.payment_hash,
        "credit_msats": record.credit,
        "credit_used_msats": record.credit_used,
        "open": record.open,
        "hold_until": record.hold_until,
        "result": record.result_id,
        "prompt": record.prompt,
        "text": record.text,
        "reason": record.reason,
        "tried": list(record.tried),
        "created_at": record.created_at,
    }


def check_prompt(value: object) -> str:
    """What can be asked. Raises ``UsageError``."""
    prompt = _text({"prompt": value}, "prompt")
    if not prompt.strip():
        raise UsageError("the prompt is empty", "ask something; - reads it from stdin")
    if len(prompt) > MAX_PROMPT_CHARS:
        raise UsageError(
            f"the prompt has {len(prompt):,} characters, at most {MAX_PROMPT_CHARS:,} are sent", "ask in parts"
        )
    return prompt


def _text(params: Mapping[str, Any], name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} is not Unicode text", "is the terminal's encoding right?") from None
    return value


def _whole(params: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = params.get(name)
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"{name} must be a whole number from {least:,} to {most:,}")
    return value


def _public_key(text: object) -> str | None:
    """A provider as npub or hex."""
    if text is None:
        return None
    try:
        return decode_public_key(str(text)).hex
    except (Nip19Error, ValueError):
        raise UsageError(f"{str(text)[:80]!r} is no public key", "give an npub or 64 hex digits") from None
