"""Where requests without a version go, and what their shadows may do to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest

from gateway.core import InferRequest, InferResponse, ModelKey, Tensor
from gateway.errors import ModelNotFound
from gateway.metrics import Shadowed
from gateway.router import Router
from gateway.split import SHADOWS_AT_ONCE, Split
from gateway.traffic import Rule
from tests.gateway.fakes import Act, Fail, FakeEngine, Hang, House, Ok, house, spec
from tests.simulated_loop import simulate

SHADOWED = Rule(weights=((1, 1.0),), shadow=2, shadow_percent=100.0)


class Faulty(Router):
    """A router with a bug in what it does for version 2."""

    async def infer(self, request: InferRequest) -> InferResponse:
        if request.version == "2":
            raise ValueError("a bug")
        return await super().infer(request)


@asynccontextmanager
async def split(
    rule: Rule, engine: FakeEngine | None = None, router: type[Router] = Router
) -> AsyncIterator[tuple[Split, House, asyncio.Task[None]]]:
    """Versions 1 and 2 of `m` behind a rule; the task is the shadows' parent."""
    async with house(spec("other"), engine=engine) as built:
        built.publish(spec(version=1), spec(version=2))
        stage = Split(router(built.registry), built.registry, built.metrics)
        stage.take({"m": rule})
        parent = asyncio.create_task(stage.run())
        await asyncio.sleep(0)
        yield stage, built, parent
        parent.cancel()
        with suppress(asyncio.CancelledError):
            await parent


def question() -> InferRequest:
    loop = asyncio.get_running_loop()
    x = Tensor("x", "FP32", np.ones((1, 2), np.float32))
    return InferRequest("m", "", "1", [x], [], loop.time() + 1000)


async def ask(stage: Split, times: int = 1) -> list[int]:
    """Return the versions that answered requests sent at once."""
    answers = await asyncio.gather(*(stage.infer(question()) for _ in range(times)))
    return [answer.version for answer in answers]


def shadows(built: House) -> dict[Shadowed, int]:
    key = ModelKey("m", 2)
    return {each: n for each in Shadowed if (n := built.metrics.shadows[key, each])}


def test_shadows_beyond_the_bound_are_dropped_and_every_request_is_answered() -> None:
    async def story() -> None:
        async with split(SHADOWED) as (stage, built, _):
            assert set(await ask(stage, SHADOWS_AT_ONCE + 4)) == {1}
            await asyncio.sleep(10)
            assert shadows(built) == {Shadowed.ANSWERED: SHADOWS_AT_ONCE, Shadowed.DROPPED: 4}
            await ask(stage)  # the places are free again
            await asyncio.sleep(10)
            assert shadows(built)[Shadowed.ANSWERED] == SHADOWS_AT_ONCE + 1

    simulate(story())


@pytest.mark.parametrize("loads", [[Ok(), Fail("no memory")], [Ok(), Ok(500.0)]])
def test_a_shadow_that_fails_or_waits_does_not_hold_up_its_request(loads: Sequence[Act]) -> None:
    async def story() -> None:
        async with split(Rule(weights=((1, 1.0),)), FakeEngine(loads=[*loads])) as (stage, _, _):
            await ask(stage)
            stage.take({"m": SHADOWED})
            before = asyncio.get_running_loop().time()
            assert await ask(stage) == [1]
            assert asyncio.get_running_loop().time() - before < 0.1
            await asyncio.sleep(600)

    simulate(story())


def test_a_bug_that_a_shadow_meets_ends_neither_its_request_nor_the_gateway() -> None:
    async def story() -> None:
        async with split(SHADOWED, router=Faulty) as (stage, built, parent):
            assert await ask(stage, 3) == [1, 1, 1]
            await asyncio.sleep(1)
            assert not parent.done()
            assert shadows(built) == {Shadowed.FAILED: 3}

    simulate(story())


def test_a_request_after_the_end_of_the_shadows_is_answered() -> None:
    async def story() -> None:
        async with split(SHADOWED) as (stage, built, parent):
            parent.cancel()
            await asyncio.wait([parent])
            assert await ask(stage) == [1]
            assert shadows(built) == {Shadowed.DROPPED: 1}

    simulate(story())


@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_whose_version_leaves_while_it_waits_goes_to_the_others(streamed: bool) -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Hang()])
        async with split(Rule(weights=((2, 1.0),)), engine) as (stage, built, _):

            async def one() -> int:
                if not streamed:
                    return (await stage.infer(question())).version
                (version,) = [answer.version async for answer in stage.stream(question())]
                return version

            waiting = asyncio.create_task(one())
            await asyncio.sleep(1)
            assert built.entry("m", 2).waiting == 1
            built.publish(spec(version=1))
            engine.released.set()
            assert await waiting == 1

    simulate(story())


def test_a_client_that_asks_for_a_version_is_told_that_it_has_left() -> None:
    async def story() -> None:
        async with split(Rule(weights=((1, 1.0),))) as (stage, built, _):
            built.publish(spec(version=1))
            asked = question()
            asked.version = "2"
            with pytest.raises(ModelNotFound):
                await stage.infer(asked)
            assert await ask(stage) == [1]

    simulate(story())
