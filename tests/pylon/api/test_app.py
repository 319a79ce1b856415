"""LNURL-pay over HTTP: what wallets on the web are told, and what strangers may send."""

from __future__ import annotations

import json
from urllib.parse import quote, urlencode

import httpx
import pytest
import trio
from hypothesis import event, given, settings
from hypothesis import strategies as st

from protocols import bolt11, lnurl
from protocols.strategies_agents import hostile_json
from pylon.api import app as app_module
from pylon.api.app import build_app
from pylon.clock import VirtualClock
from pylon.errors import WalletError
from pylon.host.zaps import PayLimits
from tests.pylon.api.serving import TOKEN
from tests.pylon.payees import open_ledger, open_village

AMOUNT = 21_000


@pytest.fixture
async def village(tmp_path):
    clock = VirtualClock()
    async with open_ledger(tmp_path, clock) as ledger:
        async with open_village(tmp_path, ledger, clock) as village:
            yield village


def client(service) -> httpx.AsyncClient:
    app = build_app(service, token=TOKEN)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://agents.example.com")


def refused(answer: httpx.Response) -> str:
    """The reason, of an answer that is LNURL's error."""
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    said = answer.json()
    assert set(said) == {"status", "reason"}
    assert said["status"] == "ERROR"
    return said["reason"]


async def test_a_wallet_gets_a_document_and_an_invoice(village):
    async with client(village.service()) as http:
        answer = await http.get("/.well-known/lnurlp/alice", headers={"Origin": "https://wallet.example"})
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["access-control-allow-origin"] == "*"
        document = lnurl.PayRequest.parse(answer.content)
        request = village.request()
        answer = await http.get(document.invoice_url(AMOUNT, zap_request=request))
        invoice = lnurl.parse_invoice(answer.content)
        lnurl.check_invoice(
            invoice, description=request, amount_msats=AMOUNT, prefix="sb", now=village.clock.now(), min_seconds=60
        )
        assert answer.json()["routes"] == []
        plain = lnurl.parse_invoice((await http.get(document.invoice_url(AMOUNT, comment="hello"))).content)
        assert lnurl.commits_to(bolt11.decode(plain), document.metadata)


async def test_a_web_wallet_asks_first_whether_it_may(village):
    async with client(village.service()) as http:
        for path in ("/.well-known/lnurlp/alice", "/lnurlp/alice/pay", "/health"):
            answer = await http.options(
                path, headers={"Origin": "https://wallet.example", "Access-Control-Request-Method": "GET"}
            )
            assert (answer.status_code, answer.content) == (204, b"")
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "GET" in answer.headers["access-control-allow-methods"]


async def test_a_question_after_the_headers_makes_no_invoice(village):
    service = village.service()
    async with client(service) as http:
        for path in ("/.well-known/lnurlp/alice", "/health", f"/lnurlp/alice/pay?amount={AMOUNT}"):
            assert (await http.head(path)).status_code == 200
    assert service.unpaid() == []


async def test_errors_are_lnurls(village):
    service = village.service(PayLimits(open_per_agent=1, comment_chars=5))
    async with client(service) as http:
        assert "nobody" in refused(await http.get("/.well-known/lnurlp/mallory"))
        assert "nobody" in refused(await http.get("/lnurlp/mallory/pay?amount=21000"))
        for query, reason in (
            ("", "amount"),
            ("amount=", "amount"),
            ("amount=999", "1000"),
            ("amount=1000000000001", "1000000000"),
            ("amount=21000&comment=123456", "5 characters"),
            ("amount=21000&nostr=", "zap request"),
            ("amount=21000&nostr=%7B%7D", "zap request"),
            ("amount=22000&nostr=" + quote(village.request()), "amount"),
            ("amount=21000&nostr=" + quote(village.request("bob")), "recipient"),
        ):
            assert reason in refused(await http.get(f"/lnurlp/alice/pay?{query}")), query
        assert "pr" in (await http.get("/lnurlp/alice/pay?amount=21000")).json()
        assert "too many" in refused(await http.get("/lnurlp/alice/pay?amount=21000"))


async def test_without_anybody_to_be_paid_it_says_so(village):
    async with client(None) as http:
        assert "nobody" in refused(await http.get("/.well-known/lnurlp/alice"))
        assert "nobody" in refused(await http.get("/lnurlp/alice/pay?amount=21000"))
        assert (await http.get("/health")).json() == {"status": "ok"}
    async with client(village.service(address=None)) as http:
        assert "public name" in refused(await http.get("/.well-known/lnurlp/alice"))


class Away:
    """A wallet that is of no use."""

    def __init__(self, error):
        self.error = error

    async def info(self):
        if self.error is None:
            await trio.sleep_forever()
        raise self.error


@pytest.mark.parametrize("error", [WalletError("the secret is 1234"), ZeroDivisionError("1234"), None])
async def test_a_wallet_that_is_away_is_told_without_its_words(village, error, monkeypatch, caplog):
    monkeypatch.setattr(app_module, "INVOICE_SECONDS", 0.05)
    village.wallets["alice"] = Away(error)
    async with client(village.service()) as http:
        reason = refused(await http.get("/lnurlp/alice/pay?amount=21000"))
    assert "later" in reason
    assert "1234" not in reason
    assert "an invoice cannot be made" in caplog.text


# Whatever comes in the query: it is LNURL's error, or an invoice that is just what was asked for, and a row.

good_amounts = st.sampled_from(["1000", "21000", "1000000000"]) | st.integers(1_000, 10**9).map(str)
amounts = st.one_of(
    st.integers(-10, 2 * 10**9).map(str),
    st.sampled_from(["", "1e3", "21000.0", "+21000", " 21000", "٢١٠٠٠", "0x10", "9" * 30, "999", "1000000001", "²"]),
    st.text(max_size=10),
)
comments = st.just("") | st.text(max_size=20) | st.text(min_size=279, max_size=282)
names = st.sampled_from(["alice", "bob", "mallory", "..", "%2e%2e"])
zaps = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["alice", "bob"]),
        "amount": st.sampled_from([None, 1_000, 999]),
        "comment": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        "cut": st.sampled_from([None, -1, 50]),
    }
)
good_zaps = zaps.map(lambda parts: {**parts, "name": "alice", "amount": None, "cut": None})
"""Zap requests by their parts; amount ``None`` is the one that the call says."""
calls = st.one_of(
    st.tuples(st.just("alice"), good_amounts, st.just(""), good_zaps),
    st.tuples(st.just("alice"), good_amounts, st.just(""), st.none() | zaps),
    st.tuples(names, good_amounts, comments, st.none() | good_zaps),
    st.tuples(st.just("alice"), amounts, comments, good_zaps),
    st.tuples(names, amounts, comments, st.one_of(st.none(), zaps, hostile_json, st.text(max_size=30))),
)


@settings(max_examples=60)
@given(st.lists(calls, min_size=1, max_size=6))
def test_the_callback_whatever_is_asked(tmp_path_factory, asked):
    async def run():
        clock, directory = VirtualClock(), tmp_path_factory.mktemp("app")
        async with open_ledger(directory, clock) as ledger, open_village(directory, ledger, clock) as village:
            service = village.service()
            async with client(service) as http:
                for call in asked:
                    await ask(village, service, http, *call)

    async def ask(village, service, http, name, amount, comment, nostr):
        if isinstance(nostr, dict):
            said = int(amount) if amount.isdecimal() and 0 < int(amount) < 10**12 else 21_000
            nostr = village.request(nostr["name"], nostr["amount"] or said, comment=nostr["comment"])[: nostr["cut"]]
        fields = {"amount": amount, "comment": comment, **({} if nostr is None else {"nostr": nostr})}
        before = len(service.unpaid())
        answer = await http.get(f"/lnurlp/{name}/pay?{urlencode(fields, errors='surrogatepass')}")
        said = json.loads(answer.content)
        if "pr" not in said:
            event("refused")
            assert answer.status_code == 200 or name in ("..", "%2e%2e")
            assert len(service.unpaid()) == before
            return
        event("a plain invoice" if nostr is None else "a zap's invoice")
        invoice = bolt11.decode(said["pr"])
        assert amount.isascii()
        assert invoice.amount_msats == int(amount)
        assert 1_000 <= invoice.amount_msats <= 10**9
        assert len(comment) <= 280
        assert invoice.payee == village.wallets[name].node_pubkey
        wanted = service.document(name).metadata if nostr is None else nostr
        assert invoice.description_hash == lnurl.description_hash(wanted)
        assert invoice.payment_hash in {row.payment_hash for row in service.unpaid(village.hex(name))}

    trio.run(run)
