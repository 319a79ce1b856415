"""Strangers who ask and never pay: ``python -m benchmarks.flooder RELAY PROVIDER REQUESTS KEYS SECONDS``.

The requests are signed before the first goes out, and sent evenly over the seconds. ``signed`` is printed when it
begins, and at the end a line of JSON: how many the relay took, and how long it took.
"""

from __future__ import annotations

import argparse
import json
import time

import trio

from benchmarks.websocket_client import Client, open_client
from protocols.keys import PublicKey, SecretKey
from protocols.nip01 import ClientEvent
from protocols.nip90 import build_request

_TURN = 0.05
"""Seconds from one handful to the next."""


def sign(provider: PublicKey, requests: int, keys: int) -> list[bytes]:
    """Every fourth sealed, as a flooder would who wants us to work for it."""
    strangers = [SecretKey.generate() for _ in range(keys)]
    now = int(time.time())
    return [
        ClientEvent(
            build_request(
                strangers[number % keys],
                prompt=f"A question that nobody will pay for, number {number}. " + "Really not. " * 20,
                provider=provider,
                max_tokens=64,
                created_at=now,
                encrypt=number % 4 == 0,
            )
        )
        .encode()
        .encode()
        for number in range(requests)
    ]


async def flood(url: str, frames: list[bytes], seconds: float) -> dict[str, float]:
    async with open_client(url) as client:
        answers = {"taken": 0, "refused": 0}
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_count, client, len(frames), answers)
            sent = 0
            while sent < len(frames):
                share = min((trio.current_time() - began + _TURN) / seconds, 1.0) if seconds else 1.0
                wanted = int(len(frames) * share)
                if wanted > sent:
                    await client.send(*frames[sent:wanted])
                    sent = wanted
                await trio.sleep(_TURN)
        return {**answers, "seconds": trio.current_time() - began}


async def _count(client: Client, wanted: int, answers: dict[str, float]) -> None:
    for _ in range(wanted):
        verb, _, accepted, *_ = json.loads(await client.receive())
        if verb != "OK":
            raise RuntimeError("the relay says something else than OK")
        answers["taken" if accepted else "refused"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("relay")
    parser.add_argument("provider", type=PublicKey.from_hex)
    parser.add_argument("requests", type=int)
    parser.add_argument("keys", type=int)
    parser.add_argument("seconds", type=float)
    wish = parser.parse_args()
    frames = sign(wish.provider, wish.requests, wish.keys)
    print("signed", flush=True)
    print(json.dumps(trio.run(flood, wish.relay, frames, wish.seconds)), flush=True)


if __name__ == "__main__":
    main()
