"""The models that every server of the comparison serves, and what they answer.

Made with onnx from fixed seeds, so that nothing has to be downloaded or trained: FP32 `x` [n, k]
to FP32 `y` [n, m], as a Triton model repository. The expected answers are plain ONNX Runtime's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import service_pb2

MAX_BATCH_SIZE = 64
# Batching reorders float32 sums.
TOLERANCE = 1e-3

_OPSET = 20
_IR_VERSION = 10  # the newest that older runtimes read
_SEED = 20261123


@dataclass(frozen=True, slots=True)
class Model:
    """One of the models: its name, and the width of its input."""

    name: str
    width: int
    cases: int = 64


TINY = Model("tiny", 784)
HEAVIER = Model("heavier", 784)
# About 900 rows a second on a core, 16 at a time nearly as many as 64: far below what a client in
# Python can send, and fast enough to be in time for 50 ms.
DEEP = Model("deep", 784)
TENSOR = Model("tensor", 1024 * 1024, cases=4)
MODELS = (TINY, HEAVIER, DEEP, TENSOR)


@dataclass(frozen=True, slots=True)
class Cases:
    """Inputs [cases, 1, width] of one row each, and the row that ONNX Runtime answers to each."""

    model: str
    inputs: NDArray[np.float32]
    expected: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.inputs)

    def is_right(self, index: int, row: NDArray[np.float32] | None) -> bool:
        """Whether a row is the answer to input `index`."""
        expected = self.expected[index]
        return (
            row is not None
            and row.shape == expected.shape
            and bool(np.allclose(row, expected, rtol=TOLERANCE, atol=TOLERANCE))
        )

    def grpc_request(self, index: int) -> bytes:
        """Return input `index` as a serialised ModelInferRequest."""
        data = self.inputs[index]
        request = service_pb2.ModelInferRequest(model_name=self.model)
        request.inputs.add(name="x", datatype="FP32", shape=data.shape)
        request.raw_input_contents.append(data.tobytes())
        message: bytes = request.SerializeToString()
        return message

    def grpc_response(self, index: int) -> bytes:
        """Return the answer to input `index` as a serialised ModelInferResponse."""
        data = self.expected[index]
        response = service_pb2.ModelInferResponse(model_name=self.model, model_version="1")
        response.outputs.add(name="y", datatype="FP32", shape=(1, *data.shape))
        response.raw_output_contents.append(data.tobytes())
        message: bytes = response.SerializeToString()
        return message

    def json_request(self, index: int, *, nested: bool = False) -> bytes:
        """Return input `index` as `{"x": [...]}`; nested: as a batch of one row."""
        # The inputs have two decimals, and so has their JSON: the least bytes for the same values.
        row = [round(float(value), 2) for value in self.inputs[index, 0]]
        return json.dumps({"x": [row] if nested else row}, separators=(",", ":")).encode()


def grpc_row(message: bytes) -> NDArray[np.float32] | None:
    """Return the row in a serialised ModelInferResponse; None where it is anything else."""
    response = service_pb2.ModelInferResponse.FromString(message)
    if len(response.raw_output_contents) == 1:
        return np.frombuffer(response.raw_output_contents[0], np.float32)
    if len(response.outputs) == 1:  # MLServer answers in typed contents to typed requests only
        return np.array(response.outputs[0].contents.fp32_contents, np.float32)
    return None


def json_row(body: bytes) -> NDArray[np.float32] | None:
    """Return the row in `{"y": [...]}`, or in bare lists; None where it is anything else."""
    try:
        answer = json.loads(body)
        rows = answer["y"] if isinstance(answer, dict) else answer
        return np.asarray(rows, np.float32).ravel()
    except (ValueError, KeyError, TypeError):
        return None


def make_repository(root: Path, models: Sequence[Model] = MODELS) -> None:
    """Write the models into `root`, a Triton model repository."""
    for model in models:
        folder = root / model.name / "1"
        folder.mkdir(parents=True)
        onnx.save(_BUILDERS[model.name](), folder / "model.onnx")
        (root / model.name / "config.pbtxt").write_text(
            f'name: "{model.name}"\n'
            'platform: "onnxruntime_onnx"\n'
            f"max_batch_size: {MAX_BATCH_SIZE}\n"
            f'input [ {{ name: "x" data_type: TYPE_FP32 dims: [ {model.width} ] }} ]\n'
            f'output [ {{ name: "y" data_type: TYPE_FP32 dims: [ {_answer_width(model)} ] }} ]\n'
            # Triton's own default on a CPU is 2, which halves its speed on two cores.
            "instance_group [ { count: 1 kind: KIND_CPU } ]\n"
            "dynamic_batching { }\n"
        )


def onnx_file(root: Path, model: Model) -> Path:
    """Return where `make_repository` put a model's file."""
    return root / model.name / "1" / "model.onnx"


def make_cases(root: Path, model: Model) -> Cases:
    """Return different inputs of a model, answered by a plain session."""
    rng = np.random.default_rng([_SEED, model.width])
    inputs = rng.integers(0, 100, (model.cases, 1, model.width)).astype(np.float32) / np.float32(
        100
    )
    session = onnxruntime.InferenceSession(
        onnx_file(root, model), providers=["CPUExecutionProvider"]
    )
    expected = np.concatenate([session.run(["y"], {"x": each})[0] for each in inputs])
    return Cases(model.name, inputs, expected)


def _answer_width(model: Model) -> int:
    return model.width if model is TENSOR else 10


def _tiny() -> onnx.ModelProto:
    return _perceptron((784, 128, 64, 10))


def _heavier() -> onnx.ModelProto:
    return _perceptron((784, 2048, 2048, 10))


def _deep() -> onnx.ModelProto:
    """One orthogonal layer 120 times over.

    Its 4 MB of weights stay in the cache at any batch size, and rows that differ go in and come
    out equally far apart, which as many layers with Relu between them would not do.
    """
    rng = np.random.default_rng(_SEED)
    size, layers = 1024, 120
    turn, _ = np.linalg.qr(rng.normal(0, 1, (size, size)))
    first = rng.normal(0, np.sqrt(1 / DEEP.width), (DEEP.width, size))
    last = rng.normal(0, np.sqrt(1 / size), (size, 10))
    weights = [
        numpy_helper.from_array(matrix.astype(np.float32), name)
        for name, matrix in (("first", first), ("turn", turn), ("last", last))
    ]
    names = ["x", *(f"s{layer}" for layer in range(layers + 1)), "y"]
    matrices = ["first", *(["turn"] * layers), "last"]
    nodes = [
        helper.make_node("Gemm", [value, matrix], [result])
        for value, matrix, result in zip(names, matrices, names[1:], strict=False)
    ]
    return _model(nodes, weights, DEEP.width, 10)


def _identity() -> onnx.ModelProto:
    return _model([helper.make_node("Identity", ["x"], ["y"])], [], TENSOR.width, TENSOR.width)


_BUILDERS = {"tiny": _tiny, "heavier": _heavier, "deep": _deep, "tensor": _identity}


def _perceptron(widths: Sequence[int]) -> onnx.ModelProto:
    """Gemm and Relu in turn; He's initial weights keep the size of what passes through."""
    rng = np.random.default_rng(_SEED)
    nodes, weights = [], []
    value = "x"
    last = len(widths) - 2
    for layer, (rows, columns) in enumerate(pairwise(widths)):
        matrix = rng.normal(0, np.sqrt(2 / rows), (rows, columns)).astype(np.float32)
        bias = rng.normal(0, 0.01, columns).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        weights.append(numpy_helper.from_array(bias, f"b{layer}"))
        summed = "y" if layer == last else f"s{layer}"
        nodes.append(helper.make_node("Gemm", [value, f"w{layer}", f"b{layer}"], [summed]))
        if layer != last:
            value = f"r{layer}"
            nodes.append(helper.make_node("Relu", [summed], [value]))
    return _model(nodes, weights, widths[0], widths[-1])


def _model(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto],
    width_in: int,
    width_out: int,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width_in])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width_out])],
        weights,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
