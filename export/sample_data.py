"""Real inputs: what a spec's `samples` and `metric` give, as calls of named arrays.

A call is one set of arrays by argument path (`InputSpec.argument`'s notation). One set of many
rows is cut into calls of several batch sizes, so that it shows more than one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from export import code
from export.arguments import leaves
from export.dtypes import NUMPY
from export.errors import SampleError
from export.samples import Arrays
from export.spec import CodeRef, ExportSpec
from export.tensors import BATCH, InputSpec

MOST_CALLS: Final = 64
MOST_ROWS: Final = 512
CUTS: Final = (1, 2, 3, 7, 32)  # batch sizes of the first calls, then the last one again

Call = Mapping[str, NDArray[Any]]


def read(samples: CodeRef | Path) -> list[Call]:
    """The calls that `samples` gives, 1 to `MOST_CALLS`; raises `SampleError`."""
    if isinstance(samples, Path):
        return [_from_npz(samples)]
    given = code.call(samples)
    if isinstance(given, Mapping):
        return [_call(given, samples)]
    if not isinstance(given, Iterable):
        raise SampleError(
            f"{samples}() returned a {type(given).__name__}",
            "return a dict of arrays by input name, or yield one call after another",
        )
    calls = [_call(each, samples) for each in islice(given, MOST_CALLS)]
    if not calls:
        raise SampleError(f"{samples}() yields nothing")
    return calls


def fitted(calls: Sequence[Call], spec: ExportSpec, what: str = "samples") -> list[Arrays]:
    """The calls by input name, in the spec's dtypes, cut; raises `SampleError` for a misfit."""
    cut: list[Arrays] = []
    for call in calls:
        arrays = {tensor.name: _array(call, tensor, spec, what) for tensor in spec.inputs}
        sizes = sizes_of(arrays, spec, what)
        if not all(sizes.values()):
            raise SampleError(f"{what}: a call has no rows", "leave empty calls out")
        if len(calls) == 1 and spec.batch_limit and sizes[BATCH] > 1:
            cut += _cut(arrays, min(sizes[BATCH], MOST_ROWS), spec.batch_limit)
        else:
            cut.append(arrays)
    return cut


def sizes_of(arrays: Arrays, spec: ExportSpec, what: str = "samples") -> dict[str, int]:
    """Size of each dynamic dim; raises `SampleError` where two inputs contradict each other."""
    sizes: dict[str, int] = {}
    for tensor in spec.inputs:
        shape = arrays[tensor.name].shape
        for dim, size in zip(spec.symbolic_shape(tensor), shape, strict=True):
            if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                raise SampleError(
                    f"{what}: dim {dim!r} is {sizes[dim]} in one input and {size} in "
                    f"{tensor.name!r}"
                )
    return sizes


def stacked(calls: Sequence[Arrays], rows: int) -> Arrays:
    """One call of `rows` rows, made of the first real one's, repeated as often as need be."""
    first = calls[0]
    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in first.items()}


def _from_npz(path: Path) -> Call:
    if not path.is_file():
        raise SampleError(f"samples: there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise SampleError(f"cannot read {path}: {error}", "write it with numpy.savez") from None


def _call(given: Any, origin: CodeRef) -> Call:
    if not isinstance(given, Mapping | tuple | list):
        given = (given,)
    call = {}
    for path, leaf in leaves(given):
        array = np.asarray(leaf.detach().cpu() if hasattr(leaf, "detach") else leaf)
        if array.dtype.name not in {dtype.name for dtype in NUMPY.values()}:
            raise SampleError(
                f"{origin}() gives {path!r} as {array.dtype}, which no input can have"
            )
        call[path] = array
    return call


def _array(call: Call, tensor: InputSpec, spec: ExportSpec, what: str) -> NDArray[Any]:
    position = f"[{spec.inputs.index(tensor)}]"
    wanted = (tensor.argument, tensor.name, position)
    path = next((path for path in wanted if path in call), None)
    if path is None:
        raise SampleError(f"{what}: no array for input {tensor.name!r}; there are {list(call)}")
    array, shape = call[path], spec.symbolic_shape(tensor)
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise SampleError(
            f"{what}: input {tensor.name!r} has shape {list(array.shape)}; "
            f"the spec says {list(shape)}",
            "batch first, then the spec's dims",
        )
    dtype = NUMPY[tensor.dtype]
    if array.dtype.kind != dtype.kind and not np.can_cast(array.dtype, dtype, "safe"):
        raise SampleError(f"{what}: input {tensor.name!r} is {array.dtype}; the spec says {dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise SampleError(f"{what}: input {tensor.name!r} holds NaN or infinity")
    return np.ascontiguousarray(array, dtype)


def _cut(arrays: Arrays, rows: int, limit: int) -> Iterator[Arrays]:
    begin, cuts = 0, iter(CUTS)
    size = 1
    while begin < rows:
        size = min(next(cuts, size), limit)
        yield {name: array[begin : min(begin + size, rows)] for name, array in arrays.items()}
        begin += size
