"""Formats: which are tried, what a lowered file computes, what NVIDIA's builder says of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnxruntime
import pytest

from export import formats, nvidia, onnx_graph, reference, tensorrt_engine
from export.errors import ParityError, PointlessError
from export.formats import Have
from export.nvidia import Range
from export.reference import Check
from export.spec import FORMATS, ExportSpec
from export.steps import lower, verify

MakeSpec = Callable[..., ExportSpec]

CPU = Have("cpu", no_cuda="there is no GPU here", no_tensorrt="no driver", no_preflight=None)
GPU = Have("gpu", no_cuda=None, no_tensorrt=None, no_preflight=None, capability=(7, 5))


def skipped(spec: ExportSpec, have: Have) -> dict[str, str]:
    return {each.format: each.skipped for each in formats.plan(spec, have)}


def test_a_cpu_tries_what_a_cpu_is_good_at(make_spec: MakeSpec) -> None:
    reasons = skipped(make_spec(samples="zoo.py:misshapen"), CPU)

    assert set(reasons) == set(FORMATS)
    assert {name for name, why in reasons.items() if not why} == {
        "onnx-fp32", "onnx-int8", "onnx-int8-dynamic",
    }  # fmt: skip
    assert reasons["tensorrt-fp16"] == "no driver"
    asked = make_spec(formats=["onnx-fp16"])
    assert skipped(asked, CPU) == {"onnx-fp32": "", "onnx-fp16": ""}


def test_eight_bits_need_samples(make_spec: MakeSpec) -> None:
    reasons = skipped(make_spec(), CPU)

    assert reasons["onnx-int8"].endswith("int8 is calibrated on real inputs")
    assert reasons["onnx-int8-dynamic"].endswith("int8 is judged on real inputs")


def test_a_gpu_tries_engines_and_what_its_generation_runs(make_spec: MakeSpec) -> None:
    reasons = skipped(make_spec(samples="zoo.py:misshapen"), GPU)

    assert reasons["tensorrt-fp16"] == reasons["onnx-fp16"] == ""
    assert reasons["onnx-bf16"] == "bfloat16 needs compute capability 8.0, this GPU has 7.5"
    assert reasons["onnx-int8-dynamic"]


CONVOLUTION = """
    <ir_version: 9, opset_import: ["": 20]>
    conv (float[batch, 3, 16, 16] x) => (float[batch, 8, 16, 16] y)
    <float[8, 3, 3, 3] w> { h = Conv<pads = [1, 1, 1, 1]>(x, w)  y = Relu(h) }
"""
MATRIX = """
    <ir_version: 9, opset_import: ["": 20]>
    dense (float[batch, 64] x) => (float[batch, 64] y) <float[64, 64] w> { y = MatMul(x, w) }
"""
DOUBLE = """
    <ir_version: 9, opset_import: ["": 20]>
    double (float[batch, 4] x) => (float[batch, 4] y) { y = Add(x, x) }
"""


def saved(text: str, folder: Path, *, external: bool = False) -> Path:
    """The model with random weights of a fixed seed."""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for value in model.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = (rng.standard_normal(shape) / 8).astype("float32")
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del model.graph.value_info[:]
    folder.mkdir(exist_ok=True)
    onnx.save(
        model,
        folder / "model.onnx",
        save_as_external_data=external,
        location="model.onnx.data",
        size_threshold=0,
    )
    return folder


def calls(folder: Path, *shape: int) -> tuple[Path, ...]:
    """Files of real calls."""
    rng = np.random.default_rng(1)
    files = []
    for number in range(4):
        files.append(folder / f"{number:03}.npz")
        np.savez(files[-1], **{"in:x": rng.standard_normal((2, *shape)).astype("float32")})  # type: ignore[arg-type]
    return tuple(files)


@pytest.mark.parametrize(
    ("text", "shape", "name", "worst"),
    [
        (CONVOLUTION, (3, 16, 16), "onnx-fp16", 0.01),
        (CONVOLUTION, (3, 16, 16), "onnx-int8", 0.1),
        (MATRIX, (64,), "onnx-int8-dynamic", 0.1),
    ],
)
def test_a_lowered_file_computes_nearly_the_same(
    tmp_path: Path, text: str, shape: tuple[int, ...], name: Any, worst: float
) -> None:
    source = saved(text, tmp_path / "exact")
    folder = tmp_path / "lowered"
    folder.mkdir()
    real = calls(tmp_path, *shape)

    report = lower.run(lower.Request(source=source, format=name, calibration=real), folder)

    assert report.lowered >= 1
    given = reference.read(real[0])[0]
    exact, lowered = (
        onnxruntime.InferenceSession(where / "model.onnx").run(None, given)[0]
        for where in (source, folder)
    )
    assert 0 < np.abs(exact - lowered).max() < worst
    graph = onnx.load(folder / "model.onnx").graph
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [
        "batch", *shape,
    ]  # fmt: skip


def test_what_gains_nothing_says_so(tmp_path: Path) -> None:
    source = saved(CONVOLUTION, tmp_path / "exact")

    with pytest.raises(PointlessError, match="nothing in this model gains: it has no MatMul"):
        lower.run(lower.Request(source=source, format="onnx-int8-dynamic"), tmp_path)


def checked(tmp_path: Path, spec: ExportSpec, scale: float, *, real: bool, precision: str) -> Any:
    """A file that doubles, held to answers of `scale` times the input."""
    saved(DOUBLE, tmp_path)
    x = np.ones((2, 4), "float32")
    (tmp_path / "reference").mkdir()
    np.savez(tmp_path / "reference" / "0.npz", **{"in:x": x, "out:y": scale * x})  # type: ignore[arg-type]
    check = Check(file="0.npz", sizes={"batch": 2}, real=real)
    request = verify.Request(
        spec=spec,
        model=tmp_path / "model.onnx",
        precision=precision,
        references=tmp_path / "reference",
        checks=(check,),
    )
    return verify.run(request, tmp_path)


def test_every_precision_has_its_own_tolerance(make_spec: MakeSpec, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"misses atol 1e-05, rtol 0\.001") as error:
        checked(tmp_path / "a", make_spec(), 2.01, real=True, precision="fp32")
    assert "a Python `if`" in error.value.advice
    assert checked(tmp_path / "b", make_spec(), 2.01, real=True, precision="fp16")
    # In eight bits only the direction is judged, and that on real values alone.
    assert checked(tmp_path / "c", make_spec(), 9.0, real=True, precision="int8")
    with pytest.raises(ParityError, match=r"mean cosine -1\.0000"):
        checked(tmp_path / "d", make_spec(), -2.0, real=True, precision="int8")
    own = {
        "name": "y",
        "dtype": "FP32",
        "dims": [4],
        "tolerances": {"fp16": {"atol": 0, "rtol": 0}},
    }
    with pytest.raises(ParityError, match="misses atol 0, rtol 0"):
        checked(tmp_path / "e", make_spec(outputs=[own]), 2.01, real=True, precision="fp16")


def test_values_inside_give_way_to_the_names_of_outputs() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 20]>
        twice (float[n] x) => (float[n] out) { y = Add(x, x)  out = Mul(y, x) }
    """)

    onnx_graph.rename(model, {"out": "y"})

    assert [list(node.output) for node in model.graph.node] == [["y_2"], ["y"]]
    assert model.graph.output[0].name == "y"
    onnx.checker.check_model(model, full_check=True)


def test_engines_for_several_gpus_are_named_by_compute_capability() -> None:
    files = [Path(tensorrt_engine.named_for(each)) for each in ((8, 9), (9, 0), (12, 0))]

    assert tensorrt_engine.by_capability([*files, Path("model.plan")]) == {
        "8.9": "model_cc89.plan",
        "9.0": "model_cc90.plan",
        "12.0": "model_cc120.plan",
    }


def test_shapes_of_an_engine_are_those_that_are_verified_or_said(make_spec: MakeSpec) -> None:
    ids = {"name": "x", "dtype": "FP32", "dims": ["seq", 4]}
    fields: dict[str, Any] = {"inputs": [ids], "dim_sizes": {"seq": [1, 9, 33]}}

    (shape,) = nvidia.ranges(make_spec(**fields)).values()
    assert (shape.smallest, shape.largest) == ((1, 1, 4), (8, 33, 4))
    said = {"sizes": {"batch": [2, 4, 8], "seq": [16, 64, 128]}}
    (shape,) = nvidia.ranges(make_spec(**fields, tensorrt=said)).values()
    assert shape == Range((2, 16, 4), (4, 64, 4), (8, 128, 4))


def test_without_a_driver_tensorrt_is_not_even_imported() -> None:
    if tensorrt_engine.absent() is None:
        pytest.skip("TensorRT is here")

    assert tensorrt_engine.absent()
