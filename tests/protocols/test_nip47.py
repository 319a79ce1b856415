"""NIP-47: connection strings, and what goes over them, both ways and in both ciphers."""

from __future__ import annotations

import attrs
import nostr_sdk
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import nip04, nip47, nip47_methods
from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event
from protocols.nip47 import ConnectionUri, Encryption, ErrorCode, Failure, Nip47Invalid
from protocols.nip47_methods import ServiceInfo, Transaction, TransactionState, TransactionType
from protocols.strategies import hex_ids, texts
from protocols.strategies_agents import hostile_json, json_values
from protocols.strategies_wallets import (
    broken_uris,
    connection_uris,
    encryptions,
    failures,
    messy,
    requests,
    service_infos,
    transactions,
)

SERVICE, CLIENT, EVE = (SecretKey(bytes([n]) * 32) for n in (1, 2, 3))
NOW = 1_790_000_000
EXAMPLE = (
    "nostr+walletconnect://b889ff5b1513b641e2a139f661a661364979c5beee91842f8f0ef42ab558e9d4"
    "?relay=wss%3A%2F%2Frelay.damus.io&secret=71a8c14c1407c113601079c4302dab36460f0ccd0ad506f1f2dc73b5100e4f3c"
)
quick = settings(deadline=None)
KINDS = (
    nip47_methods.PayInvoice,
    nip47_methods.PayKeysend,
    nip47_methods.MakeInvoice,
    nip47_methods.MakeHoldInvoice,
    nip47_methods.CancelHoldInvoice,
    nip47_methods.SettleHoldInvoice,
    nip47_methods.LookupInvoice,
    nip47_methods.ListTransactions,
)
NAMES = st.sampled_from(
    ["amount", "invoice", "payment_hash", "preimage", "type", "state", "methods", "network", "tlv_records", "pubkey",
     "metadata", "settled_at", "expiry", "description", "transactions", "balance", "fees_paid", "from", "limit"]
)  # fmt: skip


class TestConnectionUri:
    def test_the_example_of_the_nip(self):
        uri = ConnectionUri.parse(EXAMPLE)
        assert uri.relays == ("wss://relay.damus.io",)
        assert uri.reveal() == EXAMPLE

    @quick
    @given(connection_uris())
    def test_round_trip(self, uri):
        again = ConnectionUri.parse(uri.reveal())
        assert again == uri
        assert again.reveal() == uri.reveal()

    @quick
    @given(connection_uris(plain=True))
    def test_nostr_sdk_reads_ours(self, uri):
        read = nostr_sdk.NostrWalletConnectUri.parse(uri.reveal())
        assert read.public_key().to_hex() == uri.wallet.hex
        assert read.secret().to_hex() == uri.secret.reveal().hex()
        assert [str(url) for url in read.relays()] == list(uri.relays)
        assert read.lud16() == uri.lud16

    @quick
    @given(connection_uris(plain=True))
    def test_we_read_what_nostr_sdk_writes(self, uri):
        written = nostr_sdk.NostrWalletConnectUri(
            nostr_sdk.PublicKey.parse(uri.wallet.hex),
            [nostr_sdk.RelayUrl.parse(url) for url in uri.relays],
            nostr_sdk.SecretKey.parse(uri.secret.reveal().hex()),
            uri.lud16,
        )
        assert ConnectionUri.parse(str(written)) == uri

    @quick
    @given(broken_uris())
    def test_what_is_none_is_refused_without_repeating_it(self, broken):
        _, text = broken
        with pytest.raises(Nip47Invalid) as caught:
            ConnectionUri.parse(text)
        secret = text.partition("secret=")[2].partition("&")[0]
        assert not secret or secret not in str(caught.value)

    @given(connection_uris())
    def test_the_secret_is_in_no_repr(self, uri):
        secret = uri.secret.reveal().hex()
        for text in (repr(uri), str(uri), f"{uri!r:.500}"):
            assert secret not in text

    @pytest.mark.parametrize(
        "text",
        [
            EXAMPLE.replace("://", ":"),
            EXAMPLE.replace("nostr+", "NOSTR+"),
            f"  {EXAMPLE}\n",
            EXAMPLE.replace("b889ff", "B889FF").replace("71a8c1", "71A8C1"),
            EXAMPLE + "&budget=100&permissions=",
            EXAMPLE.replace("%3A%2F%2F", "://"),
            EXAMPLE + "&relay=https%3A%2F%2Fnot.a.relay&lud16=",
        ],
    )
    def test_as_others_write_it(self, text):
        assert ConnectionUri.parse(text) == ConnectionUri.parse(EXAMPLE)


class TestInfo:
    def test_the_example_of_the_nip(self):
        event = Event(
            id="df467db0a9f9ec77ffe6f561811714ccaa2e26051c20f58f33c3d66d6c2b4d1c",
            pubkey="c04ccd5c82fc1ea3499b9c6a5c0a7ab627fbe00a0116110d4c750faeaecba1e2",
            created_at=1713883677,
            kind=13194,
            tags=(("encryption", "nip44_v2 nip04"), ("notifications", "payment_received payment_sent")),
            content="pay_invoice pay_keysend get_balance get_info make_invoice lookup_invoice list_transactions"
            " multi_pay_invoice multi_pay_keysend sign_message notifications",
            sig="31f57b369459b5306a5353aa9e03be7fbde169bc881c3233625605dd12f53548"
            "179def16b9fe1137e6465d7e4d5bb27ce81fd6e75908c46b06269f4233c845d8",
        )
        info = nip47.read_info(event)
        assert info.encryptions == frozenset(Encryption)
        assert info.best is Encryption.NIP44
        assert info.notifications == ("payment_received", "payment_sent")
        assert "pay_invoice" in info.methods
        assert "notifications" not in info.methods

    @given(st.sets(st.sampled_from(list(Encryption)), min_size=1))
    def test_round_trip(self, ciphers):
        event = nip47.build_info(
            SERVICE, methods=["get_info"], notifications=["payment_sent"], encryptions=sorted(ciphers), created_at=NOW
        )
        event.check()
        info = nip47.read_info(event)
        assert (info.methods, info.notifications) == (("get_info",), ("payment_sent",))
        assert info.encryptions == ciphers
        assert info.best is (Encryption.NIP44 if Encryption.NIP44 in ciphers else Encryption.NIP04)

    @pytest.mark.parametrize(
        ("tags", "best"),
        [
            ([], Encryption.NIP04),
            ([["encryption", "nip44_v2"]], Encryption.NIP44),
            ([["encryption", "nip04", "nip44_v2"]], Encryption.NIP44),
            ([["encryption", "nip04,nip44_v2"]], Encryption.NIP44),
            ([["encryption", "nip99"]], None),
        ],
    )
    def test_negotiation(self, tags, best):
        assert nip47.read_info(sign_event(SERVICE, kind=13194, tags=tags, created_at=1)).best is best


class TestRequests:
    @quick
    @given(requests, encryptions, st.none() | st.integers(0, 2**33))
    def test_round_trip(self, asked, encryption, expires_at):
        event = nip47.build_request(
            CLIENT,
            SERVICE.public,
            method=asked.method,
            params=asked.params(),
            created_at=NOW,
            encryption=encryption,
            expires_at=expires_at,
        )
        event.check()
        request = nip47.open_request(event, SERVICE)
        assert (request.id, request.client, request.method) == (event.id, CLIENT.public.hex, asked.method)
        assert (request.encryption, request.expires_at) == (encryption, expires_at)
        assert type(asked).read(request.params) == asked
        with pytest.raises(Nip47Invalid):
            nip47.open_request(event, EVE)

    @quick
    @given(requests, st.data())
    def test_said_as_others_say_it(self, asked, data):
        said = data.draw(messy(asked.params()))
        assert type(asked).read(orjson.loads(orjson.dumps(said))) == asked

    @quick
    @given(encryptions)
    def test_nostr_sdk_opens_what_we_seal(self, encryption):
        event = nip47.build_request(
            CLIENT, SERVICE.public, method="get_info", params={}, created_at=NOW, encryption=encryption
        )
        opens = nostr_sdk.nip44_decrypt if encryption is Encryption.NIP44 else nostr_sdk.nip04_decrypt
        text = opens(
            nostr_sdk.SecretKey.parse(SERVICE.reveal().hex()),
            nostr_sdk.PublicKey.parse(CLIENT.public.hex),
            event.content,
        )
        assert orjson.loads(text) == {"method": "get_info", "params": {}}

    def test_a_client_that_names_no_cipher_means_nip04(self):
        content = nip04.encrypt('{"method":"get_info"}', CLIENT, SERVICE.public)
        tags = [["p", SERVICE.public.hex]]
        old = sign_event(CLIENT, kind=nip47.REQUEST, content=content, tags=tags, created_at=NOW)
        assert nip47.asked_encryption(old) is Encryption.NIP04
        assert nip47.open_request(old, SERVICE).params == {}

    def test_a_cipher_that_nobody_knows(self):
        event = sign_event(CLIENT, kind=nip47.REQUEST, content="x", tags=[["encryption", "rot13"]], created_at=NOW)
        assert nip47.asked_encryption(event) is None
        with pytest.raises(Nip47Invalid):
            nip47.open_request(event, SERVICE)

    @quick
    @given(hostile_json)
    def test_anything_may_be_inside(self, text):
        try:
            content = nip04.encrypt(text, CLIENT, SERVICE.public)
        except nip04.Nip04Error:
            return
        event = sign_event(CLIENT, kind=nip47.REQUEST, content=content, created_at=NOW)
        try:
            request = nip47.open_request(event, SERVICE)
        except Nip47Invalid:
            return
        for kind in KINDS:
            try:
                kind.read(request.params)
            except Nip47Invalid:
                pass

    @quick
    @given(st.dictionaries(NAMES, hex_ids | json_values, max_size=8))
    def test_any_value_may_stand_anywhere(self, said):
        needed = {"payment_hash": "00" * 32, "amount": 1, "invoice": "lnbc1", "preimage": "00" * 32}
        for name in needed:
            self.read_all(needed | {given: value for given, value in said.items() if given != name})
        self.read_all(said)

    def read_all(self, said):
        for read in (
            *(kind.read for kind in KINDS),
            Transaction.read,
            ServiceInfo.read,
            nip47_methods.Paid.read,
            nip47_methods.read_balance,
            nip47_methods.read_transactions,
        ):
            try:
                read(said)
            except Nip47Invalid:
                pass

    def test_a_keysend_is_read(self):
        read = nip47_methods.PayKeysend.read(
            {"amount": 123, "pubkey": "03" + "AB" * 32, "tlv_records": [{"type": 5482373484, "value": "01"}, 7, {}]}
        )
        assert (read.amount, read.pubkey) == (123, "03" + "ab" * 32)
        assert read.tlv_records == (nip47_methods.TlvRecord(5482373484, "01"),)

    def test_metadata_that_is_too_long_is_dropped(self):
        said = {"amount": 1, "metadata": {"comment": "x" * 4_097}}
        assert nip47_methods.MakeInvoice.read(said).metadata is None


class TestResponses:
    @quick
    @given(hex_ids, encryptions, transactions(), texts)
    def test_a_result(self, request, encryption, transaction, method):
        event = nip47.build_response(
            SERVICE,
            CLIENT.public,
            request=request,
            method=method,
            result=transaction.result(),
            created_at=NOW,
            encryption=encryption,
        )
        event.check()
        response = nip47.open_response(event, CLIENT)
        assert (response.request, response.method, response.error) == (request, method, None)
        assert response.result is not None
        assert Transaction.read(response.result) == transaction
        with pytest.raises(Nip47Invalid):
            nip47.open_response(event, EVE)

    @quick
    @given(hex_ids, encryptions, failures)
    def test_an_error(self, request, encryption, failure):
        event = nip47.build_response(
            SERVICE, CLIENT.public, request=request, method="x", error=failure, created_at=NOW, encryption=encryption
        )
        response = nip47.open_response(event, CLIENT)
        assert response.result is None
        assert response.error == failure

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            ({"code": "other", "message": "no"}, Failure(ErrorCode.OTHER, "no")),
            ({"code": "SOMETHING_NEW", "message": "no"}, Failure(ErrorCode.OTHER, "no")),
            ({"message": None}, Failure(ErrorCode.OTHER, "")),
            ("it broke", Failure(ErrorCode.OTHER, "it broke")),
            ({"code": "NOT_FOUND", "message": "x" * 9_999}, Failure(ErrorCode.NOT_FOUND, "x" * 500)),
        ],
    )
    def test_errors_as_others_write_them(self, error, expected):
        content = nip04.encrypt(
            orjson.dumps({"error": error, "result": {"preimage": "00"}}).decode(), SERVICE, CLIENT.public
        )
        event = sign_event(SERVICE, kind=nip47.RESPONSE, content=content, created_at=NOW)
        response = nip47.open_response(event, CLIENT)
        assert response.error == expected
        assert response.result is None

    @quick
    @given(transactions(), st.data())
    def test_transactions_as_others_write_them(self, transaction, data):
        said = orjson.loads(orjson.dumps(data.draw(messy(transaction.result()))))
        assert Transaction.read(said) == transaction

    def test_an_older_service_has_no_state(self):
        preimage, payment_hash = "00" * 32, "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925"
        read = Transaction.read(
            {"type": "incoming", "payment_hash": payment_hash, "amount": 5, "settled_at": 9, "preimage": preimage,
             "expires_at": 0, "fees_paid": None, "created_at": -1}
        )  # fmt: skip
        assert (read.state, read.preimage, read.expires_at, read.fees_paid) == (
            TransactionState.SETTLED,
            preimage,
            None,
            0,
        )
        assert Transaction.read({"payment_hash": payment_hash, "settled_at": 0}).state is None

    def test_a_preimage_of_another_hash_proves_nothing(self):
        said = {"payment_hash": "11" * 32, "preimage": "00" * 32}
        assert Transaction.read(said).preimage is None
        assert nip47_methods.Paid.read({"preimage": "00" * 32}, "11" * 32).preimage is None
        assert nip47_methods.Paid.read({"preimage": "00" * 32}).preimage == "00" * 32

    @quick
    @given(service_infos)
    def test_service_info(self, info):
        assert ServiceInfo.read(orjson.loads(orjson.dumps(info.result()))) == info

    @pytest.mark.parametrize(
        ("said", "meant"), [("bitcoin", "mainnet"), ("Mainnet", "mainnet"), ("regtest", "regtest")]
    )
    def test_networks(self, said, meant):
        assert ServiceInfo.read({"network": said}).network == meant

    @quick
    @given(st.lists(transactions(), max_size=3))
    def test_lists_leave_out_what_cannot_be_read(self, found):
        said = [attrs.evolve(entry, metadata=None).result() for entry in found]
        read, count = nip47_methods.read_transactions({"transactions": [*said, {"type": "incoming"}, 7]})
        assert read == [attrs.evolve(entry, metadata=None) for entry in found]
        assert count == len(found) + 2

    @pytest.mark.parametrize("result", [{}, {"balance": -1}, {"balance": "x"}, {"balance": 1.5}, {"balance": True}])
    def test_what_is_no_balance(self, result):
        with pytest.raises(Nip47Invalid):
            nip47_methods.read_balance(result)


class TestNotifications:
    @quick
    @given(transactions(), encryptions)
    def test_round_trip(self, transaction, encryption):
        event = nip47.build_notification(
            SERVICE,
            CLIENT.public,
            type="payment_sent",
            body=transaction.result(),
            created_at=NOW,
            encryption=encryption,
        )
        event.check()
        assert event.kind == (23197 if encryption is Encryption.NIP44 else 23196)
        assert event.tag("p") == CLIENT.public.hex
        told = nip47.open_notification(event, CLIENT)
        assert told.type == "payment_sent"
        assert Transaction.read(told.body, TransactionType.OUTGOING) == transaction


class TestWritingIsStrict:
    def test_neither_result_nor_error(self):
        with pytest.raises(Nip47Invalid):
            nip47.build_response(SERVICE, CLIENT.public, request="00" * 32, method="x", created_at=NOW)

    def test_too_long(self):
        with pytest.raises(Nip47Invalid):
            nip47.build_request(CLIENT, SERVICE.public, method="x", params={"x": "y" * 66_000}, created_at=NOW)

    def test_not_json(self):
        with pytest.raises(Nip47Invalid):
            nip47.build_request(CLIENT, SERVICE.public, method="x", params={"x": "\ud800"}, created_at=NOW)

    def test_a_payment_without_proof(self):
        with pytest.raises(Nip47Invalid):
            nip47_methods.Paid(None).result()

    def test_an_info_with_spaces_in_a_name(self):
        with pytest.raises(Nip47Invalid):
            nip47.build_info(SERVICE, methods=["get info"], created_at=NOW)
