"""An agent moves from one home to another: by its phrase alone, over the relays; and with all it has, in a bundle."""

from __future__ import annotations

import os

import pytest

from tests.e2e.agents import Stage
from tests.e2e.homes import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def test_exported_as_a_phrase_it_lives_on_in_an_empty_home_and_the_old_one_parks_it(world):
    stage = Stage.set(world)
    stage.says({"do": "add_memory", "text": "the sea is blue"}, {"do": "update_goal", "goal": "g1", "progress": 50})
    stage.start_provider()
    stage.start_host()
    stage.spawn(goals=["learn of the sea"], heartbeat=777)
    stage.fund(1_000)
    until(lambda: [tick for tick in stage.ticks() if tick["status"] == "success"], 30, "a thought")
    before = until(lambda: (view := stage.view())["ticks"] and view["balance_msats"] < 1_000_000 and view, 10, "spent")
    goals = stage.host.ask("agent.goals", agent="ada")["goals"]
    memories = stage.host.ask("agent.memory", agent="ada")["memories"]
    assert goals[0]["progress"] == 0.5
    assert any(memory["content"] == "the sea is blue" for memory in memories)
    phrase = stage.host.run("agent", "export", "ada", "--phrase").stdout.strip().splitlines()[-1]

    # An empty home that knows only the relay and the ledger.
    second = world.node("second").configure(relays=[stage.relay], more='\n[api]\nbind = "127.0.0.1:0"\n')
    second.start("host")
    done = second.run("agent", "import", "--phrase", "--json", stdin=phrase + "\n", timeout=60)
    assert done.returncode == 0, done.stderr
    assert phrase not in done.stdout + done.stderr
    after = second.ask("agent.info", agent="ada")
    for key in ("npub", "pubkey", "name", "wallet", "balance_msats", "ticks", "schedule", "state"):
        assert after[key] == before[key], key
    assert after["epoch"] == before["epoch"] + 1
    kept = ("id", "description", "progress", "status")
    moved = second.ask("agent.goals", agent="ada")["goals"]
    assert [{key: goal[key] for key in kept} for goal in moved] == [{key: goal[key] for key in kept} for goal in goals]
    assert second.ask("agent.memory", agent="ada")["memories"] == memories

    # The old home sees a higher epoch, and parks it; then the seed is free for the new one.
    until(lambda: stage.view()["moved"], 30, "the old home to park it")
    stage.mention("hello in your new home")
    answered = until(
        lambda: [tick for tick in second.ask("agent.ticks", agent="ada")["ticks"] if tick["status"] == "success"],
        40,
        "a thought in the new home",
    )
    assert answered[0]["trigger"] == "mention"
    assert len(stage.ticks()) == before["ticks"]
    second.stop()
    second.check_books()
    stage.host.stop()
    stage.host.check_books()


def test_a_bundle_carries_everything_and_needs_no_relay(world, tmp_path):
    stage = Stage.set(world)
    host = stage.host
    secret = "correct horse battery staple"
    spawned = host.json("agent", "spawn", "--name", "ada", "--goal", "write a poem", "--grant", "zap:21:100")
    host.json("agent", "fund", "ada", "500")
    host.json("agent", "memory", "add", "ada", "the operator likes short poems")
    bundle = tmp_path / "ada.agent"
    read, write = os.pipe()
    os.write(write, (secret + "\n").encode())
    os.close(write)
    done = _with_descriptor(host, read, "agent", "export", "ada", "--bundle", str(bundle))
    assert done.returncode == 0, done.stderr
    text = bundle.read_text()
    assert spawned["mnemonic"] not in text
    assert "short poems" not in text

    second = world.node("second").configure(relays=["ws://127.0.0.1:9"])
    read, write = os.pipe()
    os.write(write, (secret + "\n").encode())
    os.close(write)
    done = _with_descriptor(second, read, "agent", "import", "--bundle", str(bundle))
    assert done.returncode == 0, done.stderr
    info = second.json("agent", "info", "ada")
    assert (info["npub"], info["balance_msats"], info["epoch"]) == (spawned["npub"], 500_000, 2)
    assert [goal["description"] for goal in info["goal_list"]] == ["write a poem"]
    assert info["grants"][0]["each_msats"] == 21_000
    memories = second.json("agent", "memory", "ada")["memories"]
    assert any("short poems" in memory["content"] for memory in memories)
    second.check_books()


def _with_descriptor(node, descriptor, *arguments):
    import subprocess

    from tests.e2e.homes import command, environment

    try:
        return subprocess.run(
            [command(), "--home", str(node.root), *arguments, "--passphrase-fd", str(descriptor)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            pass_fds=(descriptor,),
            env=environment(),
        )
    finally:
        os.close(descriptor)
