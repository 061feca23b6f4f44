"""TensorRT plans without a GPU: what is refused, and the order of calls on a stand-in for one."""

from __future__ import annotations

import asyncio
import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from gateway.core import ModelSpec
from gateway.engine import cuda
from gateway.errors import InferenceFailed
from tests.gateway.onnx_models import put
from tests.gateway.test_embedded import ask, engine_with, load_error, spec_of

CONFIG = """platform: "tensorrt_plan" max_batch_size: 4 default_model_filename: "model.plan"
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
"""


def plan(root: Path, config: str = CONFIG) -> ModelSpec:
    folder = put(root, "m", b"a plan", config)
    (folder / "model.onnx").rename(folder / "model.plan")
    return spec_of(root)


class HostDevice:
    """The interface of `cuda.Device` on host memory. Its books must balance."""

    taken: ClassVar[dict[int, Any]] = {}
    streams: ClassVar[set[int]] = set()
    held: ClassVar[int] = 0

    def __init__(self, number: int) -> None:
        HostDevice.held += 1

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def release(self) -> None:
        HostDevice.held -= 1

    def allocate(self, size: int) -> int:
        buffer = ctypes.create_string_buffer(max(1, size))
        self.taken[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        del self.taken[address]

    def upload(self, address: int, source: int, size: int) -> None:
        ctypes.memmove(address, source, size)

    def download(self, target: int, address: int, size: int) -> None:
        ctypes.memmove(target, address, size)

    def new_stream(self) -> int:
        self.streams.add(7)
        return 7

    def wait(self, stream: int) -> None:
        assert stream in self.streams

    def end_stream(self, stream: int) -> None:
        self.streams.remove(stream)


class _Context:
    """Doubles `x` into `y`; its profile ends at 4 rows."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.at: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= 4

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.at[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        size = int(np.prod(self.shape))
        x, y = (
            np.ctypeslib.as_array((ctypes.c_float * size).from_address(self.at[name]))
            for name in "xy"
        )
        y[:] = x * 2
        return True


class _Engine:
    num_io_tensors = 2
    get_tensor_name = staticmethod(lambda i: "xy"[i])
    get_tensor_dtype = staticmethod(lambda name: "DataType.FLOAT")
    get_tensor_mode = staticmethod(lambda name: "INPUT" if name == "x" else "OUTPUT")
    get_tensor_shape = staticmethod(lambda name: (-1, 3))
    create_execution_context = staticmethod(_Context)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TensorRT on a stand-in for a GPU."""

    class ILogger:
        ERROR, INTERNAL_ERROR = 1, 0

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, blob: bytes) -> _Engine | None:
            if blob == b"a plan":
                return _Engine()
            self.logger.log(ILogger.ERROR, "serialized by another version")
            return None

    module = ModuleType("tensorrt")
    vars(module).update(
        ILogger=ILogger,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="INPUT"),
        __version__="11.0",
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    monkeypatch.setattr(cuda, "Device", HostDevice)
    yield
    assert (HostDevice.taken, HostDevice.streams, HostDevice.held) == ({}, set(), 0)


def test_plan_without_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise cuda.NoGpu("no NVIDIA driver is installed")

    monkeypatch.setattr(cuda, "device_count", refuse)
    assert load_error(plan(tmp_path)) == (
        "a TensorRT plan needs a GPU, but no NVIDIA driver is installed"
    )


def test_plan_without_tensorrt_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "pip install tensorrt-cu13" in load_error(plan(tmp_path))


def test_plan_on_the_cpu_is_refused(tmp_path: Path) -> None:
    spec = plan(tmp_path, CONFIG + "instance_group { kind: KIND_CPU }")
    assert "runs on a GPU only" in load_error(spec)


@pytest.mark.usefixtures("tensorrt")
def test_plan_runs_and_gives_everything_back(tmp_path: Path) -> None:
    spec = plan(tmp_path)

    async def story() -> None:
        async with engine_with(spec) as engine:
            x = np.arange(6, dtype=np.float32).reshape(2, 3)
            np.testing.assert_array_equal(await ask(engine, spec, x=x), x * 2)
            with pytest.raises(InferenceFailed, match="outside the plan's optimization profile"):
                await ask(engine, spec, x=np.zeros((5, 3), np.float32))
            np.testing.assert_array_equal(await ask(engine, spec, x=x), x * 2)

    asyncio.run(story())


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("TYPE_FP32 dims: 3 }\noutput", "TYPE_FP16 dims: 3 }\noutput", "type FP16, the plan FP32"),
        ("dims: 3 }\noutput", "dims: 4 }\noutput", "the dims [-1, 4] (batch first), the plan"),
        ('input { name: "x"', 'input { name: "z"', "input 'z', which the plan has not"),
        ('"y"', '"x"', "names output 'x', which the plan has not"),
    ],
)
def test_config_that_contradicts_the_plan_is_refused(
    tmp_path: Path, old: str, new: str, reason: str
) -> None:
    error = load_error(plan(tmp_path, CONFIG.replace(old, new)))
    assert reason in error


@pytest.mark.usefixtures("tensorrt")
def test_plan_of_another_version_is_refused_with_tensorrts_reason(tmp_path: Path) -> None:
    spec = plan(tmp_path)
    (spec.path / "model.plan").write_bytes(b"of another version")
    assert load_error(spec).endswith("refuses the plan: serialized by another version")
