"""Finding the backends that a configuration means, and putting them behind one router.

``backend_preference`` names kinds. A kind with ``[[backends]]`` tables means those; one without means the one where one
looks for it: Ollama on 11434, a llama.cpp server on 8080, Apple's bridge on 11435. Kinds that are not named but have
tables follow; OpenAI-compatible ones are last unless the preference says otherwise, for they may cost money.

``llamacpp`` without a table is a server on its port if one answers at the start, else the embedded engine, if a model
is installed: in a child process by ``xllamacpp``, and where that is not installed in this one, by ``llama-cpp-python``.
Whoever names a model file wants the embedded engine.

What is looked for and not there stays known: an Ollama that is started later is used from then on.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio

from pylon.config import Config
from pylon.config_backends import DEFAULT_URLS, BackendConfig, default_backend
from pylon.errors import ConfigError, InferenceError, ModelMissing
from pylon.inference.apple_fm import AppleFm
from pylon.inference.http import is_loopback, loads, open_client, parse_url, plain_address, read_body
from pylon.inference.llamacpp import EmbeddedLlama
from pylon.inference.llamacpp_inprocess import InProcessLlama
from pylon.inference.local_engine import LocalEngine
from pylon.inference.models import ModelFile, find, from_file, installed, models_directory
from pylon.inference.ollama import Ollama
from pylon.inference.openai import OpenAICompatible
from pylon.inference.port import Backend, Health, ModelInfo
from pylon.inference.router import Place, Router

log = logging.getLogger(__name__)

_DETECT = 1.0
"""Seconds for a server on llama.cpp's port to say that it is one. Nearly always nobody is there, which takes none."""

_EMBEDDED_QUEUE = 64

EMBEDDED, IN_PROCESS = "embedded", "in this process"
"""Where the engine is that is nobody else's."""

NAME_THE_MODELS = "name what may be used of it: models = [...] in its [[backends]] table"


class Selected:
    """A backend of which only some models are served.

    :param context: what it does not say of them, or says too grandly: some tell what a model was trained for, and not
        what it is run with.
    """

    def __init__(self, backend: Backend, models: tuple[str, ...], context: int | None) -> None:
        self._backend = backend
        self._models = models
        self._context = context
        self.stream = backend.stream
        self.complete = backend.complete
        self.aclose = backend.aclose

    def __repr__(self) -> str:
        return f"Selected({self._backend!r})"

    @property
    def name(self) -> str:
        return self._backend.name

    async def models(self) -> list[ModelInfo]:
        return [
            attrs.evolve(model, context_length=min(filter(None, (model.context_length, self._context)), default=None))
            for model in await self._backend.models()
            if not self._models or model.id in self._models
        ]

    async def health(self) -> Health:
        health = await self._backend.health()
        if not health.ok or not self._models:
            return health
        try:
            count = len(await self.models())
        except InferenceError as error:
            return Health(False, error.message)
        return Health(True, f"{count} of the {len(self._models)} models named")


class Unusable:
    """A backend that is configured and cannot be used as it stands; ``why`` says what is missing."""

    def __init__(self, backend: Backend, why: str) -> None:
        self._why = why
        self.name = backend.name
        self.stream = backend.stream
        self.complete = backend.complete
        self.aclose = backend.aclose

    async def models(self) -> list[ModelInfo]:
        return []

    async def health(self) -> Health:
        return Health(False, self._why)


@attrs.frozen
class Found:
    """The backends of a home."""

    router: Router
    engine: LocalEngine[Any] | None = None
    """The embedded engine, which somebody must run."""
    engine_missing: ModelMissing | None = None
    """Why there is no embedded engine although one was wanted."""

    async def check(self) -> None:
        """Raises ``ModelMissing`` where nothing can answer now, and nobody has said that something will."""
        if self.engine is not None or any(place.expected for place in self.router.places):
            return
        if (await self.router.health()).ok:
            return
        if self.engine_missing is None:
            raise ModelMissing("no backend answers", "start Ollama or a llama.cpp server, or name one in [[backends]]")
        raise ModelMissing(f"no backend answers, and {self.engine_missing.message}", self.engine_missing.hint)


async def find_backends(
    config: Config,
    *,
    logs: Path | None = None,
    rng: random.Random | None = None,
    environ: Mapping[str, str] = os.environ,
    default_urls: Mapping[str, str] = DEFAULT_URLS,
) -> Found:
    """All backends that ``config`` means, behind one router; nothing is started.

    :param logs: where the embedded engine logs.
    :param environ: where the API keys are.
    :param default_urls: where one looks for each kind.

    Raises ``ConfigError``.
    """
    places: list[Place] = []
    engine: LocalEngine[Any] | None = None
    missing: ModelMissing | None = None
    for rank, kind in enumerate(_kinds(config)):
        tables = [table for table in config.backends if table.kind == kind]
        embedded = kind == "llamacpp" and (config.provider.model_file is not None or not tables)
        if not tables and not (embedded and config.provider.model_file is not None):
            table = attrs.evolve(default_backend(kind), url=default_urls[kind])
            if kind != "llamacpp":
                places.append(_place(table, environ, rank, expected=kind == "openai"))
            elif await is_llamacpp(table.url, _key(table, environ)):
                places.append(_place(table, environ, rank, expected=True))
                embedded = False
        places += [_place(table, environ, rank, expected=True) for table in tables]
        if embedded:
            try:
                engine, address = make_engine(choose_model(config), logs, rng)
            except ModelMissing as error:
                if config.provider.model_file is not None:
                    raise
                missing = error
            else:
                places.append(Place(engine, rank, engine.slots, _EMBEDDED_QUEUE, kind="llamacpp", address=address))
    return Found(Router(places, default_model=config.default_model), engine, missing)


def make_engine(model: ModelFile, logs: Path | None, rng: random.Random | None) -> tuple[LocalEngine[Any], str]:
    """The embedded engine that can be had here, and what stands for its address. Raises ``ModelMissing`` without any.

    A child process first: what crashes there crashes alone.
    """
    if _is_installed("xllamacpp"):
        return EmbeddedLlama(model, log_path=None if logs is None else logs / "engine.log", rng=rng), EMBEDDED
    if _is_installed("llama_cpp"):
        return InProcessLlama(model, rng=rng), IN_PROCESS
    raise ModelMissing(
        "no engine is installed that could run a model here",
        "pip install 'pylon-runtime[llamacpp]', which compiles it, or start Ollama or a llama.cpp server",
    )


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def choose_model(config: Config) -> ModelFile:
    """The model that the embedded engine serves: the file named, else the default model, else the first one there.

    Raises ``ModelMissing``.
    """
    if config.provider.model_file is not None:
        return from_file(config.provider.model_file)
    directory = models_directory()
    try:
        return find(config.default_model, directory)
    except ModelMissing:
        present = installed(directory)
        if not present:
            raise ModelMissing(
                f"no model is installed in {directory}", "pylon models pull smollm2-135m, or --model-file FILE.gguf"
            ) from None
        return present[0]


async def is_llamacpp(url: str, api_key: str | None = None) -> bool:
    """Whether a llama.cpp server that takes ``api_key`` answers at ``url``.

    Its port is popular: what says anything else is left alone. ``/health`` is open to all, the list of models is not.
    """
    parsed = parse_url("llamacpp", url)
    root = str(parsed).rstrip("/").removesuffix("/v1")
    client = open_client("llamacpp", parsed, api_key=api_key)
    try:
        with trio.move_on_after(_DETECT):
            async with client.stream("GET", f"{root}/health") as response:
                health = loads(await read_body(response, 4096))
            if not isinstance(health, dict):
                return False
            if health.get("status") != "ok":
                error = health.get("error")
                return isinstance(error, dict) and error.get("type") == "unavailable_error"  # it loads its model
            async with client.stream("GET", f"{root}/v1/models") as response:
                body = loads(await read_body(response, 1 << 20))
            rows = body.get("data") if isinstance(body, dict) else None
            return isinstance(rows, list) and any(
                isinstance(row, dict) and row.get("owned_by") == "llamacpp" for row in rows
            )
    except (httpx.HTTPError, httpx.StreamError):
        pass
    finally:
        with trio.CancelScope(shield=True):
            await client.aclose()
    return False


def _kinds(config: Config) -> list[str]:
    """Those that are meant, the best first."""
    others = sorted({table.kind for table in config.backends}, key=lambda kind: kind == "openai")
    kinds = list(dict.fromkeys([*config.backend_preference, *others]))
    if config.provider.model_file is not None and "llamacpp" not in kinds:
        kinds.append("llamacpp")
    return kinds


def _place(
    table: BackendConfig,
    environ: Mapping[str, str],
    rank: int,
    *,
    expected: bool,
) -> Place:
    backend = _MAKERS[table.kind](table, _key(table, environ))
    if not isinstance(backend, Ollama):
        backend = _restrict(table, backend, environ)
    return Place(
        backend,
        rank,
        table.max_concurrent,
        table.max_waiting,
        expected=expected,
        kind=table.kind,
        address=_shown(table),
    )


def _restrict(table: BackendConfig, backend: Backend, environ: Mapping[str, str]) -> Backend:
    """What a service far away has is used as far as somebody has said so: it may cost, and prompts go there."""
    if table.kind == "openai" and table.key_env and not environ.get(table.key_env):
        return Unusable(backend, f"the variable {table.key_env} with its API key is not set")
    models = table.models
    if table.kind == "openai" and not models and not is_loopback(parse_url(table.name, table.url).host):
        return Unusable(backend, NAME_THE_MODELS)
    return Selected(backend, models, table.context) if models or table.context else backend


def _key(table: BackendConfig, environ: Mapping[str, str]) -> str | None:
    key = environ.get(table.key_env, "").strip() if table.key_env else ""
    return key or None


def _shown(table: BackendConfig) -> str:
    return plain_address(parse_url(table.name, table.url))


def _openai(table: BackendConfig, key: str | None) -> Backend:
    return OpenAICompatible(table.name, table.url, api_key=key)


def _ollama(table: BackendConfig, key: str | None) -> Backend:
    return Ollama(
        table.name,
        table.url,
        models=table.models,
        context=table.context,
        keep_alive=table.keep_alive,
        api_key=key,
    )


def _apple_fm(table: BackendConfig, key: str | None) -> Backend:
    if key is not None:
        raise ConfigError(f"the FM bridge {table.name} takes no API key", "leave its key_env out")
    return AppleFm(table.name, table.url)


_MAKERS: dict[str, Callable[[BackendConfig, str | None], Backend]] = {
    "ollama": _ollama,
    "llamacpp": _openai,
    "apple_fm": _apple_fm,
    "openai": _openai,
}
