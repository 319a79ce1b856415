"""A relay that misbehaves as it is told, over real websockets, from threads of the test. Nothing of Pylon's relays.

What it is told is in ``Moods``; the rest is NIP-01, as small as it can be: events in memory, no verification, filters
by ``protocols.nip01``.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import attrs
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Message, Ping, Request, TextMessage

from protocols.nip01 import Event, Filter

AUTH, EPHEMERAL = 22242, range(20_000, 30_000)


@attrs.define
class Moods:
    """What is wrong with it. May change at any time."""

    silent: bool = False
    """Half-open: connections stand, and nothing is read, written, or ponged."""
    auth: bool = False
    """NIP-42: AUTH comes first, and nothing is served before it is answered."""
    tag_bytes: int = 1_000_000
    """Events with a longer tag value are refused, as strfry does beyond 1,024."""
    subid_bytes: int = 64
    """A REQ with a longer id ends its connection."""
    notice: bool = False
    """A NOTICE comes before each answer."""
    eoses: int = 1
    """How often the end of what is stored is told; more than once also of subscriptions that nobody has."""
    ahead: float = 0.0
    """Its clock, seconds; it refuses what is dated more than 900 s after that."""


@attrs.define(eq=False)
class Client:
    connection: socket.socket
    challenge: str = "who are you"
    session: WSConnection = attrs.field(factory=lambda: WSConnection(ConnectionType.SERVER))
    lock: threading.RLock = attrs.field(factory=threading.RLock)
    subscriptions: dict[str, list[Filter]] = attrs.field(factory=dict)
    authenticated: bool = False
    unsent: list[bytes] = attrs.field(factory=list)

    def put(self, data: bytes, silent: bool) -> None:
        with self.lock:
            self.unsent.append(data)
            if not silent:
                with contextlib.suppress(OSError):
                    self.connection.sendall(b"".join(self.unsent))
                self.unsent.clear()


class ScriptedRelay:
    """``events``: what it has taken. ``refused``: what it has not, with its words. ``subscribed``: ids of all REQs."""

    def __init__(self, port: int = 0) -> None:
        self.moods = Moods()
        self.events: dict[str, Event] = {}
        self.refused: list[tuple[Event, str]] = []
        self.subscribed: list[str] = []
        self.authenticated: set[str] = set()
        self.clients: list[Client] = []
        self.connections_made = 0
        self._listener = socket.create_server(("127.0.0.1", port))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._over = False
        self._run(self._accept)

    def close(self) -> None:
        self._over = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.disconnect()
        for thread in self._threads:
            thread.join(5)

    def disconnect(self) -> None:
        for client in list(self.clients):
            with contextlib.suppress(OSError):
                client.connection.shutdown(socket.SHUT_RDWR)

    # --- what a test does to clients ------------------------------------------------------------------------------

    def publish(self, event: Event) -> None:
        """As if a client had."""
        self.events[event.id] = event
        self.show(event)

    def show(self, event: Event) -> None:
        """To whoever has asked for it."""
        for client in list(self.clients):
            for name, filters in list(client.subscriptions.items()):
                if any(each.matches(event) for each in filters):
                    self.say(client, "EVENT", name, event.to_dict())

    def live(self) -> list[tuple[Client, str]]:
        """One subscription of each client: the one that was asked for first."""
        return [(client, next(iter(client.subscriptions))) for client in list(self.clients) if client.subscriptions]

    def end_subscriptions(self, why: str) -> int:
        """CLOSED for each of them; how many there were."""
        ended = 0
        for client in list(self.clients):
            for name in list(client.subscriptions):
                del client.subscriptions[name]
                self.say(client, "CLOSED", name, why)
                ended += 1
        return ended

    def say(self, client: Client, *frame: Any) -> None:
        client.put(client.session.send(TextMessage(json.dumps(frame))), self.moods.silent)

    # --- the relay ------------------------------------------------------------------------------------------------

    def _run(self, function: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._run(self._serve, Client(connection))

    def _serve(self, client: Client) -> None:
        try:
            for event in self._events(client):
                if isinstance(event, Request):
                    client.put(client.session.send(AcceptConnection()), self.moods.silent)
                    self.connections_made += 1
                    self.clients.append(client)
                    if self.moods.auth:
                        self.say(client, "AUTH", client.challenge)
                elif isinstance(event, Ping):
                    client.put(client.session.send(event.response()), self.moods.silent)
                elif isinstance(event, CloseConnection):
                    return
                elif isinstance(event, Message):
                    self._hear(client, json.loads(event.data))
        except Exception:  # whatever a client sends that is none of this ends its connection
            return
        finally:
            if client in self.clients:
                self.clients.remove(client)
            client.connection.close()

    def _events(self, client: Client) -> Iterator[Any]:
        partial = ""
        while True:
            while self.moods.silent and not self._over:
                time.sleep(0.02)
            if client.unsent:
                client.put(b"", False)
            data = client.connection.recv(65_536)
            if not data:
                return
            client.session.receive_data(data)
            for event in client.session.events():
                if isinstance(event, TextMessage):
                    partial += event.data
                    if event.message_finished:
                        yield TextMessage(partial)
                        partial = ""
                else:
                    yield event

    def _hear(self, client: Client, frame: list[Any]) -> None:
        moods = self.moods
        if moods.notice:
            self.say(client, "NOTICE", "rate-limited: this relay talks a lot")
        match frame:
            case ["AUTH", event]:
                auth = Event.parse(event)
                auth.check()
                client.authenticated = auth.kind == AUTH and auth.tag("challenge") == client.challenge
                self.authenticated.add(auth.pubkey)
                self.say(client, "OK", auth.id, client.authenticated, "")
            case ["EVENT", event]:
                self._take(client, Event.parse(event))
            case ["REQ", name, *filters]:
                self.subscribed.append(name)
                if len(name.encode()) > moods.subid_bytes:
                    raise ValueError("subscription id too long")
                if moods.auth and not client.authenticated:
                    self.say(client, "CLOSED", name, "auth-required: who are you?")
                    return
                wanted = [Filter.parse(each) for each in filters]
                client.subscriptions[name] = wanted
                stored = list(self.events.values())
                for event in stored:
                    if any(each.matches(event) for each in wanted):
                        self.say(client, "EVENT", name, event.to_dict())
                for _ in range(moods.eoses):
                    self.say(client, "EOSE", name)
                if moods.eoses > 1:
                    self.say(client, "EOSE", "nobody has asked for this")
            case ["CLOSE", name]:
                client.subscriptions.pop(name, None)

    def _take(self, client: Client, event: Event) -> None:
        longest = max((len(value.encode()) for tag in event.tags for value in tag), default=0)
        why = ""
        if self.moods.auth and not client.authenticated:
            why = "auth-required: who are you?"
        elif longest > self.moods.tag_bytes:
            why = "invalid: tag value too long"
        elif event.created_at > time.time() + self.moods.ahead + 900:
            why = "invalid: created_at too far in the future"
        if why:
            self.refused.append((event, why))
            self.say(client, "OK", event.id, False, why)
            return
        self.say(client, "OK", event.id, True, "")
        if event.kind not in EPHEMERAL:
            for old in list(self.events.values()):
                if _replaces(event, old):
                    del self.events[old.id]
            self.events[event.id] = event
        self.show(event)


def _replaces(event: Event, old: Event) -> bool:
    if (event.kind, event.pubkey) != (old.kind, old.pubkey):
        return False
    if event.kind in (0, 3) or 10_000 <= event.kind < 20_000:
        return True
    return 30_000 <= event.kind < 40_000 and event.tag("d") == old.tag("d")
