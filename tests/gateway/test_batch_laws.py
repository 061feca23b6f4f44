"""What the batcher promises, told as stories on simulated time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from gateway.batching.batcher import Batcher
from gateway.core import (
    BatchPolicy,
    InferRequest,
    ModelState,
    QueuePolicy,
    Tensor,
    TimeoutAction,
)
from gateway.errors import (
    DeadlineExceeded,
    InferenceFailed,
    Overloaded,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
)
from gateway.metrics import ModelStats
from tests.gateway.fakes import Fail, FakeEngine, Hang, Ok, dynamic, house, spec
from tests.simulated_loop import simulate


def test_cancelled_client_does_not_disturb_its_batch() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(1.0), Ok(1.0)])
        async with house(engine=engine) as h, asyncio.TaskGroup() as clients:
            clients.create_task(h.ask(1))
            await h.state(ModelState.READY)
            await asyncio.sleep(0.5)  # the first batch runs; these form the second
            second = [clients.create_task(h.ask(value)) for value in (2, 3, 4)]
            await asyncio.sleep(0.7)  # the second batch runs
            second[1].cancel()
            await asyncio.wait(second)
            assert second[1].cancelled()
            assert engine.batch_sizes == [1, 3]

    simulate(story())


def test_client_that_leaves_the_queue_is_not_computed() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(1.0), Ok(1.0)])
        async with house(engine=engine) as h, asyncio.TaskGroup() as clients:
            clients.create_task(h.ask(1))
            await h.state(ModelState.READY)
            await asyncio.sleep(0.5)
            queued = [clients.create_task(h.ask(value)) for value in (2, 3, 4)]
            await asyncio.sleep(0.1)
            queued[0].cancel()
            await asyncio.wait(queued)
            assert [list(batch[:, 0]) for batch in engine.batches] == [[1], [3, 4]]

    simulate(story())


def test_busy_engine_makes_the_batch_even_without_delay() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(1.0)])
        async with house(engine=engine) as h, asyncio.TaskGroup() as clients:
            clients.create_task(h.ask(0))
            await h.state(ModelState.READY)
            await asyncio.sleep(0.1)
            for value in range(1, 13):
                clients.create_task(h.ask(value))
                await asyncio.sleep(0.01)
        assert engine.batch_sizes == [1, 8, 4]

    simulate(story())


def test_free_engine_waits_no_longer_than_the_delay() -> None:
    async def story() -> None:
        async with house(spec(batching=dynamic(8, 0.05))) as h:
            await h.ask(0)
            loop = asyncio.get_running_loop()
            started = loop.time()
            await h.ask(1)
            assert loop.time() - started == pytest.approx(0.05 + 0.01)

    simulate(story())


def test_preferred_size_is_sent_before_the_delay() -> None:
    async def story() -> None:
        async with house(spec(batching=dynamic(8, 10.0, 2, 4))) as h:
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(h.ask(value) for value in range(4)))
            assert loop.time() < 1
            assert h.engine.batch_sizes == [4]

    simulate(story())


def test_different_shapes_never_share_a_batch() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(1.0)])
        free = spec(dims=(-1,))
        async with house(free, engine=engine) as h, asyncio.TaskGroup() as clients:
            clients.create_task(h.ask(0, width=2))
            await h.state(ModelState.READY)
            await asyncio.sleep(0.1)
            for value in range(6):
                clients.create_task(h.ask(value, width=2 + value % 2))
        # side by side, neither closes the other's batch
        assert [batch.shape for batch in engine.batches] == [(1, 2), (3, 2), (3, 3)]

    simulate(story())


def test_failed_batch_fails_its_members_and_the_batcher_lives_on() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Fail("the engine tripped", 0.1)] * 3)
        async with house(engine=engine) as h:
            answers = await asyncio.gather(h.ask(1), h.ask(2), return_exceptions=True)
            assert all(isinstance(answer, InferenceFailed) for answer in answers)
            assert answers[0] is not answers[1]
            await h.ask(3)

    simulate(story())


def test_request_that_the_engine_refuses_does_not_fail_its_batch_mates() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Fail("a value is wrong"), Ok(), Fail("a value is wrong"), Ok()])
        async with house(engine=engine) as h:
            answers = await asyncio.gather(*map(h.ask, (1, 2, 3)), return_exceptions=True)
            assert [isinstance(answer, InferenceFailed) for answer in answers] == [
                False,
                True,
                False,
            ]
            assert engine.batch_sizes == [3, 1, 1, 1]

    simulate(story())


def test_deadline_is_checked_again_when_a_batch_is_cut() -> None:
    async def story() -> None:
        async with house() as h:
            await h.ask(0)
            batcher = h.entry().scheduler
            assert batcher is not None
            late = InferRequest("m", "", "", [Tensor("x", "FP32", np.zeros((1, 2)))], [], 0.0)
            with pytest.raises(DeadlineExceeded):
                await batcher.infer(late)
            assert h.engine.batch_sizes == [1]

    simulate(story())


def test_wrong_number_of_rows_fails_the_whole_batch_clearly() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(lost_rows=1)])
        async with house(engine=engine) as h:
            answers = await asyncio.gather(h.ask(1), h.ask(2), return_exceptions=True)
            for answer in answers:
                assert isinstance(answer, InferenceFailed)
                assert "answered 1 rows in output 'y' for a batch of 2" in str(answer)
            await h.ask(3)

    simulate(story())


def test_deadline_ends_a_wait_in_the_queue() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(10.0)])
        async with house(engine=engine) as h, asyncio.TaskGroup() as clients:
            clients.create_task(h.ask(1))
            await h.state(ModelState.READY)
            await asyncio.sleep(1)
            loop = asyncio.get_running_loop()
            started = loop.time()
            with pytest.raises(DeadlineExceeded):
                await h.ask(2, timeout_s=2.0)
            assert loop.time() - started == pytest.approx(2.0)
            assert h.entry().stats.failure == 1
        assert engine.batch_sizes == [1]

    simulate(story())


def test_hanging_engine_costs_its_clients_only_their_deadline() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Hang()])
        async with house(spec(instances=2), engine=engine) as h:
            with pytest.raises(DeadlineExceeded):
                await h.ask(1, timeout_s=5.0)
            await h.ask(2, timeout_s=5.0)  # the other instance serves on
            assert h.entry().in_flight == 0
            engine.released.set()  # or its instance would be missing from the books

    simulate(story())


def test_full_queue_refuses_at_once() -> None:
    async def story() -> None:
        policy = BatchPolicy(
            max_batch_size=8,
            dynamic=True,
            preferred=(8,),
            default_queue=QueuePolicy(max_queue_size=2),
        )
        engine = FakeEngine(runs=[Ok(5.0)])
        async with (
            house(spec(batching=policy), engine=engine) as h,
            asyncio.TaskGroup() as clients,
        ):
            clients.create_task(h.ask(0))
            await h.state(ModelState.READY)
            await asyncio.sleep(1)
            clients.create_task(h.ask(1))
            clients.create_task(h.ask(2))
            await asyncio.sleep(0)
            loop = asyncio.get_running_loop()
            started = loop.time()
            with pytest.raises(QueueFull, match="Exceeds maximum queue size"):
                await h.ask(3)
            assert loop.time() == started

    simulate(story())


def test_queue_timeout_rejects_on_time_while_every_instance_is_busy() -> None:
    async def story() -> None:
        policy = BatchPolicy(
            max_batch_size=8,
            dynamic=True,
            preferred=(8,),
            default_queue=QueuePolicy(default_timeout_s=3.0, allow_timeout_override=True),
        )
        engine = FakeEngine(runs=[Ok(100.0)])
        async with (
            house(spec(batching=policy), engine=engine) as h,
            asyncio.TaskGroup() as clients,
        ):
            clients.create_task(h.ask(0))
            await h.state(ModelState.READY)
            await asyncio.sleep(1)
            loop = asyncio.get_running_loop()
            started = loop.time()

            async def refused_after(timeout_us: int) -> float:
                with pytest.raises(QueueTimeout, match="Request timeout expired"):
                    await h.ask(1, timeout_us=timeout_us)
                return loop.time() - started

            # a request's own timeout may shorten the model's, never lengthen it
            waits = await asyncio.gather(*map(refused_after, (0, 1_000_000, 9_000_000)))
            assert waits == pytest.approx([3.0, 1.0, 3.0])

    simulate(story())


def test_delayed_request_goes_behind_its_level_and_never_expires_again() -> None:
    async def story() -> None:
        policy = BatchPolicy(
            max_batch_size=1,
            dynamic=True,
            default_queue=QueuePolicy(TimeoutAction.DELAY, default_timeout_s=1.0),
        )
        engine = FakeEngine(runs=[Ok(2.0), Ok(2.0), Ok(2.0)])
        one = spec(batching=policy, max_batch_size=1)
        async with house(one, engine=engine) as h, asyncio.TaskGroup() as clients:
            clients.create_task(h.ask(0))
            await h.state(ModelState.READY)
            clients.create_task(h.ask(1))
            await asyncio.sleep(1.5)
            clients.create_task(h.ask(2))
        assert [int(batch[0, 0]) for batch in engine.batches] == [0, 2, 1]

    simulate(story())


def test_higher_priority_is_served_first() -> None:
    async def story() -> None:
        policy = BatchPolicy(max_batch_size=1, dynamic=True, priority_levels=3, default_level=2)
        engine = FakeEngine(runs=[Ok(1.0)])
        one = spec(batching=policy, max_batch_size=1)
        async with house(one, engine=engine) as h, asyncio.TaskGroup() as clients:
            clients.create_task(h.ask(0))
            await h.state(ModelState.READY)
            await asyncio.sleep(0.1)
            for value, priority in ((1, 3), (2, 0), (3, 1), (4, 9)):
                clients.create_task(h.ask(value, priority=priority))
        assert [int(batch[0, 0]) for batch in engine.batches] == [0, 3, 2, 4, 1]

    simulate(story())


@pytest.mark.parametrize(
    ("max_inflight", "per_model", "text"),
    [(2, 9, "the gateway has 2 requests in flight"), (9, 2, "model 'm' has 2 requests in flight")],
)
def test_full_gateway_refuses_before_any_wait(max_inflight: int, per_model: int, text: str) -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(5.0)])
        async with (
            house(engine=engine, max_inflight=max_inflight, per_model=per_model) as h,
            asyncio.TaskGroup() as clients,
        ):
            clients.create_task(h.ask(1))
            clients.create_task(h.ask(2))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match=text):
                await h.ask(3)

    simulate(story())


def test_parameters_that_only_python_takes_for_equal_share_no_batch() -> None:
    async def story() -> None:
        async with house(replace(spec(), parametric=True)) as h:
            x = Tensor("x", "FP32", np.zeros((1, 2), np.float32))
            await asyncio.gather(
                *(
                    h.admission.infer(
                        InferRequest("m", "", "", [x], [], 50.0, parameters={"k": value})
                    )
                    for value in (1, True, 1.0, 1)
                )
            )
            assert sorted(h.engine.batch_sizes) == [1, 1, 2]

    simulate(story())


def test_requests_in_the_queue_are_told_when_the_parent_of_their_batches_ends() -> None:
    async def story() -> None:
        model = spec(batching=BatchPolicy(max_batch_size=8))
        engine = FakeEngine(runs=[Hang()], loaded={model.key})
        made: asyncio.Future[Batcher] = asyncio.get_running_loop().create_future()

        async def serve() -> None:
            async with asyncio.TaskGroup() as batches:
                made.set_result(Batcher(model, engine, batches, ModelStats()))
                await asyncio.Event().wait()

        serving = asyncio.create_task(serve())
        batcher = await made
        row = [Tensor("x", "FP32", np.zeros((1, 2), np.float32))]
        asked = [
            asyncio.create_task(batcher.infer(InferRequest("m", "", "", row, [], 1000.0)))
            for _ in range(3)
        ]
        await asyncio.sleep(1)
        serving.cancel()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [ShuttingDown] * 3
        with suppress(asyncio.CancelledError):
            await serving
        assert batcher.idle

    simulate(story())
