"""Between the Spark SDK's values and the port's: networks, targets, payments. Nothing here asks anybody.

Spark moves whole sats. A Lightning invoice with a fraction is paid rounded up, and the fraction counts as a fee.
"""

from __future__ import annotations

from typing import Any

import attrs

from protocols import bolt11, spark_address
from pylon.errors import ConfigError, InvoiceInvalid, NotSupported, WrongNetwork
from pylon.money import Msat, ceil_to_sat, format_msat, sats
from pylon.wallets.port import Direction, Payment, PaymentState, Target, TargetKind

UNIT = Msat(1_000)


@attrs.frozen
class SparkNetwork:
    """One of Spark's networks, as everybody calls it."""

    name: str
    """``mainnet`` or ``regtest``: of addresses, and of the port."""
    prefix: str
    """Of its invoices."""
    account: int
    """Of the BIP-32 path m/8797555'/account'/0' of the identity key."""
    variant: str
    """The SDK's name for it."""
    note: str = ""


MAINNET = SparkNetwork("mainnet", "bc", 1, "MAINNET")
REGTEST = SparkNetwork("regtest", "bcrt", 0, "REGTEST", "Spark's regtest: test sats, not money")
_MAPPED = "Spark has no {0}: this is its regtest, whose sats are not money"


def network_of(configured: str) -> SparkNetwork:
    """Where a configured network is to be found on Spark: testnet and signet are its regtest, and ``note`` says so.

    Raises ``ConfigError`` for simnet, which is no network of Spark's.
    """
    match configured:
        case "mainnet":
            return MAINNET
        case "regtest":
            return REGTEST
        case "testnet" | "signet":
            return attrs.evolve(REGTEST, note=_MAPPED.format(configured))
    raise ConfigError(f"Spark has no network {configured!r}", "one of mainnet, testnet, signet, regtest")


def identity_path(network: SparkNetwork) -> str:
    """The BIP-32 path of a wallet's identity key, by which it is known."""
    return f"m/8797555'/{network.account}'/0'"


# --- targets ----------------------------------------------------------------------------------------------------------


def read_target(text: str) -> Target:
    """What a payer was given. Raises ``InvoiceInvalid``, ``NotSupported`` for a Spark invoice."""
    given = text.strip()
    if spark_address.looks_like(given):
        try:
            read = spark_address.decode(given)
        except spark_address.SparkAddressInvalid as error:
            raise InvoiceInvalid(f"not a Spark address: {error}") from None
        if read.invoice:
            raise NotSupported(
                "this is a Spark invoice, not an address",
                "ask the payee for its Spark address, or for a BOLT 11 invoice",
            )
        return Target(TargetKind.SPARK, given.lower(), read.network, None, given.lower())
    if given[:10].lower() == "lightning:":
        given = given[10:]
    try:
        invoice = bolt11.decode(given)
    except bolt11.Bolt11Invalid as error:
        raise InvoiceInvalid(f"neither a Lightning invoice nor a Spark address: {error}") from None
    return Target.of_invoice(given.lower(), invoice)


def check_network(target: Target, network: SparkNetwork) -> None:
    """Raises ``WrongNetwork``."""
    wanted = bolt11.NETWORKS[network.prefix] if target.kind is TargetKind.BOLT11 else network.name
    if target.network != wanted:
        what = "an invoice" if target.kind is TargetKind.BOLT11 else "an address"
        raise WrongNetwork(
            f"{what} of {target.network}: this wallet is on {network.name}", "use a wallet of that network"
        )


def amount_of(target: Target, amount: Msat | None) -> Msat:
    """What is to be paid. Raises ``InvoiceInvalid`` where target and payer do not agree, or nobody has said."""
    if target.amount is not None:
        if amount is not None and amount != target.amount:
            raise InvoiceInvalid(f"the invoice is for {format_msat(target.amount)}, not for {format_msat(amount)}")
        if target.amount <= 0:
            raise InvoiceInvalid("the invoice is for nothing")
        return target.amount
    if amount is None:
        raise InvoiceInvalid("it names no amount", "say how much: --amount SATS")
    if amount <= 0 or amount % UNIT:
        raise InvoiceInvalid(f"{format_msat(amount)} cannot be paid: Spark moves whole sats, 1 or more")
    return amount


# --- payments ---------------------------------------------------------------------------------------------------------


def is_bitcoin(payment: Any) -> bool:
    """Whether an SDK payment moves sats, and no token."""
    return bool(payment.method.name != "TOKEN")


def payment_hash(payment: Any) -> str:
    """Of the invoice or HTLC that an SDK payment is for; empty where there is none."""
    htlc = getattr(payment.details, "htlc_details", None)
    return "" if htlc is None else str(htlc.payment_hash)


def is_held(payment: Any) -> bool:
    """Whether it is ours to take with the preimage: an HTLC to us that waits."""
    htlc = getattr(payment.details, "htlc_details", None)
    return (
        payment.payment_type.name == "RECEIVE"
        and payment.status.name == "PENDING"
        and htlc is not None
        and htlc.status.name == "WAITING_FOR_PREIMAGE"
    )


_STATES = {
    "COMPLETED": PaymentState.SETTLED,
    "PENDING": PaymentState.PENDING,
    "FAILED": PaymentState.FAILED,
}


def to_payment(payment: Any, *, ours: bool, key: str) -> Payment:
    """An SDK payment as the port has it.

    Spark tells when a payment began, and not when it settled: ``settled_at`` is the same moment.

    :param ours: for one that was received: it pays an invoice of this wallet's.
    :param key: under which it was sent.
    """
    direction = Direction.SENT if payment.payment_type.name == "SEND" else Direction.RECEIVED
    # A state that a newer SDK may have, and this table has not, is one that is not settled.
    state = _STATES.get(payment.status.name, PaymentState.PENDING)
    amount, fee = sats(payment.amount), sats(payment.fees)
    invoice = getattr(payment.details, "invoice", None)
    if direction is Direction.SENT and invoice:
        amount, fee = _exactly(invoice, amount, fee)
    settled = state is PaymentState.SETTLED
    htlc = getattr(payment.details, "htlc_details", None)
    return Payment(
        payment_id=payment.id,
        payment_hash=payment_hash(payment),
        direction=direction,
        state=state,
        amount=amount,
        fee=Msat(0) if state is PaymentState.FAILED else fee,
        created_at=float(payment.timestamp),
        settled_at=float(payment.timestamp) if settled else None,
        preimage=htlc.preimage if settled and htlc is not None else None,
        bolt11=invoice or None,
        description=_description(payment),
        outside=direction is Direction.RECEIVED and not ours,
        key=key,
    )


def _exactly(invoice: str, amount: Msat, fee: Msat) -> tuple[Msat, Msat]:
    """Amount and fee where the invoice's own amount was rounded up to whole sats."""
    try:
        named = bolt11.decode(invoice).amount_msats
    except bolt11.Bolt11Invalid:
        return amount, fee
    if named is None or ceil_to_sat(Msat(named)) != amount:
        return amount, fee
    return Msat(named), Msat(fee + amount - named)


def _description(payment: Any) -> str:
    details = payment.details
    text = getattr(details, "description", None) or getattr(
        getattr(details, "invoice_details", None), "description", None
    )
    if text:
        return str(text)
    if payment.method.name == "DEPOSIT":
        return "on-chain deposit"
    if payment.method.name == "WITHDRAW":
        return "on-chain withdrawal"
    return ""
