"""The SDK's words as the port's errors; and the faucet's."""

from __future__ import annotations

import json

import breez_sdk_spark as sdk
import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pylon.errors import (
    AlreadyPaid,
    FeeTooHigh,
    InsufficientFunds,
    InvoiceExpired,
    InvoiceInvalid,
    NoRoute,
    PaymentUnknown,
    UsageError,
    WalletError,
    WalletUnreachable,
    WrongNetwork,
)
from pylon.money import Msat, sats
from pylon.testing.spark_values import DNS
from pylon.wallets import spark_faucet
from pylon.wallets.spark_errors import SERVERS, before_sending, while_sending, words
from pylon.wallets.spark_faucet import ask_faucet

HTTP = (
    "Service error: service provider error: authentication error: network error: Request error: error sending request"
    " for url (https://api.lightspark.com/graphql/spark/rc) : client error (Connect) : dns error"
)


@pytest.mark.parametrize(
    ("error", "cls"),
    [
        (sdk.SdkError.SparkError(DNS), WalletUnreachable),
        (sdk.SdkError.SparkError(HTTP), WalletUnreachable),
        (sdk.SdkError.NetworkError("anything"), WalletUnreachable),
        (sdk.SdkError.InvalidInput("invalid input"), InvoiceInvalid),
        (sdk.SdkError.SparkError("Self payment not allowed"), NoRoute),
        (sdk.SdkError.SparkError("no route found"), NoRoute),
        (sdk.SdkError.SparkError("Invalid network"), WrongNetwork),
        (sdk.SdkError.SparkError("the invoice has already been paid"), AlreadyPaid),
        (sdk.SdkError.SparkError("invoice expired"), InvoiceExpired),
        (sdk.SdkError.Generic("something else"), WalletError),
    ],
)
def test_before_anything_was_sent(error, cls):
    found = before_sending(error, "asking")
    assert type(found) is cls
    assert "asking" in found.message


def test_who_cannot_be_reached_is_named_with_a_remedy():
    found = before_sending(sdk.SdkError.SparkError(DNS), "asking")
    assert SERVERS in found.message
    assert "names do not resolve" in found.message
    assert "simnet" in found.hint


@pytest.mark.parametrize(
    ("error", "cls"),
    [
        (sdk.SdkError.InsufficientFunds(None), InsufficientFunds),
        (sdk.SdkError.InvalidUuid("no"), WalletError),
        (sdk.SdkError.SparkError("Self payment not allowed"), NoRoute),
        (sdk.SdkError.SparkError("Fee exceeds maximum allowed fee 5 > 3"), FeeTooHigh),
        # All of these may come after the operators have taken the money into a transfer.
        (sdk.SdkError.SparkError(DNS), PaymentUnknown),
        (sdk.SdkError.SparkError(HTTP), PaymentUnknown),
        (sdk.SdkError.NetworkError("anything"), PaymentUnknown),
        (sdk.SdkError.InvalidInput("Not found"), PaymentUnknown),
        (sdk.SdkError.StorageError("disk full"), PaymentUnknown),
        (sdk.SdkError.SparkError("no route found"), PaymentUnknown),
        (sdk.SdkError.SparkError("the invoice has already been paid"), PaymentUnknown),
    ],
)
def test_while_it_was_sent(error, cls):
    found = while_sending(error, required=sats(5), available=sats(3))
    assert type(found) is cls
    if isinstance(found, InsufficientFunds):
        assert (found.required_msats, found.available_msats) == (5_000, 3_000)


@given(st.text(max_size=600))
def test_words_are_one_short_line_without_metadata(text):
    said = words(sdk.SdkError.SparkError(f"it failed, metadata: MetadataMap {{ authorization: secret {text} }}"))
    assert said == "it failed"
    assert len(words(sdk.SdkError.SparkError(text))) <= 200
    assert "\n" not in words(sdk.SdkError.Generic(text))


# --- the faucet -------------------------------------------------------------------------------------------------------

ADDRESS = "bcrt1pexample"


def answering(status=200, body=None, seen=None):
    def answer(request):
        if seen is not None:
            seen.append(request)
        return httpx.Response(status, json=body) if not isinstance(body, str) else httpx.Response(status, text=body)

    return httpx.MockTransport(answer)


async def test_the_faucet_is_asked_as_it_wants_to_be():
    seen = []
    body = {"data": {"request_regtest_funds": {"transaction_hash": "ab" * 32}}}
    txid = await ask_faucet(ADDRESS, sats(5_000), environ={}, transport=answering(body=body, seen=seen))
    assert txid == "ab" * 32
    assert str(seen[0].url) == spark_faucet.URL
    asked = json.loads(seen[0].content)
    assert asked["variables"] == {"address": ADDRESS, "amount_sats": 5_000}
    assert asked["operationName"] == "RequestRegtestFunds"
    assert "authorization" not in seen[0].headers


async def test_another_faucet_and_an_account_there():
    seen = []
    body = {"data": {"request_regtest_funds": {"transaction_hash": "ab" * 32}}}
    environ = {"FAUCET_URL": "https://faucet.example/x", "FAUCET_USERNAME": "me", "FAUCET_PASSWORD": "secret"}
    await ask_faucet(ADDRESS, sats(5_000), environ=environ, transport=answering(body=body, seen=seen))
    assert seen[0].url.host == "faucet.example"
    assert seen[0].headers["authorization"].startswith("Basic ")


@pytest.mark.parametrize("amount", [0, 999_000, 50_001_000, 1_500_500, -1])
async def test_what_it_does_not_give(amount):
    with pytest.raises(UsageError, match="50,000 sat"):
        await ask_faucet(ADDRESS, Msat(amount), environ={}, transport=answering())


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"errors": [{"message": "rate limited"}]}), (200, {"data": None}), (200, []), (200, "no json"),
        (403, {"errors": [{"message": "who are you"}]}), (500, ""), (200, {"data": {"request_regtest_funds": {}}}),
    ],
)  # fmt: skip
async def test_what_it_answers_otherwise(status, body):
    with pytest.raises(WalletError) as caught:
        await ask_faucet(ADDRESS, sats(5_000), environ={}, transport=answering(status, body))
    assert spark_faucet.WEB in caught.value.hint
    assert ADDRESS in caught.value.hint
    if isinstance(body, dict) and "errors" in body:
        assert body["errors"][0]["message"] in caught.value.message


async def test_a_faucet_out_of_reach(autojump_clock):
    def fail(request):
        raise httpx.ConnectError("no such host", request=request)

    with pytest.raises(WalletUnreachable) as caught:
        await ask_faucet(ADDRESS, sats(5_000), environ={}, transport=httpx.MockTransport(fail))
    assert "api.lightspark.com" in caught.value.message

    async def hang(request):
        await trio.sleep_forever()

    with pytest.raises(WalletUnreachable, match="in time"):
        await ask_faucet(ADDRESS, sats(5_000), environ={}, transport=httpx.MockTransport(hang))
