"""Rows `cold` and `start`: the first answer of a model, and a gateway over 1,000 of them.

`cold`: a CNN of 100 MB is asked for while it is on disk only. It has been loaded before, so the
session cache has its copy. Beside it, round by round: that copy opened and run once by plain ONNX
Runtime in a new process (python -m benchmarks.serverless_cold MODEL THREADS), and a tritonserver
that is told to load the same file, and asked. All files are in the page cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import onnxruntime
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.bars import Outcome, ratio
from benchmarks.h2load import METHOD
from benchmarks.processes import PeerError, running, wait_until
from benchmarks.provenance import ROOT
from benchmarks.serverless_gateway import (
    READY_WITHIN_S,
    TRITON_ENV,
    Gateway,
    gateway,
    reason_absent,
    resident_bytes,
)
from benchmarks.serverless_models import (
    CNN,
    CNN_PIXELS,
    ECHO,
    make_cnn,
    make_echo,
    make_many,
    request,
)
from gateway.engine.session_cache import SETTLED_NS
from loadtest.endpoint import open_channel

MODELS = 1000
CALL_WITHIN_S = 60.0
STORED_WITHIN_S = 60.0
MIB = 2**20

PLAIN_CLAIM, PLAIN_LIMIT = "cold first answer / copy opened and run once, plain", 1.3
TRITON_CLAIM, TRITON_LIMIT = "Triton's load and first answer / cold first answer", 5.0
READY_CLAIM, READY_LIMIT_S = "1,000 models: seconds from start to ready", 2.0
MEMORY_CLAIM, MEMORY_LIMIT_MIB = "1,000 models: MiB resident before the first load", 150.0
SETTLE_S = 1.0  # after ready, until the memory is read


def measure_cold(scratch: Path, rounds: int) -> tuple[list[Outcome], dict[str, Any]]:
    """Return the outcomes and the milliseconds of each round."""
    repository = scratch / "repository"
    make_cnn(repository)
    make_echo(repository)  # what the tritonserver has loaded before
    took: dict[str, list[float]] = {"ours": [], "plain": [], "plain_one_thread": [], "triton": []}
    # a younger file is hashed anew at each load, as no model in service is
    time.sleep(1.1 * SETTLED_NS / 1e9)
    absent = ""
    try:
        with ExitStack() as stack:
            flags = ("--allow-repository-control", "--idle-timeout-s", "3600")
            served = stack.enter_context(gateway(repository, scratch, *flags))
            ours = stack.enter_context(open_channel(served.address))
            copy = _store(served, ours, scratch / "sessions")
            absent = reason_absent()
            if not absent:
                triton = stack.enter_context(open_channel(_start_triton(stack, scratch)))
            for _ in range(rounds):
                took["plain"].append(_plain_ms(copy, 0))
                took["plain_one_thread"].append(_plain_ms(copy, 1))
                took["ours"].append(_infer_ms(ours))
                _unload(ours)
                if not absent:
                    took["triton"].append(_load_and_infer_ms(triton))
                    _unload(triton)
                print(
                    f"cold     { ({name: each[-1:] for name, each in took.items()}) }", flush=True
                )
    except (PeerError, OSError, grpc.RpcError) as error:
        return [
            Outcome("cold", PLAIN_CLAIM, PLAIN_LIMIT, False, None, str(error), broken=True),
            Outcome("cold", TRITON_CLAIM, TRITON_LIMIT, True, None, str(error), broken=True),
        ], {}
    against_triton = None if absent else ratio(took["triton"], took["ours"])
    return [
        Outcome("cold", PLAIN_CLAIM, PLAIN_LIMIT, False, ratio(took["ours"], took["plain"])),
        Outcome("cold", TRITON_CLAIM, TRITON_LIMIT, True, against_triton, absent),
    ], {"milliseconds": took, "medians": {name: _median(each) for name, each in took.items()}}


def measure_start(scratch: Path, rounds: int) -> tuple[list[Outcome], dict[str, Any]]:
    """Return the outcomes and the seconds and MiB of each start."""
    repository = scratch / "repository"
    make_many(repository, MODELS)
    ready_s: list[float] = []
    resident_mib: list[float] = []
    try:
        for _ in range(rounds):
            with gateway(repository, scratch) as served:
                ready_s.append(round(served.ready_s, 3))
                time.sleep(SETTLE_S)
                known = len(served.get(f"/tidegate/models?limit={2 * MODELS}")["models"])
                if known != MODELS:
                    raise PeerError(f"the gateway knows {known} of {MODELS} models")
                resident_mib.append(round(resident_bytes(served.pid) / MIB, 1))
            print(f"start    {ready_s[-1]:.2f} s, {resident_mib[-1]:.0f} MiB", flush=True)
    except (PeerError, OSError) as error:
        return [
            Outcome("start", READY_CLAIM, READY_LIMIT_S, False, None, str(error), broken=True),
            Outcome("start", MEMORY_CLAIM, MEMORY_LIMIT_MIB, False, None, str(error), broken=True),
        ], {}
    return [
        Outcome("start", READY_CLAIM, READY_LIMIT_S, False, median(ready_s)),
        Outcome("start", MEMORY_CLAIM, MEMORY_LIMIT_MIB, False, max(resident_mib)),
    ], {"ready_s": ready_s, "resident_mib": resident_mib}


def _store(served: Gateway, channel: grpc.Channel, cache: Path) -> Path:
    """Load the model once, and return the copy that the session cache has of it then."""
    _infer_ms(channel)
    if not wait_until(lambda: bool(_copies(cache)), served.process, STORED_WITHIN_S):
        raise PeerError("the session cache has not stored the model")
    time.sleep(SETTLE_S)  # the running session goes over to it
    _unload(channel)
    (copy,) = _copies(cache)
    return copy


def _copies(cache: Path) -> list[Path]:
    return [
        manifest.parent / "model.onnx"
        for manifest in cache.glob("*/entry.json")
        if (manifest.parent / "model.onnx").exists()
    ]


def _start_triton(stack: ExitStack, scratch: Path) -> str:
    """Run a tritonserver that has loaded the echo; return its address."""
    log = scratch / "triton.log"
    command = (
        *(sys.executable, str(ROOT / "benchmarks" / "triton_server.py"), "--env", str(TRITON_ENV)),
        *("--repository", str(scratch / "repository"), "--model", ECHO),
    )
    process = stack.enter_context(running("triton", command, log))
    if not wait_until(lambda: "metrics_url" in log.read_text(), process, READY_WITHIN_S):
        raise PeerError(f"triton did not start: {log.read_text().strip()[-200:]}")
    (told,) = (line for line in log.read_text().splitlines() if "metrics_url" in line)
    address: str = json.loads(told)["address"]
    return address


def _infer_ms(channel: grpc.Channel) -> float:
    infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
    message = request(CNN, 1, 3, CNN_PIXELS, CNN_PIXELS)
    return _timed_ms(lambda: infer(message, timeout=CALL_WITHIN_S))


def _load_and_infer_ms(channel: grpc.Channel) -> float:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    named = service_pb2.RepositoryModelLoadRequest(model_name=CNN)
    load_ms = _timed_ms(lambda: stub.RepositoryModelLoad(named, timeout=CALL_WITHIN_S))
    return round(load_ms + _infer_ms(channel), 2)


def _unload(channel: grpc.Channel) -> None:
    """Have the model unloaded; return once it is."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    named = service_pb2.RepositoryModelUnloadRequest(model_name=CNN)
    stub.RepositoryModelUnload(named, timeout=CALL_WITHIN_S)
    end_s = time.monotonic() + CALL_WITHIN_S
    while _is_loaded(stub):
        if time.monotonic() > end_s:
            raise PeerError("the model does not leave memory")
        time.sleep(0.05)


def _is_loaded(stub: Any) -> bool:
    index = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=CALL_WITHIN_S)
    return any(each.name == CNN and each.state in ("READY", "UNLOADING") for each in index.models)


def _plain_ms(copy: Path, threads: int) -> float:
    command = (sys.executable, "-m", "benchmarks.serverless_cold", str(copy), str(threads))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PeerError(f"plain ONNX Runtime failed: {done.stderr.strip()[-200:]}")
    return float(done.stdout)


def open_and_run_ms(copy: Path, threads: int) -> float:
    """Return how long plain ONNX Runtime takes to open the copy and to run it once.

    `threads`: of its pool; 0 takes its default, one for each core.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    row = np.ones((1, 3, CNN_PIXELS, CNN_PIXELS), np.float32)

    def open_and_run() -> None:
        session = onnxruntime.InferenceSession(
            str(copy), options, providers=["CPUExecutionProvider"]
        )
        session.run(["y"], {"x": row})

    return _timed_ms(open_and_run)


def _timed_ms(action: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    action()
    return round((time.perf_counter() - started_s) * 1e3, 2)


def _median(values: list[float]) -> float | None:
    return round(median(values), 2) if values else None


if __name__ == "__main__":
    print(open_and_run_ms(Path(sys.argv[1]), int(sys.argv[2])))
