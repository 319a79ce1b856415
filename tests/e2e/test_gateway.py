"""The gateway as installed: OpenAI's own package buys from another home's provider, over an independent relay.

The provider's answers are the prompts backwards (``pylon.testing.provider_process``); everything else is real.
"""

from __future__ import annotations

import json
import time

import httpx
import openai
import pytest

from pylon.testing.provider_process import answer
from tests.e2e.homes import BEFOREHAND, FEE_MSATS, PRICE_MSATS, Daemon, command, until

pytestmark = pytest.mark.e2e

PROMPT = "Why does the lighthouse turn?"
ANSWER = answer(PROMPT)


class Gateway:
    """``pylon api --market`` in the foreground of a home, and OpenAI's package before it."""

    def __init__(self, node, *options: str) -> None:
        arguments = [
            command(),
            "--home",
            str(node.root),
            "--json",
            "api",
            "--market",
            "--bind",
            "127.0.0.1:0",
            *options,
        ]
        self.daemon = Daemon(arguments, node.world.directory / "gateway.out")
        node.world.daemons.append(self.daemon)
        self.daemon.ready("\nready\n")
        said = next(json.loads(line) for line in self.daemon.said().splitlines() if line.startswith("{"))
        with open(said["token_file"]) as file:
            self.token = file.read().strip()
        self.url = said["url"]
        self.client = openai.OpenAI(
            base_url=self.url, api_key=self.token, max_retries=0, timeout=30,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )  # fmt: skip

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        self.daemon.terminate()

    def ask(self, client: openai.OpenAI | None = None, **options):
        messages = [{"role": "user", "content": PROMPT}]
        return (client or self.client).chat.completions.create(**{"model": "", "messages": messages, **options})

    def metrics(self) -> dict[str, float]:
        url = self.url.removesuffix("/v1") + "/metrics"
        with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {self.token}"}) as client:
            lines = client.get(url).text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


@pytest.fixture
def trade(world):
    provider, buyer = world.market(world.relay())
    buyer.fund()
    return provider, buyer


def test_openais_package_buys_whole_in_pieces_and_once(trade):
    """Errors by their names, what it has cost, and counters that a repeat, a leaver and a restart leave right."""
    provider, buyer = trade
    provider.start("provider", fake=True)
    with Gateway(buyer, "--budget-day", "40sat") as gateway:
        name = gateway.client.models.list().data[0].id
        raw = gateway.client.chat.completions.with_raw_response.create(
            model=name, messages=[{"role": "user", "content": PROMPT}], extra_headers={"Idempotency-Key": "k"}
        )
        assert raw.parse().choices[0].message.content == ANSWER
        assert raw.parse().usage.completion_tokens > 0
        paid = int(raw.headers["x-pylon-paid-msats"]), int(raw.headers["x-pylon-fee-msats"])
        assert paid == (PRICE_MSATS, FEE_MSATS)
        again = gateway.ask(model=name, extra_headers={"Idempotency-Key": "k"})
        assert again.choices[0].message.content == ANSWER
        assert gateway.metrics()["pylon_api_paid_msats_total"] == PRICE_MSATS, "answered twice, paid once"
        pieces = list(gateway.ask(stream=True, stop=["eht"], stream_options={"include_usage": True}))
        said = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert said == ANSWER.partition("eht")[0]
        text = gateway.client.completions.create(model=name, prompt=PROMPT)
        assert text.choices[0].text == ANSWER
        with pytest.raises(openai.NotFoundError):
            gateway.ask(model="nobody-has-it")
        with pytest.raises(openai.RateLimitError) as refused:
            gateway.ask()
        assert refused.value.code == "insufficient_quota", "three answers and their fees leave no room for a fourth"
        found = gateway.metrics()
        assert found["pylon_api_paid_msats_total"] == 3 * PRICE_MSATS
        assert found["pylon_api_fee_msats_total"] == 3 * FEE_MSATS
        assert gateway.daemon.terminate() == 0, gateway.daemon.said()
    jobs = buyer.json("job", "list", "--state", "answered")
    assert len(jobs) == 3
    assert sum(charge["msats"] for charge in buyer.charges()) == 3 * PRICE_MSATS
    buyer.check_books()
    with Gateway(buyer) as gateway:
        assert gateway.metrics()["pylon_api_paid_msats_total"] == 3 * PRICE_MSATS
    provider.stop()
    provider.check_books()


def test_who_leaves_while_it_is_held_pays_nothing(trade):
    """Both wallets can hold: the payment comes back, and the provider stops."""
    provider, buyer = trade
    provider.start("provider", "--seconds", "30", fake=True)
    with Gateway(buyer) as gateway:
        with pytest.raises(openai.APITimeoutError):
            gateway.ask(gateway.client.with_options(timeout=3.0))
        until(lambda: [row["state"] for row in buyer.purchases()] == ["failed"], 20, "a purchase that is given up")
        until(lambda: [row["state"] for row in provider.sales()] == ["cancelled"], 20, "a sale that is cancelled")
        assert gateway.metrics()["pylon_api_paid_msats_total"] == 0
    assert buyer.charges() == []
    buyer.check_books()
    provider.stop()
    provider.check_books()


def test_who_leaves_before_paying_pays_nothing_and_later_loses_nothing(world):
    """Of a provider that is paid beforehand."""
    provider, buyer = world.market(world.relay(), selling=BEFOREHAND)
    buyer.fund()
    with Gateway(buyer) as gateway:
        with pytest.raises(openai.APITimeoutError):
            gateway.ask(gateway.client.with_options(timeout=1.0))
        until(lambda: [row["state"] for row in buyer.purchases()] == ["failed"], 10, "a purchase that is given up")
        provider.start("provider", "--seconds", "3", fake=True)
        began = time.monotonic()
        with pytest.raises(openai.APITimeoutError):
            gateway.ask(gateway.client.with_options(timeout=2.0))
        assert time.monotonic() - began < 4
        until(lambda: any(row["state"] == "answered" for row in buyer.purchases()), 20, "the answer that was paid for")
        assert gateway.metrics()["pylon_api_paid_msats_total"] == PRICE_MSATS
        assert gateway.metrics()["pylon_api_left_total"] == 2
    (job,) = buyer.json("job", "list", "--state", "answered")
    assert job["text"] == ANSWER
    assert len(buyer.charges()) == 1
    buyer.check_books()
