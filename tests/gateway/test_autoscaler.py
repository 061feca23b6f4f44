"""Copies follow the load: windows, panic, and a fleet on simulated time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.fleet import Node
from gateway.lifecycle.window import PANIC_S, STABLE_S, Scaler, Window
from gateway.placement import EngineKind, Placement
from tests.gateway.fakes import FakeEngine, Ok, house, spec
from tests.simulated_loop import simulate


def test_average_is_weighted_by_time_and_not_by_observations() -> None:
    window = Window(10.0)
    window.observe(0.0, 4.0)
    for now in (5.0, 5.1, 5.2):
        window.observe(now, 0.0)
    assert window.average(10.0) == pytest.approx(2.0)
    assert window.average(12.0) == pytest.approx(1.2)
    assert window.average(100.0) == 0.0


def test_gap_between_observations_counts_as_what_held_before_it() -> None:
    window = Window(60.0)
    window.observe(0.0, 3.0)
    window.observe(10.0, 1.0)
    assert window.average(20.0) == pytest.approx(2.0)


def test_no_data_is_not_no_load() -> None:
    assert Window(10.0).average(100.0) is None
    assert Scaler().desired(100.0, ready=3, target=1.0) == 0


def observed(*loads: tuple[float, float], step_s: float = 1.0) -> tuple[Scaler, float]:
    """Return a scaler that has seen (seconds, concurrency) one after the other."""
    scaler, now = Scaler(), 0.0
    for seconds, concurrency in loads:
        for _ in range(int(seconds / step_s)):
            scaler.observe(now, concurrency)
            now += step_s
    return scaler, now


def test_steady_load_wants_what_its_target_says() -> None:
    scaler, now = observed((120, 25.0))
    assert scaler.desired(now, ready=3, target=10.0) == 3
    assert scaler.desired(now, ready=2, target=10.0) == 3


def test_burst_counts_at_once_and_is_not_taken_back_within_a_minute() -> None:
    scaler, now = observed((120, 1.0), (PANIC_S, 60.0))
    assert scaler.desired(now, ready=1, target=10.0) == 6
    for _ in range(int(STABLE_S) - 1):
        scaler.observe(now, 0.0)
        now += 1.0
        assert scaler.desired(now, ready=6, target=10.0) >= 6
    for _ in range(5):
        scaler.observe(now, 0.0)
        now += 1.0
    assert scaler.desired(now, ready=6, target=10.0) == 3, "down by no more than half"


def test_busy_model_gets_a_second_copy_and_goes_back_to_one_and_to_none() -> None:
    async def story() -> None:
        kind = EngineKind.EMBEDDED
        fakes = [FakeEngine(runs=[Ok(0.5)] * 10_000) for _ in range(2)]
        nodes = [Node(f"t{n}", kind, fake) for n, fake in enumerate(fakes)]
        model = replace(spec(max_batch_size=1), placement=Placement(target_concurrency=4))
        async with house(model, engine=fakes[0], nodes=nodes, idle_timeout_s=300) as h:

            async def user(until: float) -> None:
                while asyncio.get_running_loop().time() < until:
                    await h.ask(1)

            def copies() -> int:
                return sum(bool(fake.loaded) for fake in fakes)

            await asyncio.gather(user(60), user(60))
            assert copies() == 1
            await asyncio.gather(*(user(120) for _ in range(16)))
            assert copies() == 2
            assert all(len(fake.batches) > 20 for fake in fakes)
            await user(300)
            assert copies() == 1
            await asyncio.sleep(301)
            assert copies() == 0

    simulate(story())
