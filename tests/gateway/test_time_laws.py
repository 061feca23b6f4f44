"""What the batcher promises about time: deadlines, objectives, stalled engines, order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batching.due_times import DueTimes
from gateway.batching.latency_curve import HALF_LIFE_S, LatencyCurve
from gateway.core import BatchPolicy, BatchTime, InferResponse, QueuePolicy
from gateway.errors import DeadlineExceeded, EngineStalled, InferenceFailed, QueueTimeout
from tests.gateway.fakes import Fail, FakeEngine, Hang, Ok, dynamic, house, spec
from tests.simulated_loop import simulate


def test_request_that_the_model_is_too_slow_for_is_refused_at_once() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(1.0), Ok(1.0)])
        async with house(engine=engine) as h:
            await h.ask(1)
            loop = asyncio.get_running_loop()
            started = loop.time()
            with pytest.raises(DeadlineExceeded, match="cannot be met"):
                await h.ask(2, timeout_s=0.5)
            assert loop.time() == pytest.approx(started)
            await h.ask(3, timeout_s=2.0)
            assert engine.batch_sizes == [1, 1]
            assert h.entry().stats.refused == 1

    simulate(story())


def test_under_overload_who_is_refused_hears_it_at_once_and_the_rest_are_in_time() -> None:
    async def story() -> None:
        refused: list[float] = []
        answered: list[float] = []
        engine = FakeEngine(runs=[Ok(0.08 if n % 3 else 0.1) for n in range(100)])
        async with house(spec(max_batch_size=8), engine=engine) as h:
            loop = asyncio.get_running_loop()

            async def client(number: int) -> None:
                started = loop.time()
                try:
                    await h.ask(number, timeout_s=1.0)
                except DeadlineExceeded:
                    refused.append(loop.time() - started)
                else:
                    answered.append(loop.time() - started)

            async with asyncio.TaskGroup() as clients:
                for number in range(1500):  # 300 a second for 5 s, where 90 can be served
                    clients.create_task(client(number))
                    await asyncio.sleep(1 / 300)
        assert len(answered) >= 0.95 * 5 * 90
        assert max(answered) <= 1.0
        assert max(refused) <= 0.05

    simulate(story())


def test_one_slow_batch_does_not_close_a_model() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(10.0)])
        async with house(engine=engine) as h:
            await h.ask(1)
            refused = 0
            while True:
                try:
                    await h.ask(2, timeout_s=1.0)
                    break
                except DeadlineExceeded:
                    refused += 1
                    await asyncio.sleep(1.0)
            assert 0 < refused < 10

    simulate(story())


def test_queued_requests_leave_on_time_while_every_instance_is_busy() -> None:
    async def story() -> None:
        late: list[float] = []

        async def wait_in_vain(timeout_s: float) -> None:
            loop = asyncio.get_running_loop()
            started = loop.time()
            with pytest.raises(QueueTimeout):
                await h.ask(2, timeout_us=round(timeout_s * 1e6))
            late.append(loop.time() - started - timeout_s)

        queue = QueuePolicy(default_timeout_s=50.0, allow_timeout_override=True)
        model = spec(batching=BatchPolicy(8, True, (8,), default_queue=queue))
        engine = FakeEngine(runs=[Ok(0.01), Ok(100.0)])
        async with house(model, engine=engine) as h, asyncio.TaskGroup() as clients:
            await h.ask(0)
            clients.create_task(h.ask(1))
            await asyncio.sleep(0.5)
            for step in range(1, 40):
                clients.create_task(wait_in_vain(step * 0.377))
        assert len(late) == 39
        assert all(-1e-6 <= one <= 0.005 for one in late)

    simulate(story())


def test_engine_that_hangs_is_given_up_and_the_model_serves_on() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Hang()])
        async with house(engine=engine, engine_timeout_s=5.0) as h:
            answers = await asyncio.gather(h.ask(1), h.ask(2), return_exceptions=True)
            for answer in answers:
                assert isinstance(answer, EngineStalled)
                assert str(answer) == ("model 'm': the engine has not answered a batch within 5 s")
            await h.ask(3)

    simulate(story())


def test_with_an_objective_urgent_requests_overtake() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(0.01), Ok(0.1)])
        model = spec(batching=BatchPolicy(2, True, (2,), slo_s=10.0), max_batch_size=2)
        async with house(model, engine=engine) as h, asyncio.TaskGroup() as clients:
            await h.ask(0)
            clients.create_task(h.ask(1))
            await asyncio.sleep(0.05)
            for value, timeout_s in ((2, 9.0), (3, 8.0), (4, 1.0), (5, 2.0)):
                clients.create_task(h.ask(value, timeout_s=timeout_s))
        assert [list(batch[:, 0]) for batch in engine.batches] == [[0], [1], [4, 5], [3, 2]]

    simulate(story())


@settings(max_examples=60)
@given(
    durations=st.lists(st.sampled_from([0.1, 0.5, 1.0, 3.0]), max_size=12),
    arrivals=st.lists(st.tuples(st.floats(0.0, 0.5), st.integers(1, 3)), min_size=1, max_size=12),
    gone=st.sets(st.integers(0, 11), max_size=3),
    failing=st.booleans(),
)
def test_preserve_ordering_answers_in_the_order_of_arrival_with_any_number_of_instances(
    durations: list[float],
    arrivals: list[tuple[float, int]],
    gone: set[int],
    failing: bool,
) -> None:
    async def story() -> None:
        answered: list[int] = []

        async def client(number: int, width: int) -> None:
            try:
                await h.ask(number, width=width, timeout_s=2.0 if number in gone else 1000.0)
            except (DeadlineExceeded, InferenceFailed) as error:
                if isinstance(error, DeadlineExceeded):
                    return  # never answered: not in the line any more
            answered.append(number)

        policy = BatchPolicy(2, True, (2,), preserve_ordering=True)
        # different widths never share a batch, and are still answered in turn
        model = spec(batching=policy, dims=(-1,), max_batch_size=2, instances=3)
        runs: list[Ok | Fail | Hang] = [Ok(seconds) for seconds in durations]
        if failing:
            runs.append(Fail("no"))
        engine = FakeEngine(runs=[Ok(0.0), *runs])
        async with house(model, engine=engine) as h, asyncio.TaskGroup() as clients:
            await h.ask(-1)
            for number, (later, width) in enumerate(arrivals):
                await asyncio.sleep(later)
                clients.create_task(client(number, width))
        assert answered == sorted(answered)
        assert len(answered) >= len(arrivals) - len(gone)

    simulate(story())


def test_without_preserve_ordering_a_fast_batch_overtakes_a_slow_one() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(0.0), Ok(5.0), Ok(1.0)])
        async with house(spec(instances=2, batching=dynamic()), engine=engine) as h:
            await h.ask(0)
            slow = asyncio.create_task(h.ask(1))
            await asyncio.sleep(0.1)
            await h.ask(2)
            assert not slow.done()
            answer: InferResponse = await slow
            assert answer.id == "(1,)"

    simulate(story())


def test_curve_learns_a_change_within_some_batches_and_forgets_with_time() -> None:
    curve = LatencyCurve()
    assert curve.predict(8, 0.0) == 0.0
    for _ in range(50):
        curve.observe(8, 0.010, 0.0)
    assert curve.predict(8, 0.0) == pytest.approx(0.010, rel=0.01)
    for _ in range(20):
        curve.observe(8, 0.030, 0.0)
    assert 0.028 < curve.predict(8, 0.0) < 0.045
    assert curve.predict(8, HALF_LIFE_S) == pytest.approx(curve.predict(8, 0.0) / 2, rel=0.1)


def test_curve_estimates_a_size_it_has_not_seen_from_its_neighbours() -> None:
    curve = LatencyCurve()
    curve.observe(2, 0.002, 0.0)
    assert curve.predict(1, 0.0) == pytest.approx(0.002)
    assert curve.predict(4, 0.0) == pytest.approx(0.004)
    curve.observe(32, 0.005, 0.0)
    assert curve.predict(17, 0.0) == pytest.approx(0.0035)
    assert curve.predict(64, 0.0) == pytest.approx(0.010)


def test_curve_believes_the_exporter_until_it_knows_better() -> None:
    told = (BatchTime(1, 0.002, 0.003), BatchTime(8, 0.004, 0.006))
    curve = LatencyCurve(told)
    late = 1000.0  # long after it was made: what is told has not aged
    assert curve.typical(8, late) == pytest.approx(0.004)
    assert curve.predict(8, late) == pytest.approx(0.006)
    for _ in range(30):
        curve.observe(8, 0.020, late)
    assert curve.typical(8, late) == pytest.approx(0.020, rel=0.05)


def test_what_the_exporter_said_closes_no_model() -> None:
    curve = LatencyCurve([BatchTime(1, 10.0, 10.0)])
    assert curve.predict(1, 0.0) == pytest.approx(10.0)
    assert curve.predict(1, 10 * HALF_LIFE_S) < 0.01


def test_empty_batch_is_measured_as_one_row() -> None:
    curve = LatencyCurve()
    curve.observe(0, 0.002, 0.0)
    assert curve.predict(0, 0.0) == curve.predict(1, 0.0) == 0.002
    assert curve.predict(2, 0.0) == 0.004


def test_curve_that_is_a_line_is_known_closely_from_mixed_sizes() -> None:
    curve = LatencyCurve()
    for turn in range(400):
        rows = 1 + turn * 7 % 64
        curve.observe(rows, 0.001 + 0.0001 * rows, 0.0)
    for rows in (1, 5, 20, 31, 33, 60):
        truth = 0.001 + 0.0001 * rows
        assert 0.85 * truth < curve.typical(rows, 0.0) < 1.15 * truth
        assert truth * 0.9 < curve.predict(rows, 0.0) < 1.4 * truth


def test_due_times_hold_little_more_than_what_is_live() -> None:
    live: set[int] = set()
    times: DueTimes[int] = DueTimes(live.__contains__)
    times.add(1e9, 0)  # one that lasts sits at no one's top for ever
    live.add(0)
    for number in range(1, 20_000):
        live.add(number)
        times.add(float(number), number)
        live.discard(number - 10 if number > 10 else -1)
    assert len(times) <= 256
    assert list(times.pop_due(1e8)) == list(range(19_990, 20_000))
    assert times.next() == 1e9
