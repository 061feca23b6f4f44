"""A repository whose model `reader` reads scanned digits: scale -> digits -> decide.

python -m examples.ensemble.build FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
DIGITS = HERE.parents[1] / "model_repository" / "digits"

BATCHED = "max_batch_size: 64\ndynamic_batching { }\n"
ONE_COLUMN = 'output { name: "digit" data_type: TYPE_INT64 dims: 1 }\n'


def build(root: Path) -> None:
    """Write the four models into a folder, which may exist."""
    _put(root / "scale", scale(), BATCHED)
    _put(root / "decide", decide(), BATCHED + ONE_COLUMN)
    shutil.copytree(DIGITS, root / "digits")
    shutil.copytree(HERE / "reader", root / "reader")
    (root / "reader" / "1").mkdir()  # an ensemble's version has no files, but a folder
    shutil.copy(DIGITS / "labels.txt", root / "reader")


def scale() -> onnx.ModelProto:
    """`scan` UINT8 [n, 8, 8] in 0..16 -> what digits takes: `image` FP32 [n, 1, 8, 8] in 0..1."""
    return _model(
        [
            helper.make_node("Cast", ["scan"], ["raw"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["raw", "sixteen"], ["flat"]),
            helper.make_node("Unsqueeze", ["flat", "channel"], ["image"]),
        ],
        helper.make_tensor_value_info("scan", TensorProto.UINT8, ["n", 8, 8]),
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8]),
        numpy_helper.from_array(np.array(16, np.float32), "sixteen"),
        numpy_helper.from_array(np.array([1]), "channel"),
    )


def decide() -> onnx.ModelProto:
    """`logits` FP32 [n, 10] -> `digit` INT64 [n, 1]: the index of the largest."""
    return _model(
        [helper.make_node("ArgMax", ["logits"], ["digit"], axis=1, keepdims=1)],
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10]),
        helper.make_tensor_value_info("digit", TensorProto.INT64, ["n", 1]),
    )


def _model(
    nodes: list[onnx.NodeProto],
    source: onnx.ValueInfoProto,
    target: onnx.ValueInfoProto,
    *weights: onnx.TensorProto,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", [source], [target], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _put(folder: Path, model: onnx.ModelProto, config: str) -> None:
    (folder / "1").mkdir(parents=True)
    onnx.save(model, folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(config)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
