from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.cli import logs as module


@pytest.fixture
def home(home):
    home.prepare()
    return home


@pytest.fixture
def logs(pylon):
    return partial(pylon, "logs")


def line(event="hello", level="info", **more):
    return json.dumps(
        {"event": event, "level": level, "logger": "pylon.x", "timestamp": "2026-01-02T03:04:05Z", **more}
    )


def write(path, *lines):
    path.write_text("".join(f"{text}\n" for text in lines))


def events(out):
    return [json.loads(text)["event"] for text in out.splitlines()]


def test_for_people(logs, home):
    write(
        home.log,
        line("two\nlines \x1b[2J", "warning", agent="alice", exception="Traceback\n  oh"),
        "Segmentation fault",
    )
    code, out, err = logs()
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "2026-01-02 03:04:05Z WARNING  pylon.x: [alice] two",
        "    lines \ufffd[2J",
        "    Traceback",
        "      oh",
        "                     Segmentation fault",
    ]


def test_without_a_log(logs):
    code, out, err = logs()
    assert (code, out) == (1, "")
    assert "no log yet" in err


def test_the_last_ones_through_the_rotation(logs, home):
    write(home.logs / "pylon.log.2", *(line(f"{n}") for n in range(10)))
    write(home.logs / "pylon.log.1", *(line(f"{n}") for n in range(10, 20)))
    write(home.log, *(line(f"{n}") for n in range(20, 25)))
    for count in (0, 1, 5, 6, 15, 16, 25, 100):
        code, out, _ = logs("-n", str(count), "--json")
        assert code == 0
        assert events(out) == [str(n) for n in range(25)][max(0, 25 - count) :]


def test_levels_and_agents(logs, home):
    write(
        home.log,
        line("a", "debug"), line("b", "info", agent="alice"), line("c", "error", agent="bob"), "not JSON", "[1]",
        line("agent alice: parked", "warning"), line("agent alicent: parked", "warning"),
    )  # fmt: skip
    assert events(logs("--json", "--level", "warning")[1]) == [
        "c", "not JSON", "[1]", "agent alice: parked", "agent alicent: parked",
    ]  # fmt: skip
    assert events(logs("--json", "--agent", "alice")[1]) == ["b", "agent alice: parked"]
    assert events(logs("--json", "--agent", "alice", "--level", "warning")[1]) == ["agent alice: parked"]
    assert logs("--level", "loud")[0] == 2


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=40), max_size=30),
    st.integers(1, 200),
)
def test_backwards_is_forwards_turned_round(tmp_path_factory, texts, block):
    path = tmp_path_factory.mktemp("logs") / "file"
    data = "".join(f"{text}\n" for text in texts).encode()
    path.write_bytes(data)
    before, module._BLOCK = module._BLOCK, block
    try:
        found = [entry for entry in module._lines_backwards(path, len(data)) if entry]
    finally:
        module._BLOCK = before
    assert [entry.decode() for entry in reversed(found)] == [text for text in texts if text]


@pytest.fixture
def follow(home):
    processes = []

    def follow(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "pylon", "--home", str(home.root), "logs", "-f", "--json", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        processes.append(process)
        return process

    yield follow
    for process in processes:
        process.kill()
        process.communicate()


def test_following_through_a_rotation_and_half_lines(home, follow):
    write(home.log, line("old"))
    process = follow("-n", "1")

    def next_event():
        return json.loads(process.stdout.readline())["event"]

    assert next_event() == "old"
    with home.log.open("a") as file:
        file.write(line("whole") + "\n" + line("half")[:20])
        file.flush()
        assert next_event() == "whole"
        file.write(line("half")[20:] + "\n")
        file.flush()
        assert next_event() == "half"
        home.log.rename(home.logs / "pylon.log.1")
        file.write(line("late") + "\n")
        file.flush()
    write(home.log, line("new file"))
    assert [next_event(), next_event()] == ["late", "new file"]
    os.truncate(home.log, 0)
    time.sleep(0.4)
    with home.log.open("a") as file:
        file.write(line("emptied") + "\n")
    assert next_event() == "emptied"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130


def test_following_a_log_that_comes_later(home, follow):
    process = follow()
    time.sleep(0.5)
    write(home.log, line("first"))
    assert json.loads(process.stdout.readline())["event"] == "first"


def test_a_reader_that_has_enough(home):
    write(home.log, *(line("x" * 1_000) for _ in range(500)))
    command = (
        f"'{sys.executable}' -m pylon --home '{home.root}' logs -n 500 | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
