"""The journal of a session: in order, bounded, and once more on demand."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from pylon.tunnel import journal as journals
from pylon.tunnel import messages as m
from pylon.tunnel.journal import Journal


def said(n: int, size: int = 1) -> m.Prompted:
    return m.Prompted("s", f"{n}".rjust(size, "x"))


def send(journal: Journal) -> int | None:
    """Send one, as the tunnel does. Returns its number."""
    unsent = journal.next()
    if unsent is None:
        return None
    number, text = unsent
    assert m.read(text).message.seq == number
    journal.mark_sent(number)
    return number


steps = st.lists(
    st.one_of(st.just("add"), st.just("send"), st.tuples(st.just("rewind"), st.integers(0, 40))), max_size=80
)


@given(steps)
async def test_after_the_last_rewind_all_that_is_kept_comes_in_order(steps):
    kept, limit = journals.KEPT, 10
    journals.KEPT = limit
    try:
        journal = Journal("s", lambda: None)
        sent: list[int] = []
        for step in steps:
            if step == "add":
                journal.add_now(said(journal.last + 1))
            elif step == "send":
                if (number := send(journal)) is not None:
                    if sent:
                        assert number <= sent[-1] + 1
                    sent.append(number)
            else:
                journal.rewind(step[1])
                assert journal.first == 0 or journal.next() is None or journal.next()[0] >= journal.first
        while (number := send(journal)) is not None:
            sent.append(number)
        assert journal.all_sent
        assert set(sent) == set(range(1, journal.last + 1))
        assert journal._unsent_characters == 0
        journal.rewind(0)
        again = list(iter(lambda: send(journal), None))
        assert again == list(range(journal.first, journal.last + 1)) if journal.last else again == []
        assert len(again) <= max(limit, 1)
    finally:
        journals.KEPT = kept


@pytest.mark.parametrize("size", [1, 200_000])
async def test_whoever_adds_waits_while_too_much_is_unsent(size):
    journal = Journal("s", lambda: None)
    added = []

    async def add():
        for n in range(1, 400):
            await journal.add(said(n, size))
            added.append(n)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add)
        await wait_all_tasks_blocked()
        assert len(added) == (journals.MAX_UNSENT if size == 1 else 6)
        journal.add_now(m.SessionState("s", "waiting"))  # what must be told does not wait
        before = len(added)
        for _ in range(3):
            send(journal)
        await wait_all_tasks_blocked()
        assert before < len(added) <= before + 3
        nursery.cancel_scope.cancel()
    assert journal.last == len(added) + 1


async def test_what_cannot_be_written_has_no_number():
    journal = Journal("s", lambda: None)
    with pytest.raises(ValueError, match="claude_prompted"):
        await journal.add(m.Prompted("s", "x" * (m.MAX_TEXT + 1)))
    assert (journal.last, journal.first, journal.next()) == (0, 0, None)


async def test_it_wakes_whoever_sends():
    woken = []
    journal = Journal("s", lambda: woken.append(journal.last))
    await journal.add(said(1))
    send(journal)
    journal.rewind(0)
    journal.rewind(5)
    assert woken == [1, 1]


async def test_what_is_wound_back_while_it_is_being_sent_comes_once_more():
    journal = Journal("s", lambda: None)
    for n in range(1, 4):
        journal.add_now(said(n))
    send(journal)
    number, _ = journal.next()
    journal.rewind(0)
    journal.mark_sent(number)
    assert list(iter(lambda: send(journal), None)) == [1, 2, 3]
    assert journal._unsent_characters == 0
