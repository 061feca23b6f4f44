"""The ways in, side by side: gRPC calls, gRPC streams, REST with JSON and with binary tensors.

The same requests for the tiny model through each front end of the gateway, and of a tritonserver,
in turn, round after round. h2load sends them all. A stream is one call whose body holds
`PIPELINED` requests at once: its rate is that many times the calls'.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks import h2load
from benchmarks.bars import ratio
from benchmarks.h2load import H2loadError, Load, Target
from benchmarks.models import Cases, grpc_row
from benchmarks.peers import START, Scene
from benchmarks.processes import PeerError, Server

PIPELINED = 256
CALLS, STREAMS, JSON, BINARY = "gRPC calls", "gRPC streams", "REST JSON", "REST binary"


@dataclass(frozen=True, slots=True)
class Way:
    """One way in: what h2load sends, how much of it at once, requests in each call."""

    target: Target
    load: Load
    requests: int = 1


def measure(scene: Scene, rounds: int, seconds: float) -> dict[str, Any]:
    """Return requests/s by server and way in: medians, rounds, shares of the gRPC calls' rate."""
    absent: dict[str, str] = {}
    ways: dict[str, dict[str, Way]] = {}
    with ExitStack() as stack:
        for peer in ("tidegate", "triton"):
            try:
                server = stack.enter_context(START[peer](scene))
                check(server, scene.cases)
            except PeerError as error:
                absent[peer] = str(error)
            else:
                ways[peer] = ways_into(server, scene)
        rates: dict[str, dict[str, list[float]]] = {peer: {} for peer in ways}
        for _ in range(rounds):
            for name in (CALLS, STREAMS, JSON, BINARY):
                for peer in ways:
                    rate = _rate(ways[peer][name], seconds)
                    rates[peer].setdefault(name, []).append(rate)
                    print(f"front    {peer:<10} {name:<14} {rate:>9,.0f} requests/s", flush=True)
    summary = _summary(rates)
    for peer, by_way in summary.items():
        for name, each in by_way.items():
            rate, share = each["requests_per_s"], each["of_grpc_calls"]
            print(f"front    {peer:<10} {name:<14} median {rate:>9,.0f} requests/s, {share:.2f}")
    return {"servers": summary, "not_measured": absent, "pipelined": PIPELINED}


def ways_into(server: Server, scene: Scene) -> dict[str, Way]:
    """Return every way into a server, with the bodies that go there."""
    request = scene.cases.grpc_request(0)
    header, tensor = binary_request(scene.cases)
    url = f"http://{server.http_address}/v2/models/{scene.model.name}/infer"

    def body(name: str, content: bytes) -> Path:
        file = scene.scratch / f"{server.name}-{name}.body"
        file.write_bytes(content)
        return file

    calls = Target.infer(server.address, body("calls", h2load.framed(request)))
    streamed = body("streams", h2load.framed(request) * PIPELINED)
    streams = replace(calls, url=calls.url.replace("ModelInfer", "ModelStreamInfer"), body=streamed)
    length = ("inference-header-content-length: " + str(len(header)),)
    binary = Target(url, body("binary", header + tensor), grpc=False, headers=length)
    as_json = Target(url, body("json", json_request(scene.cases)), grpc=False)
    return {
        CALLS: Way(calls, Load(8, 8)),
        STREAMS: Way(streams, Load(8, 1), PIPELINED),
        JSON: Way(as_json, Load(8, 8)),
        BINARY: Way(binary, Load(8, 8)),
    }


def json_request(cases: Cases) -> bytes:
    """Return the first case as a v2 request in JSON."""
    row = [round(float(value), 2) for value in cases.inputs[0, 0]]
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(row)], "data": row}
    return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()


def binary_request(cases: Cases) -> tuple[bytes, bytes]:
    """Return the first case as header and contents of the binary tensor data extension."""
    data = cases.inputs[0].tobytes()
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, cases.inputs.shape[-1]],
        "parameters": {"binary_data_size": len(data)},
    }
    header = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    return json.dumps(header, separators=(",", ":")).encode(), data


def check(server: Server, cases: Cases) -> None:
    """Ask once by each way in. Raises `PeerError` where an answer is wrong."""
    header, tensor = binary_request(cases)
    model = f"http://{server.http_address}/v2/models/{cases.model}/infer"
    asked: Mapping[str, Callable[[], np.ndarray[Any, Any] | None]] = {
        STREAMS: lambda: _streamed_row(server, cases),
        JSON: lambda: _rest_row(model, json_request(cases), {}),
        BINARY: lambda: _rest_row(
            model, header + tensor, {"Inference-Header-Content-Length": str(len(header))}
        ),
    }
    for way, ask in asked.items():
        try:
            row = ask()
        except (OSError, grpc.RpcError, ValueError) as error:
            raise PeerError(f"{server.name}: {way}: {error}") from None
        if not cases.is_right(0, row):
            raise PeerError(f"{server.name}: {way}: a wrong answer")


def _streamed_row(server: Server, cases: Cases) -> np.ndarray[Any, Any] | None:
    request = service_pb2.ModelInferRequest.FromString(cases.grpc_request(0))
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        (answer,) = stub.ModelStreamInfer(iter([request]), timeout=10)
    return grpc_row(answer.infer_response.SerializeToString())


def _rest_row(url: str, body: bytes, headers: Mapping[str, str]) -> np.ndarray[Any, Any] | None:
    request = urllib.request.Request(url, body, dict(headers))
    with urllib.request.urlopen(request, timeout=10) as answer:
        content = answer.read()
        length = answer.headers["Inference-Header-Content-Length"]
    if length is None:
        return np.array(json.loads(content)["outputs"][0]["data"], np.float32)
    return np.frombuffer(content[int(length) :], np.float32)


def _rate(way: Way, seconds: float) -> float:
    figures = h2load.run(way.target, way.load, seconds)
    if figures.failed:
        raise H2loadError(f"{figures.failed} requests to {way.target.url} failed")
    return figures.requests_per_s * way.requests


def _summary(rates: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    return {
        peer: {
            name: {
                "requests_per_s": round(median(rounds), 1),
                "of_grpc_calls": ratio(rounds, by_way[CALLS]),
                "of_triton": ratio(rounds, rates["triton"][name]) if "triton" in rates else None,
                "rounds": rounds,
            }
            for name, rounds in by_way.items()
        }
        for peer, by_way in rates.items()
    }
