"""When a server of the gateway's own that has failed may be started anew."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from gateway.fleet import Node, NoEngine
from gateway.lifecycle.supervisor import supervise
from gateway.placement import EngineKind
from tests.simulated_loop import simulate


class Mortal:
    """Lives for the given times, then for good. It leaves so many questions without an answer."""

    def __init__(self, *lives: float, unanswered: int = 0) -> None:
        self.lives = list(lives)
        self.unanswered = unanswered
        self.given_up = 0

    async def answers(self) -> bool:
        await asyncio.sleep(2.0)
        self.unanswered -= 1
        return self.unanswered < 0

    async def give_up(self) -> None:
        self.given_up += 1

    async def over(self) -> str:
        await asyncio.sleep(self.lives.pop(0) if self.lives else 1e6)
        return "the Triton server has ended with -9"


def changes_within(seconds: float, server: Mortal) -> list[tuple[float, bool]]:
    """Return when the node went down and up again."""
    seen: list[tuple[float, bool]] = []
    node = Node("own", EngineKind.TRITON, NoEngine())

    async def story() -> None:
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await supervise(node, server, lambda: seen.append((loop.time(), node.up)))

    simulate(story())
    return seen


def test_server_that_ended_takes_loads_again_after_a_second() -> None:
    assert changes_within(500, Mortal(100.0)) == [(100.0, False), (101.0, True)]


def test_server_that_keeps_ending_is_left_alone_for_longer_and_longer() -> None:
    ups = [when for when, up in changes_within(500, Mortal(1.0, 1.0, 1.0)) if up]
    assert ups == [2.0, 5.0, 10.0]


def test_server_that_has_lasted_has_no_back_off_left() -> None:
    ups = [when for when, up in changes_within(500, Mortal(1.0, 1.0, 100.0)) if up]
    assert ups == [2.0, 5.0, 106.0]


@pytest.mark.parametrize(("unanswered", "given_up"), [(0, 0), (2, 0), (3, 1)])
def test_server_is_ended_that_leaves_three_questions_without_an_answer(
    unanswered: int, given_up: int
) -> None:
    server = Mortal(unanswered=unanswered)
    node = Node("own", EngineKind.TRITON, NoEngine())
    node.suspect("nothing came from it for 3 s")

    async def story() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(100):
                await supervise(node, server, lambda: None)

    simulate(story())
    assert server.given_up == given_up
