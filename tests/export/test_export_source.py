import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export.errors import AbsentError, SourceError
from export.spec import ExportSpec
from export.trained import TrainedModel

MakeSpec = Callable[..., ExportSpec]
Load = Callable[..., TrainedModel]

WEIGHTS = {"scale": torch.tensor(3.0)}


def scale(model: TrainedModel) -> float:
    return float(model.opened.module.state_dict()["scale"])


def test_safetensors_and_checkpoints_give_the_module_its_weights(
    make_spec: MakeSpec, load: Load, tmp_path: Path
) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    torch.save(WEIGHTS, tmp_path / "w.pt")
    torch.save({"epoch": 3, "model": WEIGHTS}, tmp_path / "nested.pt")

    assert scale(load(make_spec())) == 2.0
    assert scale(load(make_spec(weights=str(tmp_path / "w.safetensors")))) == 3.0
    assert scale(load(make_spec(weights=str(tmp_path / "w.pt")))) == 3.0
    assert scale(load(make_spec(weights=str(tmp_path / "nested.pt"), weights_key="model"))) == 3.0


def test_a_dotted_module_is_found_beside_the_spec(make_spec: MakeSpec, load: Load) -> None:
    assert scale(load(make_spec(model="zoo:double"))) == 2.0


def test_a_pickle_of_a_module_is_refused_with_the_reason(
    make_spec: MakeSpec, load: Load, tmp_path: Path
) -> None:
    torch.save(torch.nn.Linear(4, 4), tmp_path / "model.pt")

    with pytest.raises(SourceError) as error:
        load(make_spec(weights=str(tmp_path / "model.pt")))

    message = str(error.value)
    assert "model.pt is refused: it is a pickle that needs torch.nn.modules" in message
    assert "could run any code" in message
    assert "safetensors.torch.save_file(model.state_dict()" in error.value.advice
    assert "--trust-pickle" in error.value.advice


class Opens:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_refused_pickle_is_never_run(
    make_spec: MakeSpec, load: Load, tmp_path: Path, dump: Callable[..., None]
) -> None:
    with (tmp_path / "evil.pt").open("wb") as file:
        dump({"scale": Opens(tmp_path / "proof")}, file)

    with pytest.raises(SourceError, match=r"evil\.pt is refused"):
        load(make_spec(weights=str(tmp_path / "evil.pt")))

    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("content", "filename", "sentence"),
    [
        (pickle.dumps(WEIGHTS), "w.pkl", "plain pickle, not a checkpoint"),
        (b"abc", "w.pt", "no readable torch checkpoint"),
        (b"", "w.pt", "no readable torch checkpoint"),
        (b"\x40\0\0\0", "w.safetensors", "not a whole safetensors file"),
    ],
)
def test_unreadable_weights_are_refused(
    make_spec: MakeSpec, load: Load, tmp_path: Path, content: bytes, filename: str, sentence: str
) -> None:
    (tmp_path / filename).write_bytes(content)

    with pytest.raises(SourceError, match=sentence):
        load(make_spec(weights=str(tmp_path / filename)))


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({}, "scale is missing"),
        ({**WEIGHTS, "a": torch.ones(1), "b": torch.ones(1)}, "a, b are not in the module"),
        ({"scale": torch.ones(2)}, "size mismatch for scale"),
        ({"epoch": 3, "model": WEIGHTS}, "epoch, model are no tensor"),
        ([1, 2], "holds a list, not a state dict"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_listed(
    make_spec: MakeSpec, load: Load, tmp_path: Path, state: Any, sentence: str
) -> None:
    torch.save(state, tmp_path / "w.pt")

    with pytest.raises(SourceError, match=sentence):
        load(make_spec(weights=str(tmp_path / "w.pt")))


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("in_train_mode", "the module itself, body, body.0 and 1 more are in train mode"),
        ("half_in_train_mode", "body.1 is in train mode"),
    ],
)
def test_a_module_in_train_mode_is_refused(
    make_spec: MakeSpec, load: Load, model: str, parts: str
) -> None:
    with pytest.raises(SourceError) as error:
        load(make_spec(model=f"zoo.py:{model}"))

    assert parts in str(error.value)
    assert error.value.advice == f"call .eval() on the module in zoo.py:{model}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "nowhere.py:build"}, "there is no file"),
        ({"model": "nowhere.at.all:build"}, "cannot import nowhere.at.all: ModuleNotFoundError"),
        ({"model": "zoo.py:nothing"}, "zoo.py has no function 'nothing'"),
        (
            {"model": "zoo.py:broken"},
            r"zoo.py:broken\(\) failed: RuntimeError: no such layer .zoo.py",
        ),
        ({"model": "zoo.py:not_a_module"}, "returned a dict, not an nn.Module"),
        ({"weights": "nowhere.safetensors"}, "there is no file"),
        (
            {"outputs": [{"name": "y", "dtype": "FP64", "dims": [4]}]},
            "output 'y' has dtype FP32; the spec says FP64",
        ),
        (
            {"outputs": [{"name": "y", "dtype": "FP32", "dims": [5]}]},
            r"output 'y' has shape \[4, 4\] at batch size 4; the spec says \['batch', 5\]",
        ),
        (
            {"outputs": [{"name": n, "dtype": "FP32", "dims": [4]} for n in "yz"]},
            r"forward\(\) returns 1 outputs \(output\); the spec names \['y', 'z'\]",
        ),
    ],
)
def test_a_source_that_is_not_what_the_spec_says_is_refused(
    make_spec: MakeSpec, load: Load, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SourceError, match=sentence):
        load(make_spec(**change))


def test_a_package_that_is_not_installed_is_what_this_machine_lacks(
    make_spec: MakeSpec, load: Load
) -> None:
    with pytest.raises(AbsentError, match="pip install weights-of-it"):
        load(make_spec(model="zoo.py:of_an_absent_package"))


def test_inputs_reach_the_parameters_of_their_names_in_any_order(
    make_spec: MakeSpec, load: Load
) -> None:
    inputs = [
        {"name": name, "dtype": "INT64", "dims": ["seq"], "range": [0, 1]}
        for name in ("mask", "ids")
    ]
    outputs = [{"name": "ids_next", "dtype": "INT64", "dims": ["seq"]}]
    model = load(make_spec(model="zoo.py:tokens", inputs=inputs, outputs=outputs))

    given = {"mask": np.zeros((1, 3), "int64"), "ids": np.array([[5, 6, 7]])}

    assert model.run(given, {"batch": 1, "seq": 3})["ids_next"].tolist() == [[6, 7, 8]]


def test_nested_arguments_are_built_from_flat_inputs(make_spec: MakeSpec, load: Load) -> None:
    tensor = {"dtype": "FP32", "dims": [4]}
    spec = make_spec(
        model="zoo.py:nested",
        inputs=[
            {"name": "left", "argument": "batch.pair[0]", **tensor},
            {"name": "right", "argument": "batch.pair[1]", **tensor},
            {"name": "scale", **tensor},
        ],
        outputs=[{"name": "sums_all", **tensor}, {"name": "sums_twice", **tensor}],
    )
    given = {
        name: np.full((1, 4), n, "float32")
        for name, n in zip(("left", "right", "scale"), (1, 2, 10), strict=True)
    }

    answers = load(spec).run(given, {"batch": 1})

    assert answers["sums_all"].tolist() == [[30.0] * 4]
    assert answers["sums_twice"].tolist() == [[60.0] * 4]


def test_outputs_of_a_dict_are_taken_by_name(make_spec: MakeSpec, load: Load) -> None:
    ids = {"dtype": "INT64", "dims": ["seq"], "range": [0, 1]}
    spec = {"model": "zoo.py:tokens", "inputs": [{"name": n, **ids} for n in ("ids", "mask")]}
    kept = {"name": "kept", "dtype": "INT64", "dims": []}
    pooled = {"name": "pooled", "dtype": "FP32", "dims": [6]}

    answers = load(make_spec(**spec, outputs=[kept, pooled])).run(
        {"ids": np.array([[1, 1]]), "mask": np.array([[1, 0]])}, {"batch": 1, "seq": 2}
    )

    assert answers["kept"].tolist() == [1]
    others = [{**kept, "name": name} for name in ("x", "y", "z")]
    with pytest.raises(SourceError, match=r"returns 3 outputs \(pooled, kept, ids_next\)"):
        load(make_spec(**spec, outputs=others))


def test_a_size_that_the_module_itself_refuses_is_named(make_spec: MakeSpec, load: Load) -> None:
    tensors = [
        {"name": name, "dtype": "FP32", "dims": [dim]} for name, dim in zip("ab", "nm", strict=True)
    ]
    spec = make_spec(
        model="zoo.py:add", inputs=tensors, outputs=[{"name": "y", "dtype": "FP32", "dims": ["n"]}]
    )

    with pytest.raises(SourceError, match="at batch size 4, n 2, m 5: ") as error:
        load(spec)
    assert "always equal share one name" in error.value.advice


def test_the_callers_import_path_is_left_as_it_was(make_spec: MakeSpec, load: Load) -> None:
    before = list(sys.path)

    load(make_spec())

    assert sys.path == before
