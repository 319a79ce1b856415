"""The verbs of a wallet: the home's own, or with ``agent`` that of one of its agents.

What is paid here is paid on the operator's word: budgets do not bound it, a frozen purse does.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import trio

from pylon.config import Config
from pylon.daemon import agent_params as reading
from pylon.daemon import books
from pylon.daemon.control import Method, Notify
from pylon.daemon.wallets import Fundable
from pylon.daemon.withdrawals import Withdrawals
from pylon.errors import (
    FUND,
    PAY_IN,
    FeeTooHigh,
    InsufficientFunds,
    InvoiceExpired,
    InvoiceInvalid,
    NotFound,
    PylonError,
    UsageError,
    WrongNetwork,
)
from pylon.host import registry
from pylon.host.agents import Agents
from pylon.money import MAX_MSAT, Msat, format_msat, max_fee, sats
from pylon.store import freeze, intents
from pylon.store.database import Store
from pylon.wallets.port import Balance, Direction, IssuedInvoice, Payment, PaymentState, Target, Wallet, WalletInfo
from pylon.wallets.purse import Purse

MAX_FUNDING = Msat(MAX_MSAT // 1_000)
"""What the simnet faucet gives at once."""
MAX_DESCRIPTION = 500
"""Characters of an invoice's description."""
WALLET_VERBS = tuple(
    f"wallet.{name}" for name in ("balance", "status", "address", "invoice", "quote", "pay", "history", "fund")
)
_SCHEME = "lightning:"


@attrs.frozen
class WalletVerbs:
    """The verbs over what is open."""

    config: Config
    store: Store
    own: Purse
    """The home's."""
    withdrawals: Withdrawals
    agents: Agents | None = None

    def table(self) -> dict[str, Method]:
        """The verbs by their names."""
        return {name: getattr(self, name.removeprefix("wallet.")) for name in WALLET_VERBS}

    # --- what it holds ----------------------------------------------------------------------------------------

    async def balance(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        wallet = self._purse(params).wallet
        info, balance, addresses = await wallet.info(), await wallet.balance(), await wallet.addresses()
        return {
            **_who(info),
            **_holds(balance),
            "node_pubkey": info.node_pubkey,
            "spark_address": addresses.spark,
            "bitcoin_address": addresses.bitcoin,
        }

    async def status(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """Never fails over a wallet that does not answer: that is what it is asked for."""
        purse = self._purse(params)
        info = await purse.wallet.info()
        began = trio.current_time()
        problem, balance = "", None
        try:
            balance = await purse.wallet.balance()
        except PylonError as error:
            problem = error.message
        except Exception as error:
            # Its text may quote anything.
            problem = type(error).__name__
        pending, frozen = intents.pending(self.store, purse.owner), freeze.mark(self.store)
        return {
            **_who(info),
            **_holds(balance),
            "reachable": balance is not None,
            "answered_in_ms": None if balance is None else round((trio.current_time() - began) * 1_000, 1),
            "problem": problem,
            "unit_msats": info.unit_msats,
            "node_pubkey": info.node_pubkey,
            "frozen": None if frozen is None else frozen.words,
            "open_payments": len(pending),
            "reserved_msats": sum(intent.reserved for intent in pending),
        }

    async def address(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        wallet = self._purse(params).wallet
        info, addresses = await wallet.info(), await wallet.addresses()
        return {**_who(info), "spark_address": addresses.spark, "bitcoin_address": addresses.bitcoin}

    # --- money in ---------------------------------------------------------------------------------------------

    async def invoice(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        wallet = self._purse(params).wallet
        amount = Msat(reading.whole(params, "amount_msats", 1, MAX_MSAT))
        words = "" if params.get("description") is None else reading.text(params, "description")
        if len(words) > MAX_DESCRIPTION:
            raise UsageError(f"a description has at most {MAX_DESCRIPTION} characters", "say it in fewer words")
        expiry = reading.whole({"expiry_seconds": 86_400, **params}, "expiry_seconds", 1, 30 * 86_400)
        info = await wallet.info()
        if amount % info.unit_msats:
            raise UsageError(f"this wallet settles whole sats; {format_msat(amount)} is none", "round it")
        issued = await wallet.receive(amount, words, expiry, key=f"invoice:{uuid.uuid4()}")
        return {**_who(info), **_issued(issued), "description": words}

    async def fund(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """Test sats from the network's faucet, from outside; on Spark's regtest they come with the next blocks."""
        purse = self._purse(params)
        usual = sats(100_000 if self.config.network == "simnet" else 50_000)
        amount = Msat(reading.whole({"amount_msats": usual, **params}, "amount_msats", 1, MAX_MSAT))
        if amount > MAX_FUNDING:
            raise UsageError(f"the faucet gives at most {format_msat(MAX_FUNDING)} at once", "ask for less")
        if not isinstance(purse.wallet, Fundable):
            raise UsageError(f"{self.config.network} has no faucet here", "pylon wallet invoice AMOUNT, and pay it")
        payment = await purse.wallet.fund(amount)
        report = {"funded_msats": payment.amount, "state": payment.state.value, "network": self.config.network}
        if payment.state is not PaymentState.SETTLED:
            return {**report, "payment": payment.payment_id}
        if not purse.owner:
            await books.book_deposits(self.store, purse.wallet, self.store.clock.now())
        return {**report, **await self.balance(params, notify)}

    # --- money out --------------------------------------------------------------------------------------------

    async def quote(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """What a payment would be, and cost; nothing is sent."""
        wallet = self._purse(params).wallet
        target, amount = await self._target(wallet, params)
        return await self._quote(wallet, target, amount, params)

    async def pay(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """Pay an invoice or an address.

        ``key``: of an address, the caller's own name for this payment; the same again is not paid again.
        """
        purse = self._purse(params)
        target, amount = await self._target(purse.wallet, params)
        quoted = await self._quote(purse.wallet, target, amount, params)
        self._refuse(quoted)
        key = str(uuid.uuid4()) if params.get("key") is None else reading.text(params, "key")
        fee = await self.withdrawals.pay(
            purse,
            target.text,
            target.payment_hash,
            amount,
            cause=key if target.payment_hash is None else None,
            highest_fee=Msat(quoted["max_fee_msats"]),
        )
        return {**quoted, "paid_msats": amount, "fee_msats": fee, **_holds(await _known(purse.wallet))}

    def _refuse(self, quoted: Mapping[str, Any]) -> None:
        """What is known to fail is not begun: an invoice that has failed once is not taken up again."""
        paid = quoted["payment_hash"] and intents.find(self.store, quoted["payment_hash"])
        if paid:
            return  # What became of it is on record, and said by whoever reserves it again.
        freeze.check(self.store)
        if quoted["expires_at"] is not None and quoted["expires_at"] <= self.store.clock.now():
            raise InvoiceExpired("the invoice has expired", "ask the payee for another one")
        if quoted["fee_msats"] > quoted["max_fee_msats"]:
            raise FeeTooHigh(
                f"the fee would be {format_msat(quoted['fee_msats'])}, at most"
                f" {format_msat(quoted['max_fee_msats'])} are allowed",
                "pylon wallet pay TARGET --max-fee SATS",
            )
        if quoted["spendable_msats"] is not None and quoted["spendable_msats"] < quoted["total_msats"]:
            faucet = self.config.network != "mainnet" and self.config.wallet.kind != "nwc"
            hint = FUND if faucet else PAY_IN
            raise InsufficientFunds(quoted["total_msats"], quoted["spendable_msats"], hint)

    async def _quote(self, wallet: Wallet, target: Target, amount: Msat, params: Mapping[str, Any]) -> dict[str, Any]:
        fee = await wallet.quote(target.text, amount=None if target.amount is not None else amount)
        most = max_fee(amount)
        if params.get("max_fee_msats") is not None:
            most = Msat(reading.whole(params, "max_fee_msats", 0, MAX_MSAT))
        balance = await _known(wallet)
        return {
            **_who(await wallet.info()),
            "kind": target.kind.value,
            "target": target.text,
            "amount_msats": amount,
            "fee_msats": fee,
            "max_fee_msats": most,
            "total_msats": amount + fee,
            "payee": target.payee,
            "payment_hash": target.payment_hash,
            "description": target.description,
            "expires_at": target.expires_at,
            "spendable_msats": None if balance is None else balance.spendable,
        }

    async def _target(self, wallet: Wallet, params: Mapping[str, Any]) -> tuple[Target, Msat]:
        """What is to be paid, and how much. Raises ``UsageError``, ``WalletError``."""
        text = reading.text(params, "target").strip()
        if text[: len(_SCHEME)].lower() == _SCHEME:
            text = text[len(_SCHEME) :].removeprefix("//")
        try:
            target = await wallet.decode(text)
        except InvoiceInvalid as error:
            raise InvoiceInvalid(
                error.message, error.hint or "a target is a Lightning invoice (ln...) or an address of this network"
            ) from None
        network = (await wallet.info()).network
        if self.config.network == "simnet" and network != "simnet":
            raise WrongNetwork(
                f"this home is on simnet, and its wallet on {network}: nothing is paid", "set network in config.toml"
            )
        if target.network != network:
            raise WrongNetwork(
                f"this is to be paid on {target.network}: this wallet is on {network}", "use a wallet of that network"
            )
        wanted = params.get("amount_msats")
        amount = None if wanted is None else Msat(reading.whole(params, "amount_msats", 1, MAX_MSAT))
        if target.amount is None and amount is None:
            raise UsageError("the payer says how much here", "pylon wallet pay TARGET --amount SATS")
        if target.amount is not None and amount not in (None, target.amount):
            raise InvoiceInvalid(f"the invoice is for {format_msat(target.amount)}", "leave --amount out")
        named = target.amount if target.amount is not None else amount
        assert named is not None, "one of them says it"
        return target, named

    # --- what was -----------------------------------------------------------------------------------------------

    async def history(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """The newest ``limit`` payments, newest first; ``completed`` leaves out all but the settled ones."""
        purse = self._purse(params)
        limit = reading.whole({"limit": 10, **params}, "limit", 1, 100_000)
        completed = params.get("completed") is True
        found = await purse.wallet.payments(limit=limit, completed=completed, newest=True)
        causes = self._causes(purse.owner, found)
        rows = [_payment(payment, *causes.get(payment.payment_hash, ("", ""))) for payment in found]
        return {**_who(await purse.wallet.info()), "payments": rows}

    def _causes(self, owner: str, found: Sequence[Payment]) -> dict[str, tuple[str, str]]:
        """What each was for: purpose and cause, by payment hash."""
        causes: dict[str, tuple[str, str]] = {}
        for payment in found:
            if not payment.payment_hash:
                continue
            if payment.direction is Direction.SENT:
                intent = intents.find(self.store, payment.payment_hash)
                if intent is not None and intent.owner == owner:
                    causes[payment.payment_hash] = (intent.purpose, intent.cause)
            elif not owner:
                row = self.store.one("SELECT id FROM sales WHERE payment_hash = ?", (payment.payment_hash,))
                if row is not None:
                    causes[payment.payment_hash] = ("sale", str(row["id"]))
        return causes

    def _purse(self, params: Mapping[str, Any]) -> Purse:
        """Whose money it is about. Raises ``NotFound``."""
        if params.get("agent") is None:
            return self.own
        name = reading.text(params, "agent")
        agent = None if self.agents is None else registry.by_name(self.store, name)
        if agent is None or self.agents is None:
            raise NotFound(f"there is no agent {name[:80]!r} in this home", "pylon agent list")
        return self.agents.purse(agent.id)


async def _known(wallet: Wallet) -> Balance | None:
    """What it holds, if it says."""
    try:
        return await wallet.balance()
    except Exception:
        return None


def _who(info: WalletInfo) -> dict[str, Any]:
    return {
        "wallet": info.name,
        "kind_of_wallet": info.kind,
        "network": info.network,
        "note": info.note,
        "can": sorted(info.can),
    }


def _holds(balance: Balance | None) -> dict[str, Any]:
    return {
        "settled_msats": None if balance is None else balance.settled,
        "pending_msats": None if balance is None else balance.pending_out,
        "spendable_msats": None if balance is None else balance.spendable,
        "known_at": None if balance is None else balance.known_at,
    }


def _issued(issued: IssuedInvoice) -> dict[str, Any]:
    return {
        "bolt11": issued.bolt11,
        "payment_hash": issued.payment_hash,
        "amount_msats": issued.amount,
        "expires_at": issued.expires_at,
    }


def _payment(payment: Payment, purpose: str, cause: str) -> dict[str, Any]:
    return {
        "id": payment.payment_id,
        "direction": payment.direction.value,
        "state": payment.state.value,
        "amount_msats": payment.amount,
        "fee_msats": payment.fee,
        "created_at": payment.created_at,
        "settled_at": payment.settled_at,
        "payment_hash": payment.payment_hash,
        "description": payment.description,
        "outside": payment.outside,
        "purpose": purpose,
        "cause": cause,
    }
