"""Does a configuration fit its ONNX model?"""

from __future__ import annotations

from typing import Any

from gateway.core import ModelSpec, TensorSpec
from gateway.errors import RepositoryError

_ONNX_TO_KSERVE = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}


def check_signature(spec: ModelSpec, session: Any) -> None:
    """Raise `RepositoryError` where the configuration contradicts the model."""
    spec = spec.inside
    needed = session.get_inputs()
    # with a value of their own in the model: what `optional` is for
    inputs = [*needed, *session.get_overridable_initializers()]
    scattered = spec.ragged.scattered if spec.ragged else {}
    for kind, declared, actual in (
        ("input", spec.inputs, inputs),
        ("output", spec.outputs, session.get_outputs()),
    ):
        by_name = {node.name: node for node in actual}
        for tensor in declared:
            if tensor.name not in by_name:
                names = ", ".join(sorted(by_name))
                raise RepositoryError(
                    f"config.pbtxt names {kind} '{tensor.name}', which the model has not; "
                    f"it has: {names}"
                )
            node = by_name[tensor.name]
            _check_datatype(kind, tensor, node)
            if tensor.name not in scattered:  # these have their shapes from what clients send
                _check_dims(kind, tensor, node, spec.max_batch_size > 0)
    missing = {node.name for node in needed} - {tensor.name for tensor in spec.inputs}
    if missing:
        raise RepositoryError(
            f"config.pbtxt does not name the model's input '{min(missing)}', which it needs"
        )


def _check_datatype(kind: str, tensor: TensorSpec, node: Any) -> None:
    datatype = _ONNX_TO_KSERVE.get(node.type)
    if datatype is None:
        raise RepositoryError(f"the model's {kind} '{node.name}' has the type {node.type}")
    if datatype != tensor.datatype:
        raise RepositoryError(
            f"config.pbtxt gives {kind} '{tensor.name}' the data type {tensor.datatype}, "
            f"the model {datatype}"
        )


def _check_dims(kind: str, tensor: TensorSpec, node: Any, batched: bool) -> None:
    actual = [dim if isinstance(dim, int) else -1 for dim in node.shape or ()]
    declared = [-1, *tensor.model_dims] if batched else [*tensor.model_dims]
    if kind == "output" and not actual:
        return  # ONNX Runtime does not know the rank: [] is what it says then, too
    fits = len(actual) == len(declared) and all(
        # a fixed output of a dim declared open is right; a fixed input would refuse clients
        a in (d, -1) or (d == -1 and kind == "output" and not (batched and i == 0))
        for i, (a, d) in enumerate(zip(actual, declared, strict=True))
    )
    if not fits:
        raise RepositoryError(
            f"config.pbtxt gives {kind} '{tensor.name}' the dims {declared}"
            f"{' (batch first)' if batched else ''}, the model {actual}"
        )
