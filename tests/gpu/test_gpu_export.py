"""Exports that need a GPU: CUDA formats verified and measured, TensorRT engines served."""

import json
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from examples.zoo.digits_cnn.data import held_out
from export import machine, tensorrt_engine
from export.cli import main
from tests.gateway.process import gateway

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "examples" / "zoo" / "digits_cnn" / "digits_cnn.toml"
NO_CUDA = machine.no_cuda_provider()
NO_TENSORRT = tensorrt_engine.absent()


@pytest.mark.skipif(NO_CUDA is not None, reason=str(NO_CUDA))
@pytest.mark.parametrize("name", ["onnx-fp16", "onnx-bf16", "onnx-int8"])
def test_a_format_of_the_gpu_reads_digits_through_the_gateway(tmp_path: Path, name: str) -> None:
    exported(tmp_path, name)


@pytest.mark.skipif(NO_TENSORRT is not None, reason=str(NO_TENSORRT))
@pytest.mark.parametrize("name", ["tensorrt-fp32", "tensorrt-fp16", "tensorrt-int8"])
def test_an_engine_reads_digits_through_the_gateway(tmp_path: Path, name: str) -> None:
    exported(tmp_path, name)


def exported(folder: Path, name: str) -> None:
    """Export the digits in one format for the GPU, and read the held-out ones with it."""
    flags = ["--repository", str(folder / "r"), "--work-dir", str(folder / "w"), "--target", "gpu"]

    assert main([str(SPEC), *flags, "--formats", name]) == 0

    manifest = json.loads((folder / "r" / "digits_cnn" / "1" / "manifest.json").read_text())
    assert manifest["format"] == name
    assert manifest["machine"]["gpu"]
    inputs, digits = held_out()
    with (
        gateway(folder / "r") as running,
        triton.InferenceServerClient(running.url) as client,
    ):
        right = 0
        for begin in range(0, 400, 50):
            rows = inputs["image"][begin : begin + 50]
            image = triton.InferInput("image", list(rows.shape), "FP32")
            image.set_data_from_numpy(rows)
            logits = client.infer("digits_cnn", [image]).as_numpy("logits")
            right += int(np.sum(logits.argmax(1) == digits[begin : begin + 50]))
    assert right / 400 >= 0.98
