from pathlib import Path
from typing import Any

import pytest

from export import samples
from export.errors import SpecError
from export.spec import CodeRef, ExportSpec, load

FOLDER = Path("/specs")

DIGITS = """
name = "digits"
model = "net/model.py:build"
weights = "digits.safetensors"
max_batch_size = 64

[[inputs]]
name = "image"
dtype = "FP32"
dims = [1, 8, 8]

[[outputs]]
name = "logits"
dtype = "FP32"
dims = [10]
labels = "labels.txt"
"""

TOKENS: dict[str, Any] = {
    "name": "tokens",
    "model": "tokens:build",
    "max_batch_size": 4,
    "inputs": [
        {"name": "ids", "dtype": "INT64", "dims": ["seq"], "range": [0, 49]},
        {"name": "image", "dtype": "FP32", "dims": [3, "height", "width"]},
    ],
    "outputs": [{"name": "y", "dtype": "FP32", "dims": ["seq"]}],
}


def spec(**flags: Any) -> ExportSpec:
    return load(DIGITS, FOLDER, flags)


def test_paths_are_relative_to_where_they_are_written() -> None:
    loaded = load(DIGITS, FOLDER, {"weights": "other.pt", "repository": "repo"}, Path("/here"))

    assert isinstance(loaded.model, CodeRef)
    assert loaded.model.folder == Path("/specs/net")
    assert loaded.outputs[0].labels == Path("/specs/labels.txt")
    assert loaded.weights == Path("/here/other.pt")
    assert loaded.repository == Path("/here/repo")


def test_flags_win_over_the_file() -> None:
    assert spec(max_batch_size=16, name="small").max_batch_size == 16
    assert spec(max_batch_size=16, name="small").name == "small"


def test_flags_alone_are_enough() -> None:
    assert load("", FOLDER, TOKENS).named_dims == ("seq", "height", "width")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("max_batchsize = 3", "unknown key 'max_batchsize'; did you mean 'max_batch_size'?"),
        ("zzz = 3", "unknown key 'zzz'"),
        ("[dynamic_batching]\npreferred_batch_sizes = [4]", "unknown key 'preferred_batch_sizes' "
         "in dynamic_batching; did you mean 'preferred_batch_size'?"),
        ("[[inputs]]\nshape = [4]", "unknown key 'shape' in inputs[0]"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_named_with_its_near_matches(table: str, sentence: str) -> None:
    head = 'name = "a"\n' + ("max_batch_size = 4\n" if "max_" not in table else "")

    with pytest.raises(SpecError) as error:
        load(head + table, FOLDER, {})

    assert sentence in str(error.value).splitlines()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_batch_size": -1}, "max_batch_size: Input should be greater than or equal to 0"),
        ({"name": "../escape"}, "name: String should match pattern"),
        ({"name": ".hidden"}, "name: String should match pattern"),
        ({"model": "model.py"}, "expected 'module.path:function' or 'path/to/file.py:function'"),
        ({"tensorrt": {"engines": ["model.plan"]}}, "model.plan does not say its GPU"),
        ({"tensorrt": {"sizes": {"batch": [4, 2, 8]}}}, "'batch' is [smallest, usual, largest]"),
        ({"model": 3}, "model: a text is expected: 'file.py:function', or a model file"),
        ({"objective": "speed"}, "an objective is latency, throughput, memory, or one of them"),
        ({"formats": ["onnx-fp8"]}, "formats[0]: Input should be 'onnx-fp32'"),
        ({"metric": {"data": "x.py:f", "scor": "y"}}, "unknown key 'scor' in metric; did you mean"),
        ({"sequence_batching": {"states": {"a": "b"}}}, "'a' has to be one of the inputs"),
        ({"samples": "calls"}, "or an .npz file, and there is none of that name"),
        ({"dim_sizes": {"seq": [3]}}, "dim_sizes has 'seq', which is no dim of an input"),
        ({"dynamic_batching": {"preferred_batch_size": [65]}}, "65 is above max_batch_size 64"),
        ({"dynamic_batching": {}, "max_batch_size": 0}, "needs a batch dimension"),
    ],
)
def test_a_contradiction_is_said_in_a_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence.replace("[", r"\[")):
        spec(**change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dtype": "BYTES"}, "PyTorch has no string tensors"),
        ({"dtype": "BF16"}, "cast to FP32"),
        ({"dtype": "FLOAT"}, "Input should be 'BOOL'"),
        ({"dtype": "INT64"}, "a dtype of INT64 needs a range"),
        ({"dtype": "INT8", "range": [0, 300]}, "does not fit into INT8"),
        ({"range": [2, 1]}, "range is .low, high., got .2.0, 1.0."),
        ({"dims": [0]}, "a positive number or a name, not 0"),
        ({"dims": [-1]}, "a positive number or a name, not -1"),
        ({"dims": ["batch"]}, "'batch' is the batch dimension, which dims leave out"),
        ({"dims": ["2x"]}, "a dim's name is made of letters"),
        ({"name": "logits"}, "two tensors are called 'logits'"),
    ],
)
def test_a_bad_input_tensor_is_refused(change: dict[str, Any], sentence: str) -> None:
    tensor = {"name": "image", "dtype": "FP32", "dims": [4], **change}

    with pytest.raises(SpecError, match=sentence):
        spec(inputs=[tensor])


def test_toml_that_does_not_parse_is_refused_with_its_place() -> None:
    with pytest.raises(SpecError, match="line 2"):
        load('name = "a"\nname = \n', FOLDER, {})


@pytest.mark.parametrize(
    ("limit", "sizes"), [(64, [1, 2, 3, 7, 64]), (3, [1, 2, 3]), (1, [1]), (7, [1, 2, 3, 7])]
)
def test_batch_sizes_checked_reach_the_maximum_and_not_beyond(limit: int, sizes: list[int]) -> None:
    assert [case["batch"] for case in spec(max_batch_size=limit).checked_sizes()] == sizes


@pytest.mark.parametrize("max_batch_size", [0, 1, 2, 3, 4, 5, 8, 64])
def test_no_size_of_the_example_is_ever_checked(max_batch_size: int) -> None:
    loaded = load("", FOLDER, {**TOKENS, "max_batch_size": max_batch_size})
    example = loaded.example_sizes()

    assert min(example.values()) >= 2
    assert len(set(example.values())) == len(example)
    for case in loaded.checked_sizes():
        assert case.keys() == example.keys()
        assert all(case[name] != example[name] for name in case)


def test_every_listed_dim_size_is_checked_and_dims_differ_from_each_other() -> None:
    loaded = load("", FOLDER, {**TOKENS, "dim_sizes": {"seq": [1, 2, 16]}})
    cases = loaded.checked_sizes()

    assert {case["seq"] for case in cases} == {1, 2, 16}
    assert all(case["height"] != case["width"] for case in cases)


def test_drawn_inputs_have_the_declared_dtype_shape_and_range_and_repeat() -> None:
    loaded = load("", FOLDER, TOKENS)
    sizes = {"batch": 3, "seq": 50, "height": 2, "width": 5}
    drawn = samples.draw(loaded, sizes, seed=1)

    assert drawn["ids"].shape == (3, 50)
    assert drawn["ids"].dtype == "int64"
    assert (drawn["ids"].min(), drawn["ids"].max()) == (0, 49)
    assert drawn["image"].shape == (3, 3, 2, 5)
    assert (drawn["image"] == samples.draw(loaded, sizes, seed=1)["image"]).all()
    assert (drawn["image"] != samples.draw(loaded, sizes, seed=2)["image"]).any()
