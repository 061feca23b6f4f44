"""Requests made from what the endpoint itself says about its model."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2

# A dim that the model leaves open (-1) is filled with this, unless a shape is given by hand.
OPEN_DIM = 16

# Enough different requests that no cache in the server sees one twice in a row, few enough that
# they cost the client little memory: large images make a shorter ring.
RING_LENGTH = 16
RING_BYTES = 64 * 1024 * 1024

ITEM_BYTES = {
    "BOOL": 1,
    "UINT8": 1,
    "INT8": 1,
    "UINT16": 2,
    "INT16": 2,
    "FP16": 2,
    "BF16": 2,
    "UINT32": 4,
    "INT32": 4,
    "FP32": 4,
    "UINT64": 8,
    "INT64": 8,
    "FP64": 8,
}
_INTEGERS: dict[str, type[np.generic]] = {
    "UINT8": np.uint8,
    "INT8": np.int8,
    "UINT16": np.uint16,
    "INT16": np.int16,
    "UINT32": np.uint32,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "INT64": np.int64,
}
_FLOATS: dict[str, type[np.generic]] = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}

Shape = tuple[int, ...]

# Fits every width, and the vocabulary of most models.
INTEGERS = (0, 99)


class PayloadError(ValueError):
    """No request can be made for this model; the text says why and what would help."""


def request_ring(
    metadata: service_pb2.ModelMetadataResponse,
    config: model_config_pb2.ModelConfig,
    *,
    batch_size: int,
    model_version: str = "",
    shapes: Mapping[str, Shape] | None = None,
    integers: tuple[int, int] = INTEGERS,
    seed: int = 0,
) -> list[service_pb2.ModelInferRequest]:
    """Return different requests to be sent in turn, with raw contents, the same for the same seed.

    `shapes` gives an input's dims by hand, without the batch dimension; `integers` the least and
    the greatest value of integer inputs. There are 16 requests, or
    as many as fit 64 MB, two at least. Raises `PayloadError`.
    """
    inputs = input_shapes(metadata, config, batch_size, shapes or {})
    rng = np.random.default_rng([seed, 0])
    ring = [_request(metadata, inputs, model_version, integers, rng)]
    length = min(RING_LENGTH, max(2, RING_BYTES // max(1, ring[0].ByteSize())))
    for index in range(1, length):
        rng = np.random.default_rng([seed, index])
        ring.append(_request(metadata, inputs, model_version, integers, rng))
    return ring


def parse_shapes(texts: Iterable[str]) -> dict[str, Shape]:
    """Return the shapes written as "NAME:D,D,..." (without batch dimension). Raises `PayloadError`.

    The last colon separates, since TensorFlow's names have colons of their own.
    """
    shapes: dict[str, Shape] = {}
    for text in filter(None, texts):
        name, _, dims = text.rpartition(":")
        try:
            shape = tuple(int(dim) for dim in dims.split(","))
        except ValueError:
            shape = ()
        if not name or not shape or min(shape) < 1:
            raise PayloadError(f"a shape is written NAME:3,224,224, got '{text}'")
        shapes[name] = shape
    return shapes


def parse_integers(text: str) -> tuple[int, int]:
    """Return the range written as "LEAST,GREATEST". Raises `PayloadError`."""
    try:
        least, greatest = map(int, text.split(","))
    except ValueError:
        least, greatest = 1, 0
    if least > greatest:
        raise PayloadError(f"a range of integers is written 0,99, got '{text}'")
    return least, greatest


def input_shapes(
    metadata: service_pb2.ModelMetadataResponse,
    config: model_config_pb2.ModelConfig,
    batch_size: int,
    shapes: Mapping[str, Shape],
) -> dict[str, Shape]:
    """Return the full shape of each input that the model requires, batch dimension first.

    Raises `PayloadError` for a batch that the model does not take and for shapes that name no
    input.
    """
    name = metadata.name
    batched = config.max_batch_size > 0
    if batch_size < 1:
        raise PayloadError(f"the batch size must be at least 1, got {batch_size}")
    if batched and batch_size > config.max_batch_size:
        raise PayloadError(
            f"model '{name}' takes at most {config.max_batch_size} rows in a request, "
            f"got batch size {batch_size}"
        )
    if not batched and batch_size > 1:
        raise PayloadError(
            f"model '{name}' has no batch dimension (max_batch_size 0), got batch size {batch_size}"
        )
    known = {tensor.name for tensor in metadata.inputs}
    for given in shapes:
        if given not in known:
            raise PayloadError(
                f"model '{name}' has no input '{given}'; its inputs are {', '.join(sorted(known))}"
            )
    optional = {entry.name for entry in config.input if entry.optional}
    full: dict[str, Shape] = {}
    for tensor in metadata.inputs:
        if tensor.name in optional and tensor.name not in shapes:
            continue
        own = tuple(tensor.shape)[1:] if batched else tuple(tensor.shape)
        dims = _fill(tensor.name, own, shapes.get(tensor.name))
        full[tensor.name] = (batch_size, *dims) if batched else dims
    return full


def _fill(name: str, own: Shape, given: Shape | None) -> Shape:
    if given is None:
        return tuple(OPEN_DIM if dim < 0 else dim for dim in own)
    fits = len(own) == len(given) and all(
        mine in (-1, dim) for mine, dim in zip(own, given, strict=True)
    )
    if not fits:
        raise PayloadError(f"shape {list(given)} does not fit input '{name}' of dims {list(own)}")
    return given


def _request(
    metadata: service_pb2.ModelMetadataResponse,
    inputs: Mapping[str, Shape],
    model_version: str,
    integers: tuple[int, int],
    rng: np.random.Generator,
) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=metadata.name, model_version=model_version)
    for tensor in metadata.inputs:
        if (shape := inputs.get(tensor.name)) is not None:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
            request.raw_input_contents.append(
                random_contents(tensor.datatype, shape, rng, integers)
            )
    return request


def random_contents(
    datatype: str,
    shape: Sequence[int],
    rng: np.random.Generator,
    integers: tuple[int, int] = INTEGERS,
) -> bytes:
    """Return random values of a KServe datatype as raw contents.

    Floats are standard normal; whole numbers lie between the two of `integers`, both included
    (one that its datatype cannot hold is a `PayloadError`); BYTES elements are short ASCII words.
    Raises `PayloadError` for an unknown datatype.
    """
    if datatype in _FLOATS:
        return rng.standard_normal(shape).astype(_FLOATS[datatype]).tobytes()
    if datatype in _INTEGERS:
        least, greatest = integers
        try:
            return rng.integers(
                least, greatest, shape, _INTEGERS[datatype], endpoint=True
            ).tobytes()
        except ValueError:
            raise PayloadError(f"{datatype} cannot hold every integer of {integers}") from None
    if datatype == "BF16":
        # numpy has no bfloat16: it is the upper half of a float32.
        upper = rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16
        return upper.astype(np.uint16).tobytes()
    if datatype == "BOOL":
        return rng.integers(0, 2, shape).astype(np.bool_).tobytes()
    if datatype == "BYTES":
        words = [b"word-%d" % number for number in rng.integers(0, 10_000, math.prod(shape))]
        return b"".join(struct.pack("<I", len(word)) + word for word in words)
    raise PayloadError(f"datatype '{datatype}' is not one of KServe v2")
