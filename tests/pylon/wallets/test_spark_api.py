"""The pretended SDK against the installed one: signatures, and every value that the wallet reads or makes.

The values themselves are the SDK's own classes, in the wallet and in the pretended network alike. What is pinned here
are the names and variants that the code was written for: a newer SDK that has others fails here, and not with money.
"""

from __future__ import annotations

import enum
import inspect

import breez_sdk_spark as sdk
import pytest

from pylon.testing.spark import FakeSpark
from pylon.testing.spark_sdk import FakeBreezSdk, FakeSdkBuilder
from pylon.wallets.spark_errors import before_sending, while_sending
from pylon.wallets.spark_types import _STATES


def parameters(function) -> list[tuple[str, object]]:
    return [(name, parameter.kind) for name, parameter in inspect.signature(function).parameters.items()]


def public(cls) -> list[str]:
    return [name for name, value in vars(cls).items() if inspect.isfunction(value) and not name.startswith("_")]


OURS = {"learn", "catch_up", "emit"}
"""What the pretended instance has for the network behind it."""


@pytest.mark.parametrize("name", sorted(set(public(FakeBreezSdk)) - OURS))
def test_the_methods_of_an_instance(name):
    real = inspect.unwrap(getattr(sdk.BreezSdk, name))
    assert parameters(getattr(FakeBreezSdk, name)) == parameters(real)
    assert inspect.iscoroutinefunction(real) == inspect.iscoroutinefunction(getattr(FakeBreezSdk, name)) is True


@pytest.mark.parametrize("name", public(FakeSdkBuilder))
def test_the_methods_of_a_builder(name):
    real = getattr(sdk.SdkBuilder, name)
    assert parameters(getattr(FakeSdkBuilder, name)) == parameters(real)
    assert inspect.iscoroutinefunction(real)


def test_the_functions_of_the_module():
    assert parameters(FakeSpark.SdkBuilder)[1:] == parameters(sdk.SdkBuilder.__init__)[1:]
    assert parameters(FakeSpark.new_shared_sdk_context)[1:] == parameters(sdk.new_shared_sdk_context)
    assert inspect.iscoroutinefunction(sdk.new_shared_sdk_context)
    assert parameters(sdk.EventListener.on_event) == [
        ("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        ("event", inspect.Parameter.POSITIONAL_OR_KEYWORD),
    ]


FIELDS = {
    "Payment": "id payment_type status amount fees timestamp method details conversion_details",
    "GetInfoRequest": "ensure_synced",
    "GetInfoResponse": "identity_pubkey balance_sats token_balances recoverable_funds_sats",
    "GetPaymentRequest": "payment_id",
    "GetPaymentResponse": "payment",
    "ListPaymentsRequest": "type_filter status_filter asset_filter payment_details_filter from_timestamp to_timestamp"
    " offset limit sort_ascending",
    "ListPaymentsResponse": "payments",
    "PrepareSendPaymentRequest": "payment_request amount token_identifier conversion_options fee_policy",
    "PrepareSendPaymentResponse": "payment_method amount token_identifier conversion_estimate fee_policy",
    "ReceivePaymentRequest": "payment_method",
    "ReceivePaymentResponse": "payment_request fee cross_chain_info",
    "SendPaymentRequest": "prepare_response options idempotency_key",
    "SendPaymentResponse": "payment",
    "ClaimHtlcPaymentRequest": "preimage",
    "ClaimHtlcPaymentResponse": "payment",
    "SparkHtlcDetails": "payment_hash preimage expiry_time status",
    "SyncWalletRequest": "",
    "UserSettings": "spark_private_mode_enabled stable_balance_active_label spark_master_identity_public_key",
    "UpdateUserSettingsRequest": "spark_private_mode_enabled stable_balance_active_label"
    " spark_master_identity_public_key",
    "SdkContextConfig": "network api_key connections_per_operator proxy storage",
    "ConnectRequest": "config seed storage_dir",
}


@pytest.mark.parametrize("name", FIELDS)
def test_the_fields_of_values(name):
    assert list(inspect.get_annotations(getattr(sdk, name))) == FIELDS[name].split()


VARIANTS = {
    "PaymentStatus": "COMPLETED PENDING FAILED",
    "PaymentType": "SEND RECEIVE",
    "PaymentMethod": "LIGHTNING SPARK TOKEN DEPOSIT WITHDRAW UNKNOWN",
    "SparkHtlcStatus": "WAITING_FOR_PREIMAGE PREIMAGE_SHARED RETURNED",
    "Network": "MAINNET REGTEST SIGNET",
    "BitcoinNetwork": "BITCOIN TESTNET3 TESTNET4 SIGNET REGTEST",
    "FeePolicy": "FEES_EXCLUDED FEES_INCLUDED",
    "PaymentDetails": "SPARK TOKEN LIGHTNING WITHDRAW DEPOSIT",
    "SendPaymentMethod": "BITCOIN_ADDRESS BOLT11_INVOICE SPARK_ADDRESS SPARK_INVOICE CROSS_CHAIN_ADDRESS",
    "SendPaymentOptions": "BITCOIN_ADDRESS BOLT11_INVOICE SPARK_ADDRESS",
    "ReceivePaymentMethod": "SPARK_ADDRESS SPARK_INVOICE BITCOIN_ADDRESS BOLT11_INVOICE CROSS_CHAIN",
    "PaymentRequest": "INPUT CROSS_CHAIN",
    "AssetFilter": "BITCOIN TOKEN",
    "Seed": "MNEMONIC ENTROPY",
    "SdkEvent": "SYNCED UNCLAIMED_DEPOSITS CLAIMED_DEPOSITS PAYMENT_SUCCEEDED PAYMENT_PENDING PAYMENT_FAILED"
    " PAYMENT_METADATA_UPDATED AUTO_OPTIMIZATION LIGHTNING_ADDRESS_CHANGED NEW_DEPOSITS UNILATERAL_EXIT_STATE_CHANGED"
    " STABLE_BALANCE_CONVERSION_FAILED RECOVERABLE_FUNDS",
    "SdkError": "SparkError InsufficientFunds InvalidUuid InvalidInput CrossChainAmountOutOfRange"
    " CrossChainRouteUnavailable CrossChainDisabled NetworkError StorageError ChainServiceError"
    " MaxDepositClaimFeeExceeded MissingUtxo DepositTooSmall DepositClaimInProgress RefundReplacementFeeTooLow"
    " LnurlError Signer OptimizationAlreadyRunning OptimizationCancelled InsufficientCpfpFunds TokenAllowance Generic",
}


def variants(name: str) -> set[str]:
    cls = getattr(sdk, name)
    if issubclass(cls, enum.Enum):
        return {member.name for member in cls}
    return {key for key, value in vars(cls).items() if inspect.isclass(value)}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_variants_of_values(name):
    assert variants(name) == set(VARIANTS[name].split())


def test_every_state_of_a_payment_has_its_own():
    assert set(_STATES) == variants("PaymentStatus")


VARIANT_FIELDS = {
    ("PaymentDetails", "SPARK"): "invoice_details htlc_details conversion_info",
    ("PaymentDetails", "LIGHTNING"): "description invoice destination_pubkey htlc_details lnurl_pay_info"
    " lnurl_withdraw_info lnurl_receive_metadata conversion_info",
    ("PaymentDetails", "DEPOSIT"): "tx_id vout",
    ("SendPaymentMethod", "BOLT11_INVOICE"): "invoice_details spark_transfer_fee_sats lightning_fee_sats",
    ("SendPaymentMethod", "SPARK_ADDRESS"): "address fee token_identifier",
    ("SendPaymentOptions", "BOLT11_INVOICE"): "prefer_spark completion_timeout_secs",
    ("ReceivePaymentMethod", "BOLT11_INVOICE"): "description amount_sats expiry_secs payment_hash"
    " receiver_identity_public_key",
    ("ReceivePaymentMethod", "BITCOIN_ADDRESS"): "new_address",
    ("SdkEvent", "PAYMENT_SUCCEEDED"): "payment",
    ("SdkEvent", "PAYMENT_FAILED"): "payment",
}


@pytest.mark.parametrize(("name", "variant"), VARIANT_FIELDS)
def test_the_fields_of_variants(name, variant):
    cls = getattr(getattr(sdk, name), variant)
    assert list(inspect.signature(cls.__init__).parameters)[1:] == VARIANT_FIELDS[name, variant].split()


def test_a_config_has_what_is_set_in_it():
    fields = set(inspect.get_annotations(sdk.Config))
    assert {
        *("api_key", "network", "prefer_spark_over_lightning", "real_time_sync_server_url"),
        *("use_default_external_input_parsers", "private_enabled_default", "background_tasks_enabled"),
    } <= fields
    assert sdk.default_config(sdk.Network.REGTEST).background_tasks_enabled
    assert sdk.default_config(sdk.Network.REGTEST).private_enabled_default
    assert not sdk.default_server_config(sdk.Network.REGTEST).background_tasks_enabled


def errors():
    for name in sorted(variants("SdkError")):
        cls = getattr(sdk.SdkError, name)
        names = list(inspect.signature(cls.__init__).parameters)[1:]
        yield cls("what happened") if names == ["values"] else cls(*["what happened"] * len(names))


@pytest.mark.parametrize("error", list(errors()), ids=lambda error: type(error).__name__)
def test_every_error_is_one_of_ours(error):
    """And while sending, none but those that the SDK raises by itself says that nothing was sent."""
    assert isinstance(error, sdk.SdkError)
    assert before_sending(error, "asking").message
    sent = while_sending(error, required=2_000, available=1_000)
    certain = type(error).__name__ in ("InsufficientFunds", "InvalidUuid")
    assert (sent.code == "payment_unknown") is not certain
