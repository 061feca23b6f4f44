"""A model's first runs: declared ones must succeed, others may not."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.core import ModelSpec
from gateway.engine import warm_up
from tests.gateway.onnx_models import identity, put
from tests.gateway.test_embedded import (
    ask,
    embedding,
    engine_with,
    load_error,
    onnx_model,
    slow_loop,
    spec_of,
)

WARM_UP = """max_batch_size: 8
input { name: "x" data_type: TYPE_INT64 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: [1, 256] }
model_warmup { name: "first" batch_size: %s inputs { key: "%s" value {
  data_type: %s dims: 1 %s } } }
"""


@pytest.mark.parametrize(
    ("batch_size", "name", "datatype", "data", "reason"),
    [
        (9, "x", "TYPE_INT64", "zero_data: true", "batch_size must be from 1 to max_batch_size"),
        (0, "x", "TYPE_INT64", "zero_data: true", "batch_size must be from 1 to max_batch_size"),
        (1, "z", "TYPE_INT64", "zero_data: true", "the model has no input 'z'"),
        (1, "x", "TYPE_INT32", "zero_data: true", "input 'x' is INT64, not INT32"),
        (1, "x", "TYPE_INT64", 'input_data_file: "none"', "cannot read 'warmup/none'"),
        (1, "x", "TYPE_INT64", 'input_data_file: "../1/model.onnx"', "outside the folder"),
        (1, "x", "TYPE_INT64", 'input_data_file: "short"', "does not hold 1 elements of INT64"),
        (1, "x", "TYPE_INT64", 'input_data_file: "beyond"', "indices element out of data bounds"),
    ],
)
def test_failing_declared_warm_up_fails_the_load(
    tmp_path: Path, batch_size: int, name: str, datatype: str, data: str, reason: str
) -> None:
    put(tmp_path, "m", embedding(4), WARM_UP % (batch_size, name, datatype, data))
    folder = tmp_path / "m" / "warmup"
    folder.mkdir()
    (folder / "short").write_bytes(b"\0\0\0")
    (folder / "beyond").write_bytes(np.array([4], np.int64).tobytes())
    error = load_error(spec_of(tmp_path))
    assert error.startswith("model_warmup 'first': ")
    assert reason in error


def test_declared_warm_up_runs_with_every_kind_of_data(tmp_path: Path) -> None:
    for datatype in ("FP32", "FP16", "BF16", "BOOL", "UINT8", "INT64", "BYTES"):
        proto = {"BYTES": "TYPE_STRING"}.get(datatype, f"TYPE_{datatype}")
        folder = put(tmp_path, datatype, identity(datatype, ("n", 2)), "max_batch_size: 4\n")
        (folder.parent / "warmup").mkdir()
        size = {"BYTES": b"\1\0\0\0a\0\0\0\0"}.get(datatype)
        if size is None:
            widths = {"FP32": 4, "INT64": 8, "FP16": 2, "BF16": 2}
            size = b"\0" * 2 * widths.get(datatype, 1)
        (folder.parent / "warmup" / "raw").write_bytes(size)
        with (folder.parent / "config.pbtxt").open("a") as config:
            for data in ("zero_data: true", "random_data: true", 'input_data_file: "raw"'):
                config.write(
                    f'model_warmup {{ name: "w" batch_size: 3 count: 2 inputs {{ key: "x" value '
                    f"{{ data_type: {proto} dims: 2 {data} }} }} }}\n"
                )
        spec = spec_of(tmp_path, datatype)
        assert [sample.count for sample in spec.runtime.warm_up] == [2, 2, 2]

        async def load(spec: ModelSpec = spec) -> None:
            async with engine_with(spec):
                pass

        asyncio.run(load())


def test_model_that_cannot_take_zeros_loads_without_warm_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [
        helper.make_node("Sub", ["x", "one"], ["minus"]),
        helper.make_node("Gather", ["table", "minus"], ["y"]),
    ]
    table = numpy_helper.from_array(np.ones((1, 2), np.float32), "table")
    one = numpy_helper.from_array(np.array([2], np.int64), "one")
    model = onnx_model(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, 2])],
        [table, one],
    )
    put(tmp_path, "m", model)
    spec = spec_of(tmp_path)

    async def story() -> None:
        async with engine_with(spec) as engine:
            assert (await ask(engine, spec, x=np.array([[2]])) == 1).all()

    with caplog.at_level(logging.DEBUG):
        asyncio.run(story())
    records = [record for record in caplog.records if "with zeros" in record.message]
    assert [record.levelno for record in records] == [logging.DEBUG]


def test_first_run_that_does_not_end_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_up, "FIRST_RUN_LIMIT_S", 0.05)
    put(tmp_path, "m", slow_loop(count=10**9), "max_batch_size: 0")
    spec = spec_of(tmp_path)

    async def story() -> None:
        async with asyncio.timeout(60), engine_with(spec):
            pass

    asyncio.run(story())
