"""The tunnel's page in a real browser, with our server between it and a machine that the test plays.

The machine's WebSocket is websocket-client's, which Pylon did not write.
"""

from __future__ import annotations

import json
from contextlib import closing

import pytest
import websocket

from tests.e2e.homes import World
from tests.e2e.tunnels import TunnelServer

pytestmark = pytest.mark.e2e

S = "made-by-the-test"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with World(tmp_path_factory.mktemp("tunnel")) as world:
        yield TunnelServer(world)


@pytest.fixture
def session(server):
    return server.register()


class Machine:
    """The other end."""

    def __init__(self, tunnel_url: str) -> None:
        self.socket = websocket.create_connection(tunnel_url, timeout=10)
        self.seq = 0

    def close(self) -> None:
        self.socket.close()

    def greet(self) -> None:
        self.say("tunnel_connected", version="0.1.0", capabilities=["claude"])

    def say(self, kind: str, **fields) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def tell(self, kind: str, **fields) -> None:
        """One of the session's counted messages."""
        self.seq += 1
        self.say(kind, session_id=S, seq=self.seq, **fields)

    def chunk(self, kind: str, **fields) -> None:
        self.seq += 1
        self.say("claude_chunk", seq=self.seq, chunk={"session_id": S, "chunk_type": kind, **fields})

    def ask(self, approval_id: str, params: dict, expires_in: int = 300) -> None:
        self.tell("claude_tool_approval", tool="Bash", params=params, approval_id=approval_id, expires_in=expires_in)

    def sessions(self, **fields) -> None:
        info = {"session_id": S, "state": "running", "last_seq": self.seq, "first_seq": 1, "cost_usd": 0, **fields}
        self.say("claude_sessions", sessions=[info])

    def hear(self, kind: str) -> dict:
        """The page's next message of this type."""
        while True:
            said = json.loads(self.socket.recv())
            if said["type"] == kind:
                return said


@pytest.fixture
def machine(session, browser):
    """Connected, with a page that has asked what there is, and was told of one session."""
    browser.open(session["page_url"])
    with closing(Machine(session["tunnel_url"])) as machine:
        browser.shows("waiting for the machine", "#link")
        machine.greet()
        machine.hear("claude_list")
        machine.sessions(state="idle")
        browser.find("#prompt")
        yield machine


def test_what_comes_through_the_tunnel_is_shown_and_never_run(machine, browser):
    evil = "<img src=x onerror='ran=1'><script>ran=1</script><b>bold</b> &amp; ⚡"
    machine.tell("claude_prompted", content=f"p {evil}")
    machine.chunk("text", delta=f"t {evil}")
    machine.chunk("tool_start", tool={"name": f"n {evil}", "id": "1", "params": {evil: evil, "command": f"c {evil}"}})
    machine.chunk("tool_output", tool={"name": "x", "id": "1"}, delta=f"o {evil}")
    machine.chunk("tool_done", tool={"name": "x", "id": "1", "error": f"e {evil}"})
    machine.tell("claude_tool_approval", tool=f"a {evil}", params={"x": evil}, approval_id="1", expires_in=100)
    machine.tell("claude_session_state", state="running", reason=f"r {evil}")
    machine.say("error", code=evil, message=f"m {evil}")
    waits = {"approval_id": "1", "tool": "x", "expires_in": 50}
    machine.sessions(model=evil, autonomy=evil, cwd=evil, approvals=[waits])
    machine.tell("claude_error", error=f"last {evil}")
    browser.shows("last <img")
    shown = browser.text()
    for each in "ptncoearm":
        assert f"{each} {evil}" in shown, each
    assert evil in browser.text("#rules")
    assert browser.driver.title == "(1) Pylon tunnel"
    assert browser.run("return window.ran") is None
    assert browser.run("return document.querySelectorAll('img, main script, b:not(form b)').length") == 0
    assert browser.complaints() == []


def test_nothing_that_is_put_into_the_page_can_run_or_speak_to_others(machine, browser):
    browser.run(
        """const script = document.createElement("script");
        script.textContent = "window.ran = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<p onclick='x()' style='color: red'>x</p>");
        fetch("http://127.0.0.1:9/").catch(() => {});"""
    )
    complaints = browser.until(lambda: [*browser.complaints(), *browser.complaints()], "complaints")
    assert all("Content Security Policy" in each for each in complaints), complaints
    assert browser.run("return window.ran") is None
    assert browser.run("return getComputedStyle(document.body.lastElementChild).color") != "rgb(255, 0, 0)"


def test_what_was_missed_is_asked_for_and_nothing_is_shown_twice(machine, session, browser):
    machine.chunk("text", delta="one ")
    browser.shows("one")
    machine.seq += 2  # two that get lost
    machine.chunk("text", delta="four ")
    machine.hear("claude_list")
    machine.sessions()
    assert machine.hear("claude_replay") == {"type": "claude_replay", "session_id": S, "after": 1}
    machine.seq = 0
    for word in ("one ", "two ", "three ", "four ", "five"):
        machine.chunk("text", delta=word)
    browser.until(lambda: browser.text(".said") == "one two three four five", "each word once")

    browser.driver.refresh()  # it has forgotten all, and asks from the beginning
    machine.hear("claude_list")
    machine.sessions(first_seq=3)
    assert machine.hear("claude_replay")["after"] == 2
    machine.seq = 2
    for word in ("three ", "four ", "five"):
        machine.chunk("text", delta=word)
    browser.until(lambda: browser.text(".said") == "three four five", "what is still kept")
    assert session["browser_token"] not in browser.driver.current_url
    machine.close()
    browser.shows("waiting for the machine", "#link")
    assert not browser.all("#send")[0].is_enabled()


def test_what_wants_a_yes_is_shown_whole_and_as_it_is(machine, browser):
    command = "echo \u202emoc.live\u202c\u200b\x1b[8m" + "x" * 100_000 + "; rm -rf ~"
    machine.ask("a1", {"command": command, "content": "two\nlines", "deep": {"er": ["\u2066"]}, "n\u202eame": 1})
    shown = browser.until(lambda: browser.text(".approval.open .params"), "what is asked")
    assert shown.startswith("command\necho ⟦U+202E⟧moc.live⟦U+202C⟧⟦U+200B⟧⟦U+001B⟧[8mxxx")
    assert "xxx; rm -rf ~\ncontent\ntwo\nlines\ndeep" in shown
    assert "⟦U+2066⟧" in shown
    assert "n⟦U+202E⟧ame" in shown


def test_an_approval_is_answered_once_or_runs_out(machine, browser):
    for number in (1, 2, 3):
        machine.ask(f"a{number}", {"command": f"ls {number}"})
    browser.until(lambda: len(browser.all(".approval.open")) == 3, "three questions")
    assert browser.driver.title == "(3) Pylon tunnel"
    assert " s left" in browser.text(".left")
    browser.all(".approve")[0].click()
    answer = {"type": "claude_tool_approval_response", "session_id": S}
    assert machine.hear(answer["type"]) == {**answer, "approved": True, "approval_id": "a1"}
    assert not browser.all(".approve")[0].is_enabled()
    browser.all(".deny")[1].click()
    assert machine.hear(answer["type"]) == {**answer, "approved": False, "approval_id": "a2"}
    for number, outcome in enumerate(("approved", "denied", "timed_out"), 1):
        machine.tell("claude_tool_approval_closed", approval_id=f"a{number}", outcome=outcome)
    browser.shows("no answer in time: denied")
    assert not browser.all(".approval.open")
    machine.ask("a4", {}, expires_in=0)
    browser.shows("time is up")
    assert not browser.all(".approve")[0].is_enabled()
    machine.sessions()  # it waits for none
    browser.shows("asks no longer")
    assert browser.complaints() == []


def test_it_works_on_a_phone_and_in_the_dark(machine, browser):
    try:
        metrics = {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True}
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        machine.chunk("text", delta="a word that is far too long for a phone: " + "x" * 200)
        machine.chunk("tool_start", tool={"name": "Bash", "id": "1", "params": {"command": "y" * 300}})
        machine.ask("a", {"command": "z" * 300})
        browser.find(".approve")
        assert browser.run("return document.documentElement.scrollWidth") <= 360
        assert browser.run("return document.querySelector('main').scrollWidth") <= 360
        for name in ("send", "stop", "pause"):
            box = browser.run(f"return document.getElementById('{name}').getBoundingClientRect().toJSON()")
            assert box["left"] >= 0
            assert box["right"] <= 360
            assert box["bottom"] <= 700
            assert box["height"] >= 40  # a finger is no mouse
        assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_link_that_is_none_is_said(session, browser):
    link = session["page_url"]
    browser.open(link[:-1] + ("0" if link[-1] != "0" else "1"))
    browser.shows("this link is no longer good", "#link")
    browser.fill("#pasted", link)
    browser.click("#paste button")
    browser.shows("waiting for the machine", "#link")
    assert not browser.all("#paste")
