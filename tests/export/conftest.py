from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export import compare, onnx_session, samples, to_onnx
from export import spec as specs
from export.sources.opened import open_source
from export.spec import ExportSpec
from export.trained import TrainedModel

HERE = Path(__file__).parent

DOUBLE = """
name = "double"
model = "zoo.py:double"
max_batch_size = 8

[[inputs]]
name = "x"
dtype = "FP32"
dims = [4]

[[outputs]]
name = "y"
dtype = "FP32"
dims = [4]
"""

MakeSpec = Callable[..., ExportSpec]
Snapshot = Callable[[Path], dict[str, bytes | None]]


@pytest.fixture
def double_toml() -> str:
    """Text of the `double` model's spec."""
    return DOUBLE


@pytest.fixture
def make_spec(tmp_path: Path) -> MakeSpec:
    """Spec of the `double` model, published under tmp_path, with other fields laid over it."""

    def make(text: str = DOUBLE, **flags: Any) -> ExportSpec:
        return specs.load(text, HERE, {"repository": str(tmp_path / "repository"), **flags})

    return make


@pytest.fixture
def snapshot() -> Snapshot:
    """Every path below a folder with its content (None: a folder)."""

    def take(folder: Path) -> dict[str, bytes | None]:
        return {
            str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
            for path in sorted(folder.rglob("*"))
        }

    return take


@pytest.fixture
def load() -> Callable[[ExportSpec], TrainedModel]:
    """The trained model of a spec, tried once at the example's sizes."""

    def loaded(spec: ExportSpec, trust_pickle: bool = False) -> TrainedModel:
        model = TrainedModel(open_source(spec, trust_pickle=trust_pickle), spec)
        sizes = spec.example_sizes()
        model.run(samples.draw(spec, sizes, spec.seed), sizes)
        return model

    return loaded


@pytest.fixture
def convert(load: Callable[[ExportSpec], TrainedModel]) -> Callable[..., Any]:
    """(model, ONNX file) of a spec, in this process; the two agree at every checked size."""

    def converted(spec: ExportSpec, folder: Path, **limits: int) -> Path:
        model = load(spec)
        to_onnx.convert(model, folder, **limits)
        session = onnx_session.opened(folder / "model.onnx")
        names = [tensor.name for tensor in spec.outputs]
        for sizes in spec.checked_sizes():
            inputs = samples.draw(spec, sizes, 1)
            expected = model.run(inputs, sizes)
            for tensor, result in zip(spec.outputs, session.run(names, inputs), strict=True):
                assert compare.compare(tensor, sizes, expected[tensor.name], result).miss is None
        return folder / "model.onnx"

    return converted
