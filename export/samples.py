"""Random inputs that fit a spec: the same seed and sizes give the same arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.dtypes import NUMPY
from export.spec import ExportSpec, Sizes
from export.tensors import InputSpec

Arrays = dict[str, NDArray[Any]]


def draw(spec: ExportSpec, sizes: Sizes, seed: int) -> Arrays:
    """One array per input, by name, with the dynamic dims at `sizes`."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for tensor in spec.inputs:
        shape = tuple(size for size in spec.shape(tensor, sizes) if size is not None)
        arrays[tensor.name] = _values(rng, tensor, shape)
    return arrays


def _values(rng: np.random.Generator, tensor: InputSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    dtype = NUMPY[tensor.dtype]
    if dtype.kind == "b":
        return np.asarray(rng.integers(0, 2, shape), dtype)
    if tensor.range is None:
        return np.asarray(rng.standard_normal(shape), dtype)
    low, high = tensor.range
    if dtype.kind in "iu":
        # An asarray, because a rank-0 draw is a scalar.
        return np.asarray(rng.integers(int(low), int(high), shape, dtype.type, endpoint=True))
    return np.asarray(rng.uniform(low, high, shape), dtype)
