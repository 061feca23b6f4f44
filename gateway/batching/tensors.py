"""Requests' arrays -> one batch, and a batch's arrays -> answers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gateway.core import InferRequest, InferResponse, ModelSpec, Tensor
from gateway.errors import InferenceFailed


def rows_of(request: InferRequest, spec: ModelSpec) -> int:
    """Return how many batch elements a request brings: its first dimension, 1 without one."""
    return request.inputs[0].data.shape[0] if spec.max_batch_size > 0 and request.inputs else 1


def uniform(spec: ModelSpec) -> bool:
    """Return whether the shapes of every request of the model are those of every other."""
    return all(-1 not in tensor.dims and not tensor.optional for tensor in spec.inputs)


def bucket_of(request: InferRequest, spec: ModelSpec) -> tuple[object, ...]:
    """Return a value that is equal for requests that may share a batch.

    They may when they bring the same inputs with the same shapes beyond the batch dimension, and
    the same parameters, where the model looks at them.
    """
    shapes = tuple((tensor.name, tensor.data.shape[1:]) for tensor in request.inputs)
    if not spec.parametric:
        return shapes
    # with their types: 1, 1.0 and true are equal to Python, and not to a model
    return shapes, frozenset((name, type(each), each) for name, each in request.parameters.items())


def padded(request: InferRequest, spec: ModelSpec) -> tuple[InferRequest, int]:
    """Return a request with its variable dims padded to the next size that its model declares.

    With zeros (BYTES: empty), behind its own elements, copying them once. The second value is the
    dims' own size, for `cropped`; -1 where nothing was padded: no variable dim, several sizes, or
    one that is declared itself or larger than all that are.
    """
    first = 1 if spec.max_batch_size > 0 else 0
    dims = {want.name: want.dims for want in spec.inputs}
    sizes = {
        size
        for tensor in request.inputs
        for size, dim in zip(tensor.data.shape[first:], dims[tensor.name], strict=True)
        if dim == -1
    }
    if len(sizes) != 1:
        return request, -1
    length: int = sizes.pop()
    target = _padded_size(length, spec)
    if target == length:
        return request, -1
    inputs = [_padded(tensor, first, dims[tensor.name], target) for tensor in request.inputs]
    # another request: the router may have to ask with this one again
    return replace(request, inputs=inputs), length


def cropped(response: InferResponse, length: int, spec: ModelSpec) -> InferResponse:
    """Return an answer without what `padded` added: views, for variable dims of that size."""
    first = 1 if spec.max_batch_size > 0 else 0
    target = _padded_size(length, spec)
    dims = {output.name: output.dims for output in spec.outputs}
    outputs = []
    for tensor in response.outputs:
        cut = [slice(None)] * tensor.data.ndim
        for axis, dim in enumerate(dims[tensor.name], first):
            if dim == -1 and tensor.data.shape[axis] == target:
                cut[axis] = slice(length)
        outputs.append(Tensor(tensor.name, tensor.datatype, tensor.data[tuple(cut)]))
    return InferResponse(response.model, response.version, response.id, outputs)


def _padded_size(length: int, spec: ModelSpec) -> int:
    return next((size for size in spec.batching.pad_to if size >= length), length)


def _padded(tensor: Tensor, first: int, dims: tuple[int, ...], target: int) -> Tensor:
    shape = list(tensor.data.shape)
    for axis, dim in enumerate(dims, first):
        if dim == -1:
            shape[axis] = target
    filler = b"" if tensor.datatype == "BYTES" else 0
    data = np.full(shape, filler, tensor.data.dtype)
    data[tuple(map(slice, tensor.data.shape))] = tensor.data
    return Tensor(tensor.name, tensor.datatype, data)


def stack(requests: Sequence[InferRequest]) -> list[Tensor]:
    """Return the inputs of one batch, joined along the first dimension.

    All requests bring the same inputs in the same order. One request alone is passed on uncopied;
    several are copied once, here.
    """
    first = requests[0].inputs
    if len(requests) == 1:
        return first
    return [
        Tensor(
            tensor.name,
            tensor.datatype,
            np.concatenate([request.inputs[index].data for request in requests]),
        )
        for index, tensor in enumerate(first)
    ]


def wanted(requests: Sequence[InferRequest], spec: ModelSpec) -> list[str]:
    """Return the outputs that a batch must compute, in the model's order."""
    if any(not request.outputs for request in requests):
        return [output.name for output in spec.outputs]
    names = {name for request in requests for name in request.outputs}
    return [output.name for output in spec.outputs if output.name in names]


def check_rows(outputs: Sequence[Tensor], total: int, spec: ModelSpec) -> None:
    """Raise `InferenceFailed` where an output has not as many rows as the batch."""
    for tensor in outputs:
        got = tensor.data.shape[0] if tensor.data.ndim else 0
        if got != total:
            raise InferenceFailed(
                f"model '{spec.key.name}' answered {got} rows in output '{tensor.name}' for a "
                f"batch of {total}"
            )


def split(
    outputs: Sequence[Tensor],
    requests: Sequence[InferRequest],
    rows: Sequence[int],
    spec: ModelSpec,
) -> list[InferResponse]:
    """Return each request's share of a batch's outputs, as views of them.

    Raises `InferenceFailed` where an output has not as many rows as the batch.
    """
    if spec.max_batch_size > 0:
        check_rows(outputs, sum(rows), spec)
    by_name = {tensor.name: tensor for tensor in outputs}
    names = [output.name for output in spec.outputs]
    responses = []
    start = 0
    for request, count in zip(requests, rows, strict=True):
        asked = request.outputs or names
        if len(requests) == 1:
            share = [by_name[name] for name in asked]
        else:
            share = [
                Tensor(name, by_name[name].datatype, by_name[name].data[start : start + count])
                for name in asked
            ]
        responses.append(InferResponse(request.model, spec.key.version, request.id, share))
        start += count
    return responses
