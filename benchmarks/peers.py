"""Who is compared, and how each is started: a child process on free ports, ended with the block."""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.checks import CallFailed, caller
from benchmarks.frameworks import FRAMEWORKS, folder, program
from benchmarks.models import Cases, Model, onnx_file
from benchmarks.processes import (
    Counted,
    PeerError,
    Protocol,
    Server,
    end,
    family,
    free_ports,
    running,
    wait_until,
)
from benchmarks.provenance import ROOT
from gateway.transport.grpc_tuning import EXPERIMENTS
from loadtest.metrics import MetricsUnreadable, read_counts

# Ray starts a cluster first.
READY_WITHIN_S = 90.0

TRITON_ENV = ROOT / ".venv-triton"


@dataclass(frozen=True, slots=True)
class Scene:
    """What a server is to serve, and a folder for its log."""

    repository: Path
    model: Model
    cases: Cases
    scratch: Path
    flags: tuple[str, ...] = ()  # more of them for the gateway
    running: dict[str, Server] = field(default_factory=dict)  # those started before


Start = Callable[[Scene], AbstractContextManager[Server]]


@contextmanager
def gateway(scene: Scene, name: str = "tidegate") -> Iterator[Server]:
    """Run `tidegate serve` on the repository. Raises `PeerError`."""
    port, http_port = free_ports(2)
    command = (
        *(sys.executable, "-m", "gateway.cli", "serve", "--repository", str(scene.repository)),
        *("--port", str(port), "--http-port", str(http_port)),
        *("--cache-dir", str(scene.scratch / "sessions"), *scene.flags),
    )
    metrics = f"http://127.0.0.1:{http_port}/metrics"
    with _served(name, command, port, scene, count=_triton_names(metrics)) as server:
        yield replace(server, metrics_url=metrics, http_address=f"127.0.0.1:{http_port}")


@contextmanager
def echo(
    scene: Scene, name: str = "echo", environ: dict[str, str] | None = None
) -> Iterator[Server]:
    """Run the bare grpc.aio server that always gives the first case's answer."""
    (port,) = free_ports(1)
    response = scene.scratch / f"echo-{scene.model.name}.pb"
    response.write_bytes(scene.cases.grpc_response(0))
    path = str(ROOT / "benchmarks" / "echo_server.py")
    command = (sys.executable, path, "--port", str(port), "--response", str(response))
    with _served(name, command, port, scene, environ=environ, answers_truly=False) as server:
        yield server


@contextmanager
def echo_tuned(scene: Scene) -> Iterator[Server]:
    """Run the echo on the I/O layer of gRPC that the gateway chooses, not on the default one."""
    with echo(scene, "echo-tuned", {"GRPC_EXPERIMENTS": EXPERIMENTS}) as server:
        yield server


@contextmanager
def triton(scene: Scene) -> Iterator[Server]:
    """Run the tritonserver that `make triton` installs. Raises `PeerError`."""
    log = scene.scratch / f"triton-{scene.model.name}.log"
    command = (
        *(sys.executable, str(ROOT / "benchmarks" / "triton_server.py")),
        *("--env", str(TRITON_ENV), "--repository", str(scene.repository)),
        *("--model", scene.model.name),
    )
    with running("triton", command, log) as process:
        if not wait_until(lambda: "metrics_url" in log.read_text(), process, READY_WITHIN_S):
            raise PeerError(f"triton did not start; it said last: {_last_line(log)}")
        (told,) = (line for line in log.read_text().splitlines() if "metrics_url" in line)
        where = json.loads(told)
        count = _triton_names(where["metrics_url"])
        server = Server(
            *("triton", where["address"], process.pid, command),
            count=count,
            http_address=where["http_address"],
        )
        if not wait_until(lambda: answers(server, scene.cases), process, READY_WITHIN_S):
            raise PeerError(f"no right answer from triton; it said last: {_last_line(log)}")
        started = family(process.pid)
        try:
            yield server
        finally:
            if process.poll() is not None:  # its stubs outlive a server that died
                end(started)


@contextmanager
def through_triton(scene: Scene) -> Iterator[Server]:
    """Run `tidegate serve` in front of the Triton server that is compared as well."""
    behind = scene.running.get("triton")
    if behind is None:
        raise PeerError("there is no triton to stand in front of")
    flags = (*scene.flags, "--triton", behind.address)
    with gateway(replace(scene, flags=flags), "tidegate-triton") as server:
        yield server


@contextmanager
def mlserver(scene: Scene) -> Iterator[Server]:
    port, http_port, metrics_port = free_ports(3)
    command = (
        *(*_python("mlserver"), "--port", str(port), "--http-port", str(http_port)),
        *("--metrics-port", str(metrics_port), *_model(scene), "--batch-ms", "5"),
    )
    count = _mlserver_names(f"http://127.0.0.1:{metrics_port}/metrics")
    with _served("mlserver", command, port, scene, count=count) as server:
        yield server


@contextmanager
def kserve(scene: Scene) -> Iterator[Server]:
    port, http_port = free_ports(2)
    command = (
        *(*_python("kserve"), "--port", str(port), "--http-port", str(http_port)),
        *_model(scene),
    )
    with _served("kserve", command, port, scene) as server:
        yield server


@contextmanager
def litserve(scene: Scene) -> Iterator[Server]:
    (port,) = free_ports(1)
    command = (
        *(*_python("litserve"), "--port", str(port), "--batch-ms", "1"),
        *("--onnx", str(onnx_file(scene.repository, scene.model))),
    )
    with _served("litserve", command, port, scene, "json", "/predict") as server:
        yield server


@contextmanager
def ray(scene: Scene) -> Iterator[Server]:
    (port,) = free_ports(1)
    command = (
        *(*_python("ray"), "--port", str(port), "--batch-ms", "1"),
        *("--onnx", str(onnx_file(scene.repository, scene.model))),
    )
    # Ray gives its workers the lowest priority but four, behind the load generator.
    environ = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with _served("ray", command, port, scene, "json", "/", environ) as server:
        yield server


@contextmanager
def bentoml(scene: Scene) -> Iterator[Server]:
    (port,) = free_ports(1)
    command = (
        *(str(program("bentoml", "bentoml")), "serve", "service:OnnxModel"),
        *("--working-dir", str(folder("bentoml")), "--host", "127.0.0.1", "--port", str(port)),
    )
    environ = {
        "BENCH_ONNX": str(onnx_file(scene.repository, scene.model)),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(scene.scratch / "bentoml"),
    }
    with _served("bentoml", command, port, scene, "nested json", "/predict", environ) as server:
        yield server


START: dict[str, Start] = {
    "tidegate": gateway,
    "echo": echo,
    "echo-tuned": echo_tuned,
    "triton": triton,
    "tidegate-triton": through_triton,
    "mlserver": mlserver,
    "kserve": kserve,
    "litserve": litserve,
    "ray": ray,
    "bentoml": bentoml,
}


@contextmanager
def _served(
    name: str,
    command: tuple[str, ...],
    port: int,
    scene: Scene,
    protocol: Protocol = "grpc",
    path: str = "",
    environ: dict[str, str] | None = None,
    *,
    count: Callable[[str], Counted] | None = None,
    answers_truly: bool = True,
) -> Iterator[Server]:
    """Run a server until the block ends; it has answered rightly before the block begins."""
    log = scene.scratch / f"{name}-{scene.model.name}.log"
    try:
        with running(name, command, log, environ=environ) as process:
            address = f"127.0.0.1:{port}"
            server = Server(
                name, address, process.pid, command, protocol, path, count, answers_truly
            )
            if not wait_until(lambda: answers(server, scene.cases), process, READY_WITHIN_S):
                raise PeerError(f"no right answer from {name}; it said last: {_last_line(log)}")
            yield server
    except OSError as error:
        raise PeerError(f"cannot start {name}: {error.strerror}") from None


def answers(server: Server, cases: Cases) -> bool:
    """Whether the server gives the right answer to the first case."""
    connection = caller(server, cases)
    try:
        row = connection.call(0)
    except CallFailed:
        return False
    finally:
        connection.close()
    return not server.answers_truly or cases.is_right(0, row)


def _last_line(log: Path) -> str:
    lines = log.read_text().strip().splitlines() or ["nothing"]
    return lines[-1][:200]


def _python(framework: str) -> tuple[str, str]:
    return str(program(framework, "python")), str(folder(framework) / "server.py")


def _model(scene: Scene) -> tuple[str, ...]:
    path = onnx_file(scene.repository, scene.model)
    return "--model", scene.model.name, "--onnx", str(path)


def _triton_names(url: str) -> Callable[[str], Counted]:
    def count(model: str) -> Counted:
        counts = read_counts(url, model)
        return Counted(counts.successes, counts.failures)

    return count


def _mlserver_names(url: str) -> Callable[[str], Counted]:
    def count(model: str) -> Counted:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=5) as answer:
                text = answer.read().decode()
        except OSError as error:
            raise MetricsUnreadable(f"{url}: {error}") from None
        return Counted(
            *(
                sum(
                    float(value)
                    for value in re.findall(
                        rf'^model_infer_request_{outcome}_total{{model="{model}".*}} (\S+)$',
                        text,
                        re.MULTILINE,
                    )
                )
                for outcome in ("success", "failure")
            )
        )

    return count


FRAMEWORK_PEERS = tuple(name for name in START if name in FRAMEWORKS)
