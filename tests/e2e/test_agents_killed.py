"""``kill -9`` in the middle of ticks: no action twice, no trigger lost, every cost recorded, the books clean."""

from __future__ import annotations

import random
import time

import pytest

from tests.e2e.agents import PRICE_MSATS, Stage
from tests.e2e.homes import FEE_MSATS, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

KILLS = 25
REPLY_TO_ALL = [{"do": "reply", "about": number, "text": "heard"} for number in range(1, 51)]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.deep)])
def test_killed_again_and_again_it_answers_each_mention_once(world, seed):
    rng = random.Random(seed)
    stage = Stage.set(world)
    stage.says(*REPLY_TO_ALL)
    stage.start_provider()
    stage.start_host()
    stage.spawn(max_steps=60)
    stage.fund(100_000)
    stage.is_in("active")
    mentions = []
    for number in range(KILLS):
        mentions.append(stage.mention(f"mention {number} of seed {seed}"))
        time.sleep(rng.uniform(0.0, 1.2))
        assert stage.host.daemon is not None
        stage.host.daemon.kill()
        if rng.random() < 0.5:
            mentions.append(stage.mention(f"while it was dead, {number} of seed {seed}"))
        stage.start_host()
    wanted = {mention.id for mention in mentions}
    until(lambda: wanted <= stage.answers().keys(), 90, lambda: f"{len(stage.answers())} of {len(wanted)} answered")
    until(lambda: all(tick["status"] != "running" for tick in stage.ticks()), 30, "the end of all ticks")
    time.sleep(1.0)

    answers = stage.answers()
    assert {name: len(notes) for name, notes in answers.items()} == dict.fromkeys(wanted, 1)
    ticks = stage.ticks()
    taken = [row["id"] for row in stage.host.rows("SELECT id FROM triggers WHERE tick IS NOT NULL")]
    assert sorted(taken) == sorted(wanted), "each trigger was taken by one tick"
    assert all(tick["status"] == "success" for tick in ticks), [tick["reason"] for tick in ticks]
    assert {tick["cost_msats"] for tick in ticks} == {PRICE_MSATS + FEE_MSATS}
    view = stage.view()
    assert view["balance_msats"] == 100_000_000 - sum(tick["cost_msats"] for tick in ticks)
    stage.host.stop()
    stage.host.check_books()
    stage.provider.stop()
    stage.provider.check_books()
