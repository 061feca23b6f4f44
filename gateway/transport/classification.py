"""The classification extension: a tensor of scores -> its best classes, as Triton writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gateway.core import Array, Tensor
from gateway.errors import InvalidRequest

_INTEGERS = frozenset(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
_FLOATS = frozenset({"FP32", "FP64"})


def classify(tensor: Tensor, classes: int, batched: bool, labels: Sequence[bytes]) -> Tensor:
    """Return the best `classes` of a tensor, best first: BYTES `SCORE:INDEX[:LABEL]`.

    `batched` says that the first dimension is the batch; a row's other dimensions are one. Of equal
    scores the lower index comes first, and what is no number last. Raises `InvalidRequest` for a
    datatype that is no score.
    """
    if tensor.datatype not in _INTEGERS | _FLOATS:
        raise InvalidRequest(
            f"class result not available for output due to unsupported type '{tensor.datatype}'"
        )
    shape = tensor.data.shape
    rows = shape[:1] if batched else ()
    scores = tensor.data.reshape(math.prod(rows), math.prod(shape[len(rows) :]))
    # ~ turns integers around as - does floats, without an overflow
    backwards = -scores if tensor.datatype in _FLOATS else ~scores
    best = np.argsort(backwards, axis=1, kind="stable")[:, :classes]
    written = np.empty(best.shape, np.object_)
    for row, indices in enumerate(best):
        written[row] = [_write(scores[row], index, labels) for index in indices.tolist()]
    return Tensor(tensor.name, "BYTES", written.reshape(*rows, best.shape[1]))


def _write(scores: Array, index: int, labels: Sequence[bytes]) -> bytes:
    score = scores[index]
    number = f"{score:f}" if isinstance(score, np.floating) else str(score)
    label = labels[index] if index < len(labels) else b""
    return f"{number}:{index}".encode() + (b":" + label if label else b"")
