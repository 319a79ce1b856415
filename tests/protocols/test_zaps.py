"""NIP-57 and LNURL-pay: from an address to a receipt, and everything that must not pass for one."""

from __future__ import annotations

import hashlib
import json
import sys
from urllib.parse import parse_qsl, urlsplit

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import bolt11, lnurl, nip57
from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event
from protocols.strategies import resigned, texts
from protocols.strategies_agents import NOW, hostile_json, pay_requests, twisted, zap_invoice, zaps

ALICE, BOB, SERVICE, EVE = (SecretKey(bytes([n]) * 32) for n in (1, 2, 3, 4))

# The examples in NIP-57 are no vectors: their ids are not their hashes, nor is the description's hash the invoice's.


@settings(deadline=None)
@given(zaps())
def test_a_zap_from_request_to_receipt(zap):
    request = nip57.check_request(zap.request.to_json(), amount_msats=zap.amount_msats, recipient=zap.recipient)
    zap.receipt.check()
    found = nip57.check_receipt(
        zap.receipt,
        nostr_pubkey=zap.service.public.hex,
        recipient=zap.recipient,
        prefix="sb",
        lnurl_of_recipient=request.lnurl,
    )
    assert (found.sender, found.recipient, found.comment) == (zap.sender.public.hex, zap.recipient, zap.comment)
    assert found.amount_msats == zap.amount_msats == request.amount_msats
    assert found.request == request
    assert found.payment_hash == hashlib.sha256(bytes.fromhex(zap.preimage)).hexdigest()
    assert found.preimage in (None, zap.preimage)
    assert zap.receipt.tag("P") == zap.sender.public.hex
    assert zap.receipt.content == ""


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="bolt11 has no release for this Python")
def test_another_library_finds_the_hash_of_the_request_in_the_invoice():
    import bolt11 as other

    request = nip57.build_request(
        ALICE, recipient=BOB.public.hex, amount_msats=21_000, relays=["wss://a.example"], created_at=NOW
    ).to_json()
    real = zap_invoice(request, amount_msats=21_000, timestamp=NOW, preimage=PREIMAGE, prefix="bc")
    assert other.decode(real).description_hash == hashlib.sha256(request.encode()).hexdigest()


ZAP_REQUEST = nip57.build_request(
    ALICE, recipient=BOB.public.hex, relays=["wss://a.example"], amount_msats=21_000, comment="nice",
    event=sign_event(BOB, kind=1, content="x", created_at=1), created_at=NOW,
)  # fmt: skip
PREIMAGE = b"\x07" * 32
TEXT = ZAP_REQUEST.to_json()
INVOICE = zap_invoice(TEXT, amount_msats=21_000, timestamp=NOW, preimage=PREIMAGE)
RECEIPT = nip57.build_receipt(SERVICE, request=TEXT, invoice=INVOICE, paid_at=NOW + 5, preimage=PREIMAGE.hex())


def changed(**values: str | None) -> Event:
    """The receipt with other tags, by its proper signer; ``None`` leaves a tag out."""
    tags = [[tag[0], values.get(tag[0], tag[1])] for tag in RECEIPT.tags]
    return resigned(SERVICE, RECEIPT, tags=[tag for tag in tags if tag[1] is not None])


def request_with(*tags: list[str], without: str = "", by: SecretKey = ALICE) -> str:
    kept = [tag for tag in ZAP_REQUEST.tags if tag[0] != without]
    return resigned(by, ZAP_REQUEST, tags=[*kept, *tags]).to_json()


def paying(request: str, amount: int = 21_000) -> Event:
    invoice = zap_invoice(request, amount_msats=amount, timestamp=NOW, preimage=PREIMAGE)
    return changed(description=request, bolt11=invoice)


UNSIGNED = json.dumps({**json.loads(TEXT), "sig": "00" * 64})
PLAIN_INVOICE = bolt11.encode(
    prefix="sb", amount_msats=21_000, timestamp=NOW, payment_hash="11" * 32, payment_secret="22" * 32, description="x",
    node_secret=b"\x11" * 32,
)  # fmt: skip
FORGED = {
    "by another key": resigned(EVE, RECEIPT, tags=RECEIPT.tags),
    "by the sender": resigned(ALICE, RECEIPT, tags=RECEIPT.tags),
    "of another kind": attrs.evolve(RECEIPT, kind=9734),
    "no invoice": changed(bolt11=None),
    "no request": changed(description=None),
    "no recipient": changed(p=None),
    "invoice broken": changed(bolt11=INVOICE[:-1]),
    "invoice of a smaller amount": changed(
        bolt11=zap_invoice(TEXT, amount_msats=1_000, timestamp=NOW, preimage=PREIMAGE)
    ),
    "invoice of a larger amount": paying(TEXT, 22_000),
    "invoice for something else": changed(bolt11=PLAIN_INVOICE),
    "invoice of another network": changed(
        bolt11=zap_invoice(TEXT, amount_msats=21_000, timestamp=NOW, preimage=PREIMAGE, prefix="bc")
    ),
    "request changed afterwards": changed(description=TEXT.replace("nice", "evil")),
    "request with a space": changed(description=TEXT + " "),
    "request unsigned": paying(UNSIGNED),
    "request of surrogates": changed(description="\\ud800"),
    "another recipient outside": changed(p=EVE.public.hex),
    "another sender outside": changed(P=EVE.public.hex),
    "another note outside": changed(e="ab" * 32),
    "two recipients": paying(request_with(["p", EVE.public.hex])),
    "another signer wanted": paying(request_with(["P", EVE.public.hex])),
}


@pytest.mark.parametrize("name", sorted(FORGED))
def test_receipts_that_prove_nothing(name):
    with pytest.raises(nip57.ZapInvalid):
        nip57.check_receipt(FORGED[name], nostr_pubkey=SERVICE.public.hex, recipient=BOB.public.hex, prefix="sb")


def test_the_receipt_itself_is_good_and_only_for_its_recipient():
    good = nip57.check_receipt(RECEIPT, nostr_pubkey=SERVICE.public.hex, recipient=BOB.public.hex)
    assert good.preimage == PREIMAGE.hex()
    assert good.comment == "nice"
    assert "nice" not in repr(good)
    assert PREIMAGE.hex() not in repr(good)
    with pytest.raises(nip57.ZapInvalid, match="another recipient"):
        nip57.check_receipt(RECEIPT, nostr_pubkey=SERVICE.public.hex, recipient=EVE.public.hex)
    elsewhere = paying(request_with(["lnurl", lnurl.encode_lnurl("https://e.example/x")]))
    with pytest.raises(nip57.ZapInvalid, match="another service"):
        nip57.check_receipt(elsewhere, nostr_pubkey=SERVICE.public.hex, lnurl_of_recipient="lnurl1abc")
    carried = bolt11.encode(
        prefix="sb", amount_msats=21_000, timestamp=NOW, payment_hash="11" * 32, payment_secret="22" * 32,
        description=TEXT, node_secret=b"\x11" * 32,
    )  # fmt: skip
    assert nip57.check_receipt(changed(bolt11=carried), nostr_pubkey=SERVICE.public.hex).preimage is None
    with pytest.raises(nip57.ZapInvalid, match="hash"):
        nip57.build_receipt(SERVICE, request=TEXT, invoice=carried, paid_at=NOW)
    with pytest.raises(nip57.ZapInvalid, match="preimage"):
        nip57.build_receipt(SERVICE, request=TEXT, invoice=INVOICE, paid_at=NOW, preimage="00" * 32)


@pytest.mark.parametrize(
    "request_text",
    [
        UNSIGNED, "", "[]", "x" * 20_000, TEXT.replace("9734", "1"),
        request_with(without="p"), request_with(["p", EVE.public.hex]), request_with(["p", "x"], without="p"),
        request_with(["e", "ab" * 32]), request_with(["e", "x"], without="e"), request_with(["e"], without="e"),
        request_with(["a", "x"]), request_with(["a", "1:zz:x"]), request_with(["a", f"99999:{'aa' * 32}:x"]),
        request_with(["amount", "20999"], without="amount"), request_with(["amount", "-1"], without="amount"),
        request_with(["amount", "٣"], without="amount"), request_with(["amount", "9" * 400], without="amount"),
        request_with(["P", EVE.public.hex]), request_with(["P", SERVICE.public.hex], ["P", SERVICE.public.hex]),
    ],
)  # fmt: skip
def test_appendix_d(request_text):
    with pytest.raises(nip57.ZapInvalid):
        nip57.check_request(request_text, amount_msats=21_000, receipt_signer=SERVICE.public.hex)


def test_appendix_d_lets_pass_what_is_optional():
    for text in (
        TEXT, request_with(without="amount"), request_with(without="e"), request_with(without="relays"),
        request_with(["P", SERVICE.public.hex]), request_with(["a", f"30023:{BOB.public.hex}:x:y"]),
        request_with(["relays", "http://x", "wss://b.example"], without="relays"),
    ):  # fmt: skip
        nip57.check_request(text, amount_msats=21_000, recipient=BOB.public.hex, receipt_signer=SERVICE.public.hex)


@pytest.mark.parametrize(
    "wanted",
    [{"recipient": "x"}, {"relays": []}, {"relays": ["http://a"]}, {"amount_msats": 0}, {"amount_msats": 10**20},
     {"comment": "x" * 17_000}],
)  # fmt: skip
def test_requests_that_cannot_be_made(wanted):
    plain = {"recipient": BOB.public.hex, "relays": ["wss://a.example"], "amount_msats": 1, "created_at": 1}
    with pytest.raises(nip57.ZapInvalid):
        nip57.build_request(ALICE, **{**plain, **wanted})


@settings(max_examples=150, deadline=None)
@given(twisted(kinds=[9734, 9735]))
def test_readers_raise_their_own_errors_only(event):
    for read in (nip57.check_request, lambda event: nip57.check_receipt(event, nostr_pubkey=event.pubkey)):
        try:
            read(event)
        except nip57.ZapInvalid:
            pass
    shares = nip57.zap_split(event)
    assert not shares or sum(share.share for share in shares) == pytest.approx(1)


@settings(deadline=None)
@given(hostile_json)
def test_a_receipt_may_carry_anything(text):
    try:
        event = paying(text)
    except lnurl.LnurlInvalid:
        return
    with pytest.raises(nip57.ZapInvalid):
        nip57.check_receipt(event, nostr_pubkey=SERVICE.public.hex)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([], []), ([None, None], [0.5, 0.5]), (["1", "1", "2"], [0.25, 0.25, 0.5]), (["1", None], [1.0]),
        (["0", "x"], []), (["-1", "inf", "nan", "3"], [1.0]),
    ],
)  # fmt: skip
def test_zap_splits(weights, shares):
    tags = [["zap", f"{n:064x}", "wss://a.example", *([weight] if weight else [])] for n, weight in enumerate(weights)]
    found = nip57.zap_split(sign_event(ALICE, kind=1, tags=tags, created_at=1))
    assert [share.share for share in found] == shares


# --- LNURL ----------------------------------------------------------------------------------------------------


def test_the_example_of_lud01():
    url = "https://service.com/api?q=3fc3645b439ce8e7f2553a69e5267081d96dcd340693afabe04be7b0ccd178df"
    text = (
        "LNURL1DP68GURN8GHJ7UM9WFMXJCM99E3K7MF0V9CXJ0M385EKVCENXC6R2C35XVUKXEFCV5MKVV34X5EKZD3EV56NYD3HXQURZEPEXEJXXEPNXS"
        "CRVWFNV9NXZCN9XQ6XYEFHVGCXXCMYXYMNSERXFQ5FNS"
    )
    assert lnurl.decode_lnurl(text) == lnurl.pay_url("lightning:" + text.lower()) == url
    assert lnurl.encode_lnurl(url) == text.lower()
    for broken in (text[:-1], text.lower()[:10] + text[10:], "npub1xxx", "", "x" * 10_000, "lnurl1\ud800"):
        with pytest.raises(lnurl.LnurlInvalid):
            lnurl.decode_lnurl(broken)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("alice@a.example", "https://a.example/.well-known/lnurlp/alice"),
        (" Alice@A.Example ", "https://a.example/.well-known/lnurlp/alice"),
        ("a.b-c_d+e@a.example:8443", "https://a.example:8443/.well-known/lnurlp/a.b-c_d+e"),
        ("bob@abcdef.onion", "http://abcdef.onion/.well-known/lnurlp/bob"),
        ("lnurlp://a.example/pay/me", "https://a.example/pay/me"),
        ("lnurlp://abcdef.onion/pay", "http://abcdef.onion/pay"),
        ("x@8.8.8.8", "https://8.8.8.8/.well-known/lnurlp/x"),
    ],
)
def test_addresses(text, url):
    assert lnurl.pay_url(text) == url


LOCAL = ["x@127.0.0.1:9899", "x@localhost", "lnurlp://127.0.0.1/x", lnurl.encode_lnurl("http://127.0.0.1:9899/x"),
         lnurl.encode_lnurl("http://[::1]:9899/x")]  # fmt: skip


@pytest.mark.parametrize("text", LOCAL)
def test_local_addresses_want_to_be_allowed(text):
    with pytest.raises(lnurl.LnurlInvalid):
        lnurl.pay_url(text)
    assert lnurl.pay_url(text, allow_local=True).startswith("http://")


@pytest.mark.parametrize(
    "text",
    [
        "", "@", "a@", "@a.example", "a@b", "a b@c.example", "ä@a.example", "a@a.example/x", "a@a.example:99999999",
        "x@10.0.0.1", "x@192.168.1.1", "x@169.254.169.254", "x@2130706433", "x@127.1", "x@0x7f.1", "x@0177.0.0.1",
        "x@router.lan", "x@printer.local", "x@metadata.google.internal", "x@a..example", "x@a.example.", "x@0.0.0.0",
        "lnurlp://user:pw@a.example/x", "lnurlp://", "lnurlp://a.example:x/", "lnurlp://[::1/x", "lnurlp://a.example/\nx",
        lnurl.encode_lnurl("http://a.example/x"), lnurl.encode_lnurl("ftp://a.example/x"),
        lnurl.encode_lnurl("https://[fd00::1]/x"), lnurl.encode_lnurl("file:///etc/passwd"), "x@a.example" * 500,
    ],
)  # fmt: skip
def test_addresses_that_lead_nowhere_or_inside(text):
    allowed = {"x@a.example."}
    try:
        url = lnurl.pay_url(text)
    except lnurl.LnurlInvalid:
        return
    assert text in allowed, url


@given(pay_requests())
def test_documents(document):
    read = lnurl.PayRequest.parse(document.to_json())
    expected = document if document.nostr_pubkey else attrs.evolve(document, allows_nostr=False)
    assert read == expected
    assert read.zappable == (document.allows_nostr and document.nostr_pubkey is not None)
    assert read.description == json.loads(document.metadata)[0][1]


@given(pay_requests(), st.data())
def test_a_call_arrives_as_it_was_made(document, data):
    amount = data.draw(st.integers(document.min_msats, document.max_msats))
    comment = data.draw(texts)[: document.comment_chars]
    zap = data.draw(st.none() | texts.filter(bool)) if document.zappable else None
    url = document.invoice_url(amount, comment=comment, zap_request=zap, lnurl="lnurl1abc")
    assert lnurl.check_url(url) == url
    query = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    call = lnurl.parse_call(query, document)
    assert (call.amount_msats, call.comment, call.zap_request, call.lnurl) == (amount, comment, zap, "lnurl1abc")
    for outside in (document.min_msats - 1, document.max_msats + 1):
        with pytest.raises(lnurl.LnurlInvalid):
            document.invoice_url(outside)
        with pytest.raises(lnurl.LnurlInvalid):
            lnurl.parse_call({"amount": str(outside)}, document)
    with pytest.raises(lnurl.LnurlInvalid):
        document.invoice_url(amount, comment="x" * (document.comment_chars + 1))


DOCUMENT = lnurl.PayRequest("https://a.example/cb", 1_000, 10**6, lnurl.build_metadata("tips", "bob@a.example"))


@pytest.mark.parametrize("query", [{}, {"amount": ""}, {"amount": "-1000"}, {"amount": "1e3"}, {"amount": "٣000"},
                                   {"amount": "9" * 400}, {"amount": "1000", "comment": "x"},
                                   {"amount": "1000", "nostr": "{}"}])  # fmt: skip
def test_calls_that_are_refused(query):
    with pytest.raises(lnurl.LnurlInvalid):
        lnurl.parse_call(query, DOCUMENT)


@given(hostile_json)
def test_answers_may_be_anything(text):
    for read in (lnurl.PayRequest.parse, lnurl.parse_invoice):
        with pytest.raises(lnurl.LnurlInvalid):
            read(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tag", "withdrawRequest"), ("callback", None), ("callback", "http://a.example/"), ("callback", "https://10.0.0.1/"),
     ("metadata", []), ("minSendable", 0), ("minSendable", "1"), ("minSendable", True), ("minSendable", 1.5),
     ("maxSendable", 999), ("maxSendable", None), ("minSendable", 1e300)],
)  # fmt: skip
def test_documents_that_are_none(name, value):
    good = json.loads(DOCUMENT.to_json())
    lnurl.PayRequest.parse(json.dumps(good))
    with pytest.raises(lnurl.LnurlInvalid):
        lnurl.PayRequest.parse(json.dumps({**good, name: value}))


def test_what_a_document_says_too_much_or_wrongly_is_passed_over():
    good = json.loads(DOCUMENT.to_json())
    said = {
        "nostrPubkey": "ff" * 32,
        "allowsNostr": "yes",
        "commentAllowed": "many",
        "metadata": "[",
        "maxSendable": 1e17,
    }
    read = lnurl.PayRequest.parse(json.dumps({**good, **said}))
    assert (read.zappable, read.nostr_pubkey, read.comment_chars, read.description) == (False, None, 0, "")
    assert read.max_msats == 10**17
    assert lnurl.PayRequest.parse(json.dumps({**good, "maxSendable": 10**19})).max_msats == lnurl.MAX_MSATS


def test_refusals_and_invoices():
    assert lnurl.parse_invoice(lnurl.build_invoice(INVOICE)) == INVOICE
    for read in (lnurl.parse_invoice, lnurl.PayRequest.parse):
        with pytest.raises(lnurl.LnurlRefused) as caught:
            read(lnurl.build_refusal("no such user " + "x" * 1_000))
        assert caught.value.reason.startswith("no such user")
        assert len(caught.value.reason) == lnurl.MAX_TEXT_CHARS
        assert "no such user" not in str(caught.value)
    for answer in ('{"pr":""}', '{"pr":5}', json.dumps({"pr": "x" * 8_000}), " " * 500_000):
        with pytest.raises(lnurl.LnurlInvalid):
            lnurl.parse_invoice(answer)


def test_an_invoice_is_the_one_asked_for():
    terms = {"description": TEXT, "amount_msats": 21_000, "prefix": "sb", "now": NOW}
    assert lnurl.check_invoice(INVOICE, **terms).payment_hash == hashlib.sha256(PREIMAGE).hexdigest()
    for wrong in ({"description": "x"}, {"amount_msats": 20_999}, {"prefix": "bc"}, {"now": NOW + 10**6},
                  {"description": "\ud800"}):  # fmt: skip
        with pytest.raises(lnurl.LnurlInvalid):
            lnurl.check_invoice(INVOICE, **{**terms, **wrong})
    with pytest.raises(lnurl.LnurlInvalid):
        lnurl.check_invoice("lnsb1", **terms)
