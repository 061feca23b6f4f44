import math

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from loadtest import payloads
from loadtest.answers import AnswerCheck, WrongAnswer
from loadtest.payloads import (
    ITEM_BYTES,
    PayloadError,
    parse_shapes,
    random_contents,
    request_ring,
)
from tests.loadtest.kserve_server import tiny_config, tiny_metadata


def two_inputs(
    max_batch: int,
) -> tuple[service_pb2.ModelMetadataResponse, model_config_pb2.ModelConfig]:
    batch = [-1] if max_batch else []
    metadata = service_pb2.ModelMetadataResponse(name="two", versions=["1"])
    metadata.inputs.add(name="image:0", datatype="FP16", shape=[*batch, 3, -1, -1])
    metadata.inputs.add(name="mask", datatype="BOOL", shape=[*batch, 5])
    metadata.outputs.add(name="y", datatype="FP32", shape=[*batch, 2])
    config = model_config_pb2.ModelConfig(name="two", max_batch_size=max_batch)
    config.input.add(name="image:0", dims=[3, -1, -1])
    config.input.add(name="mask", dims=[5], optional=True)
    return metadata, config


@pytest.mark.parametrize("datatype", sorted(ITEM_BYTES))
def test_contents_have_the_size_that_the_datatype_says(datatype: str) -> None:
    raw = random_contents(datatype, (3, 5), np.random.default_rng(1))
    assert len(raw) == 15 * ITEM_BYTES[datatype]


def test_bytes_bool_and_bf16_read_back_as_what_they_are() -> None:
    rng = np.random.default_rng(1)
    words = deserialize_bytes_tensor(random_contents("BYTES", (2, 3), rng))
    assert len(words) == 6
    assert all(word.startswith(b"word-") for word in words)
    assert set(random_contents("BOOL", (64,), rng)) == {0, 1}
    upper_halves = np.frombuffer(random_contents("BF16", (1000,), rng), np.uint16)
    brains = (upper_halves.astype(np.uint32) << 16).view(np.float32)
    assert abs(float(brains.std()) - 1.0) < 0.1


def test_an_unknown_datatype_is_named() -> None:
    with pytest.raises(PayloadError, match="'FP8' is not one of KServe v2"):
        random_contents("FP8", (1,), np.random.default_rng(1))


def test_open_dims_are_filled_and_the_batch_comes_first() -> None:
    metadata, config = two_inputs(max_batch=4)
    ring = request_ring(metadata, config, batch_size=3, shapes={"image:0": (3, 20, 30)})
    assert [list(tensor.shape) for tensor in ring[0].inputs] == [[3, 3, 20, 30]]
    assert len(ring[0].raw_input_contents[0]) == 3 * 3 * 20 * 30 * 2
    filled = request_ring(metadata, config, batch_size=1)[0].inputs[0].shape
    assert list(filled) == [1, 3, payloads.OPEN_DIM, payloads.OPEN_DIM]


def test_a_model_without_batch_dimension_gets_none() -> None:
    metadata, config = two_inputs(max_batch=0)
    request = request_ring(metadata, config, batch_size=1, shapes={"mask": (5,)})[0]
    assert [list(tensor.shape) for tensor in request.inputs] == [[3, 16, 16], [5]]
    with pytest.raises(PayloadError, match="no batch dimension"):
        request_ring(metadata, config, batch_size=2)


def test_the_same_seed_makes_the_same_ring_of_different_requests() -> None:
    def ring(seed: int) -> list[bytes]:
        made = request_ring(tiny_metadata(), tiny_config(), batch_size=2, seed=seed)
        return [request.SerializeToString(deterministic=True) for request in made]

    assert ring(1) == ring(1)
    assert ring(1) != ring(2)
    assert len(set(ring(1))) == payloads.RING_LENGTH


def test_large_requests_make_a_short_ring() -> None:
    metadata, config = two_inputs(max_batch=4)
    side = math.isqrt(payloads.RING_BYTES // 4 // 3 // 2)
    ring = request_ring(metadata, config, batch_size=1, shapes={"image:0": (3, side, side)})
    assert 2 <= len(ring) <= 4


@pytest.mark.parametrize(
    ("batch_size", "shapes", "complaint"),
    [
        (0, {}, "at least 1"),
        (5, {}, "at most 4 rows"),
        (1, {"immage": (3, 4, 4)}, "no input 'immage'; its inputs are image:0, mask"),
        (1, {"image:0": (1, 4, 4)}, "does not fit input 'image:0'"),
        (1, {"image:0": (3, 4)}, "does not fit input 'image:0'"),
    ],
)
def test_a_request_that_the_model_cannot_take_is_refused(
    batch_size: int, shapes: dict[str, tuple[int, ...]], complaint: str
) -> None:
    metadata, config = two_inputs(max_batch=4)
    with pytest.raises(PayloadError, match=complaint):
        request_ring(metadata, config, batch_size=batch_size, shapes=shapes)


def test_shapes_are_read_from_the_last_colon() -> None:
    assert parse_shapes(["image:0:3,4", "", "x:7"]) == {"image:0": (3, 4), "x": (7,)}
    for text in ("x", "x:", ":3", "x:3,a", "x:0"):
        with pytest.raises(PayloadError, match="a shape is written"):
            parse_shapes([text])


def answer(rows: int, datatype: str = "FP32", name: str = "y") -> service_pb2.ModelInferResponse:
    response = service_pb2.ModelInferResponse(model_name="tiny")
    response.outputs.add(name=name, datatype=datatype, shape=[rows, 2])
    response.raw_output_contents.append(bytes(rows * 8))
    return response


def test_a_wrong_answer_is_found() -> None:
    check = AnswerCheck(tiny_metadata(), tiny_config(), batch_size=2)
    check(answer(2))
    short = answer(2)
    short.raw_output_contents[0] = bytes(15)
    missing = answer(2)
    del missing.raw_output_contents[:]
    for wrong, complaint in (
        (answer(1), "expected 2 rows"),
        (answer(2, name="z"), r"outputs \['z'\]"),
        (answer(2, datatype="INT32"), "is INT32"),
        (short, "15 bytes, expected 16"),
        (missing, "0 raw contents"),
    ):
        with pytest.raises(WrongAnswer, match=complaint):
            check(wrong)


def test_integers_lie_in_the_range_asked_for() -> None:
    rng = np.random.default_rng(0)
    raw = payloads.random_contents("INT64", [1000], rng, (3, 5))
    assert set(np.frombuffer(raw, np.int64)) == {3, 4, 5}
    with pytest.raises(payloads.PayloadError, match="UINT8 cannot hold"):
        payloads.random_contents("UINT8", [1], rng, (0, 256))
    assert payloads.parse_integers("-1,7") == (-1, 7)
    for text in ("7", "7,1", "a,b"):
        with pytest.raises(payloads.PayloadError, match="is written 0,99"):
            payloads.parse_integers(text)
