"""Stateful ONNX models: real ONNX Runtime, a real gateway, NVIDIA's clients."""

from __future__ import annotations

import asyncio
import queue
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from gateway.core import Array
from tests.gateway.onnx_models import gru, put, running_sum
from tests.gateway.process import Gateway, gateway

STEPS = 1000

GRU = """backend: "onnxruntime"
max_batch_size: 16
sequence_batching {
  oldest { max_candidate_sequences: 64 }
  state { input_name: "h_in" output_name: "h_out" data_type: TYPE_FP32 dims: 8 INITIAL }
}
instance_group { count: 1 kind: KIND_CPU }
"""
FROM_FILE = 'initial_state { name: "h" data_type: TYPE_FP32 dims: 8 data_file: "h0" }'

SUM = """max_batch_size: BATCH
input { name: "x" data_type: TYPE_INT32 dims: 1 }
output [
  { name: "total" data_type: TYPE_INT32 dims: 1 }, { name: "seen" data_type: TYPE_INT32 dims: 3 },
  { name: "name" data_type: TYPE_STRING dims: 1 }
]
sequence_batching {
  STRATEGY
  control_input [
    { name: "start" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ -1, 1 ] } },
    { name: "end" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 2 ] } },
    { name: "ready" control { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } },
    { name: "corrid" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_CORRID } }
  ]
  state { input_name: "before" output_name: "after" data_type: TYPE_INT32 dims: 1 }
}
"""


_SHOWN = 'output { name: "after" data_type: TYPE_INT32 dims: 1 }'


def sums(corrid: str = "INT64", strategy: str = "direct { }", batch: int = 4) -> str:
    filled = SUM.replace("TYPE_CORRID", f"TYPE_{corrid.replace('BYTES', 'STRING')}")
    return filled.replace("STRATEGY", strategy).replace("BATCH", str(batch))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stateful")
    put(root, "gru", gru(), GRU.replace("INITIAL", ""))
    put(root, "primed", gru(), GRU.replace("INITIAL", FROM_FILE))
    (root / "primed" / "initial_state").mkdir()
    (root / "primed" / "initial_state" / "h0").write_bytes(np.full(8, 0.5, np.float32).tobytes())
    for corrid in ("INT64", "UINT32", "BYTES"):
        put(root, f"sum_{corrid}", running_sum(corrid), sums(corrid))
    shown = re.sub(r"output \[.*?\]", _SHOWN, sums(), flags=re.DOTALL)
    put(root, "shown", running_sum(), shown)
    put(root, "unbatched", running_sum(batched=False), sums("INT64", "oldest { }", 0))
    return root


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[Gateway]:
    with gateway(repository) as running:
        yield running
        assert running.stop() == 0


class Reference:
    """The same model, unbatched, with its state carried by hand."""

    def __init__(self, model: bytes, initial: float = 0.0) -> None:
        self._session = onnxruntime.InferenceSession(model)
        self._initial = np.full((1, 8), initial, np.float32)

    def answers(self, inputs: Array) -> list[Array]:
        state, answers = self._initial, []
        for step in inputs:
            y, state = self._session.run(["y", "h_out"], {"x": step[None], "h_in": state})
            answers.append(y)
        return answers


def fp32(data: Array) -> list[triton.InferInput]:
    made = triton.InferInput("x", data.shape, "FP32")
    made.set_data_from_numpy(data)
    return [made]


def int32(value: int, *shape: int) -> list[triton.InferInput]:
    made = triton.InferInput("x", shape, "INT32")
    made.set_data_from_numpy(np.full(shape, value, np.int32))
    return [made]


def test_two_interleaved_sequences_answer_as_the_unbatched_model_does(served: Gateway) -> None:
    random = np.random.default_rng(1)
    inputs = random.normal(size=(2, STEPS, 4)).astype(np.float32)
    answers: list[list[Array]] = [[], []]
    with triton.InferenceServerClient(served.url) as client:
        for step in range(STEPS):
            for number in (0, 1):
                answer = client.infer(
                    "gru",
                    fp32(inputs[number, step][None]),
                    sequence_id=number + 1,
                    sequence_start=step == 0,
                    sequence_end=step == STEPS - 1,
                )
                answers[number].append(answer.as_numpy("y"))
    for number in (0, 1):
        expected = Reference(gru()).answers(inputs[number])
        np.testing.assert_allclose(answers[number], expected, rtol=1e-4, atol=1e-6)


def test_pipelined_steps_of_a_stream_keep_their_order(served: Gateway) -> None:
    random = np.random.default_rng(2)
    inputs = random.normal(size=(2, STEPS, 4)).astype(np.float32)
    heard: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    answers: list[list[Array]] = [[], []]
    with triton.InferenceServerClient(served.url) as client:
        client.start_stream(lambda result, error: heard.put((result, error)))
        for step in range(STEPS):
            for number in (0, 1):
                client.async_stream_infer(
                    "primed",
                    fp32(inputs[number, step][None]),
                    request_id=str(number),
                    sequence_id=number + 1,
                    sequence_start=step == 0,
                    sequence_end=step == STEPS - 1,
                )
        for _ in range(2 * STEPS):
            result, error = heard.get(timeout=30)
            assert error is None
            answers[int(result.get_response().id)].append(result.as_numpy("y"))
        client.stop_stream()
    for number in (0, 1):
        expected = Reference(gru(), initial=0.5).answers(inputs[number])
        np.testing.assert_allclose(answers[number], expected, rtol=1e-4, atol=1e-6)


def test_many_sequences_at_once_share_batches(served: Gateway) -> None:
    count, steps = 48, 30
    inputs = np.random.default_rng(3).normal(size=(count, steps, 4)).astype(np.float32)

    async def one(client: triton_aio.InferenceServerClient, number: int) -> list[Array]:
        answers = []
        for step in range(steps):
            answer = await client.infer(
                "gru",
                fp32(inputs[number, step][None]),
                sequence_id=number + 1,
                sequence_start=step == 0,
                sequence_end=step == steps - 1,
            )
            answers.append(answer.as_numpy("y"))
        return answers

    async def all_of_them() -> list[list[Array]]:
        async with triton_aio.InferenceServerClient(served.url) as client:
            return await asyncio.gather(*(one(client, number) for number in range(count)))

    before = served.metric("nv_inference_exec_count", model="gru")
    reference = Reference(gru())
    for number, answers in enumerate(asyncio.run(all_of_them())):
        expected = reference.answers(inputs[number])
        np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-6)
    runs = served.metric("nv_inference_exec_count", model="gru") - before
    assert runs < count * steps / 2


@pytest.mark.parametrize(
    ("model", "sequence", "shape"),
    [
        ("sum_INT64", 2**40, (1, 1)),
        ("sum_UINT32", 7, (1, 1)),
        ("sum_BYTES", "seven", (1, 1)),
        ("unbatched", 7, (1,)),
    ],
)
def test_model_gets_its_control_inputs(
    served: Gateway, model: str, sequence: int | str, shape: tuple[int, ...]
) -> None:
    heard = []
    with triton.InferenceServerClient(served.url) as client:
        metadata = client.get_model_metadata(model)
        assert [tensor.name for tensor in metadata.inputs] == ["x"]
        assert [tensor.name for tensor in metadata.outputs] == ["total", "seen", "name"]
        for start, end in ((True, False), (False, False), (False, True), (True, True)):
            answer = client.infer(
                model,
                int32(5, *shape),
                sequence_id=sequence,
                sequence_start=start,
                sequence_end=end,
            )
            seen = answer.as_numpy("seen").ravel().tolist()
            heard.append((int(answer.as_numpy("total").item()), seen))
            assert answer.as_numpy("name").item() == str(sequence).encode()
        assert heard == [(5, [1, 0, 1]), (10, [-1, 0, 1]), (15, [-1, 2, 1]), (5, [1, 2, 1])]


def test_outputs_can_be_chosen_and_states_stay_inside(served: Gateway) -> None:
    with triton.InferenceServerClient(served.url) as client:
        asked = [triton.InferRequestedOutput("name"), triton.InferRequestedOutput("total")]
        answer = client.infer(
            "sum_INT64",
            int32(1, 1, 1),
            outputs=asked,
            sequence_id=1,
            sequence_start=True,
            sequence_end=True,
        )
        assert [output.name for output in answer.get_response().outputs] == ["name", "total"]
        with pytest.raises(InferenceServerException, match="unexpected inference output 'after'"):
            client.infer(
                "sum_INT64",
                int32(1, 1, 1),
                outputs=[triton.InferRequestedOutput("after")],
                sequence_id=1,
                sequence_start=True,
            )


def test_state_that_is_declared_as_an_output_can_be_looked_at(served: Gateway) -> None:
    with triton.InferenceServerClient(served.url) as client:
        for step, total in enumerate((1, 3)):
            answer = client.infer(
                "shown", int32(total - step, 1, 1), sequence_id=1, sequence_start=step == 0
            )
            outputs = {o.name: answer.as_numpy(o.name) for o in answer.get_response().outputs}
            assert outputs == {"after": [[total]]}


def test_model_without_the_state_that_its_configuration_names_is_refused(tmp_path: Path) -> None:
    tensors = 'input { name: "x" data_type: TYPE_FP32 dims: 4 }\n'
    tensors += 'output { name: "y" data_type: TYPE_FP32 dims: 8 }\n'
    config = tensors + GRU.replace("INITIAL", "")
    put(tmp_path, "other", gru(), config.replace('"h_in"', '"g_in"'))
    put(tmp_path, "none", gru(), config[: config.index("sequence")] + "sequence_batching { }")
    with gateway(tmp_path) as running, triton.InferenceServerClient(running.url) as client:
        for model, text in (
            ("other", "names input 'g_in', which the model has not"),
            ("none", "does not name the model's input 'h_in', which it needs"),
        ):
            with pytest.raises(InferenceServerException, match=text):
                client.infer(model, fp32(np.zeros((1, 4), np.float32)), sequence_id=1)
        assert running.stop() == 0
