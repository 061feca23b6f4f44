import json

import numpy as np
import pytest

from examples.zoo.digits_cnn.data import held_out
from tests.zoo.conftest import REPOSITORY, Zoo


def test_held_out_digits_are_read(zoo: Zoo) -> None:
    inputs, digits = held_out()
    logits = np.concatenate(
        [
            zoo.ask("digits_cnn", {"image": inputs["image"][at : at + 50]})["logits"]
            for at in range(0, len(digits), 50)
        ]
    )

    assert (logits.argmax(1) == digits).mean() >= 0.99


def test_classes_have_names(zoo: Zoo) -> None:
    import tritonclient.grpc as triton

    inputs, digits = held_out()
    image = triton.InferInput("image", [1, 1, 8, 8], "FP32")
    image.set_data_from_numpy(inputs["image"][:1])
    best = triton.InferRequestedOutput("logits", class_count=1)

    said = zoo.client.infer("digits_cnn", [image], outputs=[best]).as_numpy("logits")

    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert said[0, 0].decode().split(":")[2] == names[digits[0]]


def test_eight_bits_are_faster_and_read_as_well(zoo: Zoo) -> None:
    """The bar of the format: 1.8 times the throughput, within half a point."""
    versions = (REPOSITORY / "digits_cnn").glob("*/manifest.json")
    newest = max(versions, key=lambda path: int(path.parent.name))
    manifest = json.loads(newest.read_text())
    best = {c["format"]: c for c in manifest["candidates"] if c["profile"]}
    if "onnx-int8" not in best:
        pytest.skip("not measured with int8")
    most = {
        name: max(point["throughput"] for point in candidate["profile"]["curve"])
        for name, candidate in best.items()
    }

    assert most["onnx-int8"] >= 1.8 * most["onnx-fp32"]
    assert best["onnx-int8"]["metric"]["value"] >= best["onnx-fp32"]["metric"]["value"] - 0.005
