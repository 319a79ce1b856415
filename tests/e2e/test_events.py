"""What happens in a home, seen by everybody who listens to a real daemon: and that it hangs is seen, too."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import threading
import urllib.request

import pytest

from tests.e2e.homes import PORTS_OF_ITS_OWN, command, environment

pytestmark = pytest.mark.e2e


class Listening:
    """A command that goes on, and its lines of JSON."""

    def __init__(self, node, *arguments):
        self.process = subprocess.Popen(
            [command(), "--home", str(node.root), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment({"PYTHONUNBUFFERED": "1"}),
        )  # fmt: skip
        self.seen = []
        self._lines = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(json.loads(line))

    def until(self, wanted, seconds=10.0):
        """The first line from here on that is wanted."""
        while True:
            try:
                self.seen.append(self._lines.get(timeout=seconds))
            except queue.Empty:
                raise AssertionError(f"it has not come; the last was {self.seen[-1:]}") from None
            if wanted(self.seen[-1]):
                return self.seen[-1]

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def listen(world):
    started = []

    def listen(node, *arguments):
        started.append(Listening(node, *arguments))
        return started[-1]

    yield listen
    for each in started:
        each.end()


def test_everybody_hears_what_happens(world, listen):
    node = world.node("home").configure(more=PORTS_OF_ITS_OWN)
    assert node.run("events").returncode == 3
    daemon = node.start("host")
    events = listen(node, "events", "-f", "--json")
    watch = listen(node, "status", "--watch", "-i", "0.5", "--json")
    events.until(lambda told: told["kind"] == "daemon.ready")
    watch.until(lambda report: report["daemon"]["running"])

    node.json("agent", "spawn", "--name", "alice")
    born = events.until(lambda told: told["kind"] == "agent.state")
    assert (born["name"], born["to_state"]) == ("alice", "spawning")
    watch.until(lambda report: report["agents"] and report["agents"][0]["name"] == "alice")
    node.run("agent", "fund", "alice", "--amount", "50000")
    node.json("agent", "pause", "alice")
    held = events.until(lambda told: told["kind"] == "agent.held")
    assert held["held"] == "paused"
    watch.until(lambda report: report["agents"][0]["paused"] == "paused")
    hers = node.run("events", "--agent", "alice", "--kind", "agent.held", "--json").stdout
    assert [json.loads(line)["mark"] for line in hers.splitlines()] == [held["mark"]]
    logged = [json.loads(line) for line in node.run("logs", "--json", "--agent", "alice").stdout.splitlines()]
    assert [record["seq"] for record in logged if record.get("kind") == "agent.held"] == [held["seq"]]

    status = node.json("status")
    request = urllib.request.Request(
        f"{status['api']}/v1/events?kind=agent.held&limit=1",
        headers={"Authorization": f"Bearer {(node.root / 'api.token').read_text().strip()}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        lines = [answer.readline().decode().strip() for _ in range(5)]
    assert f"id: {held['mark']}" in lines

    # One that hangs is not called stopped, and is seen again when it goes on.
    daemon.process.send_signal(signal.SIGSTOP)
    assert watch.until(lambda report: report.get("silent"))["daemon"]["running"] is True
    daemon.process.send_signal(signal.SIGCONT)
    watch.until(lambda report: not report.get("silent") and report["agents"])
    told = node.run("events", "-n", "1000", "--json").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in told] == list(range(1, len(told) + 1))

    node.json("stop")
    events.until(lambda told: told["kind"] == "daemon.stopping")
    assert events.process.wait(10) == 3, "it ends with the daemon"
    assert "no daemon is running" in events.process.stderr.read()
    watch.until(lambda report: not report["daemon"]["running"])
    watch.process.send_signal(signal.SIGINT)
    assert watch.process.wait(10) == 130
