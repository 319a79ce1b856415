"""What an operator sets: kept whole, and nothing that cannot be."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import given

from protocols.nip_sa import Autonomy
from pylon.errors import ConfigError
from pylon.host.settings import MONEY, OUTWARD, ActionKind, AgentSettings, Grant, check_name
from pylon.money import Msat

grants = st.builds(
    Grant,
    action=st.sampled_from(ActionKind),
    each=st.integers(0, 10**15).map(Msat),
    day=st.integers(0, 10**15).map(Msat),
    per_day=st.none() | st.integers(0, 100),
    strangers=st.booleans(),
)
settings = st.builds(
    AgentSettings,
    name=st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?", fullmatch=True),
    about=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    autonomy=st.sampled_from(Autonomy),
    model=st.none() | st.just("llama3.2"),
    heartbeat=st.integers(1, 86_400),
    kinds=st.lists(st.integers(0, 65_535), max_size=5).map(tuple),
    grants=st.lists(grants, max_size=4).map(tuple),
    publish=st.booleans(),
)


@given(settings)
def test_they_survive_being_written_and_read(chosen):
    assert AgentSettings.from_json(chosen.to_json()) == chosen


def test_keys_of_another_version_are_passed_over():
    text = AgentSettings(name="ada").to_json().replace('{"name"', '{"colour":"red","name"', 1)
    assert AgentSettings.from_json(text) == AgentSettings(name="ada")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name":"Ada"}', '{"name":"a","heartbeat":0}'])
def test_what_are_no_settings_is_said(text):
    with pytest.raises(ConfigError):
        AgentSettings.from_json(text)


@pytest.mark.parametrize("name", ["a", "my-agent", "a.b_c", "0", "a" * 64])
def test_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a b", "ä", "a" * 65, "a/b", "a@b", "a\n"])
def test_names_that_no_lightning_address_can_have(name):
    with pytest.raises(ConfigError, match="no name for an agent"):
        check_name(name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heartbeat": 0},
        {"heartbeat": 31 * 86_400},
        {"budget_day_sats": -1},
        {"budget_tick_sats": -1},
        {"max_steps": -1},
        {"thought_tokens": 15},
        {"trusted": ("aa",) * 101},
        {"about": "x" * 2_001},
    ],
)
def test_what_cannot_be(wrong):
    with pytest.raises(ConfigError) as caught:
        AgentSettings(name="ada", **wrong)
    assert caught.value.hint


def test_money_is_always_noticed_by_others():
    assert MONEY < OUTWARD < set(ActionKind)


def test_there_is_no_money_without_a_grant():
    chosen = AgentSettings(name="ada")
    assert all(chosen.grant(kind) is None for kind in MONEY)
    given_one = attrs.evolve(chosen, grants=(Grant(action=ActionKind.ZAP, each=Msat(1)),))
    assert given_one.grant(ActionKind.ZAP).each == 1
    assert given_one.grant(ActionKind.PAY_INVOICE) is None
