"""Our relay (Python, SQLite in memory) beside nostr-sdk's LocalRelay (Rust, in memory), by the same client."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

import attrs
import orjson
import trio

from benchmarks.processes import Child, child, pylon_relay
from benchmarks.report import Table, percentile
from benchmarks.websocket_client import Client, open_client
from protocols.keys import SecretKey
from protocols.nip01 import ClientEvent, sign_event

EVENTS = 3_000
CONNECTIONS = 4
UNANSWERED = 50
QUERIES = 300
SUBSCRIBERS = 50
NEWS = 200
_AUTHORS = 20
_NOTE, _NEWS_KIND = 1, 7


@attrs.frozen
class Found:
    ingest: float
    """Events a second."""
    ingest_cpu: float
    """Milliseconds of the relay's processor an event."""
    query_p50: float
    query_p99: float
    """Milliseconds from REQ to EOSE, with 20 events between them."""
    query_cpu: float
    deliveries: float
    """A second."""
    delivery_cpu: float
    """Microseconds each."""


def run() -> Table:
    table = Table(
        f"Relays: {EVENTS:,} events, {QUERIES} queries of 20 events, {NEWS} events to {SUBSCRIBERS} subscribers"
    )
    authors = [SecretKey.generate() for _ in range(_AUTHORS)]
    events = [_event(authors[number % _AUTHORS], number, _NOTE) for number in range(EVENTS)]
    news = [_event(authors[0], number, _NEWS_KIND) for number in range(NEWS)]
    names = [author.public.hex for author in authors]
    with pylon_relay() as (relay, url):
        ours = trio.run(_measure, relay, url, names, events, news)
    with child(["-m", "benchmarks.local_relay"]) as relay:
        theirs = trio.run(_measure, relay, relay.line(), names, events, news)
    for name, unit in (
        ("ingest", "events/s"),
        ("ingest_cpu", "ms/event"),
        ("query_p50", "ms"),
        ("query_p99", "ms"),
        ("query_cpu", "ms/query"),
        ("deliveries", "deliveries/s"),
        ("delivery_cpu", "us/delivery"),
    ):
        own, other = getattr(ours, name), getattr(theirs, name)
        label = name.replace("_cpu", ", CPU of the relay").replace("_", ", ")
        ratio = f"{own / other:.2f} x" if other else "-"
        table.add(label, own, unit, f"LocalRelay {other:,.2f} (ours is {ratio} of it)")
    table.notes.append("LocalRelay leaves Nagle's algorithm on: an answer of several frames waits for a delayed ACK.")
    return table


def _event(author: SecretKey, number: int, kind: int) -> bytes:
    content = f"{number:06d} " + "x" * 120
    return ClientEvent(sign_event(author, kind=kind, content=content, created_at=int(time.time()))).encode().encode()


async def _measure(relay: Child, url: str, names: list[str], events: list[bytes], news: list[bytes]) -> Found:
    with trio.fail_after(60):
        cpu, began = relay.cpu_seconds(), time.perf_counter()
        async with trio.open_nursery() as nursery:
            for number in range(CONNECTIONS):
                nursery.start_soon(_publish_over, url, events[number::CONNECTIONS])
        ingest = EVENTS / (time.perf_counter() - began)
        ingest_cpu = (relay.cpu_seconds() - cpu) / EVENTS * 1e3
        cpu = relay.cpu_seconds()
        queries = await _query(url, names)
        query_cpu = (relay.cpu_seconds() - cpu) / QUERIES * 1e3
        cpu = relay.cpu_seconds()
        deliveries = await _fan_out(url, news)
        delivery_cpu = (relay.cpu_seconds() - cpu) / (NEWS * SUBSCRIBERS) * 1e6
    return Found(
        ingest=ingest,
        ingest_cpu=ingest_cpu,
        query_p50=percentile(queries, 0.5) * 1e3,
        query_p99=percentile(queries, 0.99) * 1e3,
        query_cpu=query_cpu,
        deliveries=deliveries,
        delivery_cpu=delivery_cpu,
    )


async def _publish_over(url: str, frames: list[bytes]) -> None:
    async with open_client(url) as client:
        await _publish(client, frames)


async def _publish(client: Client, frames: list[bytes]) -> None:
    """All of them, at most so many unanswered; every OK is looked at."""
    await client.send(*frames[:UNANSWERED])
    for number in range(len(frames)):
        verb, _, accepted, *_ = orjson.loads(await client.receive())
        if verb != "OK" or not accepted:
            raise RuntimeError("a relay has refused an event of the benchmark")
        if number + UNANSWERED < len(frames):
            await client.send(frames[number + UNANSWERED])


async def _query(url: str, names: list[str]) -> list[float]:
    seconds = []
    async with open_client(url) as client:
        for number in range(QUERIES):
            wanted = {"kinds": [_NOTE], "authors": [names[number % len(names)]], "limit": 20}
            began, events = time.perf_counter(), 0
            await client.send(orjson.dumps(["REQ", "q", wanted]))
            while not (frame := await client.receive()).startswith(b'["EOSE"'):
                events += frame.startswith(b'["EVENT"')
            seconds.append(time.perf_counter() - began)
            if events != 20:
                raise RuntimeError(f"a relay answered with {events} events instead of 20")
            await client.send(b'["CLOSE","q"]')
    return seconds


async def _fan_out(url: str, news: list[bytes]) -> float:
    """Deliveries a second, from the first event published to the last one that arrived."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_client(url)) for _ in range(SUBSCRIBERS)]
        for client in clients:
            await client.send(orjson.dumps(["REQ", "news", {"kinds": [_NEWS_KIND]}]))
            while not (await client.receive()).startswith(b'["EOSE"'):
                pass
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(_count, client, len(news))
            nursery.start_soon(_publish_over, url, news)
        return len(news) * SUBSCRIBERS / (time.perf_counter() - began)


async def _count(client: Client, wanted: int) -> None:
    while wanted:
        wanted -= (await client.receive()).startswith(b'["EVENT"')
