"""Who may ask what: by the guard alone, and through the server with a route that only tests have."""

from __future__ import annotations

import json
import logging

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from pylon.api import guard as guard_module
from pylon.api.app import build_app
from pylon.api.guard import MAX_BODY_BYTES, Guard, is_open
from tests.pylon.api.serving import BEARER, TOKEN, serving


async def _echo(request):
    return PlainTextResponse(f"{request.method} {len(await request.body())}")


async def _break(request):
    raise ZeroDivisionError("the secret is 1234")


async def _refuse(request):
    raise HTTPException(418, "a teapot")


async def _break_midway(request):
    async def pieces():
        yield b"begun"
        await trio.sleep(0.05)
        raise ZeroDivisionError("the secret is 1234")

    return StreamingResponse(pieces())


async def _early(request):
    return PlainTextResponse("enough")


ROUTES = [
    Route("/v1/echo", _echo, methods=["GET", "POST"]),
    Route("/v1/break", _break),
    Route("/v1/refuse", _refuse),
    Route("/v1/midway", _break_midway),
]
APP = build_app(None, token=TOKEN, public_name="agents.example.com:8443", routes=ROUTES)


async def ask(path: str, headers: list[tuple[bytes, bytes]], method: str = "GET", app: Guard = APP, **scope):
    """Status, headers and body that the guard answers, without any server."""
    said: list[dict] = []
    waiting = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    async def send(message):
        said.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": headers, "root_path": "", "scheme": "http", "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 9899), "state": {}, **scope,
    }  # fmt: skip
    await app(scope, receive, send)
    start = next(message for message in said if message["type"] == "http.response.start")
    body = b"".join(message.get("body", b"") for message in said if message["type"] == "http.response.body")
    return start["status"], dict(start["headers"]), body


def said(host: str | None = "127.0.0.1:9899", origin: str | None = None, token: str | None = None):
    values = {b"host": host, b"origin": origin, b"authorization": token}
    return [(name, value.encode("latin-1")) for name, value in values.items() if value is not None]


RIGHT = f"Bearer {TOKEN.reveal()}"
OURS = ["127.0.0.1:9899", "127.0.0.1", "localhost", "LOCALHOST:1", "[::1]:9899", "127.9.9.9", "agents.example.com",
        "Agents.Example.com:8443", "agents.example.com."]  # fmt: skip
FOREIGN = ["evil.example", "evil.example:9899", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.2:9899",
           "", "127.0.0.1@evil.example", "evil.example/127.0.0.1", "[::1", "127.0.0.1:x", "0.0.0.0", "null",
           "2130706433",
           "agents.example.com.evil.example", "127.0.0.1, evil.example", "example.com"]  # fmt: skip


@pytest.mark.parametrize("host", OURS)
async def test_the_loopback_and_the_public_name_are_ours(host):
    status, headers, body = await ask("/v1/echo", said(host, token=RIGHT))
    assert (status, body) == (200, b"GET 0")
    assert b"access-control-allow-origin" not in headers
    assert headers[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize("host", FOREIGN)
async def test_any_other_host_is_foreign_even_with_the_token(host):
    status, _, body = await ask("/v1/echo", said(host, token=RIGHT))
    assert status == 403
    assert json.loads(body)["error"]["code"] == "foreign_host"


async def test_a_host_that_is_missing_or_said_twice_is_foreign():
    assert (await ask("/v1/echo", said(None, token=RIGHT)))[0] == 403
    assert (await ask("/v1/echo", [*said(token=RIGHT), (b"host", b"127.0.0.1")]))[0] == 403


@pytest.mark.parametrize("host", [host for host in OURS if host])
async def test_web_pages_of_ours_are_served(host):
    assert (await ask("/v1/echo", said(origin=f"http://{host}", token=RIGHT)))[0] == 200


@pytest.mark.parametrize("origin", ["null", "", "file://", *(f"https://{host}" for host in FOREIGN)])
async def test_web_pages_of_others_are_not(origin):
    status, _, body = await ask("/v1/echo", said(origin=origin, token=RIGHT))
    assert status == 403
    assert json.loads(body)["error"]["code"] == "foreign_origin"


@pytest.mark.parametrize(
    "token",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic " + TOKEN.reveal(), TOKEN.reveal(), RIGHT + "x", RIGHT[:-1],
     "Bearer é" + TOKEN.reveal(), "Bearer  , " + TOKEN.reveal()],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/echo", "/v1/nothing", "/", "/metrics", "/health/", "//health", "/healthz"])
async def test_without_the_token_nothing_is_told_but_how_to_get_it(token, path):
    status, headers, body = await ask(path, said(token=token))
    assert status == 401
    assert headers[b"www-authenticate"] == b"Bearer"
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("missing_api_key", "invalid_api_key")
    assert "api.token" in error["message"]
    assert TOKEN.reveal().encode() not in body


async def test_a_second_authorization_is_none():
    assert (await ask("/v1/echo", [*said(token=RIGHT), (b"authorization", b"Bearer x")]))[0] == 401


async def test_with_the_token_one_learns_what_is_there():
    status, _, body = await ask("/v1/nothing", said(token=RIGHT))
    assert (status, json.loads(body)["error"]["code"]) == (404, "unknown_url")
    assert (await ask("/v1/echo", said(token=RIGHT.replace("Bearer ", "bearer   "))))[0] == 200
    status, _, body = await ask("/v1/refuse", said(token=RIGHT))
    assert (status, json.loads(body)["error"]["message"]) == (418, "a teapot")
    status, _, body = await ask("/v1/echo", said(token=RIGHT), method="DELETE")
    assert (status, json.loads(body)["error"]["code"]) == (405, "http_error")


async def test_what_breaks_is_told_without_its_text(caplog):
    with caplog.at_level(logging.DEBUG):
        status, _, body = await ask("/v1/break", said(token=RIGHT))
    assert (status, json.loads(body)["error"]["code"]) == (500, "server_error")
    assert "ZeroDivisionError" in caplog.text
    assert "1234" not in caplog.text + body.decode()


@pytest.mark.parametrize("path", ["/health", "/.well-known/lnurlp/alice", "/lnurlp/alice/pay", "/lnurlp/x/y/z"])
@pytest.mark.parametrize("host", ["evil.example", "", None, "127.0.0.1"])
async def test_open_paths_are_open_to_every_host_and_origin(path, host):
    for method in ("GET", "HEAD", "OPTIONS"):
        status, headers, body = await ask(path, said(host, "https://web.example"), method)
        assert status == (204 if method == "OPTIONS" else 404 if "z" in path else 200)
        assert headers[b"access-control-allow-origin"] == b"*"
        assert (body == b"") == (method == "OPTIONS" or (method == "HEAD" and path.endswith("pay"))) or method == "HEAD"
    for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT"):
        status, headers, _ = await ask(path, said(host), method)
        assert status == 405
        assert headers[b"allow"] == b"GET, HEAD, OPTIONS"


async def test_other_protocols_are_refused():
    closed = []

    async def send(message):
        closed.append(message["type"])

    await APP({"type": "websocket", "path": "/health", "headers": []}, None, send)
    await APP({"type": "lifespan"}, None, send)
    assert closed == ["websocket.close"]


hosts = st.one_of(st.sampled_from([*OURS, *FOREIGN]), st.text(st.characters(max_codepoint=255), max_size=30))
paths = st.one_of(
    st.sampled_from(["/v1/echo", "/v1/break", "/", "/health", "/lnurlp", "/lnurlp/", "/.well-known/lnurlp/a",
                     "/v1/../health",
                     "/health/../v1/echo", "/lnurlp/../v1/echo", "//v1/echo", "/.well-known/", "/%2e%2e/v1/echo"]),
    st.text(max_size=20).map(lambda text: "/" + text.encode("utf-8", "replace").decode()),
)  # fmt: skip


@given(paths, hosts, st.none() | hosts, st.none() | hosts, st.sampled_from(["GET", "POST", "OPTIONS", "HEAD", "X"]))
def test_nothing_but_open_paths_is_reached_without_the_token(path, host, origin, token, method):
    """And whatever is sent is answered, once."""
    reached = []

    async def inner(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run():
        app = Guard(inner, token=TOKEN, public_name="agents.example.com")
        status, _, _ = await ask(path, said(host, origin, token), method, app)
        assert status in (200, 204, 401, 403, 405)
        assert bool(reached) == (status == 200)
        if reached:
            assert is_open(path)

    trio.run(run)


# --- through the server -----------------------------------------------------------------------------------------------


async def test_bodies_are_bounded():
    async with serving(routes=ROUTES) as served, served.client(**BEARER) as client:
        for size, status in ((0, 200), (MAX_BODY_BYTES, 200), (MAX_BODY_BYTES + 1, 413), (4 * MAX_BODY_BYTES, 413)):
            answer = await client.post("/v1/echo", content=b"x" * size)
            assert answer.status_code == status, size
            assert answer.text == f"POST {size}" or answer.json()["error"]["code"] == "request_too_large"

        async def pieces(count):
            for _ in range(count):
                yield b"x" * 65_536

        assert (await client.post("/v1/echo", content=pieces(16))).text == f"POST {MAX_BODY_BYTES}"
        assert (await client.post("/v1/echo", content=pieces(17))).status_code == 413


@pytest.mark.parametrize("path", ["/health", "/v1/echo", "/nowhere"])
async def test_a_body_that_nobody_wants_ends_the_connection_and_not_the_server(path):
    """More pieces than hypercorn's queue holds, and an answer before the body has come."""
    async with serving(routes=ROUTES) as served:
        for _ in range(3):
            stream = await served.connect()
            async with stream:
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
                await stream.send_all(head.encode())
                got = b""
                with trio.fail_after(20):
                    try:
                        for _ in range(4_000):
                            await stream.send_all(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
                    except trio.BrokenResourceError:
                        pass
                    try:
                        got = await stream.receive_some(65_536)
                    except trio.BrokenResourceError:
                        got = b"HTTP/1.1 reset"
                assert got.startswith(b"HTTP/1.1 ")
        async with served.client() as client:
            assert (await client.get("/health")).status_code == 200


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(guard_module, "BODY_SECONDS", 0.2)
    head = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\nAuthorization: " + RIGHT.encode()
    async with serving(routes=ROUTES) as served:
        assert (await served.says(head + b"\r\n\r\nhalf")).startswith(b"HTTP/1.1 408")


async def test_a_refusal_is_read_by_those_who_wait_for_it_before_they_send():
    head = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\nExpect: 100-continue\r\n"
    async with serving(routes=ROUTES) as served:
        got = await served.says(head + b"Authorization: " + RIGHT.encode() + b"\r\n\r\n")
        assert b"413" in got.partition(b"\r\n\r\n")[2] or got.startswith(b"HTTP/1.1 413")


async def test_an_answer_that_breaks_midway_is_not_taken_for_a_whole_one():
    async with serving(routes=ROUTES) as served:
        head = b"GET /v1/midway HTTP/1.1\r\nHost: localhost\r\nAuthorization: " + RIGHT.encode() + b"\r\n\r\n"
        got = await served.says(head)
        assert b"begun" in got
        assert not got.endswith(b"0\r\n\r\n")
        async with served.client() as client:
            assert (await client.get("/health")).status_code == 200
