"""A guarded application on a free port of the loopback, and ways to talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import attrs
import httpx
import trio

from pylon.api.app import build_app
from pylon.api.server import serve_api
from pylon.api.token import ApiToken
from pylon.config_values import Bind
from pylon.host.zaps import PayService

TOKEN = ApiToken("sesame-opens-it")
BEARER = {"Authorization": f"Bearer {TOKEN.reveal()}"}
ANYWHERE = Bind("127.0.0.1", 0)


@attrs.define
class Served:
    bound: Bind

    @property
    def url(self) -> str:
        return f"http://{self.bound}"

    @asynccontextmanager
    async def client(self, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=20) as client:
            yield client

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(self.bound.host, self.bound.port)

    async def says(self, raw: bytes, seconds: float = 10.0) -> bytes:
        """All that comes back for these bytes, until the server closes."""
        stream = await self.connect()
        async with stream:
            await stream.send_all(raw)
            return await everything(stream, seconds)


async def everything(stream: trio.SocketStream, seconds: float = 10.0) -> bytes:
    got = bytearray()
    with trio.fail_after(seconds):
        try:
            async for data in stream:
                got += data
        except trio.BrokenResourceError:
            pass
    return bytes(got)


@asynccontextmanager
async def serving(
    pay: PayService | None = None, *, routes: Sequence = (), public_name: str = "", app: object = None
) -> AsyncIterator[Served]:
    made = app or build_app(pay, token=TOKEN, public_name=public_name, routes=routes)
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(partial(serve_api, made, ANYWHERE, by_user=True))
        yield Served(bound)
        nursery.cancel_scope.cancel()
