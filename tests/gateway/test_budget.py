"""What memory there is, and what a load takes of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from gateway.engine.budget import (
    RESOLUTION_BYTES,
    SHARE,
    Meter,
    family_bytes,
    gpu_budget_bytes,
    host_budget_bytes,
    resident_bytes,
)
from tests.gateway.onnx_models import put, swelling
from tests.gateway.process import gateway

GB = 2**30


@pytest.mark.parametrize(
    ("text", "limit"), [(f"{4 * GB}\n", 4 * GB), ("max\n", None), (None, None), ("", None)]
)
def test_budget_is_a_share_of_what_the_container_may_have(
    tmp_path: Path, text: str | None, limit: int | None
) -> None:
    file = tmp_path / "memory.max"
    if text is not None:
        file.write_text(text)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    budget = host_budget_bytes((str(file),))
    assert budget == pytest.approx(SHARE * ((limit or machine) - resident_bytes()), rel=0.01)


def test_container_smaller_than_this_process_leaves_a_budget_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("4096")
    assert host_budget_bytes((str(tmp_path / "memory.max"),)) == 1  # 0 would set no bound


def test_gpu_has_a_budget_where_there_is_one() -> None:
    budget = gpu_budget_bytes()
    assert budget is None or budget > 0
    if budget is None:
        assert not Path("/proc/driver/nvidia/version").exists()


def test_family_counts_what_its_children_hold() -> None:
    before = family_bytes(os.getpid())
    ballast = bytearray(os.urandom(64)) * (2**20)
    assert family_bytes(os.getpid()) - before > 0.9 * len(ballast)
    assert family_bytes(2**22 + 1) == 0  # beyond the largest process id


def test_growth_counts_where_it_is_more_than_expected_and_than_noise() -> None:
    memory = 0
    meter = Meter(lambda: memory)
    with meter.load(100) as little:
        memory += RESOLUTION_BYTES
    with meter.load(100) as much:
        memory += GB
    with meter.load(GB) as less:
        memory -= GB
    assert (little.bytes, much.bytes, less.bytes) == (100, GB, GB)


def test_growth_beside_anything_else_counts_for_nothing() -> None:
    memory = 0
    meter = Meter(lambda: memory)
    with meter.load(100) as disturbed:
        memory += GB
        meter.disturb()
    with meter.load(100) as first, meter.load(200) as second:
        memory += GB
    with meter.other(), meter.load(100) as third:
        memory += GB
    assert (disturbed.bytes, first.bytes, second.bytes, third.bytes) == (100, 100, 200, 100)


def test_models_that_took_more_than_their_files_make_way_for_each_other(tmp_path: Path) -> None:
    for name in "abc":
        put(tmp_path, name, swelling(100))
    with (
        gateway(tmp_path, "--memory-bytes", "250000000") as running,
        triton.InferenceServerClient(running.url) as client,
    ):
        for name in "abcabc":
            x = triton.InferInput("x", [1, 3], "FP32")
            x.set_data_from_numpy(np.ones((1, 3), np.float32))
            assert client.infer(name, [x]).as_numpy("y").tolist() == [[2.0, 2.0, 2.0]]
        assert running.metric("process_resident_memory_bytes") < 500e6
        unloads = "tidegate_model_unloads_by_cause_total"
        assert running.metric(unloads, cause="oversized") >= 1
        assert running.metric(unloads, cause="evicted") >= 1
