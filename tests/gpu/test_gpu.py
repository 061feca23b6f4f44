"""What only a GPU can prove: run by `make gpu-test` on a machine that has one."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.core import ModelSpec
from gateway.engine import cuda
from gateway.engine.providers import CUDA, TENSORRT
from gateway.errors import RepositoryError
from tests.gateway.onnx_models import heavy, identity, put
from tests.gateway.test_embedded import ask, engine_with, load_error, spec_of

X = np.random.default_rng(0).random((4, 1024), np.float32)


def _missing(provider: str = "", package: str = "") -> str:
    """Return why a test cannot run here; "" where it can."""
    try:
        cuda.device_count()
    except cuda.NoGpu as reason:
        return str(reason)
    if package and importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    if provider:
        import onnxruntime

        if provider not in onnxruntime.get_available_providers():
            return f"this build of ONNX Runtime has no {provider}: pip install 'tidegate[gpu]'"
    return ""


def needs(provider: str = "", package: str = "") -> pytest.MarkDecorator:
    reason = _missing(provider, package)
    return pytest.mark.skipif(bool(reason), reason=reason)


def answer(spec: ModelSpec, x: Any = X) -> Any:
    async def story() -> Any:
        async with engine_with(spec) as engine:
            results = await asyncio.gather(*(ask(engine, spec, x=x) for _ in range(4)))
            for result in results:
                np.testing.assert_array_equal(result, results[0])
            return results[0]

    return asyncio.run(story())


def on_gpu(root: Path, model: bytes, more: str = "") -> ModelSpec:
    put(root, "m", model, "instance_group { kind: KIND_GPU }\n" + more)
    return spec_of(root)


def accelerated(**parameters: str) -> str:
    text = " ".join(f'parameters {{ key: "{k}" value: "{v}" }}' for k, v in parameters.items())
    return (
        "optimization { execution_accelerators { gpu_execution_accelerator { "
        f'name: "tensorrt" {text} }} }} }}'
    )


@needs(CUDA)
def test_model_on_the_gpu_answers_as_on_the_cpu(tmp_path: Path) -> None:
    put(tmp_path, "cpu", heavy(8), "instance_group { kind: KIND_CPU }")
    gpu = answer(on_gpu(tmp_path, heavy(8)))
    np.testing.assert_allclose(gpu, answer(spec_of(tmp_path, "cpu")), rtol=1e-3)


@needs(CUDA)
@pytest.mark.parametrize("datatype", ["FP16", "BF16", "INT64", "BOOL"])
def test_datatypes_reach_the_gpu_and_come_back(tmp_path: Path, datatype: str) -> None:
    spec = on_gpu(tmp_path, identity(datatype, ("n", 2)))
    dtypes = {"FP16": np.float16, "BF16": np.uint16, "INT64": np.int64, "BOOL": np.bool_}
    x: Any = np.array([[0, 1], [1, 0]], dtypes[datatype])
    np.testing.assert_array_equal(answer(spec, x), x)


@needs(CUDA)
def test_memory_limit_of_the_gpu_is_kept(tmp_path: Path) -> None:
    more = 'parameters { key: "gpu_mem_limit" value { string_value: "1048576" } }'
    assert "memory" in load_error(on_gpu(tmp_path, heavy(64), more)).lower()


@needs(CUDA)
def test_gpu_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "m", identity(), "instance_group { kind: KIND_GPU gpus: 99 }")
    assert "instance_group names GPU 99" in load_error(spec_of(tmp_path))


@needs(TENSORRT, package="tensorrt")
@pytest.mark.parametrize("parameters", [{}, {"max_workspace_size_bytes": "1073741824"}])
def test_tensorrt_accelerator_answers_as_the_cpu(
    tmp_path: Path, parameters: dict[str, str]
) -> None:
    put(tmp_path, "cpu", heavy(8), "instance_group { kind: KIND_CPU }")
    gpu = answer(on_gpu(tmp_path, heavy(8), accelerated(**parameters)))
    np.testing.assert_allclose(gpu, answer(spec_of(tmp_path, "cpu")), rtol=1e-2)


@needs(TENSORRT)
def test_tensorrt_accelerator_without_its_libraries_is_refused(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed")
    with pytest.raises(RepositoryError, match="TensorrtExecutionProvider"):
        answer(on_gpu(tmp_path, heavy(8), accelerated()))


@needs(package="tensorrt")
def test_plan_answers_as_its_onnx_model(tmp_path: Path) -> None:
    config = """platform: "tensorrt_plan" max_batch_size: 8 default_model_filename: "model.plan"
        input { name: "x" data_type: TYPE_FP32 dims: 1024 }
        output { name: "y" data_type: TYPE_FP32 dims: 2048 }
        instance_group { kind: KIND_GPU count: 2 }"""
    put(tmp_path, "cpu", heavy(8), "instance_group { kind: KIND_CPU }")
    folder = put(tmp_path, "m", heavy(8), config)
    (folder / "model.plan").write_bytes(_build(heavy(8)))
    (folder / "model.onnx").unlink()
    np.testing.assert_allclose(
        answer(spec_of(tmp_path)), answer(spec_of(tmp_path, "cpu")), rtol=1e-2
    )


@needs(package="tensorrt")
def test_plan_that_is_none_is_refused(tmp_path: Path) -> None:
    config = """platform: "tensorrt_plan" max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: 1024 }
        output { name: "y" data_type: TYPE_FP32 dims: 2048 }"""
    put(tmp_path, "m", b"not a plan", config)
    assert "refuses the plan" in load_error(spec_of(tmp_path))


def _build(model: bytes) -> bytes:
    """Return a plan of a model with an input `x` of 1 to 8 rows."""
    trt = importlib.import_module("tensorrt")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse(model), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 1024), (4, 1024), (8, 1024))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))
