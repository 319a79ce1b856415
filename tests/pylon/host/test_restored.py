"""Agents of a home that was restored from a backup: what relays know counts, and others hear who runs them."""

from __future__ import annotations

import random
import shutil

import attrs
import trio

from protocols.nip_sa import STATE
from protocols.nip_sa_state import parse_state
from pylon.daemon.restoring import _begin_anew
from pylon.host import memory, registry
from pylon.store import freeze
from pylon.store import settings as remembered
from pylon.store.database import open_store
from pylon.testing.sim.host_node import HostNode
from tests.pylon.host.world import open_world, reply, settings, until

THOUGHT = reply({"do": "add_memory", "text": "something worth remembering"})


def copy_of(directory, name):
    """The database of a node that is dead."""
    (directory / name).mkdir()
    for path in directory.glob("home.db*"):
        shutil.copy(path, directory / name / path.name.replace("home.db", f"{name}.db"))
    return directory / name


async def begin_anew(path, world):
    async with open_store(path, vault=world.node._vault, clock=world.clock, executor="inline", durable=False) as store:
        counted = await store.write(_begin_anew)
        # As its operator does at the end of it all.
        assert await store.write(freeze.thaw) is not None
    return counted


def learning(mind):
    return memory.remember(mind, type="note", content="the answer is 42", now=1.0, relevance=1.0, origin="operator")


def published(world, agent):
    """The newest state that the relay has of it."""
    (event,) = world.events(STATE, agent)
    return parse_state(event, world.agents.keys(agent).nostr)


async def test_what_was_learnt_since_the_backup_is_taken_from_relays(autojump_clock, tmp_path):
    async with open_world(tmp_path, THOUGHT) as world:
        agent = await world.spawn(settings(heartbeat=300), goals=["learn"], funds=5_000)
        await until(lambda: world.ended(agent))
        await world.kill()
        kept = copy_of(tmp_path, "backup")
        await world.live()
        await world.agents.remind(agent, learning)
        await until(lambda: len(world.ended(agent)) >= 4, 4_000)
        known, instance = world.mind(agent), world.row(agent).instance
        await world.kill()
        for path in tmp_path.glob("home.db*"):
            path.unlink()
        for path in kept.iterdir():
            shutil.copy(path, tmp_path / path.name.replace("backup", "home"))
        assert await begin_anew(tmp_path / "home.db", world) == (1, 0)
        await world.live()
        await until(lambda: world.mind(agent).tick_count >= known.tick_count)
        assert any(entry.content == "the answer is 42" for entry in world.mind(agent).memory)
        row = world.row(agent)
        assert (row.epoch, row.moved) == (2, "")
        assert row.instance != instance
        await until(lambda: published(world, agent).epoch == 2)
        assert published(world, agent).instance == row.instance
        assert remembered.get(world.store, f"{registry.RESTORED}{agent}") is None
        ticks = world.row(agent).ticks
        await until(lambda: world.row(agent).ticks > ticks, 2_000)


async def test_a_home_that_lives_on_parks_what_a_restored_one_runs(autojump_clock, tmp_path):
    """Also where nothing has happened since the backup: the relays' state is the one that the backup has written."""
    async with open_world(tmp_path, THOUGHT) as world:
        agent = await world.spawn(settings(heartbeat=3_000), goals=["learn"], funds=5_000)
        await until(lambda: world.ended(agent), 4_000)
        await trio.sleep(30)
        await world.kill()
        copy = copy_of(tmp_path, "other")
        await world.live()
        await trio.sleep(5)
        await begin_anew(copy / "other.db", world)
        setting = attrs.evolve(world.node.setting, directory=copy)
        other = HostNode("other", setting, random.Random(7))
        other._vault = world.node._vault
        await world.nursery.start(other.live)
        await until(lambda: world.row(agent).moved)
        assert not registry.load(other.store, agent).moved
        other.kill("the test is over")
        await until(lambda: other.store is None)
