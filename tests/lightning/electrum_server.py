"""An Electrum server over the toy chain, as a process of its own: ``python -m tests.lightning.electrum_server``.

Electrum protocol 1.4: JSON-RPC 2.0, a line each, over TCP. It listens on a free port of the loopback, prints
``listening PORT`` and ends when its stdin closes or on SIGTERM. Beside the protocol it has ``toy.mine`` (how many
blocks, to which script in hex; gives the height).
"""

from __future__ import annotations

import functools
import json
import signal
import time
from collections.abc import Callable
from typing import Any

import attrs
import trio

from tests.lightning.chain import COIN, Chain, Refused, Transaction, hashed, sha256d, shown

LONGEST_LINE = 1 << 22
HEADERS_AT_ONCE = 2_016


@attrs.define(eq=False)
class Client:
    stream: trio.abc.Stream
    lock: trio.Lock = attrs.field(factory=trio.Lock)
    headers: bool = False
    scripts: set[str] = attrs.field(factory=set)

    async def say(self, message: Any) -> None:
        async with self.lock:
            await self.stream.send_all(json.dumps(message).encode() + b"\n")


class Server:
    def __init__(self) -> None:
        self.chain = Chain()
        self.clients: set[Client] = set()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One client, until it hangs up."""
        client = Client(stream)
        self.clients.add(client)
        try:
            buffer = b""
            while data := await stream.receive_some(65_536):
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    await self._answer(client, json.loads(line))
                if len(buffer) > LONGEST_LINE:
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError, ValueError):
            pass
        finally:
            self.clients.discard(client)
            await trio.aclose_forcefully(stream)

    async def _answer(self, client: Client, asked: Any) -> None:
        batch = asked if isinstance(asked, list) else [asked]
        touched: set[str] = set()
        before = self.chain.height
        answers = [self._call(client, call, touched) for call in batch]
        await client.say(answers if isinstance(asked, list) else answers[0])
        await self._tell(touched, self.chain.height > before)

    def _call(self, client: Client, call: dict[str, Any], touched: set[str]) -> dict[str, Any]:
        answer = {"jsonrpc": "2.0", "id": call.get("id")}
        method: Callable[..., Any] | None = METHODS.get(call.get("method", ""))
        try:
            if method is None:
                raise Refused(f"unknown method {call.get('method')}")
            return {**answer, "result": method(self, client, touched, *call.get("params", ()))}
        except (Refused, KeyError, IndexError, ValueError, TypeError) as error:
            return {**answer, "error": {"code": 1, "message": f"{type(error).__name__}: {error}"}}

    async def _tell(self, touched: set[str], new_block: bool) -> None:
        """Tell who has subscribed."""
        for client in list(self.clients):
            try:
                if new_block and client.headers:
                    await client.say(_notice("blockchain.headers.subscribe", self.tip()))
                for script in touched & client.scripts:
                    await client.say(_notice("blockchain.scripthash.subscribe", script, self.chain.status(script)))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.clients.discard(client)

    def tip(self) -> dict[str, Any]:
        return {"height": self.chain.height, "hex": self.chain.blocks[-1].header.hex()}

    # --- the protocol -----------------------------------------------------------------------------------------

    def features(self, client: Client, touched: set[str]) -> dict[str, Any]:
        return {
            "genesis_hash": shown(sha256d(self.chain.blocks[0].header)),
            "hosts": {},
            "hash_function": "sha256",
            "protocol_min": "1.4",
            "protocol_max": "1.4",
            "pruning": None,
            "server_version": "toy",
        }

    def subscribe_headers(self, client: Client, touched: set[str]) -> dict[str, Any]:
        client.headers = True
        return self.tip()

    def header(self, client: Client, touched: set[str], height: int, checkpoint: int = 0) -> str:
        return self.chain.blocks[height].header.hex()

    def headers(self, client: Client, touched: set[str], start: int, count: int, checkpoint: int = 0) -> dict[str, Any]:
        found = self.chain.blocks[start : start + min(count, HEADERS_AT_ONCE)]
        return {
            "count": len(found),
            "hex": b"".join(block.header for block in found).hex(),
            "max": HEADERS_AT_ONCE,
        }

    def subscribe(self, client: Client, touched: set[str], script: str) -> str | None:
        client.scripts.add(script)
        return self.chain.status(script)

    def unsubscribe(self, client: Client, touched: set[str], script: str) -> bool:
        known = script in client.scripts
        client.scripts.discard(script)
        return known

    def history(self, client: Client, touched: set[str], script: str) -> list[dict[str, Any]]:
        return [self._entry(transaction, height) for transaction, height in self.chain.history(script)]

    def mempool(self, client: Client, touched: set[str], script: str) -> list[dict[str, Any]]:
        return [self._entry(transaction, height) for transaction, height in self.chain.history(script) if height <= 0]

    def _entry(self, transaction: Transaction, height: int) -> dict[str, Any]:
        entry: dict[str, Any] = {"tx_hash": shown(transaction.txid), "height": height}
        return entry if height > 0 else {**entry, "fee": self.chain.fee(transaction)}

    def unspent(self, client: Client, touched: set[str], script: str) -> list[dict[str, Any]]:
        return [
            {
                "tx_hash": shown(entry.txid),
                "tx_pos": number,
                "height": self.chain.heights.get(entry.txid, 0),
                "value": output.sats,
            }
            for entry, number, output in self.chain.unspent(script)
        ]

    def balance(self, client: Client, touched: set[str], script: str) -> dict[str, int]:
        said = {"confirmed": 0, "unconfirmed": 0}
        for entry, _, output in self.chain.unspent(script):
            said["confirmed" if entry.txid in self.chain.heights else "unconfirmed"] += output.sats
        return said

    def broadcast(self, client: Client, touched: set[str], raw: str) -> str:
        transaction, scripts = self.chain.submit(bytes.fromhex(raw))
        touched |= scripts
        return shown(transaction.txid)

    def transaction(self, client: Client, touched: set[str], txid: str, verbose: bool = False) -> str:
        if verbose:
            raise Refused("verbose transactions are not supported")
        return self.chain.transactions[hashed(txid)].raw.hex()

    def proof(self, client: Client, touched: set[str], txid: str, height: int) -> dict[str, Any]:
        found, position, branch = self.chain.proof(hashed(txid))
        if found != height:
            raise Refused("it is in another block")
        return {"block_height": found, "pos": position, "merkle": [shown(each) for each in branch]}

    def id_at(
        self, client: Client, touched: set[str], height: int, position: int, with_proof: bool = False
    ) -> str | dict[str, Any]:
        txid = self.chain.blocks[height].txids[position]
        if not with_proof:
            return shown(txid)
        return {"tx_hash": shown(txid), "merkle": [shown(each) for each in self.chain.proof(txid)[2]]}

    def mine(self, client: Client, touched: set[str], count: int, script: str) -> int:
        for _ in range(count):
            touched |= self.chain.mine(bytes.fromhex(script), time.time())
        return self.chain.height


def _notice(method: str, *params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def _say(answer: Any) -> Callable[..., Any]:
    """A method that always says the same."""
    return lambda server, client, touched, *params: answer


METHODS: dict[str, Callable[..., Any]] = {
    "server.version": _say(["toy", "1.4"]),
    "server.features": Server.features,
    "server.peers.subscribe": _say([]),
    "server.ping": _say(None),
    "server.banner": _say("a toy chain: its coins are worth nothing"),
    "server.donation_address": _say(""),
    "blockchain.estimatefee": _say(2_000 / COIN),
    "blockchain.relayfee": _say(1_000 / COIN),
    "mempool.get_fee_histogram": _say([]),
    "blockchain.headers.subscribe": Server.subscribe_headers,
    "blockchain.block.header": Server.header,
    "blockchain.block.headers": Server.headers,
    "blockchain.scripthash.subscribe": Server.subscribe,
    "blockchain.scripthash.unsubscribe": Server.unsubscribe,
    "blockchain.scripthash.get_history": Server.history,
    "blockchain.scripthash.get_mempool": Server.mempool,
    "blockchain.scripthash.listunspent": Server.unspent,
    "blockchain.scripthash.get_balance": Server.balance,
    "blockchain.transaction.broadcast": Server.broadcast,
    "blockchain.transaction.get": Server.transaction,
    "blockchain.transaction.get_merkle": Server.proof,
    "blockchain.transaction.id_from_pos": Server.id_at,
    "toy.mine": Server.mine,
}


async def main() -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(functools.partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1"))
        print(f"listening {listener.socket.getsockname()[1]}", flush=True)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            nursery.start_soon(_leave_with_parent, nursery.cancel_scope)
            async for _ in signals:
                nursery.cancel_scope.cancel()


async def _leave_with_parent(scope: trio.CancelScope) -> None:
    """Whoever started it holds its stdin open, for as long as it lives."""
    await trio.lowlevel.wait_readable(0)
    scope.cancel()


if __name__ == "__main__":
    trio.run(main)
