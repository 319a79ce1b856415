"""A toy regtest chain: blocks made on demand, as much of Bitcoin as a wallet that trusts one server can see.

Real are: headers and their proof of work (regtest's, two tries a block), merkle roots and branches, transaction ids
(BIP 141), the coinbase's height (BIP 34), who spends what and how much, fees. Not checked: scripts, signatures,
locktimes, maturity; nor has the coinbase a witness commitment, for nobody is given whole blocks.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import attrs

COIN = 100_000_000
SUBSIDY = 50 * COIN
GENESIS = bytes.fromhex(
    "01000000" + "00" * 32 + "3ba3edfd7a7b12b27ac72c3e67768f617fc81bc3888a51323a9fb8aa4b1e5e4adae5494dffff7f2002000000"
)
"""Of regtest, as every node has it."""
VERSION = 0x2000_0000
BITS = 0x207F_FFFF
TARGET = 0x7FFFFF << 232
"""What ``BITS`` says."""

Outpoint = tuple[bytes, int]
"""Transaction id as hashed, and the number of the output."""


class Refused(Exception):
    """A transaction that does not fit this chain."""


def sha256d(data: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(data).digest()).digest()


def shown(digest: bytes) -> str:
    """A hash as people and protocols write it: backwards."""
    return digest[::-1].hex()


def hashed(text: str) -> bytes:
    """The other way round. Raises ``ValueError``."""
    digest = bytes.fromhex(text)[::-1]
    if len(digest) != 32:
        raise ValueError("not 32 bytes")
    return digest


def scripthash(script: bytes) -> str:
    """What Electrum's protocol calls a script by."""
    return shown(hashlib.sha256(script).digest())


def compact(number: int) -> bytes:
    """Bitcoin's variable-length integer."""
    if number < 0xFD:
        return bytes([number])
    if number <= 0xFFFF:
        return b"\xfd" + struct.pack("<H", number)
    return b"\xfe" + struct.pack("<I", number)


@attrs.frozen
class Output:
    sats: int
    script: bytes


@attrs.frozen
class Transaction:
    raw: bytes
    txid: bytes
    inputs: tuple[Outpoint, ...]
    outputs: tuple[Output, ...]

    @classmethod
    def parse(cls, raw: bytes) -> Transaction:
        """Raises ``Refused``."""
        try:
            return _parse(raw)
        except (IndexError, struct.error) as error:
            raise Refused("not a transaction") from error


def _parse(raw: bytes) -> Transaction:
    position = 4

    def take(count: int) -> bytes:
        nonlocal position
        piece = raw[position : position + count]
        if len(piece) != count:
            raise IndexError
        position += count
        return piece

    def number() -> int:
        first = take(1)[0]
        return first if first < 0xFD else int.from_bytes(take(1 << (first - 0xFC)), "little")

    witness = raw[4:6] == b"\0\1"
    position = body = 6 if witness else 4
    inputs = []
    for _ in range(number()):
        inputs.append((take(32), int.from_bytes(take(4), "little")))
        take(number() + 4)
    outputs = [Output(int.from_bytes(take(8), "little"), take(number())) for _ in range(number())]
    end = position
    if witness:
        for _ in inputs:
            for _ in range(number()):
                take(number())
    locktime = take(4)
    if position != len(raw) or not inputs or not outputs:
        raise IndexError
    return Transaction(raw, sha256d(raw[:4] + raw[body:end] + locktime), tuple(inputs), tuple(outputs))


def coinbase(height: int, script: bytes, sats: int) -> bytes:
    """The first transaction of a block."""
    number = height.to_bytes((height.bit_length() + 8) // 8, "little")
    tag = bytes([len(number)]) + number + b"\4toy!"
    return b"".join(
        (
            struct.pack("<I", 2),
            b"\1" + bytes(32) + b"\xff" * 4 + compact(len(tag)) + tag + b"\xff" * 4,
            b"\1" + struct.pack("<Q", sats) + compact(len(script)) + script,
            bytes(4),
        )
    )


def merkle(txids: Sequence[bytes], position: int = 0) -> tuple[bytes, list[bytes]]:
    """The root over ``txids``, and the branch that leads there from ``position``."""
    level, branch = list(txids), []
    while len(level) > 1:
        if len(level) % 2:
            level.append(level[-1])
        branch.append(level[position ^ 1])
        position //= 2
        level = [sha256d(level[i] + level[i + 1]) for i in range(0, len(level), 2)]
    return level[0], branch


@attrs.frozen
class Block:
    header: bytes
    txids: tuple[bytes, ...]


class Chain:
    """Blocks, what waits for one, and the history of every script that was ever paid."""

    def __init__(self) -> None:
        self.blocks: list[Block] = [Block(GENESIS, ())]
        self.transactions: dict[bytes, Transaction] = {}
        self.heights: dict[bytes, int] = {}
        """Of what is in a block."""
        self.waiting: list[bytes] = []
        """What is not, in the order it came."""
        self.spenders: dict[Outpoint, bytes] = {}
        self._histories: dict[str, list[bytes]] = {}

    @property
    def height(self) -> int:
        return len(self.blocks) - 1

    def fee(self, transaction: Transaction) -> int:
        """Satoshi. Raises ``Refused`` where an input is unknown."""
        return sum(self._output(spent).sats for spent in transaction.inputs) - sum(
            output.sats for output in transaction.outputs
        )

    def submit(self, raw: bytes) -> tuple[Transaction, set[str]]:
        """Take a transaction for the next block; returns it with the scripts it touches. Raises ``Refused``."""
        transaction = Transaction.parse(raw)
        if transaction.txid in self.transactions:
            return transaction, set()
        if self.fee(transaction) < 0:
            raise Refused("it pays out more than it spends")
        if any(spent in self.spenders for spent in transaction.inputs):
            raise Refused("txn-mempool-conflict")
        self.waiting.append(transaction.txid)
        return transaction, self._enter(transaction)

    def mine(self, script: bytes, at: float) -> set[str]:
        """A block with all that waits, its subsidy and fees to ``script``. Returns the scripts that it touches.

        :param at: Unix time; a block is always later than the one before it.
        """
        height = len(self.blocks)
        fees = sum(self.fee(self.transactions[txid]) for txid in self.waiting)
        first = Transaction.parse(coinbase(height, script, SUBSIDY + fees))
        touched = self._enter(first)
        txids = (first.txid, *self.waiting)
        self.waiting = []
        for txid in txids:
            self.heights[txid] = height
            touched |= self._touches(self.transactions[txid])
        self.blocks.append(Block(self._header(merkle(txids)[0], at), txids))
        return touched

    def proof(self, txid: bytes) -> tuple[int, int, list[bytes]]:
        """Height, position and merkle branch. Raises ``KeyError`` for what is in no block."""
        height = self.heights[txid]
        txids = self.blocks[height].txids
        position = txids.index(txid)
        return height, position, merkle(txids, position)[1]

    def history(self, script: str) -> list[tuple[Transaction, int]]:
        """What touched a script, and where it is: height, 0 for waiting, -1 for waiting upon what waits."""
        found = [self.transactions[txid] for txid in self._histories.get(script, ())]
        placed = [(transaction, self._place(transaction)) for transaction in found]
        confirmed = [(entry, height) for entry, height in placed if height > 0]
        confirmed.sort(key=lambda entry: (entry[1], self.blocks[entry[1]].txids.index(entry[0].txid)))
        return confirmed + [(entry, height) for entry, height in placed if height <= 0]

    def status(self, script: str) -> str | None:
        """What tells a client that a history has changed (Electrum protocol, "Status")."""
        entries = [f"{shown(entry.txid)}:{height}:" for entry, height in self.history(script)]
        return hashlib.sha256("".join(entries).encode()).hexdigest() if entries else None

    def unspent(self, script: str) -> list[tuple[Transaction, int, Output]]:
        """Outputs to a script that nothing spends, with their numbers."""
        return [
            (entry, number, output)
            for entry, _ in self.history(script)
            for number, output in enumerate(entry.outputs)
            if scripthash(output.script) == script and (entry.txid, number) not in self.spenders
        ]

    def _header(self, root: bytes, at: float) -> bytes:
        before = self.blocks[-1].header
        time = max(int(at), int.from_bytes(before[68:72], "little") + 1)
        start = struct.pack("<I", VERSION) + sha256d(before) + root + struct.pack("<II", time, BITS)
        nonce = 0
        while int.from_bytes(sha256d(header := start + struct.pack("<I", nonce)), "little") > TARGET:
            nonce += 1
        return header

    def _output(self, spent: Outpoint) -> Output:
        txid, number = spent
        if txid not in self.transactions or number >= len(self.transactions[txid].outputs):
            raise Refused("missing inputs")
        return self.transactions[txid].outputs[number]

    def _enter(self, transaction: Transaction) -> set[str]:
        self.transactions[transaction.txid] = transaction
        touched = self._touches(transaction)
        for spent in transaction.inputs:
            self.spenders[spent] = transaction.txid
        for script in touched:
            self._histories.setdefault(script, []).append(transaction.txid)
        return touched

    def _touches(self, transaction: Transaction) -> set[str]:
        paid = {scripthash(output.script) for output in transaction.outputs}
        known = (spent for spent in transaction.inputs if spent[0] in self.transactions)
        return paid | {scripthash(self._output(spent).script) for spent in known}

    def _place(self, transaction: Transaction) -> int:
        waits = any(spent[0] in self.transactions and spent[0] not in self.heights for spent in transaction.inputs)
        return self.heights.get(transaction.txid, -1 if waits else 0)
