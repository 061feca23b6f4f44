from __future__ import annotations

import asyncio
import time

import pytest

from tests.simulated_loop import Deadlock, simulate


def test_an_hour_of_waiting_takes_no_time() -> None:
    async def story() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    started = time.monotonic()
    assert simulate(story()) == pytest.approx(3600)
    assert time.monotonic() - started < 5


def test_timers_fire_in_order_at_their_exact_times() -> None:
    async def story() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        seen: list[tuple[str, float]] = []
        done = asyncio.Event()
        loop.call_later(2, lambda: seen.append(("late", loop.time())))
        loop.call_later(2, done.set)
        loop.call_later(1, lambda: seen.append(("early", loop.time())))
        await done.wait()
        return seen

    assert simulate(story()) == [("early", 1.0), ("late", 2.0)]


def test_a_wait_that_nothing_will_end_raises() -> None:
    async def story() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        simulate(story())
