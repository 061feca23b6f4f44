"""Where a model runs: what config.pbtxt asks for, and what is refused instead of run on the CPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.core import Accelerator, DeviceKind, RuntimeOptions, Tensor
from gateway.engine import cuda, providers
from gateway.engine.cuda import NoGpu
from gateway.engine.model import Replicas, Run
from gateway.engine.providers import CPU, CUDA, TENSORRT
from gateway.errors import RepositoryError
from gateway.repository import config_pbtxt
from tests.gateway.onnx_models import identity, put
from tests.gateway.test_embedded import load_error, spec_of

GPU = RuntimeOptions(device=DeviceKind.GPU)


def options(text: str) -> RuntimeOptions:
    return config_pbtxt.runtime_options(config_pbtxt.parse(text, Path("config.pbtxt")))


def trt(**parameters: str) -> RuntimeOptions:
    return RuntimeOptions(DeviceKind.GPU, accelerators=(Accelerator("tensorrt", parameters),))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise NoGpu("no NVIDIA driver is installed")

    monkeypatch.setattr(cuda, "device_count", refuse)


@pytest.mark.parametrize(
    ("groups", "device", "gpus"),
    [
        ("", DeviceKind.AUTO, ()),
        ("instance_group { count: 2 }", DeviceKind.AUTO, ()),
        ("instance_group { kind: KIND_CPU }", DeviceKind.CPU, ()),
        ("instance_group { kind: KIND_GPU gpus: [1, 0] }", DeviceKind.GPU, (0, 1)),
        (
            "instance_group { kind: KIND_CPU } instance_group { kind: KIND_GPU gpus: 1 }",
            DeviceKind.GPU,
            (1,),
        ),
        ("instance_group { kind: KIND_MODEL }", DeviceKind.AUTO, ()),
    ],
)
def test_instance_groups_say_where(groups: str, device: DeviceKind, gpus: tuple[int, ...]) -> None:
    found = options(groups)
    assert (found.device, found.gpus) == (device, gpus)


def test_optimization_is_read() -> None:
    found = options(
        """optimization {
          graph { level: -1 }
          execution_accelerators { gpu_execution_accelerator {
            name: "tensorrt" parameters { key: "precision_mode" value: "FP16" } } }
        }
        parameters { key: "gpu_mem_limit" value { string_value: "100" } }"""
    )
    assert found.graph_level == -1
    assert found.accelerators == (Accelerator("tensorrt", {"precision_mode": "FP16"}),)
    assert found.parameters == {"gpu_mem_limit": "100"}


@pytest.mark.usefixtures("no_gpu")
def test_gpu_that_is_not_there_is_refused_and_a_preferred_one_is_not() -> None:
    with pytest.raises(RepositoryError, match=r"asks for a GPU, but no NVIDIA driver is installed"):
        providers.devices(GPU, [CUDA, CPU])
    assert providers.devices(RuntimeOptions(), [CUDA, CPU]) == ()


@pytest.mark.usefixtures("two_gpus")
def test_runtime_without_cuda_is_refused_with_what_to_install() -> None:
    with pytest.raises(RepositoryError, match=r"pip install '\.\[gpu\]'"):
        providers.devices(GPU, [CPU])
    assert providers.devices(RuntimeOptions(), [CPU]) == ()


@pytest.mark.usefixtures("two_gpus")
def test_gpu_is_taken_where_there_is_one() -> None:
    assert providers.devices(RuntimeOptions(), [CUDA, CPU]) == (0,)
    assert providers.devices(RuntimeOptions(DeviceKind.CPU), [CUDA, CPU]) == ()
    assert providers.devices(RuntimeOptions(DeviceKind.GPU, (0, 1)), [CUDA, CPU]) == (0, 1)
    with pytest.raises(RepositoryError, match=r"names GPU 2; there are 2 \(from 0\)"):
        providers.devices(RuntimeOptions(DeviceKind.GPU, (2,)), [CUDA, CPU])


def test_tensorrt_parameters_are_those_of_tritons_backend() -> None:
    runtime = trt(
        precision_mode="FP16", max_workspace_size_bytes="1024", trt_engine_cache_enable="1"
    )
    assert providers.on_gpu(runtime, 1, 0) == [
        (
            TENSORRT,
            {
                "trt_fp16_enable": "1",
                "trt_max_workspace_size": "1024",
                "trt_engine_cache_enable": "1",
                "device_id": "1",
            },
        ),
        (CUDA, {"device_id": "1"}),
        (CPU, {}),
    ]


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        (trt(precision_mode="FP8"), "unsupported precision mode 'FP8' is requested"),
        (trt(workspace="1"), "unknown parameter 'workspace' is provided for TensorRT"),
        (
            RuntimeOptions(accelerators=(Accelerator("openvino"),)),
            "unknown Execution Accelerator 'openvino' is requested",
        ),
        (
            RuntimeOptions(parameters={"arena_extend_strategy": "2"}),
            "unsupported arena_extend_strategy value '2' is requested",
        ),
    ],
)
def test_wrong_accelerators_are_refused_in_tritons_words(
    runtime: RuntimeOptions, reason: str
) -> None:
    with pytest.raises(RepositoryError, match=reason):
        providers.on_gpu(runtime, 0, 0)


@pytest.mark.parametrize(("own", "taken"), [("", "1000"), ("400", "400"), ("4000", "1000")])
def test_gateways_memory_limit_can_only_be_lowered(own: str, taken: str) -> None:
    parameters = {"gpu_mem_limit": own} if own else {}
    ((_, cuda_options), _) = providers.on_gpu(RuntimeOptions(parameters=parameters), 0, 1000)
    assert cuda_options["gpu_mem_limit"] == taken


def test_provider_that_onnx_runtime_left_out_fails_the_load() -> None:
    wanted = providers.on_gpu(trt(), 0, 0)
    providers.check_took(wanted, [TENSORRT, CUDA, CPU], GPU)
    with pytest.raises(RepositoryError, match="TensorrtExecutionProvider could not be initialised"):
        providers.check_took(wanted, [CUDA, CPU], GPU)


def test_preferred_provider_that_was_left_out_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    wanted = providers.on_gpu(RuntimeOptions(), 0, 0)
    with caplog.at_level(logging.WARNING):
        providers.check_took(wanted, [CPU], RuntimeOptions())
    assert "the model runs on CPUExecutionProvider" in caplog.text


@pytest.mark.usefixtures("no_gpu")
def test_model_that_asks_for_a_gpu_never_runs_on_the_cpu(tmp_path: Path) -> None:
    put(tmp_path, "m", identity(), "instance_group { kind: KIND_GPU }")
    assert "instance_group asks for a GPU, but " in load_error(spec_of(tmp_path))


class _Device:
    """A model on one device. Its runs end when `gate` opens."""

    def __init__(self, gate: threading.Barrier) -> None:
        self.gate = gate
        self.runs = 0
        self.closed = False

    def is_quick(self, inputs: Sequence[Tensor]) -> bool:
        raise AssertionError("a GPU is never waited for on the event loop")

    def new_run(self) -> Run:
        return SimpleNamespace(terminate=False)

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: Run) -> list[Tensor]:
        self.runs += 1
        self.gate.wait(10)
        return []

    def abort(self) -> None:
        raise AssertionError("nothing was to be aborted")

    def close(self) -> None:
        self.closed = True


def test_runs_go_to_the_device_with_the_fewest_under_way() -> None:
    gate = threading.Barrier(4)
    devices = [_Device(gate), _Device(gate)]
    model = Replicas(devices)
    assert not model.is_quick([])
    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(model.run, [], [], model.new_run()) for _ in range(4)]
    assert [run.result() for run in runs] == [[]] * 4
    assert [device.runs for device in devices] == [2, 2]
    model.close()
    assert all(device.closed for device in devices)
