"""Small real ONNX models, and repositories of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ELEMENT_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}

Dims = Sequence[int | str]


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
) -> bytes:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def identity(datatype: str = "FP32", dims: Dims = ("n", 3)) -> bytes:
    """`y` is `x`, for any datatype."""
    element = ELEMENT_TYPES[datatype]
    return _model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", element, dims)],
        [helper.make_tensor_value_info("y", element, dims)],
    )


def every(datatypes: Sequence[str]) -> bytes:
    """`y_FP32` is `x_FP32`, and so on for each datatype; [n, 3]."""
    infos = {
        side: [
            helper.make_tensor_value_info(f"{side}_{datatype}", ELEMENT_TYPES[datatype], ["n", 3])
            for datatype in datatypes
        ]
        for side in "xy"
    }
    nodes = [helper.make_node("Identity", [f"x_{each}"], [f"y_{each}"]) for each in datatypes]
    return _model(nodes, infos["x"], infos["y"])


def add_and_multiply() -> bytes:
    """`sum` is `a` + `b`, `product` is `a` * `b`; FP32 [n, 2]."""
    return _model(
        [
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("Mul", ["a", "b"], ["product"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "ab"],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])
            for name in ("sum", "product")
        ],
    )


def heavy(megabytes: int) -> bytes:
    """`y` is `x` times a matrix of so many megabytes; FP32 [n, 1024] -> [n, k]."""
    columns = megabytes * 256
    matrix = np.full((1024, columns), 1e-3, np.float32)
    return _model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
        [numpy_helper.from_array(matrix, "w")],
    )


def put(root: Path, name: str, model: bytes, config: str = "", version: int | str = 1) -> Path:
    """Write one version of a model into a repository; return the version's folder."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model)
    if config:
        (root / name / "config.pbtxt").write_text(config)
    return folder
