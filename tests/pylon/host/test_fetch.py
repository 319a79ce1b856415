"""Where a stranger's address may lead, and how long and how much he may answer."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import zlib

import httpx
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from protocols.lnurl import LnurlInvalid
from pylon import publicnet as module
from pylon.host.fetch import Answer, ServiceUnreachable, fetch, open_client
from pylon.publicnet import is_public
from tests.pylon.services import Call, open_service


@pytest.fixture
async def client():
    async with open_client() as client:
        yield client


async def get(url: str, client: httpx.AsyncClient, **changes) -> Answer:
    return await fetch(url, **{"client": client, "max_bytes": 1_000, "allow_local": True, "seconds": 5.0, **changes})


class Names:
    """A resolver that a test fills."""

    def __init__(self, **names: list[str]):
        self.names = {name.replace("_", "."): addresses for name, addresses in names.items()}
        self.asked: list[str] = []

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        self.asked.append(host.decode())
        if host.decode() not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in self.names[host.decode()]
        ]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


def resolving(**names: list[str]) -> Names:
    resolver = Names(**names)
    trio.socket.set_custom_hostname_resolver(resolver)
    return resolver


# --- addresses --------------------------------------------------------------------------------------------------------

PRIVATE = ["127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
           "100.64.0.1", "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1",
           "::", "::1", "fe80::1", "fc00::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
           "2002:7f00:1::", "2002:c0a8:101::1", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1",
           "2001:0:53aa:64c:0:0:80ff:fffe", "::7f00:1", "::a00:1", "64:ff9b:1::a00:1", "fec0::1", "100::1", "3fff::1",
           "5f00::1", "4000::1", "2600:1::5efe:808:808", "2600:1::200:5efe:808:808", "192.88.99.1"]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "2002:808:808::1",
          "64:ff9b::8.8.8.8"]  # fmt: skip


@pytest.mark.parametrize("text", PRIVATE)
def test_private_addresses(text):
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses(text):
    assert is_public(ipaddress.ip_address(text))


@given(st.ip_addresses(v=4))
def test_an_address_within_another_counts_as_itself(address):
    inner = int(address)
    for outer in (0xFFFF << 32 | inner, 0x0064FF9B << 96 | inner, 0x2002 << 112 | inner << 80 | 1):
        assert is_public(ipaddress.IPv6Address(outer)) == is_public(address)


@pytest.mark.parametrize("text", PRIVATE)
async def test_a_name_in_public_leads_nowhere_within(client, text):
    """Neither alone nor beside a public address."""
    resolver = resolving(pay_example=[text], two_example=["8.8.8.8", text])
    for name in ("pay.example", "two.example"):
        with pytest.raises(LnurlInvalid, match="public network"):
            await get(f"https://{name}/x", client, allow_local=False)
        with pytest.raises(LnurlInvalid, match="public network"):
            await get(f"https://{name}/x", client, allow_local=True)
    assert resolver.asked == ["pay.example"] * 2 + ["two.example"] * 2


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/x", "http://localhost/x", "http://pay.example/x", "https://10.0.0.1/x", "https://localhost/x",
     "https://user@pay.example/x", "ftp://pay.example/", "https://[::1]/", "file:///etc/passwd", "//pay.example/x", "",
     "https://pay.example:99999/", "https://2130706433/", "https://0x7f.1/"],
)  # fmt: skip
async def test_addresses_that_lead_nowhere(client, url):
    resolver = resolving()
    with pytest.raises(LnurlInvalid):
        await get(url, client, allow_local=False)
    assert resolver.asked == []


async def test_names_that_do_not_resolve(client):
    resolving()
    for name in ("no.example", "a" * 64 + ".example", "abc.onion"):
        scheme = "http" if name.endswith("onion") else "https"
        with pytest.raises(ServiceUnreachable, match="has no address"):
            await get(f"{scheme}://{name}/x", client)


async def test_a_literal_address_is_looked_at_too(client):
    with pytest.raises(LnurlInvalid, match="public network"):
        await get("https://224.0.0.1/x", client)


async def test_the_connection_goes_to_the_address_that_was_looked_at(client, monkeypatch):
    """A second answer of the resolver, another one, is never asked for."""
    resolver = resolving(pay_example=["8.8.8.8"])
    seen = []

    async def send(request, **changes):
        resolver.names["pay.example"] = ["127.0.0.1"]
        seen.append((request.url.host, request.headers["host"], request.extensions["sni_hostname"], changes))
        raise httpx.ConnectError("no network in tests")

    monkeypatch.setattr(client, "send", send)
    with pytest.raises(ServiceUnreachable, match="cannot be connected to"):
        await get("https://Pay.Example:8443/x?y=%C3%A9", client)
    assert seen == [("8.8.8.8", "pay.example:8443", "pay.example", {"stream": True, "follow_redirects": False})]
    assert resolver.asked == ["pay.example"]


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_an_answer_and_what_was_asked(client):
    async def handler(call: Call):
        await call.answer(b"hello", "402 Payment Required", "Set-Cookie: a=b")

    async with open_service(handler) as service:
        for _ in range(2):
            answer = await get(f"{service.url}/a/b?c=d%20e&f=%22", client)
            assert answer == Answer(402, b"hello")
            assert "hello" not in repr(answer)
    first, second = service.calls
    assert first.startswith("GET /a/b?c=d%20e&f=%22 HTTP/1.1\r\n")
    call = Call(None, first, 0)
    assert call.header("host") == f"127.0.0.1:{service.port}"
    assert call.header("connection") == "close"
    assert call.header("accept-encoding") == "identity"
    assert call.header("user-agent") == "pylon"
    assert "cookie" not in second.lower()


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def handler(call: Call):
        await call.answer(b"x")

    async with open_service(handler) as service, open_client() as client:
        assert (await get(f"{service.url}/", client)).status == 200


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_redirects_are_not_followed(client, status):
    async def handler(call: Call):
        await call.answer(b"", status, f"Location: http://127.0.0.1:{call.port}/elsewhere")

    async with open_service(handler) as service:
        with pytest.raises(LnurlInvalid, match="elsewhere"):
            await get(f"{service.url}/", client)
        assert len(service.calls) == 1


async def _endless(call: Call):
    await call.stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await call.stream.send_all(b"x" * 10_000)


async def _declared(call: Call):
    await call.stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 2_000)
    await trio.sleep_forever()


async def _one_more(call: Call):
    await call.answer(b"x" * 1_001)


async def test_an_answer_has_a_bound(client):
    for handler in (_endless, _declared, _one_more):
        async with open_service(handler) as service:
            with pytest.raises(LnurlInvalid, match="at most 1000 bytes"):
                await get(f"{service.url}/", client)

    async def just(call: Call):
        await call.answer(b"x" * 1_000)

    async with open_service(just) as service:
        assert len((await get(f"{service.url}/", client)).body) == 1_000


async def test_a_bomb_is_not_unpacked(client):
    async def handler(call: Call):
        await call.answer(zlib.compress(b"x" * 100_000), "200 OK", "Content-Encoding: deflate")

    async with open_service(handler) as service:
        with pytest.raises(LnurlInvalid, match="compressed"):
            await get(f"{service.url}/", client)


async def _silent(call: Call):
    await trio.sleep_forever()


async def _drips_head(call: Call):
    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000:
        await call.stream.send_all(bytes([byte]))
        await trio.sleep(0.05)


async def _drips_body(call: Call):
    await call.stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    while True:
        await call.stream.send_all(b"x")
        await trio.sleep(0.05)


@pytest.mark.parametrize("handler", [_silent, _drips_head, _drips_body])
async def test_one_deadline_covers_it_all(client, handler):
    async with open_service(handler) as service:
        began = trio.current_time()
        with pytest.raises(ServiceUnreachable, match=r"within 0\.3 s"):
            await get(f"{service.url}/", client, seconds=0.3)
        assert trio.current_time() - began < 2.0


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"\x00" * 100,
     b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000 + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"],
    ids=["hangs up", "no http", "half", "nul", "huge head", "negative"],
)  # fmt: skip
async def test_what_is_no_answer(client, answer):
    async def handler(call: Call):
        await call.stream.send_all(answer)

    async with open_service(handler) as service:
        with pytest.raises(ServiceUnreachable, match="broke"):
            await get(f"{service.url}/", client)


async def test_nobody_listens(client):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ServiceUnreachable, match="cannot be connected to"):
            await get(f"http://127.0.0.1:{taken.getsockname()[1]}/", client)


async def test_the_next_address_is_tried(client, monkeypatch):
    async def handler(call: Call):
        await call.answer(b"hello")

    monkeypatch.setattr(module, "is_public", lambda address: True)
    async with open_service(handler) as service:
        resolving(localhost=["127.0.0.3", "127.0.0.2", "127.0.0.1"])
        answer = await get(f"http://localhost:{service.port}/", client)
        assert answer.body == b"hello"
        resolving(localhost=["127.0.0.3", "127.0.0.2", "127.0.0.4", "127.0.0.1"])
        with pytest.raises(ServiceUnreachable):
            await get(f"http://localhost:{service.port}/", client)


# --- TLS --------------------------------------------------------------------------------------------------------------


def certificate(tmp_path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate for ``name``, and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / f"{name}.pem"
    pem.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


async def test_tls_proves_the_name_and_not_the_address(tmp_path, monkeypatch):
    names = []

    async def handler(call: Call):
        await call.answer(b"hello")

    server, trusting = certificate(tmp_path, "pay.example")
    server.sni_callback = lambda connection, name, context: names.append(name)
    monkeypatch.setattr(module, "is_public", lambda address: True)
    async with open_service(handler, server) as service, httpx.AsyncClient(verify=trusting, trust_env=False) as client:
        resolving(pay_example=["127.0.0.1"], other_example=["127.0.0.1"])
        answer = await get(f"https://pay.example:{service.port}/x", client, allow_local=False)
        assert answer.body == b"hello"
        assert Call(None, service.calls[0], 0).header("host") == f"pay.example:{service.port}"
        # The same address, and it has just been connected to; but it cannot prove the other name.
        with pytest.raises(ServiceUnreachable, match="connected") as caught:
            await get(f"https://other.example:{service.port}/x", client, allow_local=False)
        assert "certificate" in caught.value.hint
        assert len(service.calls) == 1
    assert names == ["pay.example", "other.example"]
