"""The floor: what a job cannot do without, done bare in a loop. Commits that reach the disk, signatures, checks."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from pathlib import Path

import attrs

from protocols.keys import SecretKey

_ROW_BYTES = 1_500


@attrs.frozen
class Needs:
    """What one job needs, in all processes together. Commits are shared between jobs, so they come in fractions."""

    commits: float
    signatures: float
    verifications: float


@attrs.frozen
class Floor:
    """Seconds of one each."""

    commit: float
    sign: float
    verify: float

    def seconds(self, needs: Needs) -> float:
        return self.commit * needs.commits + self.sign * needs.signatures + self.verify * needs.verifications


def measure(directory: Path, rounds: int = 300) -> Floor:
    """On the same disk and in the same minute as the benchmark."""
    return Floor(_commit(directory / "floor.db", rounds), *_sign(rounds))


def _commit(path: Path, rounds: int) -> float:
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE record (id INTEGER PRIMARY KEY, body BLOB)")
        began = time.perf_counter()
        for _ in range(rounds):
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT INTO record (body) VALUES (zeroblob(?))", (_ROW_BYTES,))
            database.execute("COMMIT")
        return (time.perf_counter() - began) / rounds
    finally:
        database.close()


def _sign(rounds: int) -> tuple[float, float]:
    secret, message = SecretKey.generate(), hashlib.sha256(b"floor").digest()
    began = time.perf_counter()
    for _ in range(rounds):
        signature = secret.sign(message)
    signed = time.perf_counter()
    for _ in range(rounds):
        secret.public.verify(message, signature)
    return (signed - began) / rounds, (time.perf_counter() - signed) / rounds
