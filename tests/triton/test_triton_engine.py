"""The Triton adapter against a scripted server: who loads what, what errors become."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from gateway import wire
from gateway.core import (
    DTYPES,
    NO_PARAMETERS,
    Array,
    ModelKey,
    Override,
    Parameters,
    ParameterValue,
    Tensor,
)
from gateway.engine import triton, triton_messages
from gateway.engine.triton import TritonEngine
from gateway.errors import (
    EngineUnavailable,
    InferenceFailed,
    ModelLost,
    QueueFull,
    QueueTimeout,
    RepositoryError,
    RequestRefused,
    TidegateError,
)
from tests.gateway.fakes import FakeEngine, house, spec
from tests.simulated_loop import simulate
from tests.triton.fake_triton import CONFIG, FakeTriton, serving

M1, M2 = ModelKey("m", 1), ModelKey("m", 2)
ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


@asynccontextmanager
async def engine_of(fake: FakeTriton) -> AsyncIterator[TritonEngine]:
    async with serving(fake) as address:
        engine = TritonEngine(address)
        try:
            yield engine
        finally:
            await engine.close()


def with_engine(fake: FakeTriton, story: Callable[[TritonEngine], Awaitable[None]]) -> None:
    async def run() -> None:
        async with engine_of(fake) as engine:
            await story(engine)

    asyncio.run(run())


def x(data: Array = ROWS, datatype: str = "FP32") -> Tensor:
    return Tensor("x", datatype, data)


def test_first_version_loads_the_model_and_the_last_one_unloads_it() -> None:
    fake = FakeTriton(versions=(1, 2))

    async def story(engine: TritonEngine) -> None:
        await engine.load(spec(version=1))
        await engine.load(spec(version=2))
        await engine.unload(M1)
        assert fake.log == ["load m"]
        await engine.unload(M2)
        await engine.unload(M2)
        assert fake.log == ["load m", "unload m"]

    with_engine(fake, story)


def test_version_loaded_again_is_loaded_anew_while_another_is_held() -> None:
    fake = FakeTriton(versions=(1, 2))

    async def story(engine: TritonEngine) -> None:
        await engine.load(spec(version=1))
        await engine.load(spec(version=2))
        await engine.unload(M1)  # its files have changed, say
        await engine.load(spec(version=1))
        assert fake.log == ["load m", "load m"]

    with_engine(fake, story)


def test_model_that_triton_has_ready_is_taken_as_it_is() -> None:
    fake = FakeTriton(ready={1})

    async def story(engine: TritonEngine) -> None:
        assert await engine.ready_names() == ["m"]
        await engine.load(spec())
        assert fake.log == []
        await engine.unload(M1)
        assert fake.log == ["unload m"]

    with_engine(fake, story)


def test_version_is_described_by_tritons_own_configuration() -> None:
    fake = FakeTriton(config=CONFIG.replace("max_batch_size: 8", "max_batch_size: 16"))

    async def story(engine: TritonEngine) -> None:
        reading = spec(max_batch_size=4)
        loaded, resident_bytes = await engine.load(reading)
        assert loaded.max_batch_size == 16
        assert loaded.key == reading.key
        assert loaded.path == reading.path
        assert resident_bytes == reading.file_bytes

    with_engine(fake, story)


def test_load_that_fails_says_what_triton_says_and_holds_nothing() -> None:
    text = "load failed for model 'm': version 1 is at UNAVAILABLE state: Internal: no file;\n"
    fake = FakeTriton(load_fault=(grpc.StatusCode.INVALID_ARGUMENT, text))

    async def story(engine: TritonEngine) -> None:
        with pytest.raises(RepositoryError) as caught:
            await engine.load(spec())
        assert str(caught.value) == text.strip()
        assert fake.log == ["load m", "unload m"]

    with_engine(fake, story)


def test_load_whose_files_have_gone_meanwhile_holds_nothing(tmp_path: Path) -> None:
    fake = FakeTriton()

    async def story(engine: TritonEngine) -> None:
        with pytest.raises(FileNotFoundError):
            await engine.load(replace(spec(), override=Override("{}", tmp_path / "gone")))
        assert fake.log == ["unload m"]
        await engine.unload(M1)
        assert fake.log == ["unload m"]

    with_engine(fake, story)


def test_version_that_is_not_at_fault_loads_beside_one_that_is() -> None:
    fake = FakeTriton(load_fault=(grpc.StatusCode.INVALID_ARGUMENT, "load failed for model 'm'"))

    async def story(engine: TritonEngine) -> None:
        fake.ready = {2}
        held = triton._Held(released={2})
        engine._models["m"] = held
        await engine.load(spec(version=2))
        assert held.versions == {2}

    with_engine(fake, story)


def test_unload_follows_a_cancelled_load() -> None:
    fake = FakeTriton(load_takes=asyncio.Event())

    async def story(engine: TritonEngine) -> None:
        loading = asyncio.create_task(engine.load(spec()))
        await fake.hung.wait()
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        await engine.unload(M1)
        assert fake.log == ["load m", "unload m"]

    with_engine(fake, story)


def test_server_without_model_control_serves_what_it_has_ready() -> None:
    fake = FakeTriton(explicit=False, ready={1})

    async def story(engine: TritonEngine) -> None:
        await engine.load(spec())
        (answer,) = await engine.infer(M1, [x()], ["y"])
        np.testing.assert_array_equal(answer.data, ROWS)
        await engine.unload(M1)
        fake.ready = set()
        with pytest.raises(RepositoryError, match="model-control-mode=explicit"):
            await engine.load(spec())

    with_engine(fake, story)


def test_sequences_are_scheduled_by_triton() -> None:
    fake = FakeTriton(
        config=CONFIG.replace("dynamic_batching", "sequence_batching").replace(
            "preferred_batch_size: 8", ""
        )
    )

    async def story(engine: TritonEngine) -> None:
        assert (await engine.load(spec())).spec.forwarded

    with_engine(fake, story)


def test_cold_model_is_loaded_to_be_described_and_unloaded_again() -> None:
    fake = FakeTriton(versions=(1, 3))

    async def story(engine: TritonEngine) -> None:
        listing = await engine.read("m")
        assert [version.key for version in listing.versions] == [M1, ModelKey("m", 3)]
        assert listing.versions[0].max_batch_size == 8
        assert fake.log == ["load m", "unload m"]

    with_engine(fake, story)


def test_ready_model_is_described_where_it_stands() -> None:
    fake = FakeTriton(ready={1})

    async def story(engine: TritonEngine) -> None:
        assert len((await engine.read("m")).versions) == 1
        assert fake.log == []

    with_engine(fake, story)


ARRAYS: dict[str, Array] = {
    datatype: np.array([[1, 0], [0, 1], [1, 1]], dtype)
    for datatype, dtype in DTYPES.items()
    if datatype != "BYTES"
} | {"BYTES": np.array([[b"", b"\xff\x00"], [b"a" * 300, b"b"]], np.object_)}


@pytest.mark.parametrize("datatype", sorted(ARRAYS))
def test_every_datatype_goes_there_and_back(datatype: str) -> None:
    async def story(engine: TritonEngine) -> None:
        await engine.load(spec())
        (answer,) = await engine.infer(M1, [x(ARRAYS[datatype], datatype)], ["y"])
        assert (answer.name, answer.datatype) == ("y", datatype)
        np.testing.assert_array_equal(answer.data, ARRAYS[datatype])

    with_engine(FakeTriton(), story)


@pytest.mark.parametrize(
    "data",
    [ROWS, ROWS[:, ::-1], ROWS.T, ROWS[:0], np.float32(7.0).reshape(()), np.zeros((5, 40, 300))],
    ids=["plain", "backwards", "transposed", "empty", "scalar", "long"],
)
def test_message_put_together_by_hand_is_the_one_protobuf_would_make(data: Array) -> None:
    expected = pb.ModelInferRequest(model_name="m", model_version="1")
    for name in ("a", "b"):
        expected.inputs.add(name=name, datatype="FP32", shape=data.shape)
        expected.raw_input_contents.append(data.tobytes())
    expected.outputs.add(name="y")
    inputs = [Tensor(name, "FP32", data) for name in ("a", "b")]
    made = triton_messages.batch(M1, inputs, ["y"], NO_PARAMETERS)
    assert pb.ModelInferRequest.FromString(made) == expected
    assert made == expected.SerializeToString()


def test_outputs_come_in_the_order_asked_for() -> None:
    async def story(engine: TritonEngine) -> None:
        await engine.load(spec())
        inputs = [Tensor("x1", "FP32", ROWS), Tensor("x2", "FP32", ROWS + 1)]
        answers = await engine.infer(M1, inputs, ["y2", "y1"])
        assert [answer.name for answer in answers] == ["y2", "y1"]
        np.testing.assert_array_equal(answers[0].data, ROWS + 1)

    with_engine(FakeTriton(), story)


def test_output_that_triton_did_not_send_is_said_to_be_missing() -> None:
    async def story(engine: TritonEngine) -> None:
        await engine.load(spec())
        with pytest.raises(InferenceFailed, match="makes no sense"):
            await engine.infer(M1, [x()], ["z"])

    with_engine(FakeTriton(), story)


@pytest.mark.parametrize(
    ("code", "text", "error", "says"),
    [
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", ModelLost, ""),
        ("NOT_FOUND", "Request for unknown model: 'm' has no available versions", ModelLost, ""),
        ("UNAVAILABLE", "Request for unknown model: 'm' version 1 is not at ready state",
         ModelLost, ""),
        ("UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", QueueFull,
         "Exceeds maximum queue size"),
        ("UNAVAILABLE", "Request timeout expired", QueueTimeout, ""),
        ("UNAVAILABLE", "Socket closed", EngineUnavailable,
         "the Triton server at .* does not answer: Socket closed"),
        ("INVALID_ARGUMENT", "[request id: <id_unknown>] bad value", RequestRefused, "bad value"),
        ("INTERNAL", "onnx runtime error 2", InferenceFailed, ""),
        ("UNKNOWN", "who knows", InferenceFailed, ""),
    ],
)  # fmt: skip
def test_what_triton_says_keeps_its_meaning(
    code: str, text: str, error: type[TidegateError], says: str
) -> None:
    fake = FakeTriton(fault=(grpc.StatusCode[code], text))

    async def story(engine: TritonEngine) -> None:
        await engine.load(spec())
        with pytest.raises(error, match=f"^{says or text}$") as caught:
            await engine.infer(M1, [x()], ["y"])
        assert type(caught.value) is error

    with_engine(fake, story)


def test_cancelled_batch_is_cancelled_in_triton() -> None:
    fake = FakeTriton(hang=True)

    async def story(engine: TritonEngine) -> None:
        await engine.load(spec())
        running = asyncio.create_task(engine.infer(M1, [x()], ["y"]))
        await fake.hung.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.wait_for(fake.cancelled.wait(), 10)

    with_engine(fake, story)


def test_server_that_is_down_is_known_as_such_at_once_and_used_again_when_back() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        async with serving(FakeTriton()) as address:
            engine = TritonEngine(address)
            await engine.load(spec())
        asked_at = loop.time()
        with pytest.raises(EngineUnavailable, match="does not answer"):
            await engine.infer(M1, [x()], ["y"])
        with pytest.raises(EngineUnavailable):
            await engine.load(spec())
        await engine.unload(M1)
        assert loop.time() - asked_at < 2
        back = FakeTriton()
        async with serving(back, int(address.rpartition(":")[2])), asyncio.timeout(10):
            while not back.log:
                with suppress(EngineUnavailable):  # until gRPC's next try to connect
                    await engine.load(spec())
                await asyncio.sleep(0.05)
            await engine.infer(M1, [x()], ["y"])
        await engine.close()

    asyncio.run(story())


class Forgetful(FakeEngine):
    """Its server may restart: then nothing is loaded any more, whatever the gateway thinks."""

    async def infer(
        self,
        key: ModelKey,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        parameters: Parameters = NO_PARAMETERS,
    ) -> list[Tensor]:
        if key not in self.loaded:
            raise ModelLost(f"Request for unknown model: '{key.name}' is not found")
        return await super().infer(key, inputs, outputs, parameters)


def test_model_that_a_restarted_server_has_forgotten_is_loaded_anew() -> None:
    async def story() -> None:
        engine = Forgetful()
        async with house(engine=engine) as h:
            await h.ask(1)
            engine.loaded.clear()
            async with asyncio.TaskGroup() as tasks:
                for value in range(20):
                    tasks.create_task(h.ask(value))
            assert engine.log == ["load m:1", "unload m:1", "load m:1"]
            assert h.entry().stats.failure == 0

    simulate(story())


def test_whole_numbers_of_64_bits_reach_triton_whatever_their_sign() -> None:
    given: dict[str, ParameterValue] = {"least": -(2**63), "most": 2**64 - 1, "yes": True}
    sent = pb.ModelInferRequest.FromString(triton_messages.batch(M1, [x()], ["y"], given))
    assert {name: wire.parameter(value) for name, value in sent.parameters.items()} == given
