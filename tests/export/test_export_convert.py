from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from export import samples, to_onnx
from export.errors import ConversionError
from export.spec import ExportSpec
from export.trained import TrainedModel

MakeSpec = Callable[..., ExportSpec]
Load = Callable[..., TrainedModel]
Convert = Callable[..., Path]


def shapes(values: Any) -> dict[str, list[int | str]]:
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in values
    }


def test_integer_inputs_several_outputs_and_a_named_dim_stay_dynamic(
    make_spec: MakeSpec, tmp_path: Path, load: Load, convert: Convert
) -> None:
    ids = {"dtype": "INT64", "dims": ["seq"]}
    spec = make_spec(
        model="zoo.py:tokens",
        inputs=[
            {"name": "ids", "range": [0, 48], **ids},
            {"name": "mask", "range": [0, 1], **ids},
        ],
        outputs=[
            {"name": "pooled", "dtype": "FP32", "dims": [6]},
            {"name": "kept", "dtype": "INT64", "dims": []},
            {"name": "ids_next", **ids},
        ],
        dim_sizes={"seq": [1, 16, 33]},
    )
    graph = onnx.load(convert(spec, tmp_path)).graph

    assert shapes(graph.input) == {"ids": ["batch", "seq"], "mask": ["batch", "seq"]}
    assert shapes(graph.output) == {
        "pooled": ["batch", 6],
        "kept": ["batch"],
        "ids_next": ["batch", "seq"],
    }


def test_without_a_batch_dimension_rank_0_tensors_pass(
    make_spec: MakeSpec, tmp_path: Path, load: Load, convert: Convert
) -> None:
    spec = make_spec(
        model="zoo.py:scalar",
        max_batch_size=0,
        inputs=[
            {"name": "x", "dtype": "FP32", "dims": [4]},
            {"name": "k", "dtype": "FP32", "dims": []},
        ],
        outputs=[
            {"name": "total", "dtype": "FP32", "dims": []},
            {"name": "scaled", "dtype": "FP32", "dims": [4]},
        ],
    )
    graph = onnx.load(convert(spec, tmp_path)).graph

    assert shapes([*graph.input, *graph.output]) == {"x": [4], "k": [], "total": [], "scaled": [4]}


def test_the_stale_sequence_dim_of_an_lstm_is_inferred_anew(
    make_spec: MakeSpec, tmp_path: Path, load: Load, convert: Convert
) -> None:
    # The only test with an LSTM: in torch 2.13 the second export of one in a process fails.
    spec = make_spec(
        model="zoo.py:recurrent",
        inputs=[{"name": "x", "dtype": "FP32", "dims": ["seq", 4]}],
        outputs=[{"name": "y", "dtype": "FP32", "dims": ["seq", 6]}],
    )
    graph = onnx.load(convert(spec, tmp_path)).graph

    assert shapes(graph.output) == {"y": ["batch", "seq", 6]}


def test_a_file_holds_no_source_path_and_no_stack_trace(
    make_spec: MakeSpec, tmp_path: Path, load: Load, convert: Convert
) -> None:
    model = onnx.load(convert(make_spec(), tmp_path))

    assert str(Path(__file__).parent).encode() not in model.SerializeToString()
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_large_weights_lie_beside_the_graph(
    make_spec: MakeSpec, tmp_path: Path, convert: Convert
) -> None:
    convert(make_spec(model="zoo.py:wide"), tmp_path, inline_limit_bytes=0)

    assert {file.name for file in tmp_path.glob("model*")} == {"model.onnx", "model.onnx.data"}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("value_branch", "Could not guard on data-dependent expression"),
        ("baked_batch", "tracing inferred a static shape of 4 for dimension inputs['x'].shape[0]"),
    ],
)
def test_pytorchs_reason_is_given_without_colours_and_advertisements(
    make_spec: MakeSpec,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    model: str,
    reason: str,
    load: Load,
) -> None:
    loaded = load(make_spec(model=f"zoo.py:{model}"))

    with pytest.raises(ConversionError) as error:
        to_onnx.convert(loaded, tmp_path)

    message = str(error.value)
    assert reason in message
    assert "\x1b" not in message
    assert "TORCH_LOGS" not in message
    assert capfd.readouterr() == ("", "")


def test_dims_that_are_always_equal_have_to_share_a_name(
    make_spec: MakeSpec, tmp_path: Path, load: Load
) -> None:
    def added(dim_a: str, dim_b: str) -> ExportSpec:
        dims = {"a": dim_a, "b": dim_b}
        return make_spec(
            model="zoo.py:add",
            inputs=[{"name": name, "dtype": "FP32", "dims": [dim]} for name, dim in dims.items()],
            outputs=[{"name": "y", "dtype": "FP32", "dims": [dim_a]}],
        )

    # Such a module fails at the example's sizes already; one whose dims became equal in the
    # exporter does not, and this is what its file looks like.
    model = TrainedModel(load(added("n", "n")).opened, added("n", "m"))

    with pytest.raises(ConversionError, match="dims 'm' and 'n' are always equal"):
        to_onnx.convert(model, tmp_path)


def test_a_module_that_writes_to_its_input_is_compared_on_the_same_values(
    make_spec: MakeSpec, tmp_path: Path, load: Load, convert: Convert
) -> None:
    spec = make_spec(model="zoo.py:in_place")
    model = load(spec)
    inputs = samples.draw(spec, {"batch": 2}, seed=0)
    before = inputs["x"].copy()

    model.run(inputs, {"batch": 2})

    assert (inputs["x"] == before).all()
    convert(spec, tmp_path)
