"""What the record says that sessions have cost."""

from __future__ import annotations

from pylon.config import ClaudeConfig
from pylon.tunnel import record
from pylon.tunnel.policy import rules_of


async def test_a_cost_that_was_not_told_to_the_end_counts_with_the_cap(store, work):
    async def begun(**config):
        rules = rules_of(ClaudeConfig(**config), default_cwd=work)
        session = await record.open_record(store, name="s", server="wss://x", rules=rules)
        await session.act("prompt", text="x")
        return session

    started = store.clock.now()
    known = await begun(max_cost_usd=500)
    await known.turn(100, known=True, outcome="done")
    assert record.spent(store, started) == 0  # it runs
    await known.end("stopped")
    assert record.spent(store, started) == 100
    await (await begun(max_cost_usd=500)).end("stopped")
    assert record.spent(store, started) == 100 + 500
    beyond = await begun(max_cost_usd=500)
    await beyond.turn(700, known=False, outcome="done")
    await beyond.end("stopped")
    assert record.spent(store, started) == 100 + 500 + 700
    resumed = await begun()
    await resumed.turn(30, known=True, outcome="done")
    await resumed.turn_begun()
    await record.tidy(store)
    assert record.spent(store, started) == 100 + 500 + 700 + 30
    assert record.sessions(store)[0].unsettled
    assert record.spent(store, store.clock.now() + 1) == 0
