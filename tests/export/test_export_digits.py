"""The example that is committed, and its version in the committed repository."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export import choose, config_pbtxt, spec
from export.objective import Objective
from export.trained import TrainedModel

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "digits"
PUBLISHED = ROOT / "model_repository" / "digits"


def held_out() -> tuple[Any, Any]:
    images, labels = runpy.run_path(str(EXAMPLE / "data.py"))["held_out"]()
    return images, labels


def accuracy(logits: Any, labels: Any) -> float:
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def example() -> spec.ExportSpec:
    return spec.load((EXAMPLE / "digits.toml").read_text(), EXAMPLE, {})


def test_the_committed_weights_read_the_held_out_digits(
    load: Callable[[spec.ExportSpec], TrainedModel],
) -> None:
    images, labels = held_out()

    logits = load(example()).run({"image": images}, {"batch": len(images)})["logits"]

    assert accuracy(logits, labels) >= 0.985
    assert (EXAMPLE / "digits.safetensors").stat().st_size < 200_000


def test_the_published_version_reads_the_held_out_digits() -> None:
    images, labels = held_out()
    session = onnxruntime.InferenceSession(PUBLISHED / "1" / "model.onnx")

    (logits,) = session.run(["logits"], {"image": images})

    assert accuracy(logits, labels) >= 0.98


def test_the_published_config_is_what_the_spec_says() -> None:
    text = (PUBLISHED / "config.pbtxt").read_text()

    batching = choose.batching(example(), None, Objective("throughput"))
    assert text == config_pbtxt.render(example(), batching)
    assert text_format.Parse(text, pb.ModelConfig()).max_batch_size == 64
    assert (PUBLISHED / "labels.txt").read_bytes() == (EXAMPLE / "labels.txt").read_bytes()


def test_the_published_file_names_no_folder_of_the_machine_that_made_it() -> None:
    content = (PUBLISHED / "1" / "model.onnx").read_bytes()

    for trace in (b"/site-packages/", b".py", str(ROOT).encode(), str(Path.home()).encode() + b"/"):
        assert trace not in content
