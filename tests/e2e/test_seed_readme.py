"""The README that Pylon was begun with holds: as it stands on a machine without internet, and on simnet."""

from __future__ import annotations

import pytest

from tests.e2e.homes import World
from tests.e2e.seed_readme import CONNECT, ROWS, Follower

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("model")]

SPARK = "Spark's servers (api.lightspark.com and the Spark operators) cannot be reached"
WANTING = {
    "pylon doctor": (SPARK, "wss://relay.damus.io", "wss://nos.lol", "wss://relay.nostr.band"),
    "pylon wallet balance": (SPARK,),
    "pylon wallet invoice <amount>": (SPARK,),
    "pylon wallet pay <invoice>": (SPARK,),
    "pylon wallet fund": (SPARK,),
    CONNECT: ("wss://tunnel.example: no connection",),
}
"""What cannot be had without internet, and what has to be said then. Everything else works."""


def follow(world: World, network: str | None):
    """The outcomes of all commands, none left out; that each has ended in time, and none broke, is checked here."""
    outcomes = list(Follower(world, world.directory / "user", network).follow())
    assert {outcome.row for outcome in outcomes} - {""} == set(ROWS) - ({CONNECT} if network else set())
    for outcome in outcomes:
        assert outcome.code is not None, f"it hangs: {outcome}"
        assert "Traceback" not in outcome.said, outcome
        assert "unexpected" not in outcome.said, outcome
        assert "token=" not in outcome.said, outcome
    return outcomes


@pytest.mark.usefixtures("offline")
def test_as_it_stands_without_internet(world):
    wrong = []
    for outcome in follow(world, None):
        names = WANTING.get(outcome.row, ())
        if outcome.code != (1 if names else 0) or not all(name in outcome.said for name in names):
            wrong.append(outcome)
        if names and outcome.row != "pylon doctor" and "hint: " not in outcome.err:
            wrong.append(outcome)
        if outcome.row == "pylon wallet status":
            assert SPARK in outcome.out
    assert wrong == [], "\n".join(map(str, wrong))


def test_on_simnet_each_command_ends_well(world):
    outcomes = follow(world, "simnet")
    assert [str(outcome) for outcome in outcomes if outcome.code != 0] == []
    said = {outcome.row: outcome.said for outcome in outcomes}
    assert "100,000 sat" in said["pylon wallet balance"]
    assert "paid 500 sat" in said["pylon wallet pay <invoice>"]
    assert "my-agent" in said["pylon agent list"]
    assert "[OK] wallet" in said["pylon doctor"]
