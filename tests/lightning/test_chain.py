"""The toy chain, without any Electrum: these are as fast as other tests, and run with them."""

from __future__ import annotations

import hashlib
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lightning.chain import (
    COIN,
    GENESIS,
    SUBSIDY,
    TARGET,
    Chain,
    Refused,
    Transaction,
    compact,
    hashed,
    merkle,
    scripthash,
    sha256d,
    shown,
)
from tests.lightning.processes import RpcError, ToyChain

MINE, YOURS = b"\x51", b"\x00\x14" + bytes(20)

# The example transaction of BIP 143 ("Native P2WPKH"), as broadcast, and its id, which is of the form without witness.
BIP143 = bytes.fromhex(
    "01000000000102fff7f7881a8099afa6940d42d1e7f6362bec38171ea3edf433541db4e4ad969f00000000494830450221008b9d1dc26ba6a9"
    "cb62127b02742fa9d754cd3bebf337f7a55d114c8e5cdd30be022040529b194ba3f9281a99f2b1c0a19c0489bc22ede944ccf4ecbab4cc618e"
    "f3ed01eeffffffef51e1b804cc89d182d279655c3aa89e815b1b309fe287d9b2b55d57b90ec68a0100000000ffffffff02202cb20600000000"
    "1976a9148280b37df378db99f66f85c95a783a76ac7a6d5988ac9093510d000000001976a9143bde42dbee7e4dbe6a21b2d50ce2f0167faa81"
    "5988ac000247304402203609e17b84f6a7d30c80bfa610b5b4542f32a8a0d5447a12fb1366d7f01cc44a0220573a954c4518331561406f9030"
    "0e8f3358f51928d43c212a8caed02de67eebee0121025476c2e83188368da1ff3e292e7acafcdb3566bb0ad253f62fc70f07aeee635711000000"
)
BIP143_ID = "e8151a2af31c368a35053ddd4bdb285a8595c769a3ad83e0fa02314a602d4609"


def spend(*spent, to=((COIN, YOURS),)):
    """An unsigned transaction without witness."""
    inputs = b"".join(txid + struct.pack("<I", number) + b"\0" + b"\xff" * 4 for txid, number in spent)
    outputs = b"".join(struct.pack("<Q", sats) + compact(len(script)) + script for sats, script in to)
    return b"\2\0\0\0" + compact(len(spent)) + inputs + compact(len(to)) + outputs + bytes(4)


def climb(txid, position, branch):
    """What a client does with a branch."""
    for step in branch:
        txid = sha256d(step + txid if position & 1 else txid + step)
        position >>= 1
    return txid


@pytest.fixture
def chain():
    chain = Chain()
    chain.mine(MINE, 1_700_000_000)
    return chain


def coin(chain, height=1):
    return chain.blocks[height].txids[0], 0


def test_genesis_is_that_of_regtest():
    assert shown(sha256d(GENESIS)) == "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206"


def test_blocks_build_on_each_other_with_proof_of_work_and_rising_time(chain):
    for _ in range(20):
        chain.mine(MINE, 1_700_000_000)
    headers = [block.header for block in chain.blocks]
    for before, after in itertools.pairwise(headers):
        assert len(after) == 80
        assert after[4:36] == sha256d(before)
        assert int.from_bytes(sha256d(after), "little") <= TARGET
        assert after[68:72][::-1] > before[68:72][::-1]


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=40, unique=True), st.data())
def test_every_branch_leads_to_the_root(txids, data):
    position = data.draw(st.integers(0, len(txids) - 1))
    root, branch = merkle(txids, position)
    assert merkle(txids)[0] == root
    assert climb(txids[position], position, branch) == root


def test_a_transaction_with_a_witness_has_the_id_without_it():
    transaction = Transaction.parse(BIP143)
    assert shown(transaction.txid) == BIP143_ID
    assert [output.sats for output in transaction.outputs] == [112_340_000, 223_450_000]
    assert shown(transaction.inputs[0][0]).startswith("9f96ade4b41d5433")


@given(st.integers(0, len(BIP143) - 1))
def test_a_transaction_cut_short_is_refused(length):
    with pytest.raises(Refused):
        Transaction.parse(BIP143[:length])


def test_what_is_spent_waits_for_a_block_and_cannot_be_spent_again(chain):
    transaction, touched = chain.submit(spend(coin(chain), to=((30 * COIN, YOURS), (19 * COIN, MINE))))
    assert touched == {scripthash(MINE), scripthash(YOURS)}
    assert chain.fee(transaction) == COIN
    assert [height for _, height in chain.history(scripthash(YOURS))] == [0]
    with pytest.raises(Refused, match="conflict"):
        chain.submit(spend(coin(chain)))
    child, _ = chain.submit(spend((transaction.txid, 0)))
    assert [height for _, height in chain.history(scripthash(YOURS))] == [0, -1]
    waiting = chain.status(scripthash(YOURS))
    chain.mine(MINE, 1_700_000_600)
    assert chain.status(scripthash(YOURS)) != waiting
    assert [height for _, height in chain.history(scripthash(YOURS))] == [2, 2]
    assert chain.transactions[chain.blocks[2].txids[0]].outputs[0].sats == SUBSIDY + COIN + 29 * COIN
    for entry in (transaction, child):
        height, position, branch = chain.proof(entry.txid)
        assert climb(entry.txid, position, branch) == chain.blocks[height].header[36:68]
    assert [output.sats for _, _, output in chain.unspent(scripthash(YOURS))] == [COIN]


def test_a_transaction_sent_twice_is_one(chain):
    raw = spend(coin(chain))
    chain.submit(raw)
    _, touched = chain.submit(raw)
    assert touched == set()
    assert len(chain.waiting) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\2\0\0\0",
        spend((b"\7" * 32, 0)),
        spend((b"\7" * 32, 0)) + b"\0",
    ],
)
def test_what_is_no_transaction_here_is_refused(chain, raw):
    with pytest.raises(Refused):
        chain.submit(raw)


def test_more_than_there_was_cannot_be_paid_out(chain):
    with pytest.raises(Refused, match="more than it spends"):
        chain.submit(spend(coin(chain), to=((SUBSIDY + 1, YOURS),)))
    with pytest.raises(Refused, match="missing inputs"):
        chain.submit(spend((coin(chain)[0], 1)))


def test_a_status_is_what_the_protocol_says(chain):
    assert chain.status(scripthash(YOURS)) is None
    txid = shown(coin(chain)[0])
    assert chain.status(scripthash(MINE)) == hashlib.sha256(f"{txid}:1:".encode()).hexdigest()
    assert hashed(txid) == coin(chain)[0]


def test_the_server_answers_and_ends_with_whoever_started_it(tmp_path):
    with ToyChain(tmp_path) as server:
        assert server.mine(3) == 3
        found = server.ask("blockchain.block.headers", 0, 10)
        assert (found["count"], len(found["hex"])) == (4, 4 * 160)
        assert found["hex"].startswith(GENESIS.hex())
        history = server.ask("blockchain.scripthash.get_history", scripthash(bytes.fromhex("51")))
        assert [entry["height"] for entry in history] == [1, 2, 3]
        proof = server.ask("blockchain.transaction.get_merkle", history[1]["tx_hash"], 2)
        assert proof == {"block_height": 2, "pos": 0, "merkle": []}
        for method, *params in (
            ["no.such"],
            ["blockchain.block.header", 99],
            ["blockchain.transaction.get", "00" * 32],
            ["blockchain.transaction.broadcast", "zz"],
            ["blockchain.transaction.get_merkle", history[1]["tx_hash"], 3],
        ):
            with pytest.raises(RpcError):
                server.ask(method, *params)
        server.process.stdin.close()
        assert server.process.wait(10) == 0
