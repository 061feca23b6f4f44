"""The embedded engine with real ONNX models: loads, warm-up, runs, cancellation."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from gateway.core import DTYPES, Array, ModelSpec, Tensor
from gateway.engine.embedded import EmbeddedEngine
from gateway.engine.onnx_session import OnnxSession
from gateway.errors import RepositoryError
from gateway.placement import EngineKind
from gateway.repository import config_pbtxt
from gateway.repository.reader import read_model
from tests.gateway.onnx_models import add_and_multiply, heavy, identity, put, swelling


def spec_of(root: Path, name: str = "m") -> ModelSpec:
    """Return the one version of a model, with what its configuration asks of the runtime."""
    listing = read_model(root, name, {EngineKind.TRITON})
    assert listing.error == ""
    (spec,) = listing.versions
    config = model_config_pb2.ModelConfig.FromString(spec.config)
    return replace(spec, runtime=config_pbtxt.runtime_options(config))


@asynccontextmanager
async def engine_with(spec: ModelSpec, cache: Path | None = None) -> AsyncIterator[EmbeddedEngine]:
    """An engine that has loaded a model."""
    # a pool for the whole process would be imposed on every other test that opens a session
    engine = EmbeddedEngine(
        intra_op_threads=1, cache_dir=cache, store_after_s=0, share_threads=False
    )
    try:
        await engine.load(spec)
        yield engine
        await engine.unload(spec.key)
    finally:
        await engine.close()


async def ask(engine: EmbeddedEngine, spec: ModelSpec, **inputs: Array) -> Array:
    """Return the first output."""
    datatypes = {tensor.name: tensor.datatype for tensor in spec.inputs}
    tensors = [Tensor(name, datatypes[name], data) for name, data in inputs.items()]
    return (await engine.infer(spec.key, tensors, [spec.outputs[0].name]))[0].data


def load_error(spec: ModelSpec) -> str:
    """Return why the engine does not load a model."""

    async def load() -> None:
        async with engine_with(spec):
            pass

    with pytest.raises(RepositoryError) as caught:
        asyncio.run(load())
    return str(caught.value)


def slow_loop(count: int | None = None) -> bytes:
    """`y` is `x` times itself, `n` (or `count`) times over, one operator each."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["a", "a"], ["b"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["k", "k"]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, ["k", "k"]),
        ],
    )
    loop = helper.make_node("Loop", ["count", "", "x"], ["y"], body=body)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["k", "k"])
    if count is not None:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 64])
        return onnx_model([loop], [x], [y], [numpy_helper.from_array(np.array(count), "count")])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["k", "k"])
    n = helper.make_tensor_value_info("n", TensorProto.INT64, [1])
    return onnx_model([helper.make_node("Squeeze", ["n"], ["count"]), loop], [n, x], [y])


def one_long_operator(dim: int) -> bytes:
    """`y` is `x` times itself: a single operator, which nothing ends early."""
    return onnx_model(
        [helper.make_node("MatMul", ["x", "x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [dim, dim])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [dim, dim])],
    )


def embedding(rows: int) -> bytes:
    """`y` is row `x` of a table; INT64 [n, 1] -> FP32 [n, 1, 256]."""
    table = numpy_helper.from_array(np.ones((rows, 256), np.float32), "table")
    return onnx_model(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, 256])],
        [table],
    )


def onnx_model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto] | None = None,
) -> bytes:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights or [])
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def put_external(root: Path, name: str, model: bytes) -> Path:
    """Put a model whose weights are in a file of their own; return that file."""
    folder = put(root, name, model)
    onnx.save(
        onnx.load_from_string(model),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    return folder / "model.onnx.data"


# --- external weights


@pytest.mark.parametrize("cached", [False, True])
def test_weights_overwritten_in_place_do_not_reach_the_running_session(
    tmp_path: Path, cached: bool
) -> None:
    data = put_external(tmp_path / "repository", "m", embedding(4096))
    spec = spec_of(tmp_path / "repository")

    async def story() -> None:
        async with engine_with(spec, tmp_path / "cache" if cached else None) as engine:
            await engine.stored()
            rows = np.arange(4096).reshape(-1, 1)
            data.write_bytes(b"\0" * data.stat().st_size)
            assert (await ask(engine, spec, x=rows) == 1).all()
            data.write_bytes(b"")  # a mapping of it would end this process with SIGBUS
            assert (await ask(engine, spec, x=rows) == 1).all()

    asyncio.run(story())


def test_missing_external_weights_are_named(tmp_path: Path) -> None:
    put_external(tmp_path, "m", embedding(8)).unlink()
    assert "model.onnx.data" in load_error(spec_of(tmp_path))


def test_external_weights_outside_the_version_are_refused(tmp_path: Path) -> None:
    data = put_external(tmp_path, "m", embedding(8))
    model = onnx.load(data.with_name("model.onnx"), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../../secret"
    (tmp_path / "secret").write_bytes(data.read_bytes())
    data.with_name("model.onnx").write_bytes(model.SerializeToString())
    assert "escapes" in load_error(spec_of(tmp_path))


# --- cancellation


def test_cancelled_run_ends_at_once_and_disturbs_no_other(tmp_path: Path) -> None:
    put(tmp_path, "m", slow_loop(), "max_batch_size: 0")
    spec = spec_of(tmp_path)
    matrix = np.eye(64, dtype=np.float32)

    async def story() -> None:
        async with engine_with(spec) as engine:
            endless = [
                asyncio.create_task(ask(engine, spec, n=np.array([10**9]), x=matrix))
                for _ in range(2)
            ]
            other = asyncio.create_task(ask(engine, spec, n=np.array([20_000]), x=matrix))
            await asyncio.sleep(0.05)  # so that they run: nothing outside can see when they do
            for task in endless:
                before = time.perf_counter()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert time.perf_counter() - before < 5  # of hours
            np.testing.assert_array_equal(await other, matrix)
            # the threads are free again: more runs than the pool has threads
            again = [ask(engine, spec, n=np.array([2]), x=matrix) for _ in range(8)]
            async with asyncio.timeout(10):
                for result in await asyncio.gather(*again):
                    np.testing.assert_array_equal(result, matrix)

    asyncio.run(story())


def test_cancel_returns_at_once_though_the_operator_does_not_end(tmp_path: Path) -> None:
    dim = 3600
    put(tmp_path, "m", one_long_operator(dim), "max_batch_size: 0")
    spec = spec_of(tmp_path)
    matrix = np.zeros((dim, dim), np.float32)

    async def story() -> None:
        async with engine_with(spec) as engine:
            model = engine._models[spec.key]
            assert isinstance(model, OnnxSession)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await ask(engine, spec, x=matrix)
            assert model._running, "the caller has waited for the operator"
            assert (await ask(engine, spec, x=matrix)).shape == (dim, dim)

    asyncio.run(story())


# --- options


@pytest.mark.parametrize("level", [-1, 0, 1, 2])
def test_every_graph_level_gives_the_same_answer(tmp_path: Path, level: int) -> None:
    put(tmp_path / "r", "m", heavy(2), f"optimization {{ graph {{ level: {level} }} }}")
    spec = spec_of(tmp_path / "r")
    assert spec.runtime.graph_level == level
    x = np.ones((2, 1024), np.float32)

    async def story() -> None:
        async with engine_with(spec, tmp_path / "cache") as engine:
            plain = await ask(engine, spec, x=x)
            await engine.stored()
            copy = await ask(engine, spec, x=x)
            np.testing.assert_allclose(plain, np.full((2, 512), 1.024), rtol=1e-4)
            np.testing.assert_array_equal(plain, copy)

    asyncio.run(story())


def test_parameters_without_effect_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = "".join(
        f'parameters {{ key: "{name}" value {{ string_value: "1" }} }}\n'
        for name in ("intra_op_thread_count", "execution_mode", "enable_mem_arena", "own")
    )
    put(tmp_path, "m", add_and_multiply(), config)
    spec = spec_of(tmp_path)

    async def story() -> None:
        async with engine_with(spec):
            pass

    asyncio.run(story())
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.message == (
        "m:1: these parameters have no effect here: execution_mode, intra_op_thread_count"
    )


def test_memory_comes_back_after_unload(tmp_path: Path) -> None:
    put(tmp_path, "m", heavy(64))
    spec = spec_of(tmp_path)

    async def story() -> None:
        before = _private_bytes()
        async with engine_with(spec):
            loaded = _private_bytes() - before
        assert loaded > 50e6
        assert _private_bytes() - before < loaded / 3

    asyncio.run(story())


def test_model_that_takes_more_than_its_files_is_found_out(tmp_path: Path) -> None:
    put(tmp_path, "m", swelling(100))
    put(tmp_path, "plain", heavy(64))

    async def story() -> None:
        engine = EmbeddedEngine(intra_op_threads=1, share_threads=False)
        loaded = await engine.load(spec_of(tmp_path))
        assert 90e6 < loaded.resident_bytes < 150e6
        # beside another load nobody can say whose the memory is
        await engine.unload(loaded.spec.key)
        plain = spec_of(tmp_path, "plain")
        both = await asyncio.gather(engine.load(spec_of(tmp_path)), engine.load(plain))
        assert both[0].resident_bytes < 1e6
        assert both[1].resident_bytes == plain.file_bytes
        await engine.close()

    asyncio.run(story())


def _private_bytes() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Private_"))


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "BF16", "INT64", "BOOL", "BYTES"])
def test_bound_run_answers_as_a_plain_one(tmp_path: Path, datatype: str) -> None:
    """The way that runs on a GPU take, on the CPU."""
    put(tmp_path, "m", identity(datatype, ("n", 2)))
    spec = spec_of(tmp_path)
    text = np.array([[b"a", b"\xc3\xa9"], [b"", b"c"]], np.object_)
    bits = np.array([[0, 1], [1, 0]], np.uint16)
    data = text if datatype == "BYTES" else bits.astype(DTYPES[datatype])
    session = onnxruntime.InferenceSession(spec.path / "model.onnx")
    for on_gpu in (False, True):
        model = OnnxSession(onnxruntime, session, spec, on_gpu)
        (result,) = model.run([Tensor("x", datatype, data)], ["y"], model.new_run())
        assert (result.name, result.datatype, result.data.dtype) == ("y", datatype, data.dtype)
        np.testing.assert_array_equal(result.data, data)
