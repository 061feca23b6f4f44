"""The kinds of sources, each opened as a user's file would be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from export import reference
from export.errors import SampleError, SourceError
from export.spec import ExportSpec
from export.steps import capture
from tests.export import zoo

MakeSpec = Callable[..., ExportSpec]
OPEN: dict[str, Any] = {"inputs": [], "outputs": []}


def captured(spec: ExportSpec, folder: Path, **options: Any) -> capture.Report:
    """The step in this process; its file answers as the source did at every check."""
    return capture.run(capture.Request(spec=spec, **options), folder)


def shapes(folder: Path) -> dict[str, list[Any]]:
    graph = onnx.load(folder / "model.onnx").graph
    return {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }


def test_a_saved_program_is_a_source(make_spec: MakeSpec, tmp_path: Path) -> None:
    batch = torch.export.Dim("n", min=1, max=64)
    program = torch.export.export(zoo.double(), (torch.ones(3, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "double.pt2")

    report = captured(make_spec(model=str(tmp_path / "double.pt2")), tmp_path)

    assert report.kind == "exported-program"
    assert shapes(tmp_path) == {"x": ["batch", 4], "y": ["batch", 4]}


def test_torchscript_goes_through_the_older_exporter(make_spec: MakeSpec, tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"torch\.jit\.script"):
        scripted = torch.jit.script(zoo.double())
    scripted.save(  # type: ignore[no-untyped-call]
        str(tmp_path / "double.pt")
    )

    report = captured(make_spec(model=str(tmp_path / "double.pt")), tmp_path)

    assert report.kind == "torchscript"
    assert shapes(tmp_path) == {"x": ["batch", 4], "y": ["batch", 4]}


def test_a_whole_pickled_module_is_loaded_only_when_it_is_trusted(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    torch.save(zoo.double(), tmp_path / "double.pt")
    spec = make_spec(model=str(tmp_path / "double.pt"))

    with pytest.raises(SourceError, match=r"double\.pt is refused: it is a pickle") as error:
        captured(spec, tmp_path)
    assert "--trust-pickle" in error.value.advice

    assert captured(spec, tmp_path, trust_pickle=True).kind == "pickle"


def test_an_onnx_file_is_its_own_reference_and_says_its_inputs(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 20]>
        twice (float[n, seq] x) => (float[n, seq] y) { y = Add(x, x) }
    """)
    onnx.save(model, tmp_path / "twice.onnx")
    folder = tmp_path / "step"
    folder.mkdir()

    report = captured(make_spec(model=str(tmp_path / "twice.onnx"), **OPEN), folder)

    assert report.kind == "onnx"
    assert [(t.name, t.dims) for t in report.spec.inputs] == [("x", ("seq",))]
    assert [(t.name, t.dims) for t in report.spec.outputs] == [("y", ("seq",))]
    inputs, outputs = reference.read(folder / "reference" / report.checks[-1].file)
    assert np.array_equal(outputs["y"], 2 * inputs["x"])


def test_a_hugging_face_folder_says_its_inputs_and_outputs(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")

    report = captured(make_spec(model=str(tmp_path / "bert"), **OPEN), tmp_path)

    assert report.kind == "transformers"
    assert [(t.name, t.dims, t.range) for t in report.spec.inputs] == [
        ("input_ids", ("seq",), (0, 49)),
        ("attention_mask", ("seq",), (0, 1)),
    ]
    assert shapes(tmp_path)["logits"] == ["batch", 3]


def test_fused_attention_is_made_plain(make_spec: MakeSpec, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    ids = {"dtype": "INT64", "dims": ["seq"]}
    spec = make_spec(
        model="zoo.py:t5_encoder",
        inputs=[
            {"name": "input_ids", "range": [0, 49], **ids},
            {"name": "attention_mask", "range": [0, 1], **ids},
        ],
        outputs=[],
    )

    captured(spec, tmp_path)  # what PyTorch's fused attention does not export

    assert shapes(tmp_path)["last_hidden_state"] == ["batch", "seq", 16]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.zeros((0, 4), "float32"), "a call has no rows"),
        (np.zeros((3, 4), "int64"), "input 'x' is int64; the spec says float32"),
        (np.full((3, 4), np.nan, "float32"), "holds NaN or infinity"),
    ],
)
def test_samples_that_show_nothing_are_refused(
    make_spec: MakeSpec, tmp_path: Path, rows: Any, says: str
) -> None:
    np.savez(tmp_path / "rows.npz", x=rows)

    with pytest.raises(SampleError, match=says):
        captured(make_spec(samples=str(tmp_path / "rows.npz")), tmp_path)


def test_a_folder_without_safetensors_is_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(SourceError, match=r"has no \.safetensors file"):
        captured(make_spec(model=str(tmp_path), **OPEN), tmp_path)


def test_dims_that_vary_between_calls_are_dynamic(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(model="zoo.py:tokens", samples="zoo.py:token_calls", **OPEN)

    report = captured(spec, tmp_path)

    assert report.inferred
    assert [(t.name, t.dtype, t.dims, t.range) for t in report.spec.inputs] == [
        ("ids", "INT64", ("ids_dim_1",), (0, 48)),
        ("mask", "INT64", ("ids_dim_1",), (0, 1)),
    ]
    assert shapes(tmp_path)["ids_next"] == ["batch", "ids_dim_1"]
    assert sum(check.real for check in report.checks) == 3


def test_arrays_in_a_file_are_calls_of_several_batch_sizes(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    rows = np.arange(80, dtype="float32").reshape(20, 4)
    np.savez(tmp_path / "rows.npz", x=rows)

    report = captured(make_spec(samples=str(tmp_path / "rows.npz"), **OPEN), tmp_path)

    real = [check.sizes["batch"] for check in report.checks if check.real]
    assert real == [1, 2, 3, 7, 7]
    inputs, outputs = reference.read(tmp_path / "reference" / report.checks[-5].file)
    assert np.array_equal(inputs["x"], rows[:1])
    assert np.array_equal(outputs["output"], 2 * rows[:1])


def test_without_inputs_samples_and_a_telling_source_nobody_knows(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="nothing says what the inputs are"):
        captured(make_spec(**OPEN), tmp_path)
