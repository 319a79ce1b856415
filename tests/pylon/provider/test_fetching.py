"""A customer names an address, and we are the one who looks it up: what must never be read for him."""

from __future__ import annotations

import contextlib

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pylon import publicnet
from pylon.groups import cause
from pylon.provider import fetching
from pylon.provider.fetching import InputRefused, fetch_input
from tests.pylon.host.test_fetch import PRIVATE, certificate, resolving
from tests.pylon.services import Call, open_service


async def _text(call: Call):
    await call.answer("grüße".encode(), "200 OK", "Content-Type: text/plain; charset=utf-8")


@pytest.fixture
async def public(monkeypatch):
    """The loopback stands for the public network, on any port; other addresses are what they are."""
    real = publicnet.is_public
    monkeypatch.setattr(publicnet, "is_public", lambda address: str(address) == "127.0.0.1" or real(address))
    monkeypatch.setattr(fetching, "_PORTS", {"http": range(65_536), "https": range(65_536)})
    return resolving(page_example=["127.0.0.1"], other_example=["127.0.0.1"], within_example=["10.0.0.7"])


async def test_a_text_is_fetched(public):
    async with open_service(_text) as service:
        assert await fetch_input(f"http://page.example:{service.port}/a?b=c") == "grüße"
    call = Call(None, service.calls[0], 0)
    assert call.target == "/a?b=c"
    assert call.header("host") == f"page.example:{service.port}"
    assert call.header("cookie") is None
    assert public.asked == ["page.example"]


async def test_tls_proves_the_name(public, monkeypatch, tmp_path):
    server, trusting = certificate(tmp_path, "page.example")
    monkeypatch.setattr(publicnet, "_trusted", lambda: trusting)
    async with open_service(_text, server) as service:
        assert await fetch_input(f"https://page.example:{service.port}/") == "grüße"
        with pytest.raises(InputRefused, match="cannot be reached"):
            await fetch_input(f"https://other.example:{service.port}/")


@pytest.mark.parametrize("text", PRIVATE)
async def test_nothing_leads_within(text):
    """By a name, alone or beside a public address, or as it stands."""
    resolving(one_example=[text], two_example=["8.8.8.8", text])
    bare = f"[{text}]" if ":" in text else text
    for host in ("one.example", "two.example", bare):
        for scheme in ("http", "https"):
            with pytest.raises(InputRefused, match="public network"):
                await fetch_input(f"{scheme}://{host}/latest/meta-data/")


async def test_what_leads_within_and_what_is_not_there_sound_the_same(public):
    said = set()
    for host in ("within.example", "no.example", "localhost", "router.lan", "10.0.0.7", "wpad"):
        with pytest.raises(InputRefused) as caught:
            await fetch_input(f"http://{host}/")
        said.add((caught.value.message, caught.value.hint))
    assert len(said) == 1


@pytest.mark.parametrize(
    "url",
    ["", "page.example", "ftp://page.example/", "file:///etc/passwd", "gopher://page.example/", "//page.example/",
     "http://user@page.example/", "http://a:b@page.example/", "http://2130706433/", "http://0x7f.1/", "http://127.1/",
     "http://017700000001/", "http://[::ffff:127.0.0.1]/", "http://[::]/", "http://page.example\\@127.0.0.1/",
     "http://page.example:99999/", "http://page.example:x/", "http://page .example/", "http://ｌocalhost/",
     "http://page.example/" + "x" * 2_048, "HTTP://localhost/", "data:text/plain,x", "http://", "http:///x"],
)  # fmt: skip
async def test_addresses_that_are_none(url):
    resolver = resolving()
    with pytest.raises(InputRefused):
        await fetch_input(url)
    assert resolver.asked == []


@given(url=st.text(max_size=200) | st.from_regex(r"https?://[ -~]{0,60}", fullmatch=True))
def test_any_address_is_taken_or_refused(url):
    try:
        fetching._check(url)
    except InputRefused:
        pass


@pytest.mark.parametrize("port", [22, 25, 6379, 8080, 9899, 11434])
async def test_other_ports_are_none_of_a_strangers_business(port):
    resolver = resolving(page_example=["8.8.8.8"])
    with pytest.raises(InputRefused, match="port"):
        await fetch_input(f"http://page.example:{port}/")
    assert resolver.asked == []


# --- redirects --------------------------------------------------------------------------------------------------------


async def test_a_redirect_is_followed(public):
    async def handler(call: Call):
        if call.path == "/end":
            await _text(call)
        else:
            await call.answer(b"", "302 Found", "Location: /end" if call.path == "/near" else "Location: near")

    async with open_service(handler) as service:
        assert await fetch_input(f"http://page.example:{service.port}/far") == "grüße"
    assert [call.split(" ")[1] for call in service.calls] == ["/far", "/near", "/end"]
    assert {Call(None, call, 0).header("host") for call in service.calls} == {f"page.example:{service.port}"}


@pytest.mark.parametrize(
    "location",
    ["http://within.example/", "http://10.0.0.7/", "http://169.254.169.254/", "//within.example/", "file:///etc/passwd",
     "http://user@page.example:{port}/", "http://[::1]:11434/", "http://localhost/", "http://no.example/", "http://[/",
     "::::"],
)  # fmt: skip
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_looked_at_like_the_first_address(public, location, status):
    async def handler(call: Call):
        if call.path != "/start":
            return await _text(call)
        await call.answer(b"", status, f"Location: {location.format(port=call.port)}")

    async with open_service(handler) as service:
        with pytest.raises(InputRefused):
            await fetch_input(f"http://page.example:{service.port}/start")
        assert len(service.calls) == 1


async def test_redirects_have_an_end(public):
    async def handler(call: Call):
        await call.answer(b"", "302 Found", f"Location: /{len(service.calls)}")

    async with open_service(handler) as service:
        with pytest.raises(InputRefused, match="more than 3 times"):
            await fetch_input(f"http://page.example:{service.port}/")
    assert len(service.calls) == 4


async def test_no_way_down_from_https(public, monkeypatch, tmp_path):
    server, trusting = certificate(tmp_path, "page.example")
    monkeypatch.setattr(publicnet, "_trusted", lambda: trusting)
    async with open_service(_text) as plain:

        async def handler(call: Call):
            await call.answer(b"", "302 Found", f"Location: http://page.example:{plain.port}/")

        async with open_service(handler, server) as service:
            with pytest.raises(InputRefused, match="from https"):
                await fetch_input(f"https://page.example:{service.port}/")
    assert plain.calls == []


# --- what comes back --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def error_of_group():
    try:
        yield
    except ExceptionGroup as group:
        raise cause(group) from None


async def _answered(body: bytes, *headers: str, status: str = "200 OK", **changes) -> str:
    async def handler(call: Call):
        await call.answer(body, status, *headers)

    with error_of_group():
        async with open_service(handler) as service:
            return await fetch_input(f"http://page.example:{service.port}/", **changes)


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("text/html", b"<p>x", "<p>x"),
        ('Text/Markdown; Charset="ISO-8859-1"', b"gr\xfc\xdfe", "grüße"),
        ("application/json", b'{"a":1}', '{"a":1}'),
        ("application/activity+json; profile=x", b"{}", "{}"),
        ("text/plain; charset=utf-16", "x\U0001f600".encode("utf-16"), "x\U0001f600"),
        ("text/plain", b"\xef\xbb\xbfx\xff\x00", "x\ufffd\ufffd"),
    ],
)
async def test_texts(public, kind, body, text):
    assert await _answered(body, f"Content-Type: {kind}") == text


@pytest.mark.parametrize(
    "headers",
    [["Content-Type: image/png"], ["Content-Type: application/octet-stream"], [], ["Content-Type: "],
     ["Content-Type: text"], ["Content-Type: text/plain; charset=punycode"], ["Content-Type: text/plain; charset=zip"],
     ["Content-Type: text/plain; charset=utf-7"], ["Content-Type: text/plain; charset=nonsense"],
     ["Content-Type: text/plain", "Content-Encoding: gzip"]],
)  # fmt: skip
async def test_what_is_no_text(public, headers):
    with pytest.raises(InputRefused):
        await _answered(b"x", *headers)


@pytest.mark.parametrize("status", ["404 Not Found", "500 Broken", "204 None", "206 Part", "304 Same", "300 Many"])
async def test_only_a_whole_answer_is_one(public, status):
    with pytest.raises(InputRefused, match=f"answers {status[:3]}"):
        await _answered(b"", "Content-Type: text/plain", status=status)


async def test_a_text_has_a_bound(public):
    kind = "Content-Type: text/plain"
    assert len(await _answered(b"x" * 1_000, kind, max_bytes=1_000)) == 1_000
    with pytest.raises(InputRefused, match="longer than 1,000 bytes"):
        await _answered(b"x" * 1_001, kind, max_bytes=1_000)

    async def endless(call: Call):
        await call.stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            await call.stream.send_all(b"x" * 10_000)

    async with open_service(endless) as service:
        with pytest.raises(InputRefused, match="longer than"):
            await fetch_input(f"http://page.example:{service.port}/")


async def test_one_deadline_covers_the_redirects_too(public):
    async def slow(call: Call):
        await trio.sleep(0.3)
        await call.answer(b"", "302 Found", "Location: /on")

    async with open_service(slow) as service:
        with pytest.raises(InputRefused, match=r"longer than 0\.5 s"):
            await fetch_input(f"http://page.example:{service.port}/", seconds=0.5)
        assert 1 <= len(service.calls) <= 2, "each of them by itself is fast enough"


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"\x00" * 100])
async def test_what_is_no_http(public, answer):
    async def handler(call: Call):
        await call.stream.send_all(answer)

    async with open_service(handler) as service:
        with pytest.raises(InputRefused, match="cannot be reached"):
            await fetch_input(f"http://page.example:{service.port}/")
