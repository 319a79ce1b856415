"""The tunnel from end to end: a browser, our server, ``pylon connect``, and a claude that follows a script."""

from __future__ import annotations

import pytest

from tests.e2e.homes import World
from tests.e2e.tunnels import TunnelMachine, TunnelServer

pytestmark = pytest.mark.e2e

WORDS = [f"word{number}" for number in range(40)]
APPROVAL_SECONDS = 8


def writing(name: str) -> dict:
    return {
        "tool": "Write",
        "input": {"file_path": name, "content": "written by the script"},
        "output": f"wrote {name}",
    }


RULES = [
    {"when": "^hello", "do": [{"text": "Hello from the script."}]},
    {"when": "^read", "do": [{"tool": "Read", "input": {"file_path": "notes.txt"}, "output": "what stands in notes"}]},
    *(
        {"when": f"^write {name}", "do": [writing(name), {"text": f"That was {name}."}]}
        for name in ("yes", "no", "late")
    ),
    {"when": "^slow", "do": [{"text": " ".join(WORDS), "each": 0.1}]},
    {"when": "^stuck", "do": [{"text": "I begin."}, {"wait": 600}, {"text": "never said"}]},
    {"when": "Go on where", "do": [{"text": "I go on."}]},
    {"when": "^dear", "do": [{"text": "That was expensive.", "cost": 0.75}]},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("tunnel")) as world:
        yield world


@pytest.fixture(scope="module")
def tunnel(browser, world):
    """The machine and its server, connected; the page is open. Each test begins sessions of its own there."""
    server = TunnelServer(world)
    machine = TunnelMachine(world, RULES, f"approval_seconds = {APPROVAL_SECONDS}\nmax_cost_usd = 2000000")
    machine.connect(server.first["tunnel_url"])
    browser.open(server.first["page_url"])
    browser.shows("connected", "#link")
    return server, machine


def begin(browser, prompt: str, most: str = "") -> None:
    if browser.all("#new"):
        browser.click("#new")
    browser.fill("#most", most)
    browser.fill("#first", prompt)
    browser.click("#begin")
    browser.until(lambda: prompt in browser.text(".asked:not(.pending)"), "the prompt, as the machine has taken it")


def prompt(browser, text: str) -> None:
    browser.fill("#prompt", text)
    browser.click("#send")


def log(browser) -> str:
    return browser.text("#logs section")


def test_text_tools_and_approvals(browser, tunnel):
    _, machine = tunnel
    begin(browser, "hello")
    browser.shows("Hello from the script.", ".said")
    browser.shows("idle", "#state")
    browser.shows("$0.01 of $2.00", "#cost")
    browser.shows("12 tokens in, 34 out", "#tokens")
    browser.shows("supervised", "#rules")

    prompt(browser, "read it")  # a tool that needs nobody's yes
    browser.shows("done", ".tool .outcome")
    browser.click(".tool summary")
    browser.shows("what stands in notes", ".tool .output")
    browser.shows("$0.02 of", "#cost")

    prompt(browser, "write yes")
    browser.shows("written by the script", ".approval.open .params")
    browser.shows("waiting", "#state")
    assert not (machine.directory / "yes").exists()
    browser.click(".approve")
    browser.shows("That was yes.")
    assert (machine.directory / "yes").read_text() == "written by the script"

    prompt(browser, "write no")
    browser.click(".deny")
    browser.shows("the user said no", ".tool .output")
    browser.shows("That was no.")

    prompt(browser, "write late")
    browser.shows("s left", ".approval.open .left")
    browser.shows("no answer in time: denied", ".approval", within=APPROVAL_SECONDS + 10)
    browser.shows("That was late.")
    assert [path.name for path in machine.directory.iterdir()] == ["yes"]
    outcomes = [each.text for each in browser.all(".approval .outcome")]
    assert outcomes == ["approved", "denied", "no answer in time: denied"]
    browser.shows("$0.05 of", "#cost")
    assert browser.complaints() == []


def test_pause_resume_and_stop(browser, tunnel):
    begin(browser, "stuck")
    browser.shows("I begin.", ".said")
    browser.click("#pause")
    browser.shows("paused", "#state")
    browser.click("#resume")
    browser.shows("I go on.", ".said")
    browser.shows("idle", "#state")
    prompt(browser, "stuck again")
    browser.until(lambda: log(browser).count("I begin.") == 2, "the second turn")
    browser.click("#stop")
    browser.shows("ended", "#state")
    browser.shows("stopped", ".note")
    assert "never said" not in browser.text()
    assert not browser.all("#send")[0].is_enabled()


def test_what_costs_too_much_ends(browser, tunnel):
    begin(browser, "dear", most="0.5")
    browser.shows("That was expensive.", ".said")
    browser.shows("the cap is reached: it has cost $0.75 of $0.50")
    browser.shows("ended", "#state")
    browser.shows("$0.75 of $0.50", "#cost")
    begin(browser, "hello", most="1000")  # more than the machine allows
    browser.shows("of $2.00", "#cost")
    browser.shows("not granted", ".note")


def test_a_server_that_dies_in_the_middle_loses_nothing(browser, tunnel):
    server, _ = tunnel
    begin(browser, "slow")
    browser.shows("word5 ", ".said")
    server.daemon.kill()
    browser.shows("cannot be reached", "#link")
    assert WORDS[-1] not in browser.text(".said")
    server.start_again()
    browser.shows(WORDS[-1], ".said", within=30)
    assert browser.text(".said").split() == WORDS
    prompt(browser, "hello again")
    browser.until(lambda: log(browser).endswith("Hello from the script."), "an answer")
    browser.driver.refresh()  # the page has forgotten all, and the machine has not
    browser.until(lambda: log(browser).endswith("Hello from the script."), "the same session")
    assert browser.all(".said")[0].text.split() == WORDS


def test_a_machine_that_dies_is_seen_and_comes_back(browser, tunnel, world):
    server, machine = tunnel
    machine.daemon.kill()
    browser.shows("waiting for the machine", "#link")
    assert not browser.all("#send") or not browser.all("#send")[0].is_enabled()
    machine.connect(server.first["tunnel_url"])
    browser.shows("connected", "#link")
    begin(browser, "hello once more")
    browser.shows("Hello from the script.", ".said")
    newest = machine.node.json("connect", "sessions")["sessions"][0]
    assert newest["cost_usd"] == 10_000
