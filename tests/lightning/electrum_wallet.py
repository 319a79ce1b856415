"""What NIP-47 asks of a wallet, said in the commands of an Electrum 4.3 daemon.

Not a line of Pylon is in it, so that it shows how somebody else's wallet behaves: whole sats only, no description
hashes, no hold invoices, errors in its own words, and silence for as long as a payment is on its way.
"""

from __future__ import annotations

import ast
import decimal
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx

UNPAID, EXPIRED, PAID, IN_FLIGHT, FAILED = 0, 1, 3, 4, 5
"""Electrum's states of a request or invoice."""
SENT, RECEIVED = 0, 1
"""Its directions of a payment; others are forwarded ones and those to itself."""
MSATS = decimal.Decimal(100_000_000_000)
"""In a bitcoin."""
DEFAULT_EXPIRY = 3_600


class Refused(Exception):
    """An error as NIP-47 has it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class ElectrumError(Exception):
    """What the daemon says instead of an answer."""


class ElectrumWallet:
    """One daemon's wallet.

    :param home: its ``-D`` directory, which says where it listens and how to log in.
    """

    def __init__(self, home: Path, http: httpx.AsyncClient) -> None:
        settings = json.loads((home / "regtest" / "config").read_text())
        _, (host, port), _ = ast.literal_eval((home / "regtest" / "daemon").read_text())
        self._url = f"http://{host}:{port}/"
        self._auth = (settings["rpcuser"], settings["rpcpassword"])
        self._http = http
        self._name = home.name

    async def _ask(self, command: str, **params: Any) -> Any:
        call = {"jsonrpc": "2.0", "id": 0, "method": command, "params": params}
        answer = (await self._http.post(self._url, json=call, auth=self._auth)).json()
        if answer.get("error") is not None:
            raise ElectrumError(answer["error"]["message"])
        return answer["result"]

    # --- methods ----------------------------------------------------------------------------------------------

    async def get_info(self) -> dict[str, Any]:
        return {
            "alias": self._name,
            "color": "#3399ff",
            "pubkey": str(await self._ask("nodeid")).partition("@")[0],
            "network": "regtest",
            "block_height": (await self._ask("getinfo"))["blockchain_height"],
        }

    async def get_balance(self) -> dict[str, Any]:
        """What can be spent: Electrum counts what is on its way out until it is gone, and tells it in whole sats."""
        held = decimal.Decimal((await self._ask("getbalance")).get("lightning", "0"))
        leaving = sum(channel.get("local_unsettled_sent", 0) for channel in await self._ask("list_channels"))
        return {"balance": int(held * MSATS) - leaving * 1_000}

    async def make_invoice(
        self,
        amount: int,
        description: str | None = None,
        description_hash: str | None = None,
        expiry: int | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        if type(amount) is not int or amount <= 0 or amount % 1_000:
            raise Refused("OTHER", "this wallet makes invoices of whole sats")
        if description_hash is not None:
            raise Refused("NOT_IMPLEMENTED", "this wallet does not put hashes of descriptions into invoices")
        made = await self._ask(
            "add_request",
            amount=f"{amount // 1_000 / 100_000_000:.8f}",
            memo=description or "",
            expiration=DEFAULT_EXPIRY if expiry is None else expiry,
            force=True,
        )
        return _incoming(made, {})

    async def pay_invoice(self, invoice: str, amount: int | None = None, **more: Any) -> dict[str, Any]:
        """Answers when the payment has come to its end, however long that takes."""
        read = await self._decode(invoice)
        if amount is not None and amount != read["amount_msat"]:
            raise Refused("OTHER", "this wallet pays what the invoice says")
        try:
            paid = await self._ask("lnpay", invoice=invoice)
        except ElectrumError as error:
            # Whether it was paid already, is being paid, or has expired: it has words for each, and no codes.
            raise Refused("OTHER", str(error)) from None
        if not paid["success"]:
            if await self._sendable() < read["amount_msat"]:
                raise Refused("INSUFFICIENT_BALANCE", "the channels do not hold so much beside their reserves")
            raise Refused("PAYMENT_FAILED", f"no way to the payee was found ({len(paid['log'])} tried)")
        done = (await self._settled()).get(paid["payment_hash"])
        return {"preimage": paid["preimage"], **({} if done is None else {"fees_paid": done["fee_msat"]})}

    async def lookup_invoice(
        self, payment_hash: str | None = None, invoice: str | None = None, **more: Any
    ) -> dict[str, Any]:
        if payment_hash is None:
            if invoice is None:
                raise Refused("OTHER", "it takes a payment_hash or an invoice")
            payment_hash = (await self._decode(invoice))["rhash"]
        settled = await self._settled()
        try:
            return _incoming(await self._ask("get_request", request_id=payment_hash), settled)
        except ElectrumError:
            pass
        try:
            found = await self._ask("get_invoice", invoice_id=payment_hash)
        except ElectrumError:
            raise Refused("NOT_FOUND", "no such invoice") from None
        return _outgoing(payment_hash, found, settled, await self._has_unsettled())

    async def list_transactions(
        self,
        limit: int | None = None,
        offset: int = 0,
        unpaid: bool = False,
        type: str | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        since, until = more.get("from") or 0, more.get("until") or time.time()
        found = [
            entry
            for entry in await self._transactions()
            if since <= entry["created_at"] <= until
            and (unpaid or entry["state"] == "settled")
            and type in (None, entry["type"])
        ]
        found.sort(key=lambda entry: entry["created_at"], reverse=True)
        offset = offset or 0
        return {"transactions": found[offset:] if limit is None else found[offset : offset + limit]}

    # --- for notifications ------------------------------------------------------------------------------------

    async def settled(self) -> dict[str, dict[str, Any]]:
        """All that was settled, by payment hash."""
        return {entry["payment_hash"]: entry for entry in await self._transactions() if entry["state"] == "settled"}

    # --- within -----------------------------------------------------------------------------------------------

    async def _decode(self, invoice: str) -> dict[str, Any]:
        try:
            read: dict[str, Any] = await self._ask("decode_invoice", invoice=invoice)
        except ElectrumError as error:
            raise Refused("OTHER", str(error)) from None
        return read

    async def _settled(self) -> dict[str, dict[str, Any]]:
        """Payments whose HTLCs are gone. A request is called paid earlier, while its payment is still held."""
        return {
            entry["payment_hash"]: entry
            for entry in await self._ask("lightning_history")
            if entry["type"] == "payment" and entry["direction"] in (SENT, RECEIVED)
        }

    async def _sendable(self) -> int:
        """Msats, beside what each channel must keep."""
        kept = ("local_reserve", "local_unsettled_sent")
        channels = [each for each in await self._ask("list_channels") if each["type"] == "CHANNEL"]
        left = (each["local_balance"] - sum(each[name] for name in kept) for each in channels)
        return sum(max(sats, 0) for sats in left) * 1_000

    async def _has_unsettled(self) -> bool:
        """Whether anything is on its way out: a daemon that was started again does not tell what."""
        return any(channel.get("local_unsettled_sent") for channel in await self._ask("list_channels"))

    async def _transactions(self) -> list[dict[str, Any]]:
        return [entry async for entry in self._each()]

    async def _each(self) -> AsyncIterator[dict[str, Any]]:
        settled, unsettled = await self._settled(), await self._has_unsettled()
        for request in await self._ask("list_requests"):
            if request["is_lightning"]:
                yield _incoming(request, settled)
        for invoice in await self._ask("list_invoices"):
            if invoice["is_lightning"]:
                yield _outgoing(invoice["invoice_id"], invoice, settled, unsettled)


def _incoming(request: dict[str, Any], settled: dict[str, dict[str, Any]]) -> dict[str, Any]:
    done = settled.get(request["rhash"])
    entry = {
        "type": "incoming",
        "state": "settled" if done else "expired" if request["status"] == EXPIRED else "pending",
        "invoice": request["lightning_invoice"],
        "description": request["message"],
        "payment_hash": request["rhash"],
        "amount": request["amount_msat"],
        "fees_paid": 0,
        "created_at": request["timestamp"],
        "expires_at": request["expiration"],
    }
    return {**entry, **dict(_settlement(done))}


def _outgoing(
    payment_hash: str, invoice: dict[str, Any], settled: dict[str, dict[str, Any]], unsettled: bool
) -> dict[str, Any]:
    done = settled.get(payment_hash)
    open_ = invoice["status"] == IN_FLIGHT or (invoice["status"] != FAILED and unsettled)
    entry = {
        "type": "outgoing",
        "state": "settled" if done else "pending" if open_ else "failed",
        "invoice": invoice["lightning_invoice"],
        "description": invoice["message"],
        "payment_hash": payment_hash,
        "amount": invoice["amount_msat"],
        "fees_paid": done["fee_msat"] or 0 if done else 0,
        "created_at": invoice["timestamp"],
        "expires_at": invoice["timestamp"] + invoice["expiration"],
    }
    return {**entry, **dict(_settlement(done))}


def _settlement(done: dict[str, Any] | None) -> Iterator[tuple[str, Any]]:
    if done is not None:
        yield "preimage", done["preimage"]
        yield "settled_at", done["timestamp"]
