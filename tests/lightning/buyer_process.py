"""A home that buys, as a process that can be killed: ``python -m tests.lightning.buyer_process DIR``.

It reads the connection string and the relay's URL from ``DIR/home.json``, buys once under one purchase id, however
often it is started, and prints ``ended STATE`` when that has come to its end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import trio

from protocols.keys import SecretKey
from pylon.money import sats
from tests.lightning.market import Home

PURCHASE = "5a" * 16
SECRET = SecretKey(b"\x2a" * 32)


def home_in(directory: Path) -> Home:
    said = json.loads((directory / "home.json").read_text())
    return Home(directory, "home", said["relay"], said["connection"], secret=SECRET)


async def main(directory: Path) -> None:
    async with home_in(directory).buying() as (buyer, _):
        print("running", flush=True)
        await buyer.buy("Are you still there?", bid=sats(20), max_tokens=32, purchase_id=PURCHASE)
        ended = await buyer.finished(PURCHASE)
        print("ended", ended.state.value, flush=True)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
