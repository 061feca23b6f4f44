"""A Triton server of the gateway's own runs while it has models, and no longer."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from gateway.core import ModelSpec, Tensor
from gateway.engine import tritonserver
from gateway.engine.base import Loaded
from gateway.engine.own_triton import OwnTriton
from gateway.engine.process import TritonProcess
from gateway.engine.triton import TritonEngine
from gateway.errors import EngineUnavailable, StartError
from gateway.fleet import Node
from gateway.lifecycle.supervisor import supervise
from gateway.placement import EngineKind
from gateway.repository.reader import read_model
from tests.gateway.onnx_models import identity, put
from tests.simulated_loop import simulate
from tests.triton.server import ENV

ONE = "instance_group { count: 1 kind: KIND_CPU }\n"


class Scripted:
    """A process that starts, ends when told, and counts."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.log: list[str] = []
        self.died = asyncio.Event()

    async def start(self) -> None:
        await asyncio.sleep(1.0)
        if self.refusals:
            self.refusals -= 1
            raise StartError("the port is in use")
        self.died.clear()
        self.log.append("start")

    async def wait(self) -> int:
        await self.died.wait()
        return -9

    async def stop(self, within_s: float = 20.0) -> None:
        self.log.append("stop")

    def memory_bytes(self) -> int:
        return 0


class Anything(TritonEngine):
    """Loads whatever it is asked to, at once."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1")

    async def connected(self) -> None:
        pass

    async def load(self, spec: ModelSpec, *, awaited: bool = False) -> Loaded:
        return Loaded(spec, 0)

    async def unload(self, key: object) -> None:
        pass


@asynccontextmanager
async def watched(own: OwnTriton, said: list[str]) -> AsyncIterator[None]:
    async def watch() -> None:
        while True:
            said.append(await own.over())

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await own.close()


def spec() -> ModelSpec:
    from tests.gateway.fakes import spec as fake

    return fake()


def test_server_starts_with_the_first_load_and_stops_after_the_last_model_left() -> None:
    async def story() -> None:
        process, said = Scripted(), list[str]()
        own = OwnTriton(process, Anything(), stop_after_s=30.0)
        async with watched(own, said):
            await asyncio.sleep(100)
            assert process.log == []
            await asyncio.gather(own.load(spec()), own.load(spec()))
            assert process.log == ["start"]
            await asyncio.sleep(100)
            await own.unload(spec().key)
            await asyncio.sleep(29)
            assert process.log == ["start"]
            await asyncio.sleep(2)
            assert process.log == ["start", "stop"]
            await own.load(spec())
            assert process.log == ["start", "stop", "start"]
        assert said == []

    simulate(story())


def test_model_that_comes_in_the_time_of_grace_keeps_the_server() -> None:
    async def story() -> None:
        process = Scripted()
        own = OwnTriton(process, Anything(), stop_after_s=30.0)
        async with watched(own, []):
            await own.load(spec())
            await own.unload(spec().key)
            await asyncio.sleep(20)
            await own.load(spec())
            await asyncio.sleep(1000)
            assert process.log == ["start"]

    simulate(story())


def test_start_that_fails_and_a_server_that_dies_are_both_said_once() -> None:
    async def story() -> None:
        process, said = Scripted(refusals=1), list[str]()
        own = OwnTriton(process, Anything())
        async with watched(own, said):
            with pytest.raises(EngineUnavailable, match="the port is in use"):
                await own.load(spec())
            await own.load(spec())
            process.died.set()
            await asyncio.sleep(1)
            assert said == ["the port is in use", "the Triton server has ended with -9"]
            await own.unload(spec().key)
            await own.load(spec())
            assert process.log == ["start", "start"]

    simulate(story())


@pytest.mark.usefixtures("real_triton")
def test_real_server_is_there_only_while_it_has_a_model(tmp_path: Path) -> None:
    put(tmp_path, "m", identity(), ONE)
    (reading,) = read_model(tmp_path, "m", {EngineKind.TRITON}).versions

    async def story() -> None:
        process = TritonProcess(tritonserver.find(ENV), tmp_path)
        own = OwnTriton(process, TritonEngine(process.address), stop_after_s=0.5)
        said: list[str] = []
        x = Tensor("x", "FP32", np.ones((1, 3), np.float32))
        async with watched(own, said):
            await own.load(reading)
            pid = process.pid
            (y,) = await own.infer(reading.key, [x], ["y"])
            np.testing.assert_array_equal(y.data, x.data)
            await own.unload(reading.key)
            await process.wait()
            assert not said
            await own.load(reading)
            assert process.pid != pid
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
            await own.unload(reading.key)
            await own.load(reading)
            (y,) = await own.infer(reading.key, [x], ["y"])
            np.testing.assert_array_equal(y.data, x.data)
            assert said == ["the Triton server has ended with -9"]

    asyncio.run(story())


@pytest.mark.usefixtures("real_triton")
def test_real_server_that_stops_to_answer_is_killed_and_its_requests_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "m", identity(), ONE)
    (reading,) = read_model(tmp_path, "m", {EngineKind.TRITON}).versions
    monkeypatch.setattr("gateway.engine.triton.PROBE_TIMEOUT_S", 0.1)

    async def story() -> None:
        process = TritonProcess(tritonserver.find(ENV), tmp_path)
        own = OwnTriton(process, TritonEngine(process.address))
        node = Node("own", EngineKind.TRITON, own)
        supervisor = asyncio.create_task(supervise(node, own, lambda: None))
        x = Tensor("x", "FP32", np.ones((1, 3), np.float32))
        try:
            await own.load(reading)
            os.kill(process.pid, signal.SIGSTOP)
            waiting = asyncio.create_task(own.infer(reading.key, [x], ["y"]))
            await asyncio.sleep(0.1)
            node.suspect("nothing came from it")
            with pytest.raises(EngineUnavailable, match="given up"):
                await waiting
            await own.load(reading)
            (y,) = await own.infer(reading.key, [x], ["y"])
            np.testing.assert_array_equal(y.data, x.data)
        finally:
            supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await supervisor
            await own.close()

    asyncio.run(story())
