"""`tidegate serve` as a process: start, sleep, drain, and every way not to start."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway import errors
from gateway.config import Settings, load_settings
from gateway.engine import embedded
from gateway.errors import StartError, TidegateError
from gateway.transport.status import STATUS
from tests.gateway.onnx_models import heavy, identity, put
from tests.gateway.process import eventually, gateway, run_to_end


def ones(*shape: int) -> triton.InferInput:
    made = triton.InferInput("x", list(shape), "FP32")
    made.set_data_from_numpy(np.ones(shape, np.float32))
    return made


def test_sigterm_answers_what_is_in_flight_and_exits_0(tmp_path: Path) -> None:
    # alone in its batch, the request waits out the delay: it is in flight for two seconds
    delay = "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 2000000 }"
    put(tmp_path, "slow", identity(), delay)
    with (
        gateway(tmp_path) as running,
        ThreadPoolExecutor(1) as pool,
        triton.InferenceServerClient(running.url) as client,
        grpc.insecure_channel(running.url) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        answer = pool.submit(client.infer, "slow", [ones(1, 3)])
        eventually(lambda: running.metric("tidegate_model_in_flight") == 1)
        running.process.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        # the watch stays open: it must not hold up the drain
        assert answer.result().as_numpy("y").shape == (1, 3)
        assert running.process.wait(timeout=20) == 0


def test_idle_model_gives_its_memory_back_to_the_system(tmp_path: Path) -> None:
    put(tmp_path, "heavy", heavy(megabytes=200))
    with gateway(tmp_path, "--idle-timeout-s", "1") as running:
        before = running.metric("process_resident_memory_bytes")
        with triton.InferenceServerClient(running.url) as client:
            client.infer("heavy", [ones(1, 1024)])
        grown = running.metric("process_resident_memory_bytes") - before
        assert grown > 150e6
        eventually(lambda: running.metric("tidegate_model_unloads_total", model="heavy") == 1)
        left = running.metric("process_resident_memory_bytes") - before
        assert left < 0.2 * grown
        assert running.stop() == 0


def test_new_versions_and_new_models_are_taken_in_when_asked_for(tmp_path: Path) -> None:
    put(tmp_path, "m", identity())
    with (
        gateway(tmp_path, "--allow-repository-control") as running,
        triton.InferenceServerClient(running.url) as client,
    ):
        assert client.infer("m", [ones(1, 3)]).get_response().model_version == "1"
        put(tmp_path, "m", identity(), version=2)
        put(tmp_path, "fresh", identity())
        assert client.infer("m", [ones(1, 3)]).get_response().model_version == "1"
        client.load_model("m")
        assert client.infer("m", [ones(1, 3)]).get_response().model_version == "2"
        with pytest.raises(triton.InferenceServerException, match="version 1 is not found"):
            client.infer("m", [ones(1, 3)], model_version="1")
        with pytest.raises(triton.InferenceServerException, match="unknown model: 'fresh'"):
            client.infer("fresh", [ones(1, 3)])
        client.load_model("fresh")
        client.infer("fresh", [ones(1, 3)])
        assert running.stop() == 0


def test_deadline_of_a_client_ends_its_wait_and_counts_as_a_failure(tmp_path: Path) -> None:
    delay = "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 5000000 }"
    put(tmp_path, "slow", identity(), delay)
    with (
        gateway(tmp_path, "--allow-repository-control") as running,
        triton.InferenceServerClient(running.url) as client,
    ):
        with pytest.raises(triton.InferenceServerException, match=r"(?i)deadline"):
            client.infer("slow", [ones(1, 3)], client_timeout=0.5)
        eventually(lambda: running.metric("nv_inference_request_failure", model="slow") == 1)
        assert running.metric("tidegate_model_in_flight", model="slow") == 0
        assert running.stop() == 0


def test_second_gateway_is_refused_the_port(tmp_path: Path) -> None:
    with gateway(tmp_path) as running:
        for flag, other, url in (
            ("--port", "--http-port", running.url),
            ("--http-port", "--port", running.http.removeprefix("http://")),
        ):
            code, stderr = run_to_end(tmp_path, flag, url.split(":")[1], other, "0")
            assert code == 1
            assert f"tidegate serve: cannot listen on {url}" in stderr
            assert "Traceback" not in stderr


def test_missing_repository_is_one_sentence(tmp_path: Path) -> None:
    code, stderr = run_to_end(tmp_path / "nowhere", "--port", "0", "--http-port", "0")
    assert code == 1
    assert stderr.strip() == (
        f"tidegate serve: the model repository '{tmp_path / 'nowhere'}' does not exist or is not "
        "a folder"
    )


def test_wrong_settings_are_named_with_their_origin(tmp_path: Path) -> None:
    file = tmp_path / "tidegate.toml"
    file.write_text("idle_timeout = 3\n")
    for flags, env, text in (
        (["--config", str(file)], {}, f"{file}: unknown setting 'idle_timeout'"),
        ([], {"TIDEGATE_PORT": "70000"}, "the environment: setting 'port': "),
        (["--idle-timeout-s", "soon"], {}, "the command line: setting 'idle_timeout_s': "),
        (["--config", "nowhere.toml"], {}, "cannot read the config file 'nowhere.toml'"),
    ):
        code, stderr = run_to_end(tmp_path, *flags, env=env)
        assert code == 1
        assert text in stderr


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tidegate.toml"
    file.write_text("port = 1\nhttp_port = 1\nidle_timeout_s = 1.0\n")
    environ = {"TIDEGATE_PORT": "2", "TIDEGATE_HTTP_PORT": "2", "OTHER": "x"}
    settings = load_settings({"port": "3"}, environ, file)
    assert (settings.port, settings.http_port, settings.idle_timeout_s) == (3, 2, 1.0)
    assert load_settings({}, {}) == Settings()


def test_exactly_one_build_of_onnx_runtime_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: set[str] = set()
    monkeypatch.setattr(embedded, "_installed", lambda name: name in installed)
    with pytest.raises(StartError, match="ONNX Runtime is not installed"):
        embedded.check_one_runtime()
    installed.add("onnxruntime-gpu")
    embedded.check_one_runtime()
    installed.add("onnxruntime")
    with pytest.raises(StartError, match="both installed and overwrite each other"):
        embedded.check_one_runtime()


def test_every_error_has_a_status() -> None:
    def subclasses(root: type[TidegateError]) -> set[type[TidegateError]]:
        return {root}.union(*(subclasses(child) for child in root.__subclasses__()))

    assert subclasses(errors.TidegateError) - {TidegateError} == STATUS.keys()


def test_free_port_is_taken_where_asked_for(tmp_path: Path) -> None:
    with gateway(tmp_path) as running:
        host, port = running.url.split(":")
        with socket.create_connection((host, int(port)), timeout=10):
            pass


WATCHING = """
import asyncio, grpc
from gateway.transport.event_loop import EventLoop

class Watched(EventLoop):
    def add_reader(self, fd, callback, *args):
        super().add_reader(fd, callback, *args)
        print(type(fd).__name__)

async def serve():
    server = grpc.aio.server()
    await server.start()
    await server.stop(None)

with asyncio.Runner(loop_factory=Watched) as runner:
    runner.run(serve())
"""


def test_grpcs_wakeups_are_read_all_at_once() -> None:
    # in a process of its own: gRPC binds its queue to the first loop that it sees
    done = subprocess.run(
        [sys.executable, "-c", WATCHING], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["_WakeupSocket"]
