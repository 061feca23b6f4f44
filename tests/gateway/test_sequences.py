"""What sequences are promised, told as stories on simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from gateway.core import (
    NO_PARAMETERS,
    BatchPolicy,
    InferRequest,
    ModelKey,
    ModelSpec,
    ModelState,
    Parameters,
    Tensor,
    TensorSpec,
)
from gateway.errors import DeadlineExceeded, InferenceFailed, InvalidRequest, QueueTimeout
from gateway.repository import sequence_config
from gateway.sequence import Control, ControlKind, SequenceBatching, SequenceMark, State
from tests.gateway.fakes import Fail, FakeEngine, House, Ok, dynamic, house, spec
from tests.simulated_loop import simulate

CONTROLS = tuple(
    Control(kind, kind.name.lower(), "INT32", false=-1)
    for kind in (ControlKind.START, ControlKind.END, ControlKind.READY)
)
CORRID = Control(ControlKind.CORRID, "corrid", "UINT64")


@dataclass
class Adder(FakeEngine):
    """`y` is `x` + `before`, which is the `after` of the run before: `y`. Notes the controls."""

    def __post_init__(self) -> None:
        self.seen: list[list[tuple[int, ...]]] = []

    async def infer(
        self,
        key: ModelKey,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        parameters: Parameters = NO_PARAMETERS,
    ) -> list[Tensor]:
        by_name = {tensor.name: tensor.data for tensor in inputs}
        names = ("start", "end", "ready", "corrid")
        columns = [by_name[name][:, 0].tolist() for name in names]
        self.seen.append(list(zip(*columns, strict=True)))
        self.batches.append(by_name["x"])
        await self._play(self.runs, InferenceFailed)
        total = by_name["x"] + by_name["before"]
        return [Tensor(name, "FP32", total) for name in outputs]

    @property
    def rows(self) -> list[list[float]]:
        return [batch[:, 0].tolist() for batch in self.batches]


def sequences(
    slots: int = 8, idle_s: float = 1.0, batching: BatchPolicy | None = None, instances: int = 1
) -> ModelSpec:
    sequence = SequenceBatching(
        max_idle_s=idle_s,
        slots=slots,
        controls=(*CONTROLS, CORRID),
        states=(State("before", "after", "FP32", (1,), (1,)),),
    )
    return replace(
        spec(batching=batching or dynamic(8), dims=(1,), instances=instances),
        sequence=sequence,
        own_inputs=tuple(sequence_config.own_inputs(sequence)),
        own_outputs=(TensorSpec("after", "FP32", (1,)),),
    )


async def ask(
    h: House,
    value: float,
    mark: SequenceMark | None,
    timeout_s: float = 1000.0,
    timeout_us: int = 0,
    rows: int = 1,
) -> float:
    request = InferRequest(
        model="m",
        version="",
        id=f"{mark} {value}",
        inputs=[Tensor("x", "FP32", np.full((rows, 1), value, np.float32))],
        outputs=[],
        deadline=asyncio.get_running_loop().time() + timeout_s,
        timeout_us=timeout_us,
        sequence=mark,
    )
    answer = await h.admission.infer(request)
    assert answer.id == request.id
    (output,) = answer.outputs
    assert output.name == "y"
    return float(output.data[0, 0])


def begin(number: int | str, end: bool = False) -> SequenceMark:
    return SequenceMark(number, start=True, end=end)


def then(number: int | str) -> SequenceMark:
    return SequenceMark(number)


def last(number: int | str) -> SequenceMark:
    return SequenceMark(number, end=True)


def test_each_request_gets_the_state_that_the_one_before_left() -> None:
    async def story() -> None:
        engine = Adder()
        async with house(sequences(), engine=engine) as h, asyncio.TaskGroup() as clients:
            answers = [
                clients.create_task(ask(h, value, mark))
                for value, mark in ((1, begin(7)), (2, then(7)), (4, then(7)), (8, last(7)))
            ]
            await asyncio.wait(answers)
            assert [answer.result() for answer in answers] == [1, 3, 7, 15]
            assert engine.rows == [[1], [2], [4], [8]]
            controls = [(1, -1, 1, 7), (-1, -1, 1, 7), (-1, -1, 1, 7), (-1, 1, 1, 7)]
            assert engine.seen == [[each] for each in controls]
            assert await ask(h, 5, begin(7)) == 5

    simulate(story())


def test_different_sequences_share_a_batch() -> None:
    async def story() -> None:
        engine = Adder(runs=[Ok(1.0)])
        async with house(sequences(), engine=engine) as h, asyncio.TaskGroup() as clients:
            first = clients.create_task(ask(h, 1, begin(1)))
            await h.state(ModelState.READY)
            await asyncio.sleep(0.5)
            steps = [(1, then(1)), (1, then(1)), (10, begin(2)), (10, then(2)), (100, begin(3))]
            rest = [clients.create_task(ask(h, value, mark)) for value, mark in steps]
            await asyncio.wait([first, *rest])
            assert [task.result() for task in rest] == [2, 3, 10, 20, 100]
            assert engine.rows[:2] == [[1], [10, 100]]
            for batch in engine.seen:
                assert len({row[3] for row in batch}) == len(batch)

    simulate(story())


def test_request_that_belongs_to_no_sequence_is_refused() -> None:
    async def story() -> None:
        async with house(sequences(), engine=Adder()) as h:
            with pytest.raises(InvalidRequest, match="non-zero or non-empty correlation ID"):
                await ask(h, 1, None)
            with pytest.raises(InvalidRequest, match="sequence 3 to model 'm' must specify the ST"):
                await ask(h, 1, then(3))
            with pytest.raises(InvalidRequest, match="must specify batch-size 1"):
                await ask(h, 1, begin(3), rows=2)
            with pytest.raises(InvalidRequest, match="'corrid' data-type is 'BYTES', but model"):
                await ask(h, 1, begin("three"))
            await ask(h, 1, begin(3, end=True))
            with pytest.raises(InvalidRequest, match="START"):
                await ask(h, 1, then(3))

    simulate(story())


def test_sequence_beyond_the_slots_waits_until_another_ends() -> None:
    async def story() -> None:
        engine = Adder()
        async with house(sequences(slots=2), engine=engine) as h, asyncio.TaskGroup() as clients:
            await ask(h, 1, begin(1))
            await ask(h, 2, begin(2))
            third = clients.create_task(ask(h, 3, begin(3)))
            more = clients.create_task(ask(h, 30, then(3)))
            await asyncio.sleep(0.3)
            assert engine.rows == [[1], [2]]
            assert h.registry.entry(ModelKey("m", 1)).row().queued == 2
            assert await ask(h, 20, last(2)) == 22
            assert await third == 3
            assert await more == 33

    simulate(story())


def test_idle_sequence_loses_its_slot_and_its_state() -> None:
    async def story() -> None:
        async with house(sequences(slots=1, idle_s=2.0), engine=Adder()) as h:
            loop = asyncio.get_running_loop()
            await ask(h, 1, begin(1))
            await asyncio.sleep(1.5)
            assert await ask(h, 1, then(1)) == 2
            began = loop.time()
            assert await ask(h, 5, begin(2)) == 5
            assert 1.9 < loop.time() - began < 2.1
            with pytest.raises(InvalidRequest, match="START"):
                await ask(h, 1, then(1))

    simulate(story())


def test_running_request_keeps_its_sequence_from_idling_out() -> None:
    async def story() -> None:
        engine = Adder(runs=[Ok(), Ok(5.0)])
        async with house(sequences(idle_s=1.0), engine=engine) as h:
            await ask(h, 1, begin(1))
            assert await ask(h, 1, then(1)) == 2
            await asyncio.sleep(0.9)
            assert await ask(h, 1, then(1)) == 3

    simulate(story())


def test_failed_request_leaves_the_state_as_it_was() -> None:
    async def story() -> None:
        engine = Adder(runs=[Ok(), Fail("no")])
        async with house(sequences(), engine=engine) as h:
            assert await ask(h, 1, begin(1)) == 1
            with pytest.raises(InferenceFailed):
                await ask(h, 2, then(1))
            assert await ask(h, 2, then(1)) == 3

    simulate(story())


def test_client_that_leaves_disturbs_neither_its_sequence_nor_its_batch() -> None:
    async def story() -> None:
        engine = Adder(runs=[Ok(), Ok(), Ok(1.0)])
        async with house(sequences(), engine=engine) as h, asyncio.TaskGroup() as clients:
            await ask(h, 1, begin(1))
            await ask(h, 10, begin(2))
            leaver = clients.create_task(ask(h, 2, then(1)))
            mate = clients.create_task(ask(h, 20, then(2)))
            waiting = clients.create_task(ask(h, 4, then(1)))
            gone = clients.create_task(ask(h, 8, then(1)))
            behind = clients.create_task(ask(h, 16, last(1)))
            await asyncio.sleep(0.5)
            leaver.cancel()
            gone.cancel()
            assert await mate == 30
            assert await waiting == 5  # the answer that nobody took has not happened
            assert await behind == 21
            assert engine.rows[2:] == [[2, 20], [4], [16]]

    simulate(story())


def test_client_that_leaves_as_its_turn_comes_passes_it_on() -> None:
    async def story() -> None:
        engine = Adder(runs=[Ok(1.0)])
        async with house(sequences(), engine=engine) as h, asyncio.TaskGroup() as clients:
            first = clients.create_task(ask(h, 1, begin(1)))
            await asyncio.sleep(0.5)
            leaver = clients.create_task(ask(h, 2, then(1)))
            behind = clients.create_task(ask(h, 4, last(1)))
            first.add_done_callback(lambda _: leaver.cancel())
            assert await behind == 5
            assert leaver.cancelled()

    simulate(story())


def test_end_ends_a_sequence_whatever_becomes_of_its_request() -> None:
    async def story() -> None:
        engine = Adder(runs=[Ok(), Fail("no"), Ok(), Ok(1.0)])
        async with house(sequences(slots=1, idle_s=50), engine=engine) as h:
            await ask(h, 1, begin(1))
            with pytest.raises(InferenceFailed):
                await ask(h, 1, last(1))
            await ask(h, 1, begin(2))
            async with asyncio.TaskGroup() as clients:
                running = clients.create_task(ask(h, 1, then(2)))
                await asyncio.sleep(0.1)
                ending = clients.create_task(ask(h, 1, last(2)))
                await asyncio.sleep(0.1)
                ending.cancel()
                again = clients.create_task(ask(h, 7, begin(2)))
            assert (running.result(), again.result()) == (2, 7)

    simulate(story())


def test_start_resets_a_sequence_that_has_not_ended() -> None:
    async def story() -> None:
        async with house(sequences(slots=1), engine=Adder()) as h:
            assert await ask(h, 1, begin(1)) == 1
            assert await ask(h, 5, begin(1)) == 5
            assert await ask(h, 5, then(1)) == 10

    simulate(story())


def test_timeout_of_one_rejects_all_that_wait_for_a_slot_with_it() -> None:
    async def story() -> None:
        async with house(sequences(slots=1, idle_s=60), engine=Adder()) as h:
            await ask(h, 1, begin(1))
            async with asyncio.TaskGroup() as clients:
                tasks = [
                    clients.create_task(_failure(ask(h, 1, begin(2), timeout_us=500_000))),
                    clients.create_task(_failure(ask(h, 1, then(2)))),
                ]
                await asyncio.sleep(0.4)
                assert not any(task.done() for task in tasks)
                await asyncio.sleep(0.2)
                assert all(isinstance(task.result(), QueueTimeout) for task in tasks)
            with pytest.raises(InvalidRequest, match="START"):
                await ask(h, 1, then(2))
            assert await ask(h, 1, last(1)) == 2

    simulate(story())


def test_timeout_counts_until_the_slot_and_not_until_the_turn() -> None:
    async def story() -> None:
        engine = Adder(runs=[Ok(), Ok(), Ok(5.0)])
        async with house(sequences(slots=1, idle_s=60), engine=engine) as h:
            await ask(h, 1, begin(1))
            async with asyncio.TaskGroup() as clients:
                first = clients.create_task(ask(h, 2, begin(2)))
                second = clients.create_task(ask(h, 3, then(2), timeout_us=500_000))
                await asyncio.sleep(0.1)
                await ask(h, 1, last(1))
            assert (first.result(), second.result()) == (2, 5)

    simulate(story())


async def _failure(question: object) -> Exception | None:
    try:
        await question  # type: ignore[misc]
    except Exception as error:
        return error
    return None


def test_deadline_passes_also_where_a_request_waits_for_its_turn() -> None:
    async def story() -> None:
        engine = Adder(runs=[Ok(5.0)])
        async with house(sequences(), engine=engine) as h, asyncio.TaskGroup() as clients:
            first = clients.create_task(ask(h, 1, begin(1)))
            await asyncio.sleep(0.5)
            with pytest.raises(DeadlineExceeded):
                await ask(h, 2, then(1), timeout_s=1.0)
            assert asyncio.get_running_loop().time() < 2.0
            assert await first == 1
            assert await ask(h, 4, then(1)) == 5

    simulate(story())


def test_forgotten_in_the_backlog_is_a_sequence_that_nobody_waits_for() -> None:
    async def story() -> None:
        async with house(sequences(slots=1, idle_s=60), engine=Adder()) as h:
            await ask(h, 1, begin(1))
            with pytest.raises(DeadlineExceeded):
                await ask(h, 1, begin(2), timeout_s=1.0)
            with pytest.raises(InvalidRequest, match="START"):
                await ask(h, 1, then(2))

    simulate(story())


def test_model_does_not_sleep_before_its_sequences_have_idled_out() -> None:
    async def story() -> None:
        async with house(sequences(idle_s=100.0), engine=Adder(), idle_timeout_s=10.0) as h:
            await ask(h, 1, begin(1))
            await asyncio.sleep(60)
            assert await ask(h, 1, then(1)) == 2
            await asyncio.sleep(101)
            assert h.entry().state is ModelState.UNAVAILABLE

    simulate(story())


def test_unload_ends_every_sequence() -> None:
    async def story() -> None:
        async with house(sequences(idle_s=100.0), engine=Adder()) as h:
            await ask(h, 1, begin(1))
            h.entry().unload_requested = True
            h.registry.poke()
            await h.state(ModelState.UNAVAILABLE)
            with pytest.raises(InvalidRequest, match="START"):
                await ask(h, 1, then(1))

    simulate(story())


def test_direct_waits_until_enough_slots_are_filled_or_the_delay_has_passed() -> None:
    policy = BatchPolicy(8, dynamic=True, preferred=(2, 3, 4, 5, 6, 7, 8), max_delay_s=0.5)

    async def story() -> None:
        engine = Adder()
        async with house(sequences(batching=policy), engine=engine) as h:
            loop = asyncio.get_running_loop()
            await ask(h, 0, begin(9))
            began = loop.time()
            await ask(h, 1, begin(1))
            assert loop.time() - began > 0.49
            began = loop.time()
            await asyncio.gather(*(ask(h, 1, begin(number)) for number in (2, 3, 4)))
            assert loop.time() - began < 0.1
            assert engine.rows[-1] == [1, 1, 1]

    simulate(story())


def test_an_empty_batch_is_refused_and_disturbs_no_other() -> None:
    async def story() -> None:
        async with house(sequences(), engine=Adder()) as h:
            await ask(h, 0, begin(9, end=True))
            empty, other = await asyncio.gather(
                ask(h, 1, begin(1), rows=0), ask(h, 2, begin(2)), return_exceptions=True
            )
            assert isinstance(empty, InvalidRequest)
            assert other == 2

    simulate(story())


def test_a_new_start_that_fails_leaves_the_sequence_as_it_was() -> None:
    async def story() -> None:
        async with house(sequences(), engine=Adder(runs=[Ok(), Fail("once")])) as h:
            assert await ask(h, 5, begin(1)) == 5
            with pytest.raises(InferenceFailed):
                await ask(h, 7, begin(1))
            assert await ask(h, 1, then(1)) == 6

    simulate(story())
