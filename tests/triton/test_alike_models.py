"""What a configuration asks for: labels, a response cache, an ensemble; each answers as in Triton.

Sequences, ragged batches and optional inputs are in test_sequences_alike.py, ensembles of every
kind in test_ensembles_alike.py, decoupled models in test_decoupled.py.
"""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import (
    InferenceServerException,
    deserialize_bytes_tensor,
    triton_to_np_dtype,
)

from tests.triton.alike import BEFORE_TRITON, COMPATIBILITY, DATATYPES, TRITON
from tests.triton.questions import ask, floats, said, tensor, with_int64
from tests.triton.test_alike_statistics import Counting

SCORES = np.array([[1, 2, 3], [9, 8, 7]], np.float32)


def classes(
    client: triton.InferenceServerClient, model: str, data: Any, count: int, datatype: str = "FP32"
) -> Any:
    wish = triton.InferRequestedOutput("y", class_count=count)
    answer = client.infer(model, [tensor("x", data, datatype)], outputs=[wish])
    assert answer.get_output("y").datatype == "BYTES"
    return answer.as_numpy("y")


def test_classes_are_scores_indices_and_labels(client: triton.InferenceServerClient) -> None:
    assert classes(client, "labelled", SCORES, 2).tolist() == [
        [b"3.000000:2", b"2.000000:1:dog"],
        [b"9.000000:0:cat", b"8.000000:1:dog"],
    ]
    assert classes(client, "identity_FP32", SCORES, 1).tolist() == [
        [b"3.000000:2"],
        [b"9.000000:0"],
    ]


def test_there_are_no_more_classes_than_elements(client: triton.InferenceServerClient) -> None:
    assert classes(client, "labelled", SCORES, 100).shape == (2, 3)


def test_model_without_batching_has_the_classes_of_its_whole_output(
    client: triton.InferenceServerClient,
) -> None:
    data = np.array([[1, 6, 2], [5, 3, 4]], np.float32)
    assert classes(client, "unbatched", data, 2).tolist() == [b"6.000000:1", b"5.000000:3"]


def test_ties_go_to_the_lower_index(client: triton.InferenceServerClient) -> None:
    assert classes(client, "declared", np.zeros((1, 3), np.float32), 3).tolist() == [
        [b"0.000000:0", b"0.000000:1", b"0.000000:2"]
    ]


def test_ensemble_has_the_labels_of_its_last_step(client: triton.InferenceServerClient) -> None:
    assert classes(client, "chain", SCORES, 1).tolist() == [[b"3.000000:2"], [b"9.000000:0:cat"]]


def test_one_output_is_classified_and_another_is_not(client: triton.InferenceServerClient) -> None:
    a, b = np.array([[1, 2]], np.float32), np.array([[3, 4]], np.float32)
    outputs = [
        triton.InferRequestedOutput("sum", class_count=1),
        triton.InferRequestedOutput("product"),
    ]
    answer = client.infer("two", [tensor("a", a), tensor("b", b)], outputs=outputs)
    assert answer.as_numpy("sum").tolist() == [[b"6.000000:1"]]
    np.testing.assert_array_equal(answer.as_numpy("product"), a * b)


@pytest.mark.parametrize("datatype", ["INT8", "UINT64", "INT64", "FP64"])
def test_numbers_of_every_kind_are_classified(datatype: str, stub: Any) -> None:
    message = ask("every")
    for each in DATATYPES:
        size = 4 if each == "BYTES" else np.dtype(triton_to_np_dtype(each)).itemsize
        message.inputs.add(name=f"x_{each}", datatype=each, shape=(1, 3))
        message.raw_input_contents.append(bytes(3 * size))
    message.outputs.add(name=f"y_{datatype}").parameters["classification"].int64_param = 1
    (raw,) = stub.ModelInfer(message).raw_output_contents
    zero = b"0.000000" if datatype.startswith("FP") else b"0"
    assert deserialize_bytes_tensor(raw).tolist() == [zero + b":0"]


def wish(**parameters: Any) -> pb.ModelInferRequest:
    message = ask("identity_FP32", floats(1, 3), outputs=("y",))
    for name, value in parameters.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(message.outputs[0].parameters[name], kind, value)
    return message


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (
            wish(classification=0),
            "INVALID_ARGUMENT invalid value for 'classification' parameter, expected >= 0",
        ),
        (
            wish(classification=-1),
            "INVALID_ARGUMENT invalid value for 'classification' parameter, expected >= 0",
        ),
        (
            wish(classification="2"),
            "INVALID_ARGUMENT invalid value type for 'classification' parameter, expected "
            "int64_param",
        ),
        (wish(foo=1), "OK"),
    ],
)
def test_wishes_that_mean_nothing_are_refused_or_ignored(
    message: pb.ModelInferRequest, says: str, stub: Any
) -> None:
    assert said(stub.ModelInfer, message) == says


def test_halves_have_no_classes(stub: Any) -> None:
    message = ask("identity_FP16", floats(1, 3)._replace(datatype="FP16", raw=bytes(6)))
    message.outputs.add(name="y").parameters["classification"].int64_param = 1
    assert said(stub.ModelInfer, message) == (
        "INVALID_ARGUMENT class result not available for output due to unsupported type 'FP16'"
    )


@pytest.mark.parametrize("server", ["embedded", "before_triton"], indirect=True)
def test_texts_have_no_classes(stub: Any) -> None:
    message = ask("identity_BYTES", floats(1, 3)._replace(datatype="BYTES", raw=bytes(12)))
    message.outputs.add(name="y").parameters["classification"].int64_param = 1
    assert said(stub.ModelInfer, message) == (
        "INVALID_ARGUMENT class result not available for output due to unsupported type 'BYTES'"
    )
    assert "| classes of BYTES |" in COMPATIBILITY  # Triton 2.51 crashes: it is not asked


def test_equal_requests_are_answered_from_the_cache(
    client: triton.InferenceServerClient,
) -> None:
    x = np.random.default_rng().random((1, 3), np.float32)
    client.infer("cached", [tensor("x", x + 1)])  # it is awake
    counting = Counting(client, "cached")
    for request_id in ("a", "b", "c"):
        answer = client.infer("cached", [tensor("x", x)], request_id=request_id)
        np.testing.assert_array_equal(answer.as_numpy("y"), x)
        assert answer.get_response().id == request_id
    batches = {"batches of 1": 1, "inferences": 1, "executions": 1}
    computed = dict.fromkeys(("compute_input", "compute_infer", "compute_output"), 1)
    counted = {**batches, **computed, "success": 3, "queue": 3, "cache_hit": 2, "cache_miss": 1}
    counting.comes_to(**counted)


def test_requests_that_differ_do_not_share_an_answer(client: triton.InferenceServerClient) -> None:
    x = np.random.default_rng().random((2, 3), np.float32)
    for data in (x, x[:1], x[1:], x + 1):
        np.testing.assert_array_equal(
            client.infer("cached", [tensor("x", data)]).as_numpy("y"), data
        )


def test_ensemble_counts_its_request_once_and_those_of_its_steps(
    client: triton.InferenceServerClient,
) -> None:
    x = [tensor("x", SCORES)]
    client.infer("chain", x)
    chain, step = Counting(client, "chain"), Counting(client, "labelled")
    client.infer("chain", x)
    step.comes_to(
        **dict.fromkeys(
            ("success", "queue", "compute_input", "compute_infer", "compute_output"), 1
        ),
        inferences=2,
        executions=1,
        **{"batches of 2": 1},
    )
    assert chain.grown()["success"] == 1


def test_higher_priority_goes_first(client: triton.InferenceServerClient) -> None:
    client.infer("ranked", [tensor("x", np.zeros((4, 3), np.float32))])  # loaded; a full batch
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def send(name: str, rows: int, priority: int) -> None:
        x = [tensor("x", np.zeros((rows, 3), np.float32))]
        client.async_infer(
            "ranked", x, lambda result, error: answers.put(error or name), priority=priority
        )

    for name in ("low 1", "low 2", "low 3"):  # too few for a batch
        send(name, 1, 3)
    send("high", 3, 1)
    # three rows of the high one and the first of the others make a batch
    assert {answers.get(timeout=10) for _ in range(2)} == {"high", "low 1"}
    assert answers.empty()
    send("default", 2, 0)
    rest = {answers.get(timeout=10) for _ in range(3)}
    assert rest == {"low 2", "low 3", "default"}


@pytest.mark.parametrize(
    ("model", "served", "not_served"), [("newest", "3", "1"), ("first", "1", "3")]
)
def test_version_policy_says_which_versions_are_served(
    model: str, served: str, not_served: str, client: triton.InferenceServerClient
) -> None:
    x = [tensor("x", np.zeros((1, 3), np.float32))]
    assert client.infer(model, x).get_response().model_version == served
    assert client.get_model_metadata(model).versions == [served]
    with pytest.raises(InferenceServerException) as refused:
        client.infer(model, x, model_version=not_served)
    assert refused.value.message() == (
        f"Request for unknown model: '{model}' version {not_served} is not found"
    )


def test_sequence_of_a_model_without_sequences_means_nothing(stub: Any) -> None:
    message = ask("identity_FP32", floats(1, 3), parameters=with_int64("sequence_id", 7))
    message.parameters["sequence_end"].bool_param = True
    assert said(stub.ModelInfer, message) == "OK"


def test_priorities_and_timeouts_of_a_request_are_taken(
    client: triton.InferenceServerClient,
) -> None:
    x = [tensor("x", SCORES)]
    answer = client.infer("declared", x, priority=3, timeout=10_000_000)
    np.testing.assert_array_equal(answer.as_numpy("y"), SCORES)


def test_batch_of_no_rows_and_no_columns(server: str, client: triton.InferenceServerClient) -> None:
    assert "| batch of nothing |" in COMPATIBILITY
    if server in (TRITON, BEFORE_TRITON):
        return  # it hangs for ever: nobody asks
    nothing = np.zeros((0, 0), np.float32)
    assert client.infer("any_width", [tensor("x", nothing)]).as_numpy("y").shape == (0, 0)


def test_unknown_parameters_of_tensors_are_ignored(stub: Any) -> None:
    message = ask("identity_FP32", floats(1, 3), outputs=("y",))
    message.inputs[0].parameters["foo"].string_param = "x"
    message.outputs[0].parameters["foo"].string_param = "x"
    assert said(stub.ModelInfer, message) == "OK"


def test_model_that_fails_says_so_alike(client: triton.InferenceServerClient) -> None:
    too_large = [tensor("x", np.zeros((5, 3), np.float32))]
    with pytest.raises(InferenceServerException, match="batch-size must be <= 4 for 'chain'"):
        client.infer("chain", too_large)
