"""The least that can be a websocket client (RFC 6455), so that a relay's work is measured and not its client's.

The masking key is four zeroes, which the protocol allows and which masks nothing. Messages in one frame only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import trio

_RECEIVE_BYTES = 262_144
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


class Client:
    def __init__(self, stream: trio.SocketStream, rest: bytes) -> None:
        self._stream = stream
        self._buffer = bytearray(rest)
        self._waiting: deque[bytes] = deque()

    async def send(self, *messages: bytes) -> None:
        await self._stream.send_all(b"".join(_frame(_TEXT, message) for message in messages))

    async def receive(self) -> bytes:
        """The next text message."""
        while not self._waiting:
            data = await self._stream.receive_some(_RECEIVE_BYTES)
            if not data:
                raise RuntimeError("the relay has closed the connection")
            self._buffer += data
            await self._split()
        return self._waiting.popleft()

    async def _split(self) -> None:
        """Take whole frames out of the buffer."""
        view, at, size = bytes(self._buffer), 0, len(self._buffer)
        while size - at >= 2:
            length, head = view[at + 1] & 127, 2
            if length >= 126:
                head = 4 if length == 126 else 10
                if size - at < head:
                    break
                length = int.from_bytes(view[at + 2 : at + head], "big")
            if size - at < head + length:
                break
            operation, payload = view[at] & 15, view[at + head : at + head + length]
            at += head + length
            if operation == _PING:
                await self._stream.send_all(_frame(_PONG, payload))
            elif operation == _CLOSE:
                raise RuntimeError("the relay has closed the connection")
            elif operation != _PONG:
                self._waiting.append(payload)
        del self._buffer[:at]


def _frame(operation: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        length = (128 | size).to_bytes(1, "big")
    elif size < 65_536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return (128 | operation).to_bytes(1, "big") + length + b"\0\0\0\0" + payload


@asynccontextmanager
async def open_client(url: str) -> AsyncIterator[Client]:
    parts = urlsplit(url)
    stream = await trio.open_tcp_stream(str(parts.hostname), parts.port or 80)
    async with stream:
        await stream.send_all(
            f"GET / HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: cHlsb24gYmVuY2htYXJrcw==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await stream.receive_some(_RECEIVE_BYTES)
        head, _, rest = answer.partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(f"{url} speaks no websocket")
        yield Client(stream, rest)
