"""The models of the serverless rows: many small ones, some larger ones, an echo, a CNN of 100 MB.

FP32 `x` to FP32 `y`, as a Triton model repository, with onnx from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import service_pb2

from benchmarks.cold_start import CHANNELS, cnn

SMALL_WIDTH, SMALL_OUT = 200, 250  # 200 KB of weights
SMALL_BYTES = 256_000  # what a small model is said to take
ECHO, ECHO_WIDTH = "echo", 4
LARGER_WIDTH, LARGER_OUT = 784, 6400  # 20 MB of weights
# Four convolutions of 64 channels: some milliseconds for each row, in a batch as well as alone.
HEAVY, HEAVY_SIDE, HEAVY_CHANNELS, HEAVY_BATCH = "heavy", 64, 64, 8
CNN = "cnn"
# With 8 x 8 pixels a row costs 3 GFLOP, as in a ResNet-50, which has 100 MB of weights, too.
CNN_PIXELS = 8

_SEED = 20261123


def small_name(index: int) -> str:
    """Return the name of one of the many."""
    return f"m{index:04}"


def make_many(root: Path, count: int) -> None:
    """Write `count` equal small models of 200 KB; each says that it takes `SMALL_BYTES`."""
    message = _matrix(SMALL_WIDTH, SMALL_OUT).SerializeToString()
    taken = {"tidegate.memory_bytes": str(SMALL_BYTES)}
    for index in range(count):
        _put(root, small_name(index), message, SMALL_WIDTH, SMALL_OUT, taken)


def make_larger(root: Path, count: int) -> list[str]:
    """Write `count` models of 20 MB; return their names."""
    message = _matrix(LARGER_WIDTH, LARGER_OUT).SerializeToString()
    names = [f"larger{index}" for index in range(count)]
    for name in names:
        _put(root, name, message, LARGER_WIDTH, LARGER_OUT)
    return names


def make_echo(root: Path, **parameters: str) -> None:
    """Write a model that answers what it was asked; `parameters` are the gateway's own."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "echo",
        *_ends(ECHO_WIDTH, ECHO_WIDTH),
    )
    own = {f"tidegate.{name}": value for name, value in parameters.items()}
    message = _model(graph).SerializeToString()
    _put(root, ECHO, message, ECHO_WIDTH, ECHO_WIDTH, own)


def make_heavy(root: Path) -> None:
    """Write the model whose runs are what a request costs."""
    rng = np.random.default_rng([_SEED, HEAVY_SIDE])
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["image0"])]
    stored = [numpy_helper.from_array(np.array([-1, 1, HEAVY_SIDE, HEAVY_SIDE]), "shape")]
    channels = 1
    for layer in range(4):
        shape = (HEAVY_CHANNELS, channels, 3, 3)
        weights = rng.normal(0, 1 / np.sqrt(9 * channels), shape).astype(np.float32)
        stored.append(numpy_helper.from_array(weights, f"w{layer}"))
        ends = [f"image{layer}", f"w{layer}"], [f"image{layer + 1}"]
        nodes.append(helper.make_node("Conv", *ends, pads=[1, 1, 1, 1]))
        channels = HEAVY_CHANNELS
    nodes.append(helper.make_node("GlobalAveragePool", ["image4"], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["y"]))
    width = HEAVY_SIDE**2
    graph = helper.make_graph(nodes, HEAVY, *_ends(width, HEAVY_CHANNELS), stored)
    message = _model(graph).SerializeToString()
    _put(root, HEAVY, message, width, HEAVY_CHANNELS, max_batch_size=HEAVY_BATCH)


def make_cnn(root: Path) -> None:
    """Write the CNN of 104 MB."""
    model = cnn()
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = CNN_PIXELS
    folder = root / CNN / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    (root / CNN / "config.pbtxt").write_text(
        f'name: "{CNN}"\n'
        'platform: "onnxruntime_onnx"\n'
        "max_batch_size: 8\n"
        f'input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 3, {CNN_PIXELS}, {CNN_PIXELS} ] }} ]\n'
        f'output [ {{ name: "y" data_type: TYPE_FP32 dims: [ {CHANNELS}, 1, 1 ] }} ]\n'
        "instance_group [ { count: 1 kind: KIND_CPU } ]\n"
    )


def request(model: str, *shape: int, value: float = 1.0, number: str = "") -> bytes:
    """Return a serialised ModelInferRequest whose input is `value` everywhere."""
    message = service_pb2.ModelInferRequest(model_name=model, id=number)
    message.inputs.add(name="x", datatype="FP32", shape=shape)
    message.raw_input_contents.append(np.full(shape, value, np.float32).tobytes())
    serialised: bytes = message.SerializeToString()
    return serialised


def _matrix(width_in: int, width_out: int) -> onnx.ModelProto:
    rng = np.random.default_rng([_SEED, width_in])
    weights = rng.normal(0, 1 / np.sqrt(width_in), (width_in, width_out)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    stored = [numpy_helper.from_array(weights, "w")]
    return _model(helper.make_graph([node], "matrix", *_ends(width_in, width_out), stored))


def _ends(
    width_in: int, width_out: int
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    info = helper.make_tensor_value_info
    return (
        [info("x", TensorProto.FLOAT, ["n", width_in])],
        [info("y", TensorProto.FLOAT, ["n", width_out])],
    )


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _put(
    root: Path,
    name: str,
    message: bytes,
    width_in: int,
    width_out: int,
    parameters: Mapping[str, str] | None = None,
    max_batch_size: int = 64,
) -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(message)
    own = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in (parameters or {}).items()
    )
    (folder.parent / "config.pbtxt").write_text(
        f'name: "{name}"\n'
        'platform: "onnxruntime_onnx"\n'
        f"max_batch_size: {max_batch_size}\n"
        f'input [ {{ name: "x" data_type: TYPE_FP32 dims: [ {width_in} ] }} ]\n'
        f'output [ {{ name: "y" data_type: TYPE_FP32 dims: [ {width_out} ] }} ]\n'
        "instance_group [ { count: 1 kind: KIND_CPU } ]\n"
        "dynamic_batching { }\n"
        f"{own}"
    )
