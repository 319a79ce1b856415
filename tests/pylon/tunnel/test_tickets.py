"""Tickets: only what was given out is good, for whom it was given, and for so long."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pylon.tunnel.tickets import LIFETIME_SECONDS, Tickets, is_session_id, new_session_id

NOW = 1_800_000_000.0
SECRET = b"not to be told to anybody"
TICKETS = Tickets(SECRET)
roles = st.sampled_from(["tunnel", "browser"])
session_ids = st.binary(min_size=16, max_size=16).map(bytes.hex)


@given(session_ids, roles, st.integers(0, 2 * LIFETIME_SECONDS))
def test_a_ticket_is_good_for_its_time(session_id, role, later):
    ticket = TICKETS.issue(session_id, role, NOW)
    left = TICKETS.check(session_id, role, ticket, NOW + later)
    assert left == (LIFETIME_SECONDS - later if later < LIFETIME_SECONDS else None)


@given(session_ids, roles, session_ids, roles)
def test_it_is_good_for_nothing_else(session_id, role, other_id, other_role):
    assume((session_id, role) != (other_id, other_role))
    assert TICKETS.check(other_id, other_role, TICKETS.issue(session_id, role, NOW), NOW) is None


@given(session_ids, st.data())
def test_a_changed_ticket_is_none(session_id, data):
    ticket = TICKETS.issue(session_id, "browser", NOW)
    at = data.draw(st.integers(0, len(ticket) - 1))
    changed = ticket[:at] + data.draw(st.text(max_size=2)) + ticket[at + 1 :]
    assume(changed != ticket)
    assert TICKETS.check(session_id, "browser", changed, NOW) is None


@given(st.text(), st.text(), roles)
def test_anything_is_answered(session_id, text, role):
    assert TICKETS.check(session_id, role, text, NOW) is None


def test_nobody_lengthens_it():
    session_id = new_session_id()
    expiry, _, mac = TICKETS.issue(session_id, "browser", NOW).partition(".")
    for forged in (f"{int(expiry) + 1}.{mac}", f"9{expiry}.{mac}", f"0{expiry}.{mac}".replace("0", "٠")):
        assert TICKETS.check(session_id, "browser", forged, NOW) is None


def test_another_secret_knows_none_of_them():
    session_id = new_session_id()
    ticket = TICKETS.issue(session_id, "tunnel", NOW)
    assert Tickets(SECRET).check(session_id, "tunnel", ticket, NOW) == LIFETIME_SECONDS
    assert Tickets(SECRET + b"!").check(session_id, "tunnel", ticket, NOW) is None
    with pytest.raises(ValueError, match="16 bytes"):
        Tickets(b"short")


def test_names_of_sessions_are_drawn():
    assert new_session_id() != new_session_id()
    assert is_session_id(new_session_id())
    assert not any(map(is_session_id, ["", "0" * 31, "0" * 33, "G" * 32, "0" * 32 + "\n", "٠" * 32]))


def test_its_repr_is_blank():
    assert repr(TICKETS) == "Tickets(…)"
