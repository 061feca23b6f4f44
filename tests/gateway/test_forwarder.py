"""What holds for requests that the engine schedules itself, told as stories on simulated time."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gateway.core import InferRequest, ModelSpec, Tensor
from gateway.errors import DeadlineExceeded, NotSupported
from gateway.sequence import SequenceMark
from tests.gateway.fakes import FakeEngine, House, Ok, house, spec
from tests.simulated_loop import simulate

SEQUENCES = replace(spec(), forwarded=True)
DECOUPLED = replace(spec(), forwarded=True, decoupled=True)


def asking(value: float, sequence: int = 0, timeout_s: float = 100.0, **more: Any) -> InferRequest:
    return InferRequest(
        model="m",
        version="",
        id=str(value),
        inputs=[Tensor("x", "FP32", np.full((1, 2), value, np.float32))],
        outputs=[],
        deadline=asyncio.get_running_loop().time() + timeout_s,
        sequence=SequenceMark(sequence) if sequence else None,
        **more,
    )


def tell(h: House, *requests: InferRequest) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(h.admission.infer(request)) for request in requests]


def seen(engine: FakeEngine) -> list[float]:
    return [float(batch[0, 0]) for batch in engine.batches]


async def collected(h: House, request: InferRequest) -> list[float]:
    """Return when each answer of a decoupled model came."""
    async with aclosing(h.admission.stream(request)) as answers:
        return [asyncio.get_running_loop().time() async for _ in answers]


def forwarding(model: ModelSpec, *runs: float) -> Any:
    return house(model, engine=FakeEngine(loads=[Ok(0.0)], runs=[Ok(each) for each in runs]))


def test_requests_of_one_sequence_go_one_after_the_other_and_of_others_beside_them() -> None:
    async def story() -> None:
        async with forwarding(SEQUENCES, 2.0, 1.0, 1.0) as h:
            tasks = tell(h, asking(1, 7), asking(2, 7), asking(3, 8))
            await asyncio.wait(tasks)
            assert seen(h.engine) == [1, 3, 2]
            assert asyncio.get_running_loop().time() == 3.0

    simulate(story())


def test_cancelled_request_leaves_its_sequence_in_order() -> None:
    async def story() -> None:
        async with forwarding(SEQUENCES, 1.0, 1.0, 1.0) as h:
            first, second, third = tell(h, asking(1, 7), asking(2, 7), asking(3, 7))
            await asyncio.sleep(0.5)
            second.cancel()
            await asyncio.wait([first, third])
            assert seen(h.engine) == [1, 3]

    simulate(story())


def test_deadline_passes_while_the_sequence_is_busy() -> None:
    async def story() -> None:
        async with forwarding(SEQUENCES, 5.0) as h:
            first, second = tell(h, asking(1, 7), asking(2, 7, timeout_s=1.0))
            with pytest.raises(DeadlineExceeded):
                await second
            assert asyncio.get_running_loop().time() == 1.0
            await first
            assert seen(h.engine) == [1]

    simulate(story())


def test_decoupled_model_streams_and_is_not_inferred() -> None:
    async def story() -> None:
        async with forwarding(DECOUPLED, 1.0, 2.0) as h:
            assert await collected(h, asking(1, parameters={"answers": 2})) == [1.0, 3.0]
            assert await collected(h, asking(1, parameters={"answers": 0})) == []
            with pytest.raises(NotSupported, match="decoupled transaction policy"):
                await h.admission.infer(asking(1))

    simulate(story())


def test_deadline_ends_the_answers_of_a_decoupled_model_and_not_their_reader() -> None:
    async def story() -> None:
        async with forwarding(DECOUPLED, 1.0, 1.0) as h:
            request = asking(1, timeout_s=1.5, parameters={"answers": 2})
            async with aclosing(h.admission.stream(request)) as answers:
                await anext(answers)
                await asyncio.sleep(5)  # past the deadline, and undisturbed
                with pytest.raises(DeadlineExceeded):
                    await anext(answers)

    simulate(story())


def test_reader_who_leaves_a_stream_leaves_nothing_behind() -> None:
    async def story() -> None:
        async with forwarding(DECOUPLED) as h:
            answers = h.admission.stream(asking(1, parameters={"answers": 9}))
            await anext(answers)
            await answers.aclose()

    simulate(story())
