"""An independent relay as a process of its own: ``python tests/e2e/local_relay.py [--refuse KIND ...]``.

It is nostr-sdk's ``LocalRelay``, in memory, on a port of its own choice. It prints its URL as soon as it listens, and
ends on SIGTERM. ``--refuse`` lets it turn away events of a kind, for good.
"""

import argparse
import asyncio
import signal

import nostr_sdk

MANY = 1_000_000
"""By default it refuses more than 60 events a minute from one connection, which a test publishes easily."""


class Refuse(nostr_sdk.WritePolicy):
    def __init__(self, kinds):
        self.kinds = kinds

    async def admit_event(self, event, socket_addr):
        if event.kind().as_u16() in self.kinds:
            return nostr_sdk.WritePolicyResult.REJECT("blocked: this relay was told to refuse that kind")
        return nostr_sdk.WritePolicyResult.ACCEPT()


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--refuse", type=int, action="append", metavar="KIND")
    arguments = parser.parse_args()
    nostr_sdk.uniffi_set_event_loop(asyncio.get_running_loop())
    builder = nostr_sdk.LocalRelayBuilder().addr("127.0.0.1")
    builder = builder.rate_limit(nostr_sdk.RateLimit(max_reqs=MANY, notes_per_minute=MANY))
    if arguments.refuse:
        builder = builder.write_policy(Refuse(arguments.refuse))
    relay = builder.build()
    await relay.run()
    print(await relay.url(), flush=True)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    relay.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
