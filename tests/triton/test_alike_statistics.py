"""ModelStatistics: Tidegate counts what Triton counts, over gRPC and REST."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.gateway.process import eventually
from tests.triton.alike import TRITON
from tests.triton.questions import said, tensor
from tests.triton.rest_questions import Asked, http_ask
from tests.triton.server import Endpoint

MODEL = "counted"
KINDS = (
    *("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"),
    *("cache_hit", "cache_miss"),
)


T = TypeVar("T")


def rows(count: int) -> list[triton.InferInput]:
    return [tensor("x", np.ones((count, 3), np.float32))]


def statistics(client: triton.InferenceServerClient, model: str = MODEL) -> pb.ModelStatistics:
    (found,) = client.get_inference_statistics(model).model_stats
    return found


def counted(stats: pb.ModelStatistics) -> dict[str, int]:
    """Return each counter by its name."""
    counts = {kind: int(getattr(stats.inference_stats, kind).count) for kind in KINDS}
    counts["inferences"] = int(stats.inference_count)
    counts["executions"] = int(stats.execution_count)
    for batch in stats.batch_stats:
        counts[f"batches of {batch.batch_size}"] = int(batch.compute_infer.count)
    return counts


def _settled(read: Callable[[], T]) -> T:
    """Return what is read twice in a row, a moment apart."""
    last = read()
    while True:
        time.sleep(0.1)
        last, before = read(), last
        if last == before:
            return last


class Counting:
    """Says by how much the counters have grown since it was made.

    Triton counts a request a little after it has answered it.
    """

    def __init__(self, client: triton.InferenceServerClient, model: str = MODEL) -> None:
        self._client = client
        self._model = model
        self._before = _settled(lambda: counted(statistics(client, model)))

    def grown(self) -> dict[str, int]:
        after = counted(statistics(self._client, self._model))
        growth = {name: value - self._before.get(name, 0) for name, value in after.items()}
        return {name: value for name, value in growth.items() if value}

    def comes_to(self, **expected: int) -> None:
        with suppress(AssertionError):
            eventually(lambda: self.grown() == expected, 5)
        assert self.grown() == expected


EACH_REQUEST = {"success", "queue", "compute_input", "compute_infer", "compute_output"}


def test_inferences_are_rows_and_executions_are_batches(
    client: triton.InferenceServerClient,
) -> None:
    client.infer(MODEL, rows(1))  # it is awake
    counting = Counting(client)
    for count in (1, 1, 3):
        client.infer(MODEL, rows(count))
    counting.comes_to(
        **dict.fromkeys(EACH_REQUEST, 3),
        inferences=5,
        executions=3,
        **{"batches of 1": 2, "batches of 3": 1},
    )


def test_requests_of_a_batch_count_one_by_one(client: triton.InferenceServerClient) -> None:
    client.infer("paired", rows(4))
    counting = Counting(client, "paired")
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # the second makes the batch a preferred one
    client.async_infer("paired", rows(3), lambda result, error: answers.put(error))
    client.async_infer("paired", rows(1), lambda result, error: answers.put(error))
    assert [answers.get(timeout=10) for _ in range(2)] == [None, None]
    once = {"batches of 4": 1, "executions": 1}
    counting.comes_to(**dict.fromkeys(EACH_REQUEST, 2), inferences=4, **once)


def test_times_grow_and_the_last_inference_is_now(client: triton.InferenceServerClient) -> None:
    client.infer(MODEL, rows(1))
    before = _settled(lambda: statistics(client))
    client.infer(MODEL, rows(1))

    def grown(kind: str) -> int:
        after = statistics(client).inference_stats
        return int(getattr(after, kind).ns - getattr(before.inference_stats, kind).ns)

    for kind in ("success", "queue", "compute_infer"):
        eventually(lambda kind=kind: 0 < grown(kind) < 10e9, 5)  # type: ignore[misc]
    assert abs(statistics(client).last_inference / 1e3 - time.time()) < 10


def test_request_that_is_refused_counts_for_nothing(client: triton.InferenceServerClient) -> None:
    client.infer(MODEL, rows(1))
    counting = Counting(client)
    for inputs, outputs in ((rows(5), None), (rows(1), [triton.InferRequestedOutput("z")])):
        with pytest.raises(InferenceServerException):
            client.infer(MODEL, inputs, outputs=outputs)
    assert counting.grown() == {}


def test_request_that_expires_in_the_queue_is_a_failure(
    client: triton.InferenceServerClient,
) -> None:
    client.infer("bounded", rows(4))
    counting = Counting(client, "bounded")
    with pytest.raises(InferenceServerException, match="Request timeout expired"):
        client.infer("bounded", rows(1))
    counting.comes_to(fail=1)


def test_statistics_of_all_models_are_in_order(
    server: str, client: triton.InferenceServerClient
) -> None:
    listed = [(each.name, each.version) for each in client.get_inference_statistics().model_stats]
    assert listed == sorted(listed)
    assert {("two", "1"), ("versions", "1"), ("versions", "3")} <= set(listed)
    # a model that sleeps keeps its figures; Triton forgets those of one that is not loaded
    assert (("spare", "1") in listed) == (server != TRITON)


def test_versions_count_each_for_itself(client: triton.InferenceServerClient) -> None:
    def figures(version: str = "") -> dict[str, int]:
        stats = client.get_inference_statistics("versions", version).model_stats
        return {each.version: int(each.inference_count) for each in stats}

    x = [tensor("x", np.ones((1, 3), np.float32))]
    client.infer("versions", x)
    client.infer("versions", x, model_version="1")
    before = _settled(figures)
    client.infer("versions", x, model_version="1")
    client.infer("versions", x)
    client.infer("versions", x)
    expected = {"1": before["1"] + 1, "3": before["3"] + 2}
    eventually(lambda: figures() == expected, 5)
    assert figures("3") == {"3": before["3"] + 2}


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (pb.ModelStatisticsRequest(name="nobody"), "requested model 'nobody' is not available"),
        (
            pb.ModelStatisticsRequest(name="two", version="9"),
            "requested model version is not available for model 'two'",
        ),
        (
            pb.ModelStatisticsRequest(name="two", version="x"),
            "failed to get model version from specified version string 'x' (details: stol), "
            "version should be an integral value > 0",
        ),
    ],
)
def test_statistics_of_nobody_are_refused(
    message: pb.ModelStatisticsRequest, says: str, stub: Any
) -> None:
    assert said(stub.ModelStatistics, message) == f"INVALID_ARGUMENT {says}"


def test_rest_has_every_counter_as_a_number(
    endpoint: Endpoint, http_client: triton_http.InferenceServerClient
) -> None:
    x = triton_http.InferInput("x", [1, 3], "FP32")
    x.set_data_from_numpy(np.ones((1, 3), np.float32))
    http_client.infer(MODEL, [x])
    (found,) = http_client.get_inference_statistics(MODEL)["model_stats"]
    (asked,) = http_ask(endpoint, Asked(f"/v2/models/{MODEL}/stats")).json["model_stats"]
    assert asked.keys() == found.keys()
    assert {"name", "version", "last_inference", "inference_count", "execution_count"} <= set(found)
    assert found["inference_stats"].keys() == set(KINDS)
    assert all(
        isinstance(figure, int)
        for kind in KINDS
        for figure in found["inference_stats"][kind].values()
    )
    assert {"batch_size", "compute_input", "compute_infer", "compute_output"} == set(
        found["batch_stats"][0]
    )
    assert found["response_stats"] == {}
    every = http_client.get_inference_statistics()["model_stats"]
    assert {"two", "versions", MODEL} <= {each["name"] for each in every}
