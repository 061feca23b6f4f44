"""A model's first runs, before anybody waits for them."""

from __future__ import annotations

import logging
import math
import threading
from pathlib import Path

import numpy as np

from gateway import wire
from gateway.core import DTYPES, Array, ModelSpec, Tensor, WarmUp, WarmUpData, WarmUpInput
from gateway.engine.model import OpenModel
from gateway.errors import InferenceFailed, RepositoryError

log = logging.getLogger(__name__)

FOLDER = "warmup"  # of the model, beside its versions
FIRST_RUN_LIMIT_S = 5.0
_MAX_FIRST_RUN_BYTES = 64 << 20


def warm_up(model: OpenModel, spec: ModelSpec, *, declared_only: bool = False) -> None:
    """Run the samples of `model_warmup`; without any, run zeros once where their shape is known.

    With `declared_only` without these zeros: a request that waits is the first run itself.
    Mapped weights are read from disk by the first run (65 ms against 22 for an encoder of 91 MB).
    Raises `RepositoryError` where a declared sample is at fault or fails. That a model cannot make
    sense of zeros, which nobody declared, is no fault of it. Ragged batches are made further up:
    models of these are not warmed.
    """
    if spec.ragged is not None:
        return
    outputs = [output.name for output in spec.outputs]
    for sample in spec.runtime.warm_up:
        try:
            inputs = [_tensor(one, sample, spec) for one in sample.inputs]
            _check(inputs, spec)
            inputs += _own_zeros(spec, {tensor.name for tensor in inputs}, sample.batch_size)
            for _ in range(sample.count):
                model.run(inputs, outputs, model.new_run())
        except (RepositoryError, InferenceFailed) as error:
            raise RepositoryError(f"model_warmup '{sample.name}': {error}") from error
    if not spec.runtime.warm_up and not declared_only:
        zeros = _zeros(spec)
        if zeros:
            _run_zeros(model, spec, zeros, outputs)


def _run_zeros(model: OpenModel, spec: ModelSpec, zeros: list[Tensor], outputs: list[str]) -> None:
    run = model.new_run()
    # zeros may be what a loop of the model never ends on
    limit = threading.Timer(FIRST_RUN_LIMIT_S, setattr, (run, "terminate", True))
    limit.daemon = True
    limit.start()
    try:
        model.run(zeros, outputs, run)
    except InferenceFailed as error:
        log.debug("first run of %s with zeros: %s", spec.key, error)
    finally:
        limit.cancel()


def _zeros(spec: ModelSpec) -> list[Tensor]:
    """Return one row of zeros for each input; none where a dim is variable or the row is huge."""
    wanted = [tensor for tensor in spec.inputs if not tensor.optional]
    if any(dim < 0 for tensor in wanted for dim in tensor.dims):
        return []
    size = sum(math.prod(tensor.dims) * DTYPES[tensor.datatype].itemsize for tensor in wanted)
    if size > _MAX_FIRST_RUN_BYTES:
        return []
    batch = (1,) if spec.max_batch_size > 0 else ()
    zeros = [
        Tensor(tensor.name, tensor.datatype, _zero(tensor.datatype, batch + tensor.dims))
        for tensor in wanted
    ]
    return zeros + _own_zeros(spec, set(), rows=1)


def _own_zeros(spec: ModelSpec, given: set[str], rows: int) -> list[Tensor]:
    """Return zeros for the inputs that are the gateway's to give; -1 is 1 there."""
    batch = (rows,) if spec.max_batch_size > 0 else ()
    return [
        Tensor(one.name, one.datatype, _zero(one.datatype, (*batch, *map(abs, one.dims))))
        for one in spec.own_inputs
        if one.name not in given
    ]


def _check(inputs: list[Tensor], spec: ModelSpec) -> None:
    declared = {t.name: t.datatype for t in (*spec.inputs, *spec.own_inputs)}
    for tensor in inputs:
        if tensor.name not in declared:
            raise RepositoryError(f"the model has no input '{tensor.name}'")
        if tensor.datatype != declared[tensor.name]:
            raise RepositoryError(
                f"input '{tensor.name}' is {declared[tensor.name]}, not {tensor.datatype}"
            )
    given = {tensor.name for tensor in inputs}
    missing = [t.name for t in spec.inputs if not t.optional and t.name not in given]
    if missing:
        raise RepositoryError(f"input '{missing[0]}' is not given")


def _tensor(one: WarmUpInput, sample: WarmUp, spec: ModelSpec) -> Tensor:
    """Return an input of a sample: its data for one row, in every row of the batch."""
    if any(dim < 0 for dim in one.dims):
        raise RepositoryError(f"input '{one.name}' needs dims that are all known")
    if one.datatype not in DTYPES:
        raise RepositoryError(f"input '{one.name}' has no valid data_type")
    if one.data is WarmUpData.FILE:
        row = _from_file(spec.path.parent / FOLDER, one)
    elif one.data is WarmUpData.RANDOM:
        row = _random(one.datatype, one.dims)
    else:
        row = _zero(one.datatype, one.dims)
    if spec.max_batch_size > 0:
        if not 1 <= sample.batch_size <= spec.max_batch_size:
            raise RepositoryError(
                f"batch_size must be from 1 to max_batch_size ({spec.max_batch_size}), "
                f"not {sample.batch_size}"
            )
        row = np.broadcast_to(row, (sample.batch_size, *one.dims))
    return Tensor(one.name, one.datatype, np.ascontiguousarray(row))


def _zero(datatype: str, shape: tuple[int, ...]) -> Array:
    if datatype == "BYTES":
        return np.full(shape, b"", np.object_)
    return np.zeros(shape, DTYPES[datatype])


def _random(datatype: str, shape: tuple[int, ...]) -> Array:
    """Return small values: numbers of [0, 1), integers below 128."""
    source = np.random.default_rng(0)
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        return np.full(shape, b"warm-up", np.object_)
    if datatype == "BF16":
        # the upper half of a float32 is a bfloat16
        bits = source.random(shape, np.float32).view(np.uint32) >> 16
        return bits.astype(dtype)
    if dtype.kind == "f":
        return source.random(shape).astype(dtype)
    return source.integers(0, 2 if dtype.kind == "b" else 128, shape).astype(dtype)


def _from_file(folder: Path, one: WarmUpInput) -> Array:
    """Return what a file holds: raw little-endian elements; BYTES each after its length."""
    file = folder / one.file
    if not file.resolve().is_relative_to(folder.resolve()):
        raise RepositoryError(f"input_data_file '{one.file}' is outside the folder '{FOLDER}'")
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise RepositoryError(f"cannot read '{FOLDER}/{one.file}': {error.strerror}") from None
    try:
        return wire.array(one.datatype, tuple(one.dims), raw)
    except ValueError:
        count = math.prod(one.dims)
        raise RepositoryError(
            f"'{FOLDER}/{one.file}' does not hold {count} elements of {one.datatype}"
        ) from None
