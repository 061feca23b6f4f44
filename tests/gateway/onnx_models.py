"""Small real ONNX models, and repositories of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def plus(constant: float) -> bytes:
    """`y` is `x` + a constant; FP32 [n, 3]."""
    info = helper.make_tensor_value_info
    return _model(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        [info("x", TensorProto.FLOAT, ["n", 3])],
        [info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array(constant, np.float32), "c")],
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


def swelling(megabytes: int) -> bytes:
    """`y` = `x` + 1 for small whole numbers, by a table so large that the file only describes."""
    length = numpy_helper.from_array(np.array([megabytes * 250_000], np.int64), "length")
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("ConstantOfShape", ["length"], ["table"], value=one),
        helper.make_node("Cast", ["x"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "place"], ["found"]),
        helper.make_node("Add", ["x", "found"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    return _model(nodes, [x], [y], [length])


def gru(inputs: int = 4, hidden: int = 8) -> bytes:
    """A GRU's step: `y` and `h_out` are what `x` makes of `h_in`; FP32 [n, inputs], [n, hidden]."""
    random = np.random.default_rng(7)
    weights: dict[str, np.ndarray[Any, Any]] = {
        "w": random.normal(size=(1, 3 * hidden, inputs)).astype(np.float32),
        "r": random.normal(size=(1, 3 * hidden, hidden)).astype(np.float32),
        "b": random.normal(size=(1, 6 * hidden)).astype(np.float32),
        "axis": np.array([0], np.int64),
    }
    info = helper.make_tensor_value_info
    return _model(
        [
            helper.make_node("Unsqueeze", ["x", "axis"], ["x_step"]),
            helper.make_node("Unsqueeze", ["h_in", "axis"], ["h_step"]),
            helper.make_node(
                "GRU", ["x_step", "w", "r", "b", "", "h_step"], ["", "h_last"], hidden_size=hidden
            ),
            helper.make_node("Squeeze", ["h_last", "axis"], ["h_out"]),
            helper.make_node("Identity", ["h_out"], ["y"]),
        ],
        [
            info("x", TensorProto.FLOAT, ["n", inputs]),
            info("h_in", TensorProto.FLOAT, ["n", hidden]),
        ],
        [info(name, TensorProto.FLOAT, ["n", hidden]) for name in ("y", "h_out")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )


def running_sum(corrid: str = "INT64", batched: bool = True) -> bytes:
    """`total` and `after` are `x` + `before`; `seen` is start, end, ready; `name` the id as a text.

    INT32 [n, 1], `seen` [n, 3], `name` BYTES [n, 1].
    """
    row: list[int | str] = ["n", 1] if batched else [1]
    named = (
        helper.make_node("Identity", ["corrid"], ["name"])
        if corrid == "BYTES"
        else helper.make_node("Cast", ["corrid"], ["name"], to=TensorProto.STRING)
    )
    info = helper.make_tensor_value_info
    names = ("x", "before", "start", "end", "ready")
    return _model(
        [
            helper.make_node("Add", ["x", "before"], ["total"]),
            helper.make_node("Identity", ["total"], ["after"]),
            helper.make_node("Concat", ["start", "end", "ready"], ["seen"], axis=-1),
            named,
        ],
        [
            *(info(name, TensorProto.INT32, row) for name in names),
            info("corrid", ELEMENT_TYPES[corrid], row),
        ],
        [
            *(info(name, TensorProto.INT32, row) for name in ("total", "after")),
            info("seen", TensorProto.INT32, [*row[:-1], 3]),
            info("name", TensorProto.STRING, row),
        ],
    )


def ragged() -> bytes:
    """Of requests' rows, one after the other in `x`: `sum` of each, `doubled` x, `seen`.

    `seen` is what the batch inputs say of each: count, count so far, the largest, its shape twice.
    """
    info = helper.make_tensor_value_info
    node = helper.make_node
    columns = ["count", "so_far", "largest_of", "shape", "shape_flat"]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "zero": np.array([0], np.float32),
        "axis_0": np.array(0, np.int64),
        "axis_1": np.array([1], np.int64),
        "from_1": np.array([1], np.int64),
        "from_0": np.array([0], np.int64),
        "to_end": np.array([2**31], np.int64),
        "to_last": np.array([-1], np.int64),
        "column": np.array([-1, 1], np.int64),
    }
    return _model(
        [
            node("CumSum", ["x", "axis_0"], ["running"]),
            node("Concat", ["zero", "running"], ["padded"], axis=0),
            node("Gather", ["padded", "ends"], ["at_ends"]),
            node("Slice", ["at_ends", "from_1", "to_end"], ["upper"]),
            node("Slice", ["at_ends", "from_0", "to_last"], ["lower"]),
            node("Sub", ["upper", "lower"], ["sums"]),
            node("Unsqueeze", ["sums", "axis_1"], ["sum"]),
            node("Add", ["x", "x"], ["doubled"]),
            node("Shape", ["largest"], ["largest_shape"]),
            node("Cast", ["largest_shape"], ["largest_number"], to=TensorProto.INT32),
            node("Sub", ["count", "count"], ["no_count"]),
            node("Add", ["no_count", "largest_number"], ["largest_of"]),
            *(node("Reshape", [name, "column"], [f"{name}_column"]) for name in columns),
            node("Concat", [f"{name}_column" for name in columns], ["seen"], axis=1),
        ],
        [
            info("x", TensorProto.FLOAT, ["k"]),
            info("ends", TensorProto.INT32, ["n_and_1"]),
            info("count", TensorProto.INT32, ["n"]),
            info("so_far", TensorProto.INT32, ["n"]),
            info("largest", TensorProto.FLOAT, ["m"]),
            info("shape", TensorProto.INT32, ["n", 1]),
            info("shape_flat", TensorProto.INT32, ["n"]),
        ],
        [
            info("sum", TensorProto.FLOAT, ["n", 1]),
            info("doubled", TensorProto.FLOAT, ["k"]),
            info("seen", TensorProto.INT32, ["n", 5]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )


RAGGED = """backend: "onnxruntime"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true }
output [
  { name: "sum" data_type: TYPE_FP32 dims: 1 }, { name: "doubled" data_type: TYPE_FP32 dims: -1 },
  { name: "seen" data_type: TYPE_INT32 dims: 5 }
]
batch_input [
  { kind: BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO target_name: "ends" data_type: TYPE_INT32
    source_input: "x" },
  { kind: BATCH_ELEMENT_COUNT target_name: "count" data_type: TYPE_INT32 source_input: "x" },
  { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "so_far" data_type: TYPE_INT32
    source_input: "x" },
  { kind: BATCH_MAX_ELEMENT_COUNT_AS_SHAPE target_name: "largest" data_type: TYPE_FP32
    source_input: "x" },
  { kind: BATCH_ITEM_SHAPE target_name: "shape" data_type: TYPE_INT32 source_input: "x" },
  { kind: BATCH_ITEM_SHAPE_FLATTEN target_name: "shape_flat" data_type: TYPE_INT32
    source_input: "x" }
]
batch_output {
  kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "doubled" source_input: "x"
}
dynamic_batching { preferred_batch_size: 3 max_queue_delay_microseconds: 5000000 }
instance_group { count: 1 kind: KIND_CPU }
"""
"""How the model `ragged` is served: in batches of three."""


def plus_default() -> bytes:
    """`y` is `x` + `b`; `b` is 10 where it is not given; FP32 [2]."""
    info = helper.make_tensor_value_info
    return _model(
        [helper.make_node("Add", ["x", "b"], ["y"])],
        [info(name, TensorProto.FLOAT, [2]) for name in "xb"],
        [info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.full(2, 10, np.float32), "b")],
    )


def put(root: Path, name: str, model: bytes, config: str = "", version: int | str = 1) -> Path:
    """Write one version of a model into a repository; return the version's folder."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model)
    if config:
        (root / name / "config.pbtxt").write_text(config)
    return folder


def widened(columns: int) -> bytes:
    """`y` is `x` so many times side by side; FP32 [n, 1] -> [n, columns]."""
    return _model(
        [helper.make_node("Expand", ["x", "shape"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
        [numpy_helper.from_array(np.array([1, columns]), "shape")],
    )
