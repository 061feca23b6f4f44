"""Sequences, ragged batches and optional inputs: Tidegate answers as Triton does.

Each law runs against NVIDIA's tritonserver, against a gateway with its embedded engine and against
a gateway in front of that tritonserver.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.json_format import MessageToDict
from tritonclient.utils import InferenceServerException

from gateway.core import Array
from tests.gateway.onnx_models import RAGGED, gru, plus_default, put, ragged, running_sum
from tests.gateway.process import gateway
from tests.gateway.test_stateful_models import FROM_FILE, GRU, sums
from tests.triton.alike import BEFORE_TRITON, EMBEDDED, ONE, SERVERS, TRITON
from tests.triton.server import running

STEPS = 200
DECLARED = 'input { name: "x" data_type: TYPE_FP32 dims: 4 }\n'
DECLARED += 'output { name: "y" data_type: TYPE_FP32 dims: 8 }\n'
OPTIONAL = """input [
  { name: "x" data_type: TYPE_FP32 dims: 2 },
  { name: "b" data_type: TYPE_FP32 dims: 2 optional: true }
]
output { name: "y" data_type: TYPE_FP32 dims: 2 }
"""


@pytest.fixture(scope="session")
def sequence_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sequences_alike")
    put(root, "gru", gru(), GRU.replace("INITIAL", ""))
    put(root, "declared", gru(), DECLARED + GRU.replace("INITIAL", FROM_FILE))
    (root / "declared" / "initial_state").mkdir()
    state = np.full(8, 0.5, np.float32)
    (root / "declared" / "initial_state" / "h0").write_bytes(state.tobytes())
    put(root, "direct", running_sum(), sums() + ONE)
    put(root, "oldest", running_sum(), sums(strategy="oldest { max_candidate_sequences: 2 }") + ONE)
    put(root, "ragged", ragged(), RAGGED)
    put(root, "optional", plus_default(), OPTIONAL + ONE)
    return root


@pytest.fixture(scope="session")
def sequence_servers(sequence_repository: Path, real_triton: None) -> Iterator[dict[str, str]]:
    """The addresses of the three."""
    names = [folder.name for folder in sequence_repository.iterdir()]
    with running(sequence_repository) as server:
        with triton.InferenceServerClient(server.address) as client, ThreadPoolExecutor(4) as pool:
            list(pool.map(client.load_model, names))
        with (
            gateway(sequence_repository) as embedded,
            gateway(sequence_repository, "--triton", server.address) as before,
        ):
            yield {TRITON: server.address, EMBEDDED: embedded.url, BEFORE_TRITON: before.url}
            assert embedded.stop() == 0
            assert before.stop() == 0


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, sequence_servers: dict[str, str]) -> str:
    return sequence_servers[request.param]


@pytest.fixture
def client(server: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server) as made:
        yield made


def given(name: str, data: Array) -> triton.InferInput:
    made = triton.InferInput(name, data.shape, {"f": "FP32", "i": "INT32"}[data.dtype.kind])
    made.set_data_from_numpy(data)
    return made


def add(client: triton.InferenceServerClient, model: str, value: int, **sequence: Any) -> list[int]:
    """Return the total, and what the model saw of the controls."""
    answer = client.infer(model, [given("x", np.full((1, 1), value, np.int32))], **sequence)
    return [int(answer.as_numpy("total").item()), *answer.as_numpy("seen").ravel().tolist()]


def expected(inputs: Array, initial: float) -> list[Array]:
    session = onnxruntime.InferenceSession(gru())
    state, answers = np.full((1, 8), initial, np.float32), []
    for step in inputs:
        y, state = session.run(["y", "h_out"], {"x": step[None], "h_in": state})
        answers.append(y)
    return answers


@pytest.mark.parametrize(("model", "initial"), [("gru", 0.0), ("declared", 0.5)])
def test_interleaved_sequences_answer_as_the_unbatched_model_does(
    client: triton.InferenceServerClient, model: str, initial: float
) -> None:
    inputs = np.random.default_rng(1).normal(size=(2, STEPS, 4)).astype(np.float32)
    answers: list[list[Array]] = [[], []]
    for step in range(STEPS):
        for number in (0, 1):
            answer = client.infer(
                model,
                [given("x", inputs[number, step][None])],
                sequence_id=number + 1,
                sequence_start=step == 0,
                sequence_end=step == STEPS - 1,
            )
            answers[number].append(answer.as_numpy("y"))
    for number in (0, 1):
        wanted = expected(inputs[number], initial)
        np.testing.assert_allclose(answers[number], wanted, rtol=1e-4, atol=1e-6)


def test_pipelined_steps_of_a_stream_keep_their_order(client: triton.InferenceServerClient) -> None:
    inputs = np.random.default_rng(2).normal(size=(2, STEPS, 4)).astype(np.float32)
    heard: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    client.start_stream(lambda result, error: heard.put((result, error)))
    for step in range(STEPS):
        for number in (0, 1):
            client.async_stream_infer(
                "gru",
                [given("x", inputs[number, step][None])],
                request_id=str(number),
                sequence_id=f"text {number}",
                sequence_start=step == 0,
                sequence_end=step == STEPS - 1,
            )
    answers: list[list[Array]] = [[], []]
    for _ in range(2 * STEPS):
        result, error = heard.get(timeout=30)
        assert error is None
        answers[int(result.get_response().id)].append(result.as_numpy("y"))
    client.stop_stream()
    for number in (0, 1):
        wanted = expected(inputs[number], 0.0)
        np.testing.assert_allclose(answers[number], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", ["direct", "oldest"])
def test_model_gets_its_control_inputs(client: triton.InferenceServerClient, model: str) -> None:
    assert add(client, model, 1, sequence_id=11, sequence_start=True) == [1, 1, 0, 1]
    assert add(client, model, 10, sequence_id=22, sequence_start=True) == [10, 1, 0, 1]
    assert add(client, model, 2, sequence_id=11) == [3, -1, 0, 1]
    assert add(client, model, 4, sequence_id=11, sequence_end=True) == [7, -1, 2, 1]
    # slot 0 of a direct batch is empty now
    assert add(client, model, 20, sequence_id=22) == [30, -1, 0, 1]
    assert add(client, model, 5, sequence_id=22, sequence_start=True) == [5, 1, 0, 1]
    assert add(client, model, 5, sequence_id=22, sequence_end=True) == [10, -1, 2, 1]


def refusal(client: triton.InferenceServerClient, rows: int = 1, **sequence: Any) -> str:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("direct", [given("x", np.zeros((rows, 1), np.int32))], **sequence)
    return f"{caught.value.status()} {caught.value.message()}"


def test_errors_are_tritons(client: triton.InferenceServerClient) -> None:
    unknown = (
        "StatusCode.INVALID_ARGUMENT inference request for sequence {} to model 'direct' must "
        "specify the START flag on the first request of the sequence"
    )
    assert refusal(client, sequence_id=33) == unknown.format(33)
    assert refusal(client, sequence_id=34, request_id="r") == unknown.format(34)
    assert refusal(client) == (
        "StatusCode.INVALID_ARGUMENT inference request to model 'direct' must specify a non-zero "
        "or non-empty correlation ID"
    )
    assert refusal(client, rows=2, sequence_id=33, sequence_start=True) == (
        "StatusCode.INVALID_ARGUMENT inference request to model 'direct' must specify batch-size "
        "1 due to requirements of sequence batcher"
    )
    add(client, "direct", 1, sequence_id=33, sequence_start=True)
    time.sleep(1.3)  # max_sequence_idle_microseconds is a second
    assert refusal(client, sequence_id=33) == unknown.format(33)


def test_sequence_beyond_the_slots_waits_for_one(client: triton.InferenceServerClient) -> None:
    add(client, "oldest", 1, sequence_id=1, sequence_start=True)
    add(client, "oldest", 2, sequence_id=2, sequence_start=True)
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(add, client, "oldest", 3, sequence_id=3, sequence_start=True)
        time.sleep(0.3)
        assert not third.done()
        add(client, "oldest", 1, sequence_id=1, sequence_end=True)
        assert third.result(timeout=10)[0] == 3
    for number in (2, 3):
        add(client, "oldest", 0, sequence_id=number, sequence_end=True)


def test_timeout_passes_before_there_is_a_slot(client: triton.InferenceServerClient) -> None:
    for number in (1, 2):
        add(client, "oldest", 1, sequence_id=number, sequence_start=True)
    with pytest.raises(InferenceServerException) as caught:
        add(client, "oldest", 3, sequence_id=3, sequence_start=True, timeout=300_000)
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert caught.value.message() == "timeout of the corresponding sequence has been expired"
    for number in (1, 2):
        add(client, "oldest", 0, sequence_id=number, sequence_end=True)


@pytest.mark.parametrize("model", ["gru", "declared", "direct", "oldest", "ragged", "optional"])
def test_model_describes_itself_as_in_triton(
    sequence_servers: dict[str, str], model: str, server: str
) -> None:
    told = []
    for address in (server, sequence_servers[TRITON]):
        with triton.InferenceServerClient(address) as client:
            metadata = MessageToDict(client.get_model_metadata(model))
            config = MessageToDict(client.get_model_config(model).config)
            told.append((metadata, config["sequenceBatching"] if model == "gru" else None))
    assert told[0] == told[1]


def test_requests_of_different_shapes_share_a_batch(server: str) -> None:
    rows = [np.arange(1, size + 1, dtype=np.float32)[None] for size in (3, 1, 5)]

    async def ask_at_once() -> list[triton_aio.InferResult]:
        async with triton_aio.InferenceServerClient(server) as client:
            return await asyncio.gather(
                *(client.infer("ragged", [given("x", row)]) for row in rows)
            )

    answers = asyncio.run(ask_at_once())
    pairs = sorted(
        zip(rows, answers, strict=True), key=lambda pair: int(pair[1].as_numpy("seen")[0, 1])
    )
    so_far = 0
    for row, answer in pairs:
        so_far += row.size
        np.testing.assert_array_equal(answer.as_numpy("sum"), [[row.sum()]])
        np.testing.assert_array_equal(answer.as_numpy("doubled"), row * 2)
        assert answer.as_numpy("seen").tolist() == [[row.size, so_far, 5, row.size, row.size]]


def test_absent_optional_input_leaves_the_models_own_value(
    client: triton.InferenceServerClient,
) -> None:
    x, b = given("x", np.ones(2, np.float32)), given("b", np.full(2, 5, np.float32))
    for inputs, wanted in (([x], 11), ([x, b], 6), ([x], 11)):
        answer = client.infer("optional", inputs)
        np.testing.assert_array_equal(answer.as_numpy("y"), [wanted] * 2)
