from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export import spec as specs
from export.spec import ExportSpec

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
