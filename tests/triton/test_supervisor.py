"""When a server of the gateway's own that has failed may be started anew."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from gateway.fleet import Node, NoEngine
from gateway.lifecycle.supervisor import supervise
from gateway.placement import EngineKind
from tests.simulated_loop import simulate


class Mortal:
    """Lives for the given times, then for good."""

    def __init__(self, *lives: float) -> None:
        self.lives = list(lives)

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
