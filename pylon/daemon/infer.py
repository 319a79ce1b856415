"""``infer``: one question, asked of a home's own backends or of the market, its words told as they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from pylon.api.answerer import FEE_HEADER, JOB_HEADER, PAID_HEADER, PRICE_HEADER, Answerer, LocalAnswerer
from pylon.api.openai_shapes import MAX_STOP_CHARS, MAX_STOPS, ApiError, StopCutter, clean, finish
from pylon.daemon import agent_params as reading
from pylon.daemon.answering import deadlines, market
from pylon.daemon.control import Method, Notify
from pylon.daemon.runtime import Runtime
from pylon.errors import (
    BackendUnavailable,
    InferenceError,
    MarketError,
    ModelMissing,
    PylonError,
    UsageError,
    WalletError,
)
from pylon.inference.port import InferenceRequest, Message
from pylon.money import MAX_MSAT, Msat
from pylon.wallets.purse import Purse

MAX_PROMPT_CHARS = 150_000
"""A line of the control socket holds so many for certain."""


@attrs.frozen
class InferVerbs:
    """The verb, over a home that runs whole."""

    runtime: Runtime

    def table(self) -> dict[str, Method]:
        return {"infer": self.infer}

    async def infer(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """``prompt``, ``system``, ``model``, ``max_tokens``, ``temperature``, ``top_p``, ``seed``, ``stop``.

        ``market``: buy it, for ``bid_msats``, with ``open`` of everybody, in public; ``whole``: nobody reads it before
        its end. ``words`` notifications come before the result. A caller that has gone ends the generation.
        """
        request = read_request(params)
        return await answer(self._answerer(params), request, notify, whole=params.get("whole") is True)

    def _answerer(self, params: Mapping[str, Any]) -> Answerer:
        runtime = self.runtime
        if params.get("market") is not True:
            if runtime.provider is None:
                raise BackendUnavailable(
                    "this daemon runs no backend", "--market buys the answer; or start it with -m both"
                )
            return LocalAnswerer(runtime.provider.router, deadlines(runtime.config.provider.deadlines))
        if runtime.buyer is None or runtime.wallet is None:
            raise UsageError("this daemon does not buy", "start it with -m host or -m both")
        bid = params.get("bid_msats")
        if type(bid) is not int or not 0 < bid <= MAX_MSAT:
            raise UsageError("bid_msats must be an amount, more than 0")
        purse = Purse(runtime.wallet, runtime.store, runtime.clock)
        own = runtime.identity.pubkey
        return market(
            runtime.buyer,
            purse,
            runtime.store,
            runtime.config,
            own,
            most=Msat(bid),
            open_market=params.get("open") is True,
        )


def read_request(params: Mapping[str, Any]) -> InferenceRequest:
    """What is asked. Raises ``UsageError``."""
    prompt, system, model = (_text(params, name) for name in ("prompt", "system", "model"))
    if not prompt.strip():
        raise UsageError("the prompt is empty", "ask something; - reads it from stdin")
    if len(prompt) + len(system) > MAX_PROMPT_CHARS:
        raise UsageError(f"the prompt is longer than {MAX_PROMPT_CHARS:,} characters", "ask in parts")
    tokens, temperature = params.get("max_tokens", 256), params.get("temperature")
    if type(tokens) is not int or not 1 <= tokens <= 1_000_000:
        raise UsageError("max_tokens must be a whole number from 1 to 1,000,000")
    if temperature is not None and (type(temperature) not in (int, float) or not 0 <= temperature <= 2):
        raise UsageError("temperature must be from 0 to 2")
    top_p, seed, stop = params.get("top_p"), params.get("seed"), params.get("stop", [])
    if top_p is not None and (type(top_p) not in (int, float) or not 0 < top_p <= 1):
        raise UsageError("top_p must be more than 0, at most 1")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 1 << 63):
        raise UsageError("seed must be a whole number, not negative")
    if not isinstance(stop, list) or len(stop) > MAX_STOPS or not all(map(_is_stop, stop)):
        raise UsageError(f"stop must be at most {MAX_STOPS} texts of at most {MAX_STOP_CHARS} characters")
    turns = [Message("system", system)] if system else []
    return InferenceRequest(
        model=model,
        messages=(*turns, Message("user", prompt)),
        max_tokens=tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop),
    )


def _is_stop(end: object) -> bool:
    return isinstance(end, str) and 0 < len(end) <= MAX_STOP_CHARS


def _text(params: Mapping[str, Any], name: str) -> str:
    return "" if params.get(name) is None else reading.text(params, name, 4 * MAX_PROMPT_CHARS)


async def answer(
    answerer: Answerer, request: InferenceRequest, notify: Notify, *, whole: bool = False
) -> dict[str, Any]:
    """The whole answer, as JSON; of one that was cut before it was paid ``price_msats``. Raises ``PylonError``.

    Before it come ``words`` notifications with its pieces, and before those ``job``, where it is bought.
    """
    words, reason, usage = [], None, None
    cutter = StopCutter(request.stop)
    try:
        async with answerer.stream(request, whole=whole) as found:
            if JOB_HEADER in found.headers:
                await notify("job", {"id": found.headers[JOB_HEADER]})
            async for chunk in found.chunks:
                reason, usage = chunk.finish_reason or reason, chunk.usage or usage
                text = cutter.feed(clean(chunk.text))
                words.append(text)
                if text and await notify("words", {"text": text}) is False:
                    break
                if cutter.stopped:
                    reason = "stop"
                    break
            if rest := cutter.close():
                words.append(rest)
                await notify("words", {"text": rest})
    except ApiError as error:
        raise _as_pylon_error(error) from None
    paid, price = found.headers.get(PAID_HEADER), found.headers.get(PRICE_HEADER)
    return {
        "text": "".join(words),
        "model": found.model,
        "finish_reason": finish(reason),
        "prompt_tokens": None if usage is None else usage.prompt_tokens,
        "completion_tokens": None if usage is None else usage.completion_tokens,
        "job": found.headers.get(JOB_HEADER),
        "price_msats": None if price is None else int(price),
        "paid_msats": None if paid is None else int(paid),
        "fee_msats": None if paid is None else int(found.headers[FEE_HEADER]),
    }


def _as_pylon_error(error: ApiError) -> PylonError:
    """What the API would say, as a command says it."""
    match error.code:
        case "insufficient_quota":
            return WalletError(error.message, "look at pylon wallet balance; on simnet pylon wallet fund gives more")
        case "model_not_found":
            return ModelMissing(error.message, "pylon compute shows the models; without --model the default answers")
        case "no_provider" | "answer_pending" | "answer_lost" | "provider_failed" | "answer_changed":
            return MarketError(error.message, "pylon job list shows what was bought")
        case "wallet_unavailable":
            return WalletError(error.message, "pylon wallet status; if spending is frozen, pylon wallet thaw")
        case _ if error.status == 400:
            return UsageError(error.message)
        case _:
            return InferenceError(error.message)
