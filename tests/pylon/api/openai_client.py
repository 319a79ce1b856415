"""OpenAI's own package against an API of ours: it is blocking, and runs in threads while the server serves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import trio

from pylon.api.answerer import Answerer, LocalAnswerer
from pylon.api.openai_routes import OpenAIApi
from pylon.clock import SystemClock
from pylon.inference.router import Router
from pylon.testing.backend import ScriptedBackend
from tests.pylon.api.serving import TOKEN, Served, serving


class Client:
    """``await client.run(lambda client: client.models.list())``."""

    def __init__(self, served: Served, api: OpenAIApi) -> None:
        self.served = served
        self.api = api
        self.sync = self.another()

    def another(self, token: str = TOKEN.reveal()) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.served.url}/v1",
            api_key=token,
            max_retries=0,
            timeout=20,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )

    async def run(self, function: Callable[[openai.OpenAI], Any]) -> Any:
        return await trio.to_thread.run_sync(function, self.sync)

    async def chat(self, *said: str, **options: Any) -> Any:
        messages = [{"role": "user", "content": words} for words in said or ("why?",)]
        options = {"model": "scripted-1", "messages": messages, **options}
        return await self.run(lambda client: client.chat.completions.create(**options))

    async def pieces(self, **options: Any) -> list[Any]:
        """All the pieces of a streamed answer."""
        options = {"model": "scripted-1", "messages": [{"role": "user", "content": "why?"}], **options}
        return await self.run(lambda client: list(client.chat.completions.create(stream=True, **options)))


@asynccontextmanager
async def open_client(answerer: Answerer, **options: Any) -> AsyncIterator[Client]:
    api = OpenAIApi(SystemClock(), answerer=answerer, **options)
    async with serving(routes=api.routes()) as served:
        client = Client(served, api)
        try:
            yield client
        finally:
            client.sync.close()


def local(*backends: ScriptedBackend) -> LocalAnswerer:
    return LocalAnswerer(Router(backends))
