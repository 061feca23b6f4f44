"""`tidegate.pad`: different lengths share a batch, and every client gets its own length back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from gateway.batching import tensors
from gateway.core import (
    NO_PARAMETERS,
    BatchPolicy,
    InferRequest,
    InferResponse,
    ModelKey,
    Parameters,
    Tensor,
    TensorSpec,
)
from gateway.errors import InferenceFailed, ModelLost
from tests.gateway.fakes import FakeEngine, Ok, house, spec
from tests.simulated_loop import simulate

MODEL = replace(
    spec(dims=(-1,), batching=BatchPolicy(8, True, (8,), pad_to=(4, 8))),
    outputs=(TensorSpec("y", "FP32", (-1,)), TensorSpec("z", "FP32", (2,))),
)


def request(*arrays: np.ndarray) -> InferRequest:
    kinds = {"f": "FP32", "O": "BYTES"}
    inputs = [
        Tensor("xw"[index], kinds[array.dtype.kind], array) for index, array in enumerate(arrays)
    ]
    return InferRequest("m", "", "", inputs, [], 0.0)


def test_different_lengths_share_a_batch_and_get_their_own_back() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(), Ok(1.0)])
        async with (
            house(
                spec(dims=(-1,), batching=BatchPolicy(8, True, (8,), pad_to=(4, 8))), engine=engine
            ) as h,
            asyncio.TaskGroup() as clients,
        ):
            await h.ask(0, width=4)
            clients.create_task(h.ask(1, width=4))
            await asyncio.sleep(0.5)
            for width in (1, 3, 4, 6, 9):
                clients.create_task(h.ask(width, width=width))  # `ask` checks values and widths
        assert [batch.shape for batch in engine.batches] == [(1, 4), (1, 4), (3, 4), (1, 8), (1, 9)]

    simulate(story())


class Forgetful(FakeEngine):
    """Its server restarts in the middle of the first run."""

    async def infer(
        self,
        key: ModelKey,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        parameters: Parameters = NO_PARAMETERS,
    ) -> list[Tensor]:
        answer = await super().infer(key, inputs, outputs, parameters)
        if len(self.batches) == 1:
            raise ModelLost(f"Request for unknown model: '{key.name}' is not found")
        return answer


class Flat(FakeEngine):
    """Answers with fewer dims than its configuration says, which ONNX Runtime cannot foresee."""

    async def infer(
        self,
        key: ModelKey,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        parameters: Parameters = NO_PARAMETERS,
    ) -> list[Tensor]:
        return [Tensor(name, "FP32", inputs[0].data[:, 0]) for name in outputs]


def test_an_answer_that_cannot_be_cropped_fails_its_request_alone() -> None:
    async def story() -> None:
        batching = BatchPolicy(8, True, (8,), pad_to=(4, 8))
        async with house(spec(dims=(-1,), batching=batching), engine=Flat()) as h:
            for _ in range(2):
                with pytest.raises(InferenceFailed):
                    await h.ask(1, width=3)

    simulate(story())


def test_a_padded_request_is_asked_again_as_it_came() -> None:
    async def story() -> None:
        engine = Forgetful()
        batching = BatchPolicy(8, True, (8,), pad_to=(4, 8))
        async with house(spec(dims=(-1,), batching=batching), engine=engine) as h:
            async with asyncio.TaskGroup() as clients:
                for width in (1, 3, 4):
                    clients.create_task(h.ask(width, width=width))  # checks values and widths
            assert h.entry().stats.failure == 0
        assert engine.log == ["load m:1", "unload m:1", "load m:1", "unload m:1"]
        once, again = engine.batches
        np.testing.assert_array_equal(once, [[1, 0, 0, 0], [3, 3, 3, 0], [4, 4, 4, 4]])
        np.testing.assert_array_equal(again, once)

    simulate(story())


def test_padding_is_zeros_behind_the_requests_own_elements() -> None:
    asked = request(np.ones((2, 3), np.float32))
    padded, length = tensors.padded(asked, MODEL)
    assert length == 3
    np.testing.assert_array_equal(padded.inputs[0].data, [[1, 1, 1, 0]] * 2)
    assert asked.inputs[0].data.shape == (2, 3)  # it may be asked again


@pytest.mark.parametrize("length", [4, 8, 9])
def test_declared_and_larger_sizes_are_left_alone(length: int) -> None:
    left = request(np.ones((1, length), np.float32))
    assert tensors.padded(left, MODEL) == (left, -1)


def test_inputs_of_several_lengths_are_left_alone() -> None:
    model = replace(MODEL, inputs=(*MODEL.inputs, TensorSpec("w", "BYTES", (-1,))))
    texts = np.array([[b"a", b"b"]], np.object_)
    assert tensors.padded(request(np.ones((1, 3), np.float32), texts), model)[1] == -1
    same, length = tensors.padded(request(np.ones((1, 2), np.float32), texts), model)
    assert length == 2
    assert same.inputs[1].data.tolist() == [[b"a", b"b", b"", b""]]


def test_only_dims_that_were_padded_are_cropped() -> None:
    outputs = [
        Tensor("y", "FP32", np.ones((1, 4), np.float32)),
        Tensor("z", "FP32", np.ones((1, 2), np.float32)),
    ]
    answer = tensors.cropped(InferResponse("m", 1, "", outputs), 3, MODEL)
    assert [tensor.data.shape for tensor in answer.outputs] == [(1, 3), (1, 2)]
