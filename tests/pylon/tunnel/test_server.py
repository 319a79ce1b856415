"""The tunnel server over real sockets: who is let in, and what one end cannot do to the others."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

import httpx
import pytest
import trio

from pylon.config_values import Bind
from pylon.errors import ConfigError, UsageError
from pylon.tunnel import server as server_module
from pylon.tunnel import switchboard
from pylon.tunnel import websocket as websocket_module
from pylon.tunnel.messages import MAX_FRAME_BYTES, Prompt, SessionError, write
from pylon.tunnel.tickets import new_session_id
from tests.pylon.tunnel.serving import OWNER, SECRET, browser_auth, serving

BEARER = {"Authorization": f"Bearer {OWNER.reveal()}"}
HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)


def handshake(served, path, more="", host=None) -> bytes:
    return HANDSHAKE.format(path=path, host=host or served.host, more=more).encode()


# --- a session --------------------------------------------------------------------------------------------------------


async def test_a_session_from_its_registration_to_its_end():
    async with serving() as served, served.client() as client:
        answer = await client.post("/api/tunnel/register", headers=BEARER, json={"repo": "a/b"})
        made = server_module.Registration(**answer.json())
        assert made.browser_token not in made.browser_url
        assert made.page_url.startswith(f"{served.url}/#")
        status = f"/api/tunnel/status/{made.session_id}"
        async with served.page(made) as page:
            assert (await page.hear())["type"] == "tunnel_disconnected"
            async with served.machine(made) as machine:
                assert (await page.hear())["type"] == "tunnel_connected"
                for who in (OWNER.reveal(), made.tunnel_token, made.browser_token):
                    told = await client.get(status, headers={"Authorization": f"Bearer {who}"})
                    assert told.json() == {"session_id": made.session_id, "tunnel_connected": True, "browsers": 1}
                await page.say(write(Prompt("s", "hello ⚡")))
                assert await machine.hear() == {"type": "claude_prompt", "session_id": "s", "content": "hello ⚡"}
                await machine.websocket.send_message(write(SessionError("s", "in bytes")).encode())
                assert (await page.hear())["error"] == "in bytes"
                await page.say('{"type":"ping","timestamp":1}')
                assert await page.hear() == {"type": "pong", "timestamp": 1}
            assert (await page.hear())["type"] == "tunnel_disconnected"


async def test_large_messages_pass_whole_and_too_large_ones_end_their_sender_alone():
    text = "x" * 250_000
    async with serving() as served:
        made = served.server.register()
        async with served.page(made) as page, served.page(made) as other, served.machine(made) as machine:
            assert [(await page.hear())["type"] for _ in range(2)] == ["tunnel_disconnected", "tunnel_connected"]
            await page.say(write(Prompt("s", text)))
            assert (await machine.hear())["content"] == text
            await page.say("x" * (MAX_FRAME_BYTES + 1))
            assert await page.closed() == 1009
            await machine.say(write(SessionError("s", "still here")))
            assert [(await other.hear())["type"] for _ in range(3)][-1] == "claude_error"


async def test_either_end_comes_back_into_its_session():
    async with serving() as served:
        made = served.server.register()
        async with served.page(made) as page:
            await page.hear()
            for _ in range(3):
                async with served.machine(made) as machine:
                    assert (await page.hear())["type"] == "tunnel_connected"
                    await page.say(write(Prompt("s", "hello")))
                    assert (await machine.hear())["type"] == "claude_prompt"
                assert (await page.hear())["type"] == "tunnel_disconnected"
        async with served.machine(made) as machine:
            for _ in range(3):
                async with served.page(made) as page:
                    while (await page.hear())["type"] != "tunnel_connected":
                        pass
                    await machine.say(write(SessionError("s", "hello")))
                    assert (await page.hear())["type"] == "claude_error"


async def test_a_server_that_was_started_anew_knows_its_tickets():
    async with serving() as first:
        made = first.server.register()
    async with serving() as second:
        there = second.moved(made)
        async with second.machine(there), second.page(there) as page:
            while (await page.hear())["type"] != "tunnel_connected":
                pass
    async with serving(secret=SECRET + b", another one") as third:
        assert (await third.says(handshake(third, third.path(third.moved(made).tunnel_url)))).startswith(
            b"HTTP/1.1 401 "
        )


# --- who is let in ----------------------------------------------------------------------------------------------------


async def test_only_the_owner_registers():
    async with serving() as served, served.client() as client:
        made = served.server.register()
        for token in (
            "Bearer",
            "Bearer x",
            f"Bearer {OWNER.reveal()}x",
            f"Bearer {made.browser_token}",
            "Bearer é",
            OWNER.reveal(),
        ):
            headers = [(b"Authorization", token.encode("latin-1"))]
            answer = await client.post("/api/tunnel/register", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "owner_token")
        assert (await client.post("/api/tunnel/register")).status_code == 401
        assert (await client.get("/api/tunnel/register", headers=BEARER)).status_code == 405


async def test_a_machine_without_its_ticket_gets_no_socket():
    async with serving() as served, served.client() as client:
        made, other = served.server.register(), served.server.register()
        query = "?session_id={}&token={}"
        wrong = [
            "",
            f"?session_id={made.session_id}",
            query.format(made.session_id, "x"),
            query.format(made.session_id, made.browser_token),
            query.format(made.session_id, other.tunnel_token),
            query.format("x", made.tunnel_token),
            query.format("x" * 32, made.tunnel_token),
            query.format(made.session_id, made.tunnel_token[:-1] + "g"),
        ]
        for query in wrong:
            answer = await served.says(handshake(served, "/api/tunnel/ws/tunnel" + query))
            assert answer.startswith(b"HTTP/1.1 401 "), query
        told = await client.get(f"/api/tunnel/status/{made.session_id}", headers=BEARER)
        assert not told.json()["tunnel_connected"]
        path = f"/api/tunnel/ws/tunnel?session_id={made.session_id}"
        async with await served.connect() as stream:
            await stream.send_all(handshake(served, path, f"Authorization: Bearer {made.tunnel_token}\r\n"))
            assert (await stream.receive_some(1_000)).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    "first",
    [
        browser_auth("x"),
        browser_auth(""),
        '{"type":"browser_auth"}',
        '{"type":"browser_auth","token":7}',
        '{"type":"claude_prompt","session_id":"s","content":"let me in"}',
        "no json",
        "[]",
        "x" * 5_000,
    ],
)
async def test_a_page_without_its_ticket_is_shown_the_door(first):
    async with serving() as served:
        made = served.server.register()
        async with served.machine(made) as machine, served.stranger(made) as stranger:
            await stranger.say(first)
            await stranger.say(write(Prompt("s", "hello")))
            assert await stranger.closed() == (1009 if len(first) > 4_096 else 4401)
            with trio.move_on_after(0.1):
                pytest.fail(f"the machine heard {await machine.hear()}")


async def test_a_ticket_of_another_end_or_session_is_none_for_a_page():
    async with serving() as served:
        made, other = served.server.register(), served.server.register()
        for token in (made.tunnel_token, other.browser_token):
            async with served.page(made, token) as page:
                assert await page.closed() == 4401


async def test_a_day_later_nobody_is_let_in():
    async with serving() as served:
        made = served.server.register()
        served.clock.ahead = 86_401
        async with served.page(made) as page:
            assert await page.closed() == 4401
        answer = await served.says(handshake(served, served.path(made.tunnel_url)))
        assert b"register a new session" in answer


async def test_sockets_end_with_their_tickets():
    async with serving(lifetime=2) as served:
        made = served.server.register()
        async with served.page(made) as page, served.machine(made) as machine:
            assert (await page.hear())["type"]
            assert await page.closed() == 4401
            assert (await machine.hear())["code"] == "unauthorized"
            assert await machine.closed() == 4401


async def test_other_web_pages_and_rebound_names_are_refused():
    async with serving(public_url="https://tunnel.example.org") as served, served.client() as client:
        made = served.server.register()
        port = served.host.rpartition(":")[2]
        for host in ("evil.example", f"evil.example:{port}", "tunnel.example.org.evil.example", "10.0.0.1", "", "a@b"):
            answer = await served.says(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 403 "), host
            assert b"foreign_host" in answer
        for host in (served.host, f"localhost:{port}", f"[::1]:{port}", "tunnel.example.org", "TUNNEL.example.org:443"):
            answer = await served.says(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 200 "), host
        path = f"/api/tunnel/ws/browser?session_id={made.session_id}"
        foreign = ("https://evil.example", "null", f"http://127.0.0.1:{int(port) ^ 1}", "file://", "http://localhost")
        for origin in foreign:
            answer = await served.says(handshake(served, path, f"Origin: {origin}\r\n"))
            assert answer.startswith(b"HTTP/1.1 403 "), origin
            posted = await client.post("/api/tunnel/register", headers={**BEARER, "Origin": origin})
            assert posted.status_code == 403
        good = [(None, f"http://{served.host}"), ("tunnel.example.org", "https://tunnel.example.org")]
        for host, origin in good:
            async with await served.connect() as stream:
                await stream.send_all(handshake(served, path, f"Origin: {origin}\r\n", host=host))
                assert (await stream.receive_some(1_000)).startswith(b"HTTP/1.1 101 ")


async def test_where_others_reach_it_is_what_is_told():
    async with serving(public_url="https://tunnel.example.org/") as served:
        made = served.server.register()
        assert made.tunnel_url.startswith("wss://tunnel.example.org/api/tunnel/ws/tunnel?session_id=")
        assert made.browser_url.startswith("wss://tunnel.example.org/")
        assert made.page_url.startswith("https://tunnel.example.org/#session_id=")
    for url in ("tunnel.example.org", "ftp://x", "https://", "https://x/path", "https://x:y", "https://a@b"):
        with pytest.raises(UsageError, match="--public-url"):
            async with serving(public_url=url):
                pass


async def test_a_port_that_is_taken_is_told():
    async with serving() as served:
        again = server_module.TunnelServer(OWNER, SECRET, clock=served.clock)
        with pytest.raises(ConfigError, match="cannot listen"):
            await again.listen(Bind("127.0.0.1", int(served.host.rpartition(":")[2])))


# --- the page ---------------------------------------------------------------------------------------------------------


async def test_the_page_is_one_file_with_a_strict_policy():
    async with serving() as served, served.client() as client:
        page = await client.get("/")
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert page.headers["referrer-policy"] == "no-referrer"
        html = page.text
        assert not [word for word in ("http://", "https://", "src=", "@import", "url(", "innerHTML") if word in html]
        assert html.count("<script>") == html.count("<style>") == policy.count("sha256-") / 2 == 1
        assert " style=" not in html
        assert " onclick=" not in html
        head = await client.head("/")
        assert (head.status_code, head.content) == (200, b"")
        for path in ("/x", "/page.html", "/api", "/api/tunnel/", "/api/tunnel/ws/x", "/../etc/passwd", "/é"):
            assert (await client.get(path)).status_code == 404
        assert (await client.post("/")).status_code == 405


# --- hostile ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 70_000, b"HTTP/1.1 431 "),
        (b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999\r\n\r\n" + b"x" * 70_000, b"HTTP/1.1 413 "),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 403 "),
        (b"GET http://[ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /?" + b"&".join([b"a=1"] * 50) + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"HTTP/1.1 400 "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 "),
        (b"", b""),
    ],
)  # fmt: skip
async def test_what_is_no_request_is_answered_and_harms_nobody(raw, answer):
    async with serving() as served, served.client() as client:
        async with await served.connect() as stream:
            if raw:
                await stream.send_all(raw)
            await stream.send_eof()
            got = b"".join([part async for part in stream])
        assert got.startswith(answer)
        assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize(
    "more",
    ["", "Sec-WebSocket-Version: 13\r\n", "Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: " + "A" * 22 + "==\r\n"],
)
async def test_what_is_no_handshake_gets_no_socket(more):
    async with serving() as served:
        made = served.server.register()
        for path in (f"/api/tunnel/ws/browser?session_id={made.session_id}", served.path(made.tunnel_url)):
            raw = (
                f"GET {path} HTTP/1.1\r\nHost: {served.host}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n{more}\r\n"
            )
            assert (await served.says(raw.encode())).startswith(b"HTTP/1.1 4")


async def test_strangers_have_little_time_and_few_connections(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_STRANGERS", 5)
    monkeypatch.setattr(server_module, "STRANGER_SECONDS", 1.0)
    async with serving() as served, served.client() as client, AsyncExitStack() as stack:
        made = served.server.register()
        async with served.page(made) as page, served.machine(made):
            streams = [await stack.enter_async_context(await served.connect()) for _ in range(4)]
            await streams[0].send_all(b"GET / HT")
            await streams[1].send_all(handshake(served, f"/api/tunnel/ws/browser?session_id={made.session_id}"))
            fifth = await stack.enter_async_context(await served.connect())
            with trio.fail_after(5):
                while await _is_served(client):  # until all five have arrived, and there is no room for one more …
                    pass
                assert [(await page.hear())["type"] for _ in range(2)][-1] == "tunnel_connected"  # … and the known stay
                for stream in (*streams, fifth):
                    async for _ in stream:
                        pass
            assert (await client.get("/")).status_code == 200


async def _is_served(client) -> bool:
    try:
        return (await client.get("/")).status_code == 200
    except httpx.TransportError:
        return False


async def test_there_is_a_bound_on_connections(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 4)
    async with serving() as served, AsyncExitStack() as stack:
        made = served.server.register()
        for _ in range(4):
            page = await stack.enter_async_context(served.page(made))
            await page.hear()
        assert await served.says(b"GET / HTTP/1.1\r\n\r\n") == b""


async def test_a_page_that_reads_nothing_does_not_grow_our_memory(monkeypatch):
    monkeypatch.setattr(switchboard, "MAX_BACKLOG_BYTES", 1 << 20)
    async with serving() as served, served.client() as client:
        made = served.server.register()
        async with served.machine(made) as machine:
            async with await served.connect() as stream:
                await stream.send_all(handshake(served, f"/api/tunnel/ws/browser?session_id={made.session_id}"))
                await stream.receive_some(1_000)
                auth = browser_auth(made.browser_token).encode()
                await stream.send_all(b"\x81\xfe" + len(auth).to_bytes(2, "big") + bytes(4) + auth)
                status = f"/api/tunnel/status/{made.session_id}"
                seen = []
                with trio.fail_after(20):
                    while 0 not in seen[1:]:
                        for _ in range(20):
                            await machine.say(write(SessionError("s", "x" * 3_900)))
                        seen.append((await client.get(status, headers=BEARER)).json()["browsers"])
                sessions = served.server._switchboard._sessions
                assert sum(page.waiting_bytes for each in sessions.values() for page in each.pages) == 0


async def test_who_is_silent_for_too_long_is_gone(monkeypatch):
    monkeypatch.setattr(websocket_module, "PING_SECONDS", 0.1)
    monkeypatch.setattr(websocket_module, "SILENT_SECONDS", 0.5)
    async with serving() as served:
        made = served.server.register()
        async with served.machine(made), served.page(made) as page, served.page(made) as other:
            while (await other.hear())["type"] != "tunnel_connected":
                pass
            async with await served.connect() as half_dead:
                await half_dead.send_all(handshake(served, served.path(made.tunnel_url)))
                assert (await other.hear())["type"] == "tunnel_disconnected"
            await page.say('{"type":"ping","timestamp":1}')  # it has answered each ping, and is here
            while (await page.hear())["type"] != "pong":
                pass


async def test_nothing_that_passes_and_no_ticket_is_logged(caplog):
    caplog.set_level(logging.DEBUG, logger="pylon")
    async with serving() as served, served.client() as client:
        made = served.server.register()
        await client.post("/api/tunnel/register", headers=BEARER)
        async with served.machine(made) as machine, served.page(made) as page:
            await page.hear()
            await page.say(write(Prompt("s", "a word that stays between us")))
            await machine.hear()
            await page.say("x" * (MAX_FRAME_BYTES + 1))
            await page.closed()
        await served.says(b"a word that stays between us\r\n\r\n")
    said = caplog.text
    assert f"session {made.session_id[:8]}" in said
    for secret in ("between us", made.tunnel_token, made.browser_token, OWNER.reveal()):
        assert secret not in said
    for secret in (made.tunnel_token, made.browser_token, OWNER.reveal()):
        assert secret not in repr(made)


async def test_the_end_of_the_server_is_said():
    codes, there = [], trio.Event()

    async def machine(served, made):
        async with served.machine(made) as end:
            codes.append(await end.closed())

    async def page(served, made):
        async with served.page(made) as end:
            while (await end.hear())["type"] != "tunnel_connected":
                pass
            there.set()
            codes.append(await end.closed())

    async with trio.open_nursery() as clients, serving() as served:
        made = served.server.register()
        clients.start_soon(machine, served, made)
        clients.start_soon(page, served, made)
        await there.wait()
    assert codes == [1001, 1001]


async def test_a_session_may_be_asked_about_by_its_own_alone():
    async with serving() as served, served.client() as client:
        made, other = served.server.register(), served.server.register()
        for token in ("x", other.browser_token):
            answer = await client.get(
                f"/api/tunnel/status/{made.session_id}", headers={"Authorization": f"Bearer {token}"}
            )
            assert answer.status_code == 401
        told = await client.get(f"/api/tunnel/status/{new_session_id()}", headers=BEARER)
        assert not told.json()["tunnel_connected"]
        assert (await client.get("/api/tunnel/status/x", headers=BEARER)).status_code == 404
