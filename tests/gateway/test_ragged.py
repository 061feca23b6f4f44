"""Requests of different shapes in one batch, and inputs that may be absent: real ONNX Runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from gateway.batching import ragged
from gateway.core import Array, InferRequest, Tensor, TensorSpec
from gateway.errors import InferenceFailed
from gateway.ragged import BatchInput, BatchInputKind, RaggedBatching
from gateway.repository.reader import read_model
from tests.gateway.fakes import spec
from tests.gateway.onnx_models import RAGGED, identity, plus_default, put
from tests.gateway.onnx_models import ragged as ragged_model
from tests.gateway.process import Gateway, gateway


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    root = tmp_path_factory.mktemp("ragged")
    put(root, "ragged", ragged_model(), RAGGED)
    tensors = 'input [{ name: "x" data_type: TYPE_FP32 dims: 2 }, '
    tensors += '{ name: "b" data_type: TYPE_FP32 dims: 2 optional: true }]\n'
    put(root, "optional", plus_default(), tensors)
    with gateway(root) as running:
        yield running
        assert running.stop() == 0


def given_input(name: str, data: Array) -> triton.InferInput:
    made = triton.InferInput(name, data.shape, "FP32")
    made.set_data_from_numpy(data)
    return made


def test_requests_of_different_shapes_share_a_batch(served: Gateway) -> None:
    rows = [np.arange(1, size + 1, dtype=np.float32)[None] for size in (3, 1, 5)]

    async def ask_at_once() -> list[triton_aio.InferResult]:
        async with triton_aio.InferenceServerClient(served.url) as client:
            return await asyncio.gather(
                *(client.infer("ragged", [given_input("x", row)]) for row in rows)
            )

    answers = asyncio.run(ask_at_once())
    so_far = 0
    for row, answer in sorted(
        zip(rows, answers, strict=True), key=lambda pair: int(pair[1].as_numpy("seen")[0, 1])
    ):
        so_far += row.size
        np.testing.assert_array_equal(answer.as_numpy("sum"), [[row.sum()]])
        np.testing.assert_array_equal(answer.as_numpy("doubled"), row * 2)
        size = row.size
        assert answer.as_numpy("seen").tolist() == [[size, so_far, 5, size, size]]
    assert so_far == 9


def test_absent_optional_input_leaves_the_models_own_value(served: Gateway) -> None:
    x = given_input("x", np.ones(2, np.float32))
    b = given_input("b", np.full(2, 5, np.float32))
    with triton.InferenceServerClient(served.url) as client:
        for inputs, expected in (([x], 11), ([x, b], 6), ([x], 11)):
            answer = client.infer("optional", inputs)
            np.testing.assert_array_equal(answer.as_numpy("y"), [expected] * 2)
        with pytest.raises(InferenceServerException, match="expected 1 inputs but got 1 inputs"):
            client.infer("optional", [b])


SHAPES = [(1, 2, 3), (2, 1, 3)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (BatchInputKind.ELEMENT_COUNT, [6, 6]),
        (BatchInputKind.ACCUMULATED, [6, 12]),
        (BatchInputKind.ACCUMULATED_WITH_ZERO, [0, 6, 12]),
        (BatchInputKind.MAX_AS_SHAPE, [0] * 6),
        (BatchInputKind.ITEM_SHAPE, [[2, 3], [1, 3], [1, 3]]),
        (BatchInputKind.ITEM_SHAPE_FLATTEN, [2, 3, 1, 3, 1, 3]),
    ],
)
def test_batch_input_says_what_tritons_docs_say(kind: BatchInputKind, expected: object) -> None:
    made = ragged.batch_input(BatchInput("b", kind, "FP32", "x"), SHAPES)
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, np.array(expected))


RAGGED_SPEC = replace(
    spec(dims=(-1,), max_batch_size=64),
    inputs=(TensorSpec("x", "FP32", (-1,), ragged=True),),
    ragged=RaggedBatching(frozenset({"x"}), (), {"y": "x"}),
)


def asks(*shapes: tuple[int, int]) -> list[InferRequest]:
    return [
        InferRequest("m", "", str(i), [Tensor("x", "FP32", np.full(shape, i, np.float32))], [], 0.0)
        for i, shape in enumerate(shapes)
    ]


@given(shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), min_size=1, max_size=8))
def test_what_is_joined_is_split_into_the_same_requests(shapes: list[tuple[int, int]]) -> None:
    requests = asks(*shapes)
    (joined,) = ragged.stack(requests, RAGGED_SPEC)
    assert joined.data.shape == (sum(rows * size for rows, size in shapes),)
    output = Tensor("y", "FP32", joined.data)
    answers = ragged.split([output], requests, [rows for rows, _ in shapes], RAGGED_SPEC)
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer.outputs[0].data, request.inputs[0].data)


def test_output_that_is_not_its_sources_size_fails_the_batch() -> None:
    for size in (4, 6):
        with pytest.raises(InferenceFailed, match="which are not those of input 'x'"):
            ragged.split(
                [Tensor("y", "FP32", np.zeros(size, np.float32))],
                asks((1, 2), (1, 3)),
                [1, 1],
                RAGGED_SPEC,
            )


_SOURCE = 'data_type: TYPE_INT32 source_input: "x"'


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (
            'batch_input { target_name: "b" data_type: TYPE_INT32 }',
            "batch input kind 'BATCH_ELEMENT_COUNT' expects 1 source input, got 0 for m",
        ),
        (
            'batch_input { target_name: "b" data_type: TYPE_INT64 source_input: "x" }',
            "batch input data type must be TYPE_INT32 or TYPE_FP32 for m",
        ),
        (
            'batch_input { target_name: "b" data_type: TYPE_INT32 source_input: "z" }',
            "unknown source input name 'z' for m",
        ),
        (
            'batch_output { target_name: "z" source_input: "x" }',
            "unknown target output name 'z' for m",
        ),
        (
            'batch_output { target_name: ["y", "y"] source_input: "x" }',
            "target output name 'y' can only be specified once for m",
        ),
    ],
)
def test_configuration_that_contradicts_itself_is_refused(
    tmp_path: Path, lines: str, text: str
) -> None:
    tensors = 'max_batch_size: 4 input { name: "x" data_type: TYPE_FP32 dims: 3 }\n'
    tensors += 'output { name: "y" data_type: TYPE_FP32 dims: 3 }\n'
    put(tmp_path, "m", identity(), tensors + lines)
    assert read_model(tmp_path, "m").error == text


def test_ragged_batches_need_a_batch_dimension(tmp_path: Path) -> None:
    put(tmp_path, "m", ragged_model(), RAGGED.replace("max_batch_size: 8", "max_batch_size: 0"))
    assert "need a max_batch_size above 0" in read_model(tmp_path, "m").error


def test_padding_and_ragged_batches_exclude_each_other(tmp_path: Path) -> None:
    pad = 'parameters { key: "tidegate.pad" value { string_value: "8" } }\n'
    put(tmp_path, "m", ragged_model(), RAGGED + pad)
    assert read_model(tmp_path, "m").error == "'tidegate.pad' and ragged batches exclude each other"
