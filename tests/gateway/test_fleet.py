"""Engines that fail, come and go: what the fleet promises, on simulated time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from gateway.fleet import Node, NoEngine
from gateway.lifecycle.discovery import addresses, follow
from gateway.lifecycle.health import watch
from gateway.placement import EngineKind
from tests.simulated_loop import simulate


def node(stalled_after_s: float = math.inf) -> Node:
    return Node("t:8001", EngineKind.TRITON, NoEngine(), stalled_after_s=stalled_after_s)


class Server:
    """Answers as it is told, and notes what it is asked."""

    def __init__(self, answers: Callable[[], bool]) -> None:
        self.log: list[str] = []
        self._answers = answers

    async def answers(self) -> bool:
        return self._answers()

    async def abandon(self) -> None:
        self.log.append("abandon")

    async def catch_up(self) -> None:
        self.log.append("catch up")

    async def back(self) -> None:
        self.log.append("back")


@asynccontextmanager
async def watched(one: Node, server: Server, changed: Callable[[], None]) -> AsyncIterator[None]:
    watcher = asyncio.create_task(watch(one, server, changed, server.back))
    try:
        yield
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


def never() -> bool:
    raise AssertionError("called")


def test_engine_that_nobody_suspects_is_not_asked() -> None:
    async def story() -> None:
        async with watched(node(), Server(never), lambda: None):
            await asyncio.sleep(10_000)

    simulate(story())


def test_engine_is_out_until_it_answers_and_asked_less_and_less_often() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        one, asked, changes = node(), list[float](), list[tuple[float, bool]]()
        suspected_at = 100.0

        def answers() -> bool:
            asked.append(loop.time() - suspected_at)
            return loop.time() > suspected_at + 6

        def changed() -> None:
            changes.append((loop.time() - suspected_at, one.up))

        server = Server(answers)
        async with watched(one, server, changed):
            await asyncio.sleep(suspected_at)
            one.suspect("connection refused")
            assert one.up, "an engine that was merely suspected is out"
            await asyncio.sleep(5)
            assert (one.up, one.reason) == (False, "connection refused")
            assert server.log == ["abandon"]
            await asyncio.sleep(1000)
        assert [round(at, 1) for at in asked] == [0.0, 0.1, 0.3, 0.7, 1.5, 3.1, 5.1, 7.1]
        assert [(round(at, 1), up) for at, up in changes] == [(0.0, False), (7.1, True)]
        assert one.reason == ""
        assert server.log == ["abandon", "catch up", "back"]

    simulate(story())


def test_false_alarm_changes_nothing() -> None:
    async def story() -> None:
        one, server = node(), Server(lambda: True)

        def changed() -> None:
            raise AssertionError("changed")

        async with watched(one, server, changed):
            one.suspect("a batch took too long")
            await asyncio.sleep(10)
            assert one.up
            assert server.log == []

    simulate(story())


def test_engine_that_ends_no_run_is_suspected() -> None:
    async def story() -> None:
        one = node(stalled_after_s=5.0)
        await asyncio.sleep(100)
        for _ in range(10):  # each takes long, and they go on
            one.run_begins()
            await asyncio.sleep(4.0)
            one.run_ends()
        await asyncio.sleep(100)
        assert not one.suspected.is_set()
        one.run_begins()
        one.run_begins()
        await asyncio.sleep(4.0)
        one.run_ends()
        await asyncio.sleep(4.0)
        assert not one.suspected.is_set()
        await asyncio.sleep(6.0)
        assert one.suspected.is_set()

    simulate(story())


def test_engines_follow_a_name_and_stay_where_it_cannot_be_resolved() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        here: set[str] = set()
        log: list[tuple[int, set[str]]] = []

        async def resolve(host: str, port: int) -> set[str]:
            assert (host, port) == ("tritons", 8001)
            at = loop.time()
            if at < 5:
                return {"10.0.0.1:8001"}
            if at < 25:
                return {"10.0.0.1:8001", "10.0.0.2:8001"}
            if at < 45:
                raise OSError("no such host")
            return {"10.0.0.2:8001"}

        async def join(address: str, gone: asyncio.Event) -> None:
            here.add(address)
            await gone.wait()
            here.discard(address)

        following = asyncio.create_task(follow("tritons", 8001, join, resolve))
        for at in (1, 11, 31, 51):
            await asyncio.sleep(at - loop.time())
            log.append((at, set(here)))
        assert log == [
            (1, {"10.0.0.1:8001"}),
            (11, {"10.0.0.1:8001", "10.0.0.2:8001"}),
            (31, {"10.0.0.1:8001", "10.0.0.2:8001"}),
            (51, {"10.0.0.2:8001"}),
        ]
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following

    simulate(story())


def test_a_real_name_has_addresses_with_its_port() -> None:
    assert "127.0.0.1:8001" in asyncio.run(addresses("localhost", 8001))
