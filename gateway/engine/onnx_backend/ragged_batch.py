"""Batch inputs and batch outputs, as the docs of Triton's ragged batching have them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class Misfit(Exception):
    """An output does not fit the batch that it is for."""


def batch_input(entry: dict[str, Any], shapes: list[tuple[int, ...]]) -> Any:
    """Return a batch input for requests whose source inputs have these shapes."""
    dtype = pb_utils.triton_string_to_numpy(entry["data_type"])
    kind = entry.get("kind", "BATCH_ELEMENT_COUNT")
    counts = [math.prod(shape) for shape in shapes]
    if kind == "BATCH_ELEMENT_COUNT":
        return np.array(counts, dtype)
    if kind == "BATCH_ACCUMULATED_ELEMENT_COUNT":
        return np.cumsum(counts).astype(dtype)
    if kind == "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO":
        return np.cumsum([0, *counts]).astype(dtype)
    if kind == "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE":
        return np.zeros(max(counts), dtype)
    items = np.array([shape[1:] for shape in shapes for _ in range(shape[0])], dtype)
    return items if kind == "BATCH_ITEM_SHAPE" else items.reshape(-1)


def scatter(name: str, array: Any, sources: list[tuple[int, ...]], dims: list[int]) -> list[Any]:
    """Return each request's share of an output: its variable dims are those of its source."""
    flat, start, shares = array.reshape(-1), 0, []
    for source in sources:
        shape = [
            source[axis] if dim == -1 and axis < len(source) else dim
            for axis, dim in enumerate(dims)
        ]
        end = start + math.prod(shape)
        shares.append(flat[start:end])
        if -1 in shape or shares[-1].size != end - start:
            raise Misfit(f"output '{name}' has not the elements of its source input")
        shares[-1] = shares[-1].reshape(shape)
        start = end
    if start != flat.size:
        raise Misfit(f"output '{name}' has not the elements of its source input")
    return shares
