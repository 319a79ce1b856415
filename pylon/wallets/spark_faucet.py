"""Test sats of Spark's regtest: the faucet of Lightspark, who run that network.

A GraphQL mutation sends coins to a Bitcoin address of the hosted regtest chain; they are in the wallet after the next
blocks, when the wallet has claimed them. It gives 1,000 to 50,000 sat at once. ``FAUCET_URL``, and ``FAUCET_USERNAME``
with ``FAUCET_PASSWORD``, name another one, or an account there. Source: the test harness of the Breez SDK.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import httpx
import trio

from pylon.errors import UsageError, WalletError, WalletUnreachable
from pylon.money import Msat, format_msat, sats

URL = "https://api.lightspark.com/graphql/spark/rc"
WEB = "https://app.lightspark.com/regtest-faucet"
LEAST, MOST = sats(1_000), sats(50_000)
SECONDS = 20.0
_QUERY = (
    "mutation RequestRegtestFunds($address: String!, $amount_sats: Long!) {"
    " request_regtest_funds(input: {address: $address, amount_sats: $amount_sats}) { transaction_hash } }"
)


async def ask_faucet(
    address: str,
    amount: Msat,
    *,
    environ: Mapping[str, str] = os.environ,
    transport: httpx.AsyncBaseTransport | None = None,
) -> str:
    """Have ``amount`` sent to a Bitcoin address; returns the transaction's id.

    Raises ``UsageError`` for an amount that it does not give, ``WalletUnreachable``, ``WalletError``.
    """
    check_amount(amount)
    url = environ.get("FAUCET_URL") or URL
    user, password = environ.get("FAUCET_USERNAME"), environ.get("FAUCET_PASSWORD")
    body = {
        "operationName": "RequestRegtestFunds",
        "variables": {"address": address, "amount_sats": amount // 1_000},
        "query": _QUERY,
    }
    where = httpx.URL(url).host
    by_hand = f"in a browser: {WEB}, to the address {address}"
    with trio.move_on_after(SECONDS):
        try:
            async with httpx.AsyncClient(
                transport=transport, timeout=SECONDS, auth=(user, password) if user and password else None
            ) as client:
                response = await client.post(url, json=body)
        except httpx.HTTPError as error:
            raise WalletUnreachable(
                f"the faucet of Spark's regtest ({where}) cannot be reached: {type(error).__name__}",
                f"look at the connection to the internet; or {by_hand}",
            ) from None
        return _transaction(response, where, by_hand)
    raise WalletUnreachable(f"the faucet of Spark's regtest ({where}) did not answer in time", by_hand)


def check_amount(amount: Msat) -> None:
    """Raises ``UsageError``."""
    if not LEAST <= amount <= MOST or amount % 1_000:
        raise UsageError(
            f"the faucet of Spark's regtest gives {format_msat(LEAST)} to {format_msat(MOST)} at once, in whole sats,"
            f" not {format_msat(amount)}",
            "name another amount: pylon wallet fund -a 50000",
        )


def _transaction(response: httpx.Response, where: str, by_hand: str) -> str:
    try:
        found = response.json()
        txid = found["data"]["request_regtest_funds"]["transaction_hash"]
        if isinstance(txid, str) and txid:
            return txid
    except (ValueError, KeyError, TypeError):
        pass
    raise WalletError(
        f"the faucet of Spark's regtest ({where}) gives nothing: status {response.status_code}{_reason(response)}",
        by_hand,
    )


def _reason(response: httpx.Response) -> str:
    try:
        return ", " + "; ".join(str(error["message"]) for error in response.json()["errors"])[:200]
    except (ValueError, KeyError, TypeError):
        return ""
