"""Metrics and gRPC health: dashboards and probes made for Triton work."""

from __future__ import annotations

import urllib.request
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.gateway.process import eventually
from tests.triton.alike import COMPATIBILITY, TRITON
from tests.triton.questions import tensor
from tests.triton.server import Endpoint

COUNTERS = (
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
    "nv_cache_num_hits_per_model",
    "nv_cache_num_misses_per_model",
)


def page(endpoint: Endpoint) -> str:
    with urllib.request.urlopen(endpoint.metrics, timeout=10) as response:
        return str(response.read().decode())


def samples(endpoint: Endpoint, name: str, model: str) -> dict[str, float]:
    """Return the values of a model's lines, by what else is in their labels."""
    found = {}
    for line in page(endpoint).splitlines():
        labels, _, value = line.removeprefix(f"{name}{{").rpartition("} ")
        pairs = set(labels.split(","))
        if line.startswith(f"{name}{{") and f'model="{model}"' in pairs:
            found[",".join(sorted(pairs - {f'model="{model}"'}))] = float(value)
    return found


@pytest.mark.parametrize("name", COUNTERS)
def test_counter_has_tritons_name_type_and_labels(
    name: str, endpoint: Endpoint, client: triton.InferenceServerClient
) -> None:
    client.infer("cached", [tensor("x", np.zeros((1, 3), np.float32))])
    assert f"# TYPE {name} counter" in page(endpoint).splitlines()
    found = samples(endpoint, name, "cached")
    if name == "nv_inference_request_failure":
        reasons = ("BACKEND", "CANCELED", "OTHER", "REJECTED")
        assert found.keys() == {f'reason="{reason}",version="1"' for reason in reasons}
    else:
        assert found.keys() == {'version="1"'}
    assert all(value.is_integer() for value in found.values())


def test_counters_count_alike(endpoint: Endpoint, client: triton.InferenceServerClient) -> None:
    def figures() -> list[float]:
        names = ("request_success", "count", "exec_count")
        return [samples(endpoint, f"nv_inference_{n}", "counted")['version="1"'] for n in names]

    client.infer("counted", [tensor("x", np.zeros((1, 3), np.float32))])
    before = figures()
    for rows in (1, 3):
        client.infer("counted", [tensor("x", np.zeros((rows, 3), np.float32))])
    expected = [value + more for value, more in zip(before, (2, 4, 2), strict=True)]
    eventually(lambda: figures() == expected, 5)


def test_tags_of_a_model_are_labels(
    endpoint: Endpoint, client: triton.InferenceServerClient
) -> None:
    client.infer("ranked", [tensor("x", np.zeros((4, 3), np.float32))])
    found = samples(endpoint, "nv_inference_count", "ranked")
    assert found.keys() == {'_team="sea",version="1"'}


def test_health_service_says_serving(server: str, endpoint: Endpoint) -> None:
    def check(stub: Any, service: str) -> str:
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        except grpc.RpcError as error:
            return str(error.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    with grpc.insecure_channel(endpoint.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        # a Triton in which one model could not be loaded is not ready any more
        for service in ("", "inference.GRPCInferenceService"):
            assert check(stub, service) == "SERVING" or server == TRITON
        assert check(stub, "nobody") != "NOT_FOUND" or server != TRITON
    assert "| gRPC health of an unknown service |" in COMPATIBILITY
