"""Batches of requests whose shapes differ, as Triton's backends make them. Pure.

The elements of a ragged input come to the model as one dimension, and batch inputs say which are
whose: Triton's docs/ragged_batching.md, and BatchInput and BatchOutput in its model_config.proto.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from gateway.batching import tensors
from gateway.core import DTYPES, Array, InferRequest, InferResponse, ModelSpec, Tensor
from gateway.errors import InferenceFailed
from gateway.ragged import BatchInput, BatchInputKind, RaggedBatching


def bucket_of(request: InferRequest, spec: ModelSpec) -> tuple[object, ...]:
    """Return a value that is equal for requests that may share a batch: see `tensors.bucket_of`.

    The shapes of ragged inputs do not count.
    """
    ragged = _ragged(spec)
    return tuple(
        (tensor.name, None if tensor.name in ragged.inputs else tensor.data.shape[1:])
        for tensor in request.inputs
    )


def stack(requests: Sequence[InferRequest], spec: ModelSpec) -> list[Tensor]:
    """Return the inputs of one batch: see `tensors.stack`; then its batch inputs."""
    ragged = _ragged(spec)
    joined = []
    for index, tensor in enumerate(requests[0].inputs):
        parts = [request.inputs[index].data for request in requests]
        if tensor.name in ragged.inputs:
            parts = [part.reshape(-1) for part in parts]
        data = parts[0] if len(parts) == 1 else np.concatenate(parts)
        joined.append(Tensor(tensor.name, tensor.datatype, data))
    shapes = {
        tensor.name: [request.inputs[index].data.shape for request in requests]
        for index, tensor in enumerate(requests[0].inputs)
    }
    for entry in ragged.batch_inputs:
        if entry.source in shapes:  # an optional one may be absent
            made = batch_input(entry, shapes[entry.source])
            joined.append(Tensor(entry.name, entry.datatype, made))
    return joined


def batch_input(entry: BatchInput, shapes: Sequence[tuple[int, ...]]) -> Array:
    """Return what a batch input holds for requests of these shapes, batch dimension included."""
    counts = [math.prod(shape) for shape in shapes]
    dtype = DTYPES[entry.datatype]
    match entry.kind:
        case BatchInputKind.ELEMENT_COUNT:
            return np.array(counts, dtype)
        case BatchInputKind.ACCUMULATED:
            return np.array(list(accumulate(counts)), dtype)
        case BatchInputKind.ACCUMULATED_WITH_ZERO:
            return np.array(list(accumulate(counts, initial=0)), dtype)
        case BatchInputKind.MAX_AS_SHAPE:
            return np.zeros(max(counts), dtype)  # its size is what it says
    items = np.array([shape[1:] for shape in shapes for _ in range(shape[0])], dtype)
    return items if entry.kind is BatchInputKind.ITEM_SHAPE else items.reshape(-1)


def split(
    outputs: Sequence[Tensor],
    requests: Sequence[InferRequest],
    rows: Sequence[int],
    spec: ModelSpec,
) -> list[InferResponse]:
    """Return each request's share of a batch's outputs: see `tensors.split`."""
    scattered = _ragged(spec).scattered
    plain = [tensor for tensor in outputs if tensor.name not in scattered]
    tensors.check_rows(plain, sum(rows), spec)
    shares = {
        tensor.name: _scatter(tensor, requests, spec)
        if tensor.name in scattered
        else _by_rows(tensor, rows)
        for tensor in outputs
    }
    names = [output.name for output in spec.outputs]
    return [
        InferResponse(
            request.model,
            spec.key.version,
            request.id,
            [shares[name][index] for name in request.outputs or names],
        )
        for index, request in enumerate(requests)
    ]


def _by_rows(output: Tensor, rows: Sequence[int]) -> list[Tensor]:
    ends = list(accumulate(rows))
    return [
        Tensor(output.name, output.datatype, output.data[end - count : end])
        for end, count in zip(ends, rows, strict=True)
    ]


def _scatter(output: Tensor, requests: Sequence[InferRequest], spec: ModelSpec) -> list[Tensor]:
    """Cut an output up: a variable dim of a request's share is that of its source input."""
    source = _ragged(spec).scattered[output.name]
    (dims,) = [each.dims for each in spec.outputs if each.name == output.name]
    flat = output.data.reshape(-1)
    shares, start = [], 0
    for request in requests:
        (given,) = [tensor.data.shape for tensor in request.inputs if tensor.name == source]
        shape = tuple(
            given[axis] if dim == -1 and axis < len(given) else dim
            for axis, dim in enumerate((-1, *dims))
        )
        end = start + math.prod(shape)
        if -1 in shape or end > flat.size:
            break
        shares.append(Tensor(output.name, output.datatype, flat[start:end].reshape(shape)))
        start = end
    if len(shares) < len(requests) or start != flat.size:
        raise InferenceFailed(
            f"model '{spec.key.name}' answered {flat.size} elements in output '{output.name}', "
            f"which are not those of input '{source}'"
        )
    return shares


def _ragged(spec: ModelSpec) -> RaggedBatching:
    assert spec.ragged is not None, f"{spec.key} has no ragged batches: this is a bug"
    return spec.ragged
