"""Where the time of a process goes: counters and clocks around functions, in the benchmark's processes only.

Times are exclusive: while a metered function calls another one, the other's clock runs. Each thread has its own stack.
Two clocks run: what the processor did, and what passed on the wall (a commit waits for the disk, and does nothing).
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs


@attrs.define
class Row:
    calls: int = 0
    cpu_ns: int = 0
    wall_ns: int = 0


class Meter:
    """Rows by name."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self._local = threading.local()

    def reset(self) -> None:
        for row in self.rows.values():
            row.calls = row.cpu_ns = row.wall_ns = 0

    def snapshot(self) -> dict[str, dict[str, float]]:
        return {name: attrs.asdict(row) for name, row in self.rows.items()}

    def wrap(self, name: str, function: Callable[..., Any], count: bool = True) -> Callable[..., Any]:
        """``function`` with its time booked under ``name``."""
        row = self.rows.setdefault(name, Row())
        local, cpu, wall = self._local, time.thread_time_ns, time.perf_counter_ns

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            stack = local.__dict__.setdefault("stack", [])
            row.calls += count
            inner = [0, 0]
            stack.append(inner)
            began_wall, began_cpu = wall(), cpu()
            try:
                return function(*args, **kwargs)
            finally:
                used_cpu, used_wall = cpu() - began_cpu, wall() - began_wall
                stack.pop()
                row.cpu_ns += used_cpu - inner[0]
                row.wall_ns += used_wall - inner[1]
                if stack:
                    stack[-1][0] += used_cpu
                    stack[-1][1] += used_wall

        return metered

    def wrap_generator(self, name: str, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """The same for a generator: each step is booked."""

        def metered(*args: Any, **kwargs: Any) -> Iterator[Any]:
            step = self.wrap(name, function(*args, **kwargs).__next__)
            while True:
                try:
                    value = step()
                except StopIteration:
                    return
                yield value

        return metered

    def method(self, name: str, owner: type, *methods: str, generator: bool = False) -> None:
        """Meter methods of a class; class methods and properties stay what they are."""
        for method in methods:
            found = owner.__dict__.get(method)
            wrap = self.wrap_generator if generator else self.wrap
            if isinstance(found, classmethod):
                setattr(owner, method, classmethod(wrap(name, found.__func__)))
            elif found is not None:
                setattr(owner, method, wrap(name, found))

    def function(self, name: str, *functions: Callable[..., Any]) -> None:
        """Meter functions wherever a loaded module has them under whatever name."""
        for function in functions:
            metered = self.wrap(name, function)
            for module in list(sys.modules.values()):
                if (getattr(module, "__name__", "") or "").partition(".")[0] in ("pylon", "protocols"):
                    for attribute, value in list(vars(module).items()):
                        if value is function:
                            setattr(module, attribute, metered)


def meter_pylon() -> Meter:
    """Meter everything of Pylon that a paid job passes through. Call it after all is imported."""
    import wsproto.connection
    import wsproto.frame_protocol

    from protocols import bolt11, nip01, nip44, nip89, nip90, session
    from protocols.keys import PublicKey, SecretKey
    from pylon.machine import Machine
    from pylon.store import database, outbox, records, vault
    from pylon.wallets import simnet, simnet_ledger

    meter = Meter()
    meter.method("websocket frames", wsproto.connection.Connection, "send", "receive_data")
    meter.method("websocket frames", wsproto.connection.Connection, "events", generator=True)
    meter.method("nostr frames and events", nip01.Event, "from_json", "parse", "to_json", "check")
    meter.method("nostr frames and events", nip01.Filter, "matches", "parse")
    for frame in (nip01.ClientEvent, nip01.ClientReq, nip01.ClientClose):
        meter.method("nostr frames and events", frame, "encode")
    meter.method("nostr frames and events", session.ClientSession, "feed", "peek")
    meter.function("nostr frames and events", nip01.event_id, nip01.parse_relay_frame, nip01.sign_event)
    meter.function("jobs and announcements", nip89.parse_announcement, nip90.parse_request, nip90.parse_feedback)
    meter.function("jobs and announcements", nip90.parse_result, nip90.build_request, nip90.build_feedback)
    meter.function("jobs and announcements", nip90.build_result)
    meter.method("signatures: sign", SecretKey, "sign")
    meter.method("signatures: verify", PublicKey, "verify")
    meter.method("keys: parse a point", PublicKey, "__init__")
    meter.method("ciphers: ECDH", SecretKey, "ecdh_x")
    meter.function("ciphers: NIP-44", nip44.encrypt, nip44.decrypt, nip44.conversation_key)
    meter.function("invoices (BOLT 11)", bolt11.encode, bolt11.decode)
    meter.method("records: JSON", records.RecordTable, "_seal", "_open")
    meter.method("records: seal, open", vault.Vault, "seal", "open")
    meter.method("machines", Machine, "step")
    meter.method("sqlite: statements", database.Tx, "_run", "all")
    meter.method("sqlite: reads", database.Store, "read", "one")
    meter.method("sqlite: savepoints and the write itself", database.Store, "_attempt")
    meter.method("sqlite: commits (in a thread)", database.Store, "_commit_in_thread")
    meter.function("outbox", outbox.add, outbox.due, outbox.next_due, outbox.acknowledge)
    ledger = simnet_ledger.LedgerFile
    meter.method("simnet: writes, with their commits", ledger, "pay", "add_invoice")
    meter.method("simnet: reads", ledger, "news", "changed_elsewhere", "resolve_due", "next_due", "invoice_by_key")
    meter.method("simnet: reads", ledger, "route", "fees", "balance", "payment", "invoice", "sent")
    meter.function("simnet: reads", simnet._payable)
    return meter
