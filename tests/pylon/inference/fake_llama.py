"""A ``llama_cpp`` that behaves like 0.3.36 in what Pylon uses of it, with words instead of a model.

The shapes were recorded from the real one: a chunk with the role, a chunk for each token that has a text, a last one
with the reason and no text; ``eval`` is called once with the prompt, and then once a token with all but the last token
of an answer that is cut. ``test_llamacpp_real`` compares it with the real one.
"""

from __future__ import annotations

import contextlib
import threading
import time
import types
from collections.abc import Iterator


class Manners:
    """How a fake behaves; shared with its test."""

    def __init__(self) -> None:
        self.words = ["the", "capital", "is", "Paris"]
        self.load_errors: list[Exception] = []
        """Raised by the next attempts to load, each once."""
        self.eval_errors: list[Exception] = []
        self.seconds = 0.0
        """For each evaluation."""
        self.stuck: threading.Event | None = None
        """An evaluation waits for it, whatever anybody wants."""
        self.evaluated: list[int] = []
        """The sizes of what was evaluated."""
        self.asked: list[dict] = []
        self.threads: set[int] = set()
        self.loaded: list[dict] = []
        self.closed = 0


class suppress_stdout_stderr:
    """The real one turns the file descriptors 1 and 2 of the whole process to nowhere."""

    def __init__(self, disable: bool = True) -> None:
        raise AssertionError("somebody's words would be lost")


def module(manners: Manners) -> types.ModuleType:
    class Llama:
        def __init__(
            self, *, model_path, n_ctx, n_batch, n_threads, n_threads_batch, n_gpu_layers, flash_attn, verbose
        ) -> None:
            manners.loaded.append(
                {"model_path": model_path, "n_ctx": n_ctx, "n_gpu_layers": n_gpu_layers, "verbose": verbose}
            )
            with internals.suppress_stdout_stderr(disable=verbose):
                if manners.load_errors:
                    raise manners.load_errors.pop(0)
            self._n_ctx = n_ctx
            self.n_tokens = 0

        def eval(self, tokens) -> None:
            manners.threads.add(threading.get_ident())
            manners.evaluated.append(len(tokens))
            if manners.eval_errors:
                raise manners.eval_errors.pop(0)
            if manners.stuck is not None:
                manners.stuck.wait(20)
            time.sleep(manners.seconds)
            self.n_tokens += len(tokens)

        def reset(self) -> None:
            self.n_tokens = 0

        def create_chat_completion(self, messages, *, stream, max_tokens, stop, **options) -> Iterator[dict]:
            assert stream is True
            manners.asked.append({"messages": messages, "max_tokens": max_tokens, "stop": stop, **options})
            prompt = [0] * sum(len(message["content"].split()) for message in messages)
            if len(prompt) >= self._n_ctx:
                raise ValueError(f"Requested tokens ({len(prompt)}) exceed context window of {self._n_ctx}")
            return self._said(prompt, max_tokens)

        def _said(self, prompt, max_tokens):
            assert self.n_tokens == 0, "nothing is left of the request before"
            yield chunk({"role": "assistant"})
            self.eval(prompt)
            for number, word in enumerate(manners.words, 1):
                yield chunk({"content": word if number == 1 else f" {word}"})
                if number == max_tokens:
                    yield chunk({}, "length")
                    return
                self.eval([number])
            yield chunk({}, "stop")

        def close(self) -> None:
            manners.closed += 1

    def chunk(delta, reason=None) -> dict:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {"id": "chatcmpl-1", "model": "m", "created": 1, "object": "chat.completion.chunk", "choices": [choice]}

    made, internals = types.ModuleType("llama_cpp"), types.ModuleType("llama_cpp._internals")
    internals.suppress_stdout_stderr = suppress_stdout_stderr
    made._internals, made.Llama = internals, Llama
    made.llama_supports_gpu_offload = lambda: False
    return made


@contextlib.contextmanager
def installed(manners: Manners, monkeypatch):
    import sys

    from pylon.inference import llamacpp_inprocess

    monkeypatch.setitem(sys.modules, "llama_cpp", module(manners))
    llamacpp_inprocess._import.cache_clear()
    try:
        yield manners
    finally:
        llamacpp_inprocess._import.cache_clear()
