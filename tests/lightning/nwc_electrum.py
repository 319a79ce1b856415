"""A Nostr Wallet Connect service (NIP-47) over an Electrum daemon, as a process of its own.

``python -m tests.lightning.nwc_electrum --electrum DIR --relay URL [--mute WHAT=COUNT ...]``

Keys, events and both ciphers are nostr-sdk's, the wallet is Electrum's: nothing of Pylon's is in it. It prints
``connection nostr+walletconnect://...`` when it listens, and ends when its stdin closes or on SIGTERM. ``--mute`` keeps
to itself the next COUNT answers to a method, after having done what was asked, or notifications of a type.

Requests are taken one beside the other, for a payment may be on its way for long. What settles is looked for a few
times a second, and told in both kinds of notification.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from nostr_sdk import (
    Client,
    ClientBuilder,
    Event,
    EventBuilder,
    Filter,
    Keys,
    Kind,
    NostrSdkError,
    NostrWalletConnectUri,
    RelayUrl,
    ReqTarget,
    Tag,
    Timestamp,
    uniffi_set_event_loop,
)

from tests.lightning.electrum_wallet import ElectrumError, ElectrumWallet, Refused

INFO, REQUEST, RESPONSE, NOTIFICATION_NIP04, NOTIFICATION_NIP44 = 13194, 23194, 23195, 23196, 23197
NIP44, NIP04 = "nip44_v2", "nip04"
METHODS = ("get_info", "get_balance", "make_invoice", "pay_invoice", "lookup_invoice", "list_transactions")
NOTIFICATIONS = ("payment_received", "payment_sent")
LOOKS_EVERY = 0.3


class Service:
    """One connection to one wallet."""

    def __init__(self, wallet: ElectrumWallet, client: Client, mute: Counter[str]) -> None:
        self.wallet = wallet
        self.client = client
        self.mute = mute
        self.keys = Keys.generate()
        self.customer = Keys.generate()
        """Whoever holds the connection string."""
        self.tasks: set[asyncio.Task[None]] = set()

    def uri(self, relay: str) -> str:
        relays, secret = [RelayUrl.parse(relay)], self.customer.secret_key()
        return str(NostrWalletConnectUri(self.keys.public_key(), relays, secret, None))

    async def announce(self) -> None:
        tags = [["encryption", f"{NIP44} {NIP04}"], ["notifications", " ".join(NOTIFICATIONS)]]
        await self._publish(INFO, " ".join((*METHODS, "notifications")), tags)

    async def listen(self, ready: asyncio.Event) -> None:
        mine = Filter().kind(Kind(REQUEST)).pubkey(self.keys.public_key()).author(self.customer.public_key())
        stream = self.client.notifications()
        await self.client.subscribe(ReqTarget.auto([mine.since(Timestamp.now())]))
        ready.set()
        while (notice := await stream.next()) is not None:
            if notice.is_NEW_EVENT() and notice.event.kind().as_u16() == REQUEST and notice.event.verify():
                task = asyncio.create_task(self.serve(notice.event))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

    async def serve(self, event: Event) -> None:
        """One request, to its answer."""
        cipher = next((tag.content() for tag in event.tags() if tag.kind() == "encryption"), NIP04)
        if event.is_expired() or event.author().to_hex() != self.customer.public_key().to_hex():
            return
        method, result, error = "", None, None
        try:
            if cipher not in (NIP44, NIP04):
                raise Refused("UNSUPPORTED_ENCRYPTION", f"{NIP44} or {NIP04}")
            asked = json.loads(self._open(event.content(), cipher))
            method = asked["method"]
            if method not in METHODS:
                raise Refused("NOT_IMPLEMENTED", "this wallet has no such method")
            result = await getattr(self.wallet, method)(**(asked.get("params") or {}))
            if method == "get_info":
                result |= {"methods": METHODS, "notifications": NOTIFICATIONS}
        except Refused as refused:
            error = {"code": refused.code, "message": refused.message}
        except (ElectrumError, NostrSdkError, ValueError, TypeError, KeyError) as broken:
            error = {"code": "INTERNAL", "message": type(broken).__name__}
        print("error" if error else "ok", method, error["code"] if error else "", file=sys.stderr, flush=True)
        if self._is_muted(method):
            return
        body = {"result_type": method, "error": error, "result": result}
        tags = [["p", self.customer.public_key().to_hex()], ["e", event.id().to_hex()]]
        await self._publish(RESPONSE, self._seal(body, NIP04 if cipher == NIP04 else NIP44), tags)

    async def notify(self) -> None:
        """Tell of what settles from now on."""
        known = set(await self.wallet.settled())
        while True:
            await asyncio.sleep(LOOKS_EVERY)
            try:
                settled = await self.wallet.settled()
            except (ElectrumError, httpx.HTTPError):
                continue
            for payment_hash in settled.keys() - known:
                known.add(payment_hash)
                await self._tell(settled[payment_hash])

    async def _tell(self, entry: dict[str, Any]) -> None:
        said = "payment_received" if entry["type"] == "incoming" else "payment_sent"
        if self._is_muted(said):
            return
        body = {"notification_type": said, "notification": entry}
        tags = [["p", self.customer.public_key().to_hex()]]
        await self._publish(NOTIFICATION_NIP44, self._seal(body, NIP44), tags)
        await self._publish(NOTIFICATION_NIP04, self._seal(body, NIP04), tags)

    def _is_muted(self, what: str) -> bool:
        if self.mute[what] <= 0:
            return False
        self.mute[what] -= 1
        print("muted", what, file=sys.stderr, flush=True)
        return True

    def _open(self, content: str, cipher: str) -> str:
        opened = self.keys.nip44_decrypt if cipher == NIP44 else self.keys.nip04_decrypt
        return opened(self.customer.public_key(), content)

    def _seal(self, body: dict[str, Any], cipher: str) -> str:
        sealed = self.keys.nip44_encrypt if cipher == NIP44 else self.keys.nip04_encrypt
        return sealed(self.customer.public_key(), json.dumps(body))

    async def _publish(self, kind: int, content: str, tags: list[list[str]]) -> None:
        builder = EventBuilder(Kind(kind), content).tags([Tag.parse(tag) for tag in tags])
        await self.client.send_event(builder.finalize(self.keys))


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--electrum", type=Path, required=True, metavar="DIR")
    parser.add_argument("--relay", required=True, metavar="URL")
    parser.add_argument("--mute", action="append", default=[], metavar="WHAT=COUNT")
    arguments = parser.parse_args()
    mute = Counter({what: int(count) for what, _, count in (each.partition("=") for each in arguments.mute)})
    loop = asyncio.get_running_loop()
    uniffi_set_event_loop(loop)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_reader(sys.stdin.fileno(), stopped.set)  # whoever started it holds it open while it lives
    client = ClientBuilder().build()
    async with httpx.AsyncClient(trust_env=False, timeout=None) as http:
        service = Service(ElectrumWallet(arguments.electrum, http), client, mute)
        await client.add_relay(RelayUrl.parse(arguments.relay))
        await client.connect()
        ready = asyncio.Event()
        parts = [asyncio.create_task(part) for part in (service.listen(ready), service.notify())]
        await ready.wait()
        await service.announce()
        print("connection", service.uri(arguments.relay), flush=True)
        waiting = asyncio.create_task(stopped.wait())
        await asyncio.wait([waiting, *parts], return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, *parts, *service.tasks):
            task.cancel()
        ended = await asyncio.gather(*parts, return_exceptions=True)
    await client.shutdown()
    for error in ended:
        if isinstance(error, Exception):
            raise error


if __name__ == "__main__":
    asyncio.run(main())
