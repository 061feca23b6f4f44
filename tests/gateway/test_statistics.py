"""ModelStatistics: the same numbers as Triton's for the same requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from gateway.errors import DeadlineExceeded, InferenceFailed, InvalidRequest, QueueTimeout
from gateway.metrics import MAX_RESPONSES, FailureReason, ModelStats
from tests.gateway.onnx_models import identity, put
from tests.gateway.process import gateway
from tests.triton.server import running, why_not

ONE = "instance_group { count: 1 kind: KIND_CPU }\n"
DECLARED = """max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
"""
GATHERING = "dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 3000000 }\n"
IMPATIENT = """dynamic_batching {
  preferred_batch_size: 4
  max_queue_delay_microseconds: 20000000
  default_queue_policy { default_timeout_microseconds: 200000 }
}
"""
NAMES = ("gathering", "impatient", "m", "versions")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("counted")
    put(root, "m", identity(), ONE)
    put(root, "gathering", identity(), DECLARED + ONE + GATHERING)
    put(root, "impatient", identity(), DECLARED + ONE + IMPATIENT)
    for version in (1, 3):
        put(root, "versions", identity(), "version_policy { all { } }\n" + ONE, version)
    return root


@pytest.fixture(scope="module", params=("triton", "embedded"))
def url(request: pytest.FixtureRequest, models: Path) -> Iterator[str]:
    """NVIDIA's server, to show that these are its numbers, and the gateway."""
    if request.param == "triton":
        if reason := why_not():
            pytest.skip(f"no tritonserver: {reason}")
        with running(models) as process:
            with triton.InferenceServerClient(process.address) as client:
                for name in NAMES:
                    client.load_model(name)
            yield process.address
    else:
        with gateway(models) as served:
            yield served.url
            assert served.stop() == 0


def ask(url: str, model: str, rows: int = 1, version: str = "", width: int = 3) -> str:
    """Return "ok", or the text of the error."""
    x = triton.InferInput("x", [rows, width], "FP32")
    x.set_data_from_numpy(np.zeros((rows, width), np.float32))
    with triton.InferenceServerClient(url) as client:
        try:
            client.infer(model, [x], model_version=version)
        except triton.InferenceServerException as error:
            return str(error.message())
    return "ok"


def statistics(url: str, name: str = "", version: str = "") -> list[Any]:
    with grpc.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelStatistics(pb.ModelStatisticsRequest(name=name, version=version))
        return list(answer.model_stats)


def counts(stats: Any) -> dict[str, int]:
    """The counts of `inference_stats` that are not 0."""
    found = MessageToDict(stats.inference_stats, preserving_proto_field_name=True)
    return {name: int(each["count"]) for name, each in found.items() if each}


def test_a_model_without_requests_has_all_its_counters_at_zero(url: str) -> None:
    (fresh,) = statistics(url, "versions", "3")
    durations: dict[str, dict[str, str]] = {
        field.name: {} for field in pb.InferStatistics.DESCRIPTOR.fields
    }
    found = MessageToDict(fresh, preserving_proto_field_name=True)
    found.pop("memory_usage", None)
    assert found == {"name": "versions", "version": "3", "inference_stats": durations}


def test_requests_and_batches_are_counted_as_triton_counts_them(url: str) -> None:
    for rows in (1, 2, 2):
        assert ask(url, "m", rows) == "ok"
    assert "unexpected shape" in ask(url, "m", width=4)
    (stats,) = statistics(url, "m")
    computed = ("compute_input", "compute_infer", "compute_output")
    assert counts(stats) == dict.fromkeys(("success", "queue", *computed), 3)
    assert (stats.inference_count, stats.execution_count) == (5, 3)
    assert [(each.batch_size, each.compute_infer.count) for each in stats.batch_stats] == [
        (1, 1),
        (2, 2),
    ]
    assert abs(stats.last_inference / 1e3 - time.time()) < 60
    total = stats.inference_stats
    for name in computed:
        each = [getattr(batch, name).ns for batch in stats.batch_stats]
        assert getattr(total, name).ns == pytest.approx(sum(each), abs=2)
        assert all(each)
    stages = sum(getattr(total, name).ns for name in ("queue", *computed))
    assert stages <= total.success.ns


def test_each_member_of_a_batch_is_charged_with_all_of_its_compute_time(url: str) -> None:
    with ThreadPoolExecutor(4) as clients:
        assert list(clients.map(lambda _: ask(url, "gathering"), range(4))) == ["ok"] * 4
    (stats,) = statistics(url, "gathering")
    assert (stats.inference_count, stats.execution_count) == (4, 1)
    assert counts(stats)["compute_infer"] == counts(stats)["queue"] == 4
    (batch,) = stats.batch_stats
    assert (batch.batch_size, batch.compute_infer.count) == (4, 1)
    infer = stats.inference_stats.compute_infer
    assert infer.ns == pytest.approx(4 * batch.compute_infer.ns, abs=4)


def test_what_waited_too_long_has_failed_and_has_not_run(url: str) -> None:
    assert "Request timeout expired" in ask(url, "impatient")
    (stats,) = statistics(url, "impatient")
    assert counts(stats) == {"fail": 1}
    assert stats.inference_stats.fail.ns >= 200e6
    assert (stats.execution_count, stats.last_inference) == (0, 0)


def test_all_models_one_or_one_version_in_order(url: str) -> None:
    every = [(each.name, each.version) for each in statistics(url)]
    assert every == [
        *(("gathering", "1"), ("impatient", "1"), ("m", "1")),
        *(("versions", "1"), ("versions", "3")),
    ]
    assert [each.version for each in statistics(url, "versions")] == ["1", "3"]
    assert [each.version for each in statistics(url, "versions", "1")] == ["1"]
    assert len(statistics(url, "", "7")) == 5  # a version without a name means nothing


def test_names_that_are_none_are_refused_in_tritons_words(url: str) -> None:
    number = "version should be an integral value > 0"
    for name, version, text in (
        ("nobody", "", "requested model 'nobody' is not available"),
        ("nobody", "1", "requested model 'nobody' is not available"),
        ("versions", "7", "requested model version is not available for model 'versions'"),
        ("m", "-1", f"invalid model version specified '-1' , {number}"),
        (
            "m",
            "abc",
            f"failed to get model version from specified version string 'abc' (details: stol), "
            f"{number}",
        ),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            statistics(url, name, version)
        assert (caught.value.code(), caught.value.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            text,
        )


def test_a_models_figures_outlive_its_sleep(models: Path) -> None:
    with gateway(models, "--allow-repository-control") as served:
        assert ask(served.url, "m") == "ok"
        with triton.InferenceServerClient(served.url) as client:
            client.unload_model("m")
        (stats,) = statistics(served.url, "m")
        assert (stats.inference_count, len(stats.memory_usage)) == (1, 0)
        assert served.stop() == 0


def test_failures_have_the_reasons_that_triton_gives_them() -> None:
    stats = ModelStats()
    for error in (
        QueueTimeout("late"),
        DeadlineExceeded("late"),
        InferenceFailed("broken"),
        RuntimeError("a bug"),
        InvalidRequest("nonsense"),
    ):
        stats.failed(error, 0.5)
    assert stats.failures == dict.fromkeys(FailureReason, 1)
    assert (stats.failure, stats.failed_s, stats.invalid) == (4, 2.0, 1)


def test_the_answers_of_a_decoupled_model_are_told_apart_up_to_a_bound() -> None:
    stats = ModelStats()
    for count in (1, 2, MAX_RESPONSES + 10):
        for index in range(count):
            stats.responded(index, 0.25)
    assert [each.count for each in stats.responses[:3]] == [3, 2, 1]
    assert len(stats.responses) == MAX_RESPONSES
    assert stats.first_response is not None
    assert stats.first_response.exposed()[1] == 0.75
