"""A repository that changes while it is served: no request fails, and none waits for it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from gateway.core import ModelKey, ModelState
from gateway.errors import ModelNotFound
from tests.gateway.fakes import Fail, FakeEngine, Ok, house, spec
from tests.gateway.onnx_models import plus, put
from tests.gateway.process import eventually, gateway
from tests.simulated_loop import simulate


def test_old_version_serves_until_the_new_one_is_ready() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(1.0), Ok(5.0)])
        async with house(engine=engine) as h:
            assert (await h.ask(1)).version == 1
            h.publish(spec(version=2))
            await asyncio.sleep(1)
            loop = asyncio.get_running_loop()
            asked = loop.time()
            assert (await h.ask(1)).version == 1
            assert loop.time() - asked < 0.1, "waited for the new version"
            await asyncio.sleep(5)
            assert (await h.ask(1)).version == 2
            await asyncio.sleep(1)
            assert engine.loaded == {ModelKey("m", 2)}
            assert [entry.key for entry in h.registry.entries()] == [ModelKey("m", 2)]

    simulate(story())


def test_old_version_goes_on_while_the_new_one_cannot_be_loaded() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(1.0), Fail("broken"), Fail("broken"), Ok(1.0)])
        async with house(engine=engine) as h:
            await h.ask(1)
            h.publish(spec(version=2))
            for _ in range(20):
                assert (await h.ask(1)).version in (1, 2)
                await asyncio.sleep(0.5)
            assert (await h.ask(1)).version == 2
            assert engine.log.count("load m:2") == 3

    simulate(story())


def test_cold_model_does_not_wake_for_a_new_version() -> None:
    async def story() -> None:
        engine = FakeEngine()
        async with house(engine=engine) as h:
            h.publish(spec(version=2))
            await asyncio.sleep(100)
            assert engine.log == []
            assert (await h.ask(1)).version == 2

    simulate(story())


def test_version_overtaken_by_a_newer_one_fails_nobody() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(5.0), Ok(1.0)])
        async with house(spec(version=1), engine=engine) as h:
            waiting = asyncio.create_task(h.ask(1))
            await asyncio.sleep(1)
            h.publish(spec(version=2))
            assert (await waiting).version in (1, 2)
            await asyncio.sleep(10)
            assert engine.loaded == {ModelKey("m", 2)}

    simulate(story())


def test_third_version_takes_over_from_the_first_while_the_second_still_loads() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(1.0), Ok(5.0), Ok(5.0)])
        async with house(engine=engine) as h:
            await h.ask(1)
            h.publish(spec(version=2))
            await asyncio.sleep(1)
            h.publish(spec(version=3))
            await asyncio.sleep(1)
            assert (await h.ask(1)).version == 1
            await asyncio.sleep(20)
            assert (await h.ask(1)).version == 3
            assert engine.loaded == {ModelKey("m", 3)}

    simulate(story())


def test_deleted_model_is_gone_at_once_also_where_a_version_stands_in() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(1.0), Ok(50.0)])
        async with house(engine=engine) as h:
            await h.ask(1)
            h.publish(spec(version=2))
            await asyncio.sleep(1)
            h.registry.remove("m")
            with pytest.raises(ModelNotFound):
                await h.ask(1)
            await asyncio.sleep(100)
            assert not engine.loaded
            assert not list(h.registry.entries())

    simulate(story())


def test_stand_in_that_falls_asleep_makes_way() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(1.0), Ok(1000.0)])
        async with house(engine=engine, idle_timeout_s=100) as h:
            await h.ask(1)
            h.publish(spec(version=2))
            await asyncio.sleep(500)
            assert [entry.key.version for entry in h.registry.entries()] == [2]
            assert h.entry(version=2).state is ModelState.LOADING

    simulate(story())


class Asking:
    """A thread that asks without a pause, and keeps what it was answered."""

    def __init__(self, url: str) -> None:
        self.errors: list[str] = []
        self.answers: list[float] = []
        self.slowest_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(url,))

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self, url: str) -> None:
        x = triton.InferInput("x", [1, 3], "FP32")
        x.set_data_from_numpy(np.zeros((1, 3), np.float32))
        with triton.InferenceServerClient(url) as client:
            while not self._over.is_set():
                try:
                    answer = client.infer("m", [x], client_timeout=20)
                    self.answers.append(float(answer.as_numpy("y")[0, 0]))
                except InferenceServerException as error:
                    self.errors.append(str(error))


def version(root: Path, number: int, content: bytes | None = None) -> None:
    """Publish a version by one rename, as the exporter does."""
    made = root / ".new"
    made.mkdir()
    (made / "model.onnx").write_bytes(plus(float(number)) if content is None else content)
    made.rename(root / "m" / str(number))


def test_versions_published_under_load_take_over_by_themselves(tmp_path: Path) -> None:
    put(tmp_path, "m", plus(1.0))
    with gateway(tmp_path) as served, Asking(served.url) as asking:
        eventually(lambda: 1.0 in asking.answers)
        for number in (2, 3, 4):
            version(tmp_path, number)
            eventually(lambda number=number: float(number) in asking.answers)  # type: ignore[misc]
        version(tmp_path, 5, b"broken")
        put(tmp_path, "other", plus(7.0))
        with triton.InferenceServerClient(served.url) as client:
            eventually(lambda: "other" in str(client.get_model_repository_index()))
        count = len(asking.answers)
        eventually(lambda: len(asking.answers) > count + 100)
    assert asking.errors == []
    assert asking.answers == sorted(asking.answers), "an old version answered after a new one"
