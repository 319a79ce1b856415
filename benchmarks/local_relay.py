"""nostr-sdk's LocalRelay (Rust, in memory) as a process of its own, its limit of 60 events a minute lifted.

``python -m benchmarks.local_relay`` prints its URL and runs until SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal

import nostr_sdk

_MANY = 100_000_000


async def main() -> None:
    limit = nostr_sdk.RateLimit(max_reqs=_MANY, notes_per_minute=_MANY)
    relay = nostr_sdk.LocalRelayBuilder().addr("127.0.0.1").rate_limit(limit).build()
    await relay.run()
    print(await relay.url(), flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    relay.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
