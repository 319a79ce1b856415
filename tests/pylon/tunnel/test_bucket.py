"""A bucket: so many at once, then so many a second, and what is not taken is not owed."""

from __future__ import annotations

import trio

from pylon.tunnel.bucket import Bucket


async def test_what_is_taken_beyond_it_is_owed(autojump_clock):
    bucket = Bucket(3.0, 2.0)
    assert [bucket.take() for _ in range(6)] == [0, 0, 0, 0.5, 1.0, 1.5]
    await trio.sleep(2)
    assert bucket.take() == 0
    await trio.sleep(1_000)
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]


async def test_who_is_told_to_wait_owes_nothing(autojump_clock):
    bucket = Bucket(3.0, 2.0)
    assert [bucket.take_now() for _ in range(3)] == [0, 0, 0]
    assert [bucket.take_now() for _ in range(10)] == [0.5] * 10
    await trio.sleep(0.5)
    assert [bucket.take_now() for _ in range(2)] == [0, 0.5]
