"""A wallet client that shares nothing with ours: nostr-sdk's NWC, as a process of its own.

The first line of stdin is the connection string, every other a call: ``["pay_invoice", {...}]``. Each is answered by
one line on stdout: ``{"ok": {...}}`` or ``{"error": "..."}``.
"""

import asyncio
import datetime
import json
import sys

import nostr_sdk as sdk


def plain(value):
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    if isinstance(value, sdk.Timestamp):
        return value.as_secs()
    if isinstance(value, sdk.Method | sdk.TransactionType | sdk.TransactionState):
        return str(value.name if hasattr(value, "name") else value)
    if hasattr(value, "__dict__"):
        return {name: plain(entry) for name, entry in vars(value).items()}
    return value


async def call(client, name, params):
    match name:
        case "get_info":
            return await client.get_info()
        case "get_balance":
            return {"balance": (await client.get_balance()).balance}
        case "pay_invoice":
            return await client.pay_invoice(sdk.PayInvoiceRequest(id=None, amount=None, **params))
        case "make_invoice":
            said = {"description": None, "description_hash": None, "expiry": None, **params}
            return await client.make_invoice(sdk.MakeInvoiceRequest(**said))
        case "lookup_invoice":
            return await client.lookup_invoice(sdk.LookupInvoiceRequest(payment_hash=params["hash"], invoice=None))
        case "list_transactions":
            asked = sdk.ListTransactionsRequest(
                _from=None, until=None, limit=None, offset=None, unpaid=True, transaction_type=None
            )
            return await client.list_transactions(asked)


async def main():
    sdk.uniffi_set_event_loop(asyncio.get_running_loop())
    uri = sdk.NostrWalletConnectUri.parse(sys.stdin.readline().strip())
    client = sdk.NostrWalletConnectBuilder(uri).timeout(datetime.timedelta(seconds=40)).build()
    for line in sys.stdin:
        name, params = json.loads(line)
        try:
            answer = {"ok": plain(await call(client, name, params))}
        except sdk.NostrSdkError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer, default=str), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
