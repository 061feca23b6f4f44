"""NVIDIA's builder: what it takes, what it is asked for, and why it refuses the rest.

The real one is TensorRT-RTX, which needs no GPU; what only a GPU brings about is scripted.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from numpy.typing import NDArray
from onnx.parser import parse_model
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16

from export import nvidia, preflight
from export.errors import ConversionError
from export.nvidia import Options, Range
from tests.export.scripted_tensorrt import Library, Severity

needs_preflight = pytest.mark.skipif(preflight.absent() is not None, reason=str(preflight.absent()))

ROWS = {"x": Range((1, 4), (2, 4), (8, 4))}
IMAGES = {"x": Range((1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16))}
RELU = "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }"
CNN = """
cnn (float[n, 3, 16, 16] x) => (float[n, 10] y) {
    c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w, b)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = MatMul(f, v)
}"""


def model(graph: str) -> onnx.ModelProto:
    return parse_model(f'<ir_version: 9, opset_import: ["" : 20, "acme" : 1]> {graph}')


def cnn() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    made = model(CNN)
    for name, shape in {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 10)}.items():
        weights = random.standard_normal(shape).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    return made


def put(folder: Path, what: onnx.ModelProto | str) -> Path:
    path = folder / "model.onnx"
    onnx.save(model(what) if isinstance(what, str) else what, path)
    return path


def refused(folder: Path, graph: str, ranges: dict[str, Range] = ROWS) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        preflight.check(put(folder, graph), ranges)
    return caught.value


class Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        draw = np.random.default_rng(1).standard_normal
        self._left = [draw((4, 3, 16, 16)).astype(np.float32) for _ in range(4)]

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return {"x": self._left.pop()} if self._left else None


@needs_preflight
def test_builder_takes_a_convolution_in_float32(tmp_path: Path) -> None:
    built = preflight.check(put(tmp_path, cnn()), IMAGES)

    assert len(built.engine) > 1000
    assert built.layers >= 4
    assert built.warnings == ()


@needs_preflight
def test_builder_takes_half_floats_behind_float32_inputs(tmp_path: Path) -> None:
    half = convert_float_to_float16(cnn(), keep_io_types=True)

    assert preflight.check(put(tmp_path, half), IMAGES).engine


@needs_preflight
def test_builder_takes_symmetric_static_int8_without_quantised_biases(tmp_path: Path) -> None:
    exact, path = put(tmp_path, cnn()), tmp_path / "int8.onnx"
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    quantize_static(
        exact,
        path,
        Images(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options=symmetric,
    )

    assert preflight.check(path, IMAGES).engine


@needs_preflight
def test_weights_beside_the_file_are_found_and_their_loss_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(cnn(), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    assert preflight.check(path, IMAGES).engine

    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(ConversionError, match="Failed to import initializer"):
        preflight.check(path, IMAGES)


@needs_preflight
@pytest.mark.parametrize(
    ("graph", "told"),
    [
        ("g (float[n, 4] x) => (float[n] y) { t = Relu(x) y = Det(t) }", r"Det \(node 1\): "),
        ("g (float[n, 4] x) => (float[n, 4] y) { [odd] y = acme.Odd(x) }", "Odd 'odd': .*Plugin"),
        ("g (uint8[n, 4] x) => (uint8[n, 4] y) { y = Add(x, x) }", r"Add \(node 0\): .*UInt8"),
    ],
)
def test_what_the_parser_refuses_is_named_with_its_place(
    tmp_path: Path, graph: str, told: str
) -> None:
    error = refused(tmp_path, graph)

    assert re.search(told, str(error), re.DOTALL)
    assert ": false" not in str(error)
    assert error.advice == "write that part with operators and dtypes that TensorRT has"


@needs_preflight
def test_dynamically_quantised_graph_is_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    graph = "g (float[n, 4] x) => (uint8[n, 4] y, float s, uint8 z) {"
    error = refused(tmp_path, f"{graph} y, s, z = DynamicQuantizeLinear(x) }}")

    assert "DynamicQuantizeLinear (node 0): TensorRT has no such operator" in str(error)
    assert "statically" in error.advice


@needs_preflight
@pytest.mark.parametrize(
    "graph",
    [
        "g (double[n, 4] x) => (float[n, 4] y) { y = Cast<to = 1>(x) }",
        "g (float[n, 4] x) => (double[n, 4] y) { y = Cast<to = 11>(x) }",
    ],
)
def test_double_precision_is_refused_where_nvidia_would_round_in_silence(
    tmp_path: Path, graph: str
) -> None:
    assert "no double precision" in str(refused(tmp_path, graph))


@needs_preflight
@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        (Range((8, 4), (2, 4), (1, 4)), "MIN<=OPT<=MAX"),
        (Range((-1, 4), (2, 4), (8, 4)), "shapes of 'x'"),
        (Range((1, 5), (2, 5), (8, 5)), "profile has min=5"),
        (Range((1, 4, 1), (2, 4, 1), (8, 4, 1)), "profile 0 has 3 dimensions"),
        (None, "missing dimensions in profile"),
    ],
)
def test_bad_profile_is_refused_in_the_builders_words(
    tmp_path: Path, shapes: Range | None, told: str
) -> None:
    ranges = {} if shapes is None else {"x": shapes}
    error = refused(tmp_path, RELU, ranges)

    assert told in str(error)


@needs_preflight
def test_errors_do_not_speak_of_the_gpu_that_the_preflight_does_without(tmp_path: Path) -> None:
    upside_down = {"x": Range((8, 4), (2, 4), (1, 4))}

    assert "cuda" not in str(refused(tmp_path, RELU, upside_down)).lower()


@needs_preflight
def test_reasons_are_heard_while_an_earlier_error_is_kept(tmp_path: Path) -> None:
    earlier = [refused(tmp_path, RELU, {}) for _ in range(3)]

    assert all("missing dimensions in profile" in str(error) for error in earlier)
    assert preflight.check(put(tmp_path, RELU), ROWS).warnings == ()


@needs_preflight
@pytest.mark.parametrize("content", [b"no model", b"", None])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConversionError, match="NVIDIA's"):
        preflight.check(path, ROWS)


@pytest.mark.parametrize(("version", "flags"), [("10.13.3.9", 1 << 1), ("11.0.0.1", 0)])
def test_types_of_the_file_are_kept_by_either_tensorrt(
    tmp_path: Path, version: str, flags: int
) -> None:
    library = Library(version)

    assert nvidia.build(library, put(tmp_path, RELU), Options(ROWS)).engine == b"engine"
    assert library.asked["network flags"] == flags
    assert library.asked["x"] == ((1, 4), (2, 4), (8, 4))


def test_what_an_engine_shall_run_on_is_asked_of_the_builder(tmp_path: Path) -> None:
    plain, portable, path = Library(), Library(), put(tmp_path, RELU)
    nvidia.build(plain, path, Options(ROWS))
    assert "flag" not in plain.asked
    assert plain.hardware_compatibility_level is None

    wide = Options(ROWS, version_compatible=True, hardware_compatible=True, workspace_bytes=1 << 20)
    nvidia.build(portable, path, wide)
    assert portable.asked["flag"] == "version compatible"
    assert portable.hardware_compatibility_level == "ampere+"
    assert portable.asked["workspace"] == 1 << 20


def test_timings_of_one_build_are_known_to_the_next(tmp_path: Path) -> None:
    path, options = put(tmp_path, RELU), Options(ROWS, timing_cache=tmp_path / "new" / "timings")
    nvidia.build(Library(), path, options)
    second = Library()
    nvidia.build(second, path, options)

    assert second.asked["known timings"] == b"+1"
    assert [(file.name, file.read_bytes()) for file in (tmp_path / "new").iterdir()] == [
        ("timings", b"+1+1")
    ]


def test_failed_build_leaves_the_timings_as_they_were(tmp_path: Path) -> None:
    timings = tmp_path / "timings"
    timings.write_bytes(b"known")

    with pytest.raises(ConversionError, match="gives no engine: it gives no reason"):
        nvidia.build(Library(answer=None), put(tmp_path, RELU), Options(ROWS, timing_cache=timings))
    assert timings.read_bytes() == b"known"


def test_gpu_out_of_memory_has_its_own_sentence_however_late_it_is_said(tmp_path: Path) -> None:
    errors = [(Severity.ERROR, f"tactic {number} failed") for number in range(9)]
    memory = (Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)")
    library = Library(says=[*errors, memory], answer=None)

    with pytest.raises(ConversionError, match="the GPU ran out of memory") as caught:
        nvidia.build(library, put(tmp_path, RELU), Options(ROWS))
    assert "workspace_bytes" in caught.value.advice


def test_builder_that_cannot_start_says_why(tmp_path: Path) -> None:
    library = Library(says=[(Severity.ERROR, "CUDA error 2: out of memory")], starts=False)
    with pytest.raises(ConversionError, match="the GPU ran out of memory"):
        nvidia.build(library, put(tmp_path, RELU), Options(ROWS))

    driver = "(cudaError 35: CUDA driver version is insufficient for CUDA runtime version)"
    library = Library(says=[(Severity.ERROR, driver)], starts=False)
    with pytest.raises(ConversionError, match="driver version is insufficient"):
        nvidia.build(library, put(tmp_path, RELU), Options(ROWS))


def test_warnings_of_a_build_are_kept(tmp_path: Path) -> None:
    library = Library(says=[(Severity.INFO, "timing"), (Severity.WARNING, "y has Int64 binding")])

    built = nvidia.build(library, put(tmp_path, RELU), Options(ROWS))
    assert built.warnings == ("y has Int64 binding",)
