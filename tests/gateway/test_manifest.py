"""What a version's manifest.json tells the gateway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.core import BatchTime
from gateway.errors import RepositoryError
from gateway.repository import manifest
from gateway.repository.reader import read_model
from tests.gateway.onnx_models import plus

POINT = {"batch": 4, "p50_ms": 2.0, "p99_ms": 3.0, "throughput": 2000.0}


def told(folder: Path, content: Any) -> manifest.Told:
    (folder / manifest.FILE).write_text(json.dumps(content))
    return manifest.read(folder)


def test_nothing_is_told_without_a_manifest_or_figures(tmp_path: Path) -> None:
    assert manifest.read(tmp_path) == manifest.Told()
    assert told(tmp_path, {"profile": None}) == manifest.Told()
    assert told(tmp_path, []) == manifest.Told()


def test_the_curve_is_told_in_seconds_by_rows(tmp_path: Path) -> None:
    content = {"memory_bytes": 5, "profile": {"curve": [POINT, {**POINT, "batch": 1}]}}

    assert told(tmp_path, content) == manifest.Told(
        5, (BatchTime(1, 0.002, 0.003), BatchTime(4, 0.002, 0.003))
    )


@pytest.mark.parametrize(
    "curve",
    [5, [], "fast", [{"batch": 1}], [{**POINT, "p50_ms": "fast"}], [{**POINT, "p50_ms": -1}],
     [{**POINT, "batch": 0}], [{**POINT, "p99_ms": float("inf")}], [{**POINT, "p99_ms": 1.0}]],
)  # fmt: skip
def test_a_curve_that_is_none_is_an_error_of_the_model(tmp_path: Path, curve: Any) -> None:
    with pytest.raises(RepositoryError, match=r"'profile\.curve' is no list of batches"):
        told(tmp_path, {"profile": {"curve": curve}})


def test_a_version_has_what_its_manifest_tells(tmp_path: Path) -> None:
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(plus(1.0))
    told(version, {"memory_bytes": 7, "profile": {"curve": [POINT]}})

    (spec,) = read_model(tmp_path, "m").versions

    assert spec.placement.memory_bytes == 7
    assert spec.batching.expected == (BatchTime(4, 0.002, 0.003),)
