"""What an agent's nursery logs bears the agent's name, and nothing else does."""

from __future__ import annotations

import trio

from pylon.host.host import _run_as
from pylon.logcontext import AGENT


async def test_the_name_goes_with_the_tasks_of_the_nursery():
    seen = []

    class Runner:
        async def run(self):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.child)

        async def child(self):
            await trio.lowlevel.checkpoint()
            seen.append(AGENT.get())

    async with trio.open_nursery() as nursery:
        for name in ("alice", "bob"):
            nursery.start_soon(_run_as, name, Runner())
    assert sorted(seen) == ["alice", "bob"]
    assert AGENT.get() == ""
