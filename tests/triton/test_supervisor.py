"""When a server that has ended is started anew."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from gateway.errors import StartError
from gateway.lifecycle.supervisor import keep_running
from tests.simulated_loop import simulate


class Mortal:
    """Lives for the given times, then for good; each start takes what `refusals` says of it."""

    def __init__(self, *lives: float, refusals: int = 0) -> None:
        self.lives = list(lives)
        self.refusals = refusals
        self.starts: list[float] = []

    async def start(self) -> None:
        self.starts.append(asyncio.get_running_loop().time())
        if self.refusals:
            self.refusals -= 1
            raise StartError("the port is in use")

    async def wait(self) -> int:
        await asyncio.sleep(self.lives.pop(0) if self.lives else 1e6)
        return -9


def starts_within(seconds: float, server: Mortal) -> list[float]:
    async def story() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await keep_running(server)

    simulate(story())
    return server.starts


def test_server_that_ends_is_started_anew_after_a_second() -> None:
    assert starts_within(500, Mortal(100.0)) == [101.0]


def test_server_that_keeps_ending_is_started_less_and_less_often() -> None:
    assert starts_within(500, Mortal(1.0, 1.0, 1.0)) == [2.0, 5.0, 10.0]


def test_server_that_has_lasted_is_started_anew_without_back_off() -> None:
    assert starts_within(500, Mortal(1.0, 1.0, 100.0)) == [2.0, 5.0, 106.0]


def test_start_that_fails_is_tried_again_later() -> None:
    assert starts_within(500, Mortal(100.0, refusals=2)) == [101.0, 103.0, 107.0]
