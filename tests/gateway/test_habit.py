"""Models that are asked for by the clock are ready in time, and asleep in between."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import ModelKey, ModelState
from gateway.fleet import Node
from gateway.habit import LONGEST_S, MARGIN, REMEMBERED_GAPS, SHORTEST_S, Habit
from gateway.lifecycle.policy import Decision, Defaults, decide
from gateway.placement import EngineKind
from gateway.rows import Snapshot
from tests.gateway.fakes import Act, Fail, FakeEngine, House, Ok, house, spec
from tests.simulated_loop import simulate

MINUTE = 60.0


def learnt(gaps: list[float]) -> tuple[Habit, float]:
    """Return the habit of a model that is idle now, and since when."""
    habit, now = Habit(), 0.0
    habit.use_ends(now)
    for gap in gaps:
        now += gap
        habit.use_begins(now)
        habit.use_ends(now)
    return habit, now


@given(st.floats(2 * SHORTEST_S, LONGEST_S * 0.9), st.integers(5, 40), st.floats(0, 0.05))
def test_a_steady_gap_is_expected_closely(gap: float, count: int, jitter: float) -> None:
    draw = random.Random(1)
    habit, now = learnt([gap * draw.uniform(1 - jitter, 1 + jitter) for _ in range(count)])
    assert habit.expected is not None
    begin, end = habit.expected
    assert (
        now + gap * 0.7 < begin < now + gap * (1 - MARGIN / 2) < now + gap < end < now + gap * 1.4
    )


@pytest.mark.parametrize(
    "gaps",
    [
        [],
        [600.0] * 4,  # too few
        [30.0, 600.0] * 20,  # too wide
        [2 * LONGEST_S] * 20,  # too long
        [0.5] * 20,  # a burst
    ],
)
def test_gaps_that_say_nothing_promise_nothing(gaps: list[float]) -> None:
    assert learnt(gaps)[0].expected is None


def test_a_habit_that_changes_is_learnt_anew() -> None:
    old = [600.0] * REMEMBERED_GAPS
    assert learnt(old + [60.0] * 20)[0].expected is None
    habit, now = learnt(old + [60.0] * 20 * REMEMBERED_GAPS)
    assert habit.expected is not None
    assert habit.expected[1] < now + 90


def test_model_in_use_is_not_expected() -> None:
    habit, now = learnt([600.0] * 9)
    habit.use_begins(now + 600)
    assert habit.expected is None


async def by_the_clock(h: House, times: int) -> int:
    """Ask every 20 minutes; return how often the model was loaded for a request that waited."""
    cold = 0
    for _ in range(times):
        cold += h.entry().state is not ModelState.READY
        await h.ask(1)
        await asyncio.sleep(20 * MINUTE)
    return cold


def test_model_that_is_asked_for_by_the_clock_is_ready_in_time_and_asleep_before() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(2.0)] * 100)
        async with house(engine=engine, idle_timeout_s=5 * MINUTE, predictive=True) as h:
            assert await by_the_clock(h, 6) == 6
            assert await by_the_clock(h, 20) == 0
            loop = asyncio.get_running_loop()
            await h.ask(1)
            used = loop.time()
            await h.state(ModelState.UNAVAILABLE)
            assert loop.time() - used == pytest.approx(20)  # ten loads
            await h.state(ModelState.READY)
            assert 14 * MINUTE < loop.time() - used < 19 * MINUTE
            # who does not come is not waited for, and not expected again
            await h.state(ModelState.UNAVAILABLE)
            assert loop.time() - used < 27 * MINUTE
            await asyncio.sleep(1000 * MINUTE)
            assert h.entry().state is ModelState.UNAVAILABLE
            assert h.entry().stats.prewarms == {"used": 21, "unused": 1}

    simulate(story())


def test_without_a_habit_the_idle_timeout_holds() -> None:
    async def story(predictive: bool) -> list[str]:
        engine = FakeEngine()
        draw = random.Random(7)
        async with house(engine=engine, idle_timeout_s=300, predictive=predictive) as h:
            for _ in range(50):
                await h.ask(1)
                await asyncio.sleep(draw.expovariate(1 / 300))
        return engine.log

    logs: list[list[str]] = []

    async def both() -> None:
        logs.append(await story(False))
        logs.append(await story(True))

    simulate(both())
    assert logs[0] == logs[1]


def test_model_that_is_expected_takes_no_room_from_one_that_is_worth_more() -> None:
    async def story() -> None:
        engine = FakeEngine()
        nodes = [Node("embedded", EngineKind.EMBEDDED, engine, budget_bytes=1000)]
        models = (spec(), spec("other"))
        async with house(*models, nodes=nodes, idle_timeout_s=5 * MINUTE, predictive=True) as h:
            await by_the_clock(h, 7)
            await h.ask(1)
            busy = asyncio.create_task(keep_busy(h))
            await asyncio.sleep(200 * MINUTE)
            assert engine.log.count("load other:1") == 1
            assert engine.loaded == {ModelKey("other", 1)}
            busy.cancel()

    async def keep_busy(h: House) -> None:
        while True:
            await h.ask(1, model="other")
            await asyncio.sleep(10)

    simulate(story())


def test_a_learnt_model_costs_no_decision_for_each_of_its_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[float] = []

    def counted(snapshot: Snapshot, now: float, defaults: Defaults) -> Decision:
        made.append(now)
        return decide(snapshot, now, defaults)

    monkeypatch.setattr("gateway.lifecycle.reconciler.decide", counted)

    async def story() -> None:
        async with house(predictive=True) as h:
            await by_the_clock(h, 8)
            before = len(made)
            for _ in range(1000):
                await h.ask(1)
                await asyncio.sleep(0.02)
            assert len(made) - before < 20

    simulate(story())


def test_a_load_ahead_that_fails_was_of_no_use() -> None:
    async def story() -> None:
        loads: list[Act] = [*[Ok(1.0)] * 7, *[Fail("broken")] * 50]
        engine = FakeEngine(loads=loads)
        async with house(engine=engine, idle_timeout_s=5 * MINUTE, predictive=True) as h:
            await by_the_clock(h, 7)
            await asyncio.sleep(60 * MINUTE)
            h.entry().use_begins(asyncio.get_running_loop().time())
            assert h.entry().stats.prewarms["used"] == 1  # the one before

    simulate(story())


def test_a_burst_does_not_shorten_the_idle_time() -> None:
    async def story() -> None:
        engine = FakeEngine()
        async with house(engine=engine, idle_timeout_s=5 * MINUTE, predictive=True) as h:
            for _ in range(5):
                for _ in range(60):
                    await h.ask(1)
                    await asyncio.sleep(2)
                await asyncio.sleep(2 * MINUTE)
            assert engine.log == ["load m:1"]

    simulate(story())
