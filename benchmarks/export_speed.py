"""Rows "digits", "minilm", "knee", "gpu": what the formats are worth, and whether a curve is true.

Formats are run in turns in one process each round, one thread a core but one, as a gateway has it.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from benchmarks.bars import Outcome
from benchmarks.export_command import Exported, export, spec
from benchmarks.rows import Found
from benchmarks.serverless_gateway import gateway
from export import machine

Arrays = dict[str, Any]
TURN_S = 0.4
LOAD_S = 4.0


def measure_digits(scratch: Path, rounds: int) -> Found:
    """Static int8 against float32, at the batch size that is best for each."""
    from examples.zoo.digits_cnn.data import samples

    files = _both(scratch, "digits_cnn", "onnx-int8")
    rates = _in_turns(files, samples(), (1, 2, 4, 8, 16, 32, 64), rounds)
    ratio = median(b / a for a, b in zip(rates["onnx-fp32"], rates["onnx-int8"], strict=True))
    metric = {name: each.manifest["metric"]["value"] for name, each in files.items()}
    drop = metric["onnx-fp32"] - metric["onnx-int8"]
    return (
        [
            Outcome("digits", "inferences/s of int8 / of fp32", 1.8, True, ratio),
            Outcome("digits", "accuracy lost by int8", 0.005, False, drop),
        ],
        {"inferences_per_s": rates, "accuracy": metric},
    )


def measure_minilm(scratch: Path, rounds: int) -> Found:
    """The format that the exporter chooses against float32, on real sentences."""
    from examples.zoo.minilm.data import samples

    chosen = export("minilm", spec("minilm"), repository=scratch / "chosen")
    name = chosen.manifest["format"]
    exact = _one(scratch, "minilm", "onnx-fp32")
    rates = _in_turns({name: chosen, "onnx-fp32": exact}, samples(), (1, 4, 16, 32), rounds)
    ratio = median(b / a for a, b in zip(rates["onnx-fp32"], rates[name], strict=True))
    embedding = chosen.manifest["parity"]["outputs"]["embedding"]
    return (
        [
            Outcome("minilm", "inferences/s of the chosen format / of fp32", 1.8, True, ratio),
            Outcome("minilm", "mean cosine on real sentences", 0.99, True, embedding["cosine"]),
        ],
        {"chosen": name, "inferences_per_s": rates, "embedding": embedding},
    )


def measure_knee(scratch: Path, rounds: int) -> Found:
    """The curve of the manifest against load on a gateway, in batches of the knee's size."""
    from examples.zoo.minilm.data import samples

    done = _one(scratch, "minilm", "onnx-fp32", profile=True)
    curve = done.manifest["profile"]["curve"]
    most = max(point["throughput"] for point in curve)
    knee = next(point for point in curve if point["throughput"] >= 0.9 * most)
    # The rows that the profile had: the first real call's, repeated.
    first = {name: array[:1] for name, array in samples().items()}
    rows = {name: np.repeat(array, knee["batch"], axis=0) for name, array in first.items()}
    with gateway(done.folder.parents[1], scratch) as running:
        loads = [_load(running.address, "minilm", rows) for _ in range(rounds)]
    ratio = median(loads) / knee["throughput"]
    off = abs(ratio - 1)
    claim = "inferences/s at the knee through the gateway, off the manifest's"
    return (
        [Outcome("knee", claim, 0.25, False, off)],
        {"knee": knee, "through_the_gateway_per_s": loads, "ratio": ratio, "curve": curve},
    )


def measure_gpu() -> Found:
    """Nothing here without a GPU; with one `make gpu-test` proves the formats."""
    note = machine.no_cuda_provider() or "run by `make gpu-test`"
    claims = (
        "inferences/s of fp16 on CUDA / of torch.compile, ResNet-50",
        "inferences/s of fp16 on CUDA / of torch.compile, BERT-base",
        "inferences/s of TensorRT fp16 / of torch.compile, ResNet-50",
    )
    return [Outcome("gpu", claim, 1.0, True, None, note) for claim in claims], {}


def _one(scratch: Path, name: str, kind: str, *, profile: bool = False) -> Exported:
    flags = [] if profile else ["--no-profile"]
    repository = scratch / kind / "repository"
    return export(name, spec(name), "--formats", kind, *flags, repository=repository)


def _both(scratch: Path, name: str, kind: str) -> dict[str, Exported]:
    return {each: _one(scratch, name, each) for each in ("onnx-fp32", kind)}


def _in_turns(
    files: dict[str, Exported], samples: Arrays, batches: tuple[int, ...], rounds: int
) -> dict[str, list[float]]:
    """The best inferences/s over the batch sizes, each round, by format."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, machine.facts().cores - 1)
    sessions = {
        name: onnxruntime.InferenceSession(each.folder / "model.onnx", options)
        for name, each in files.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(rounds):
        best = dict.fromkeys(files, 0.0)
        for batch in batches:
            feed = {
                name: np.resize(array, (batch, *array.shape[1:])) for name, array in samples.items()
            }
            for name, session in sessions.items():
                best[name] = max(best[name], batch * _per_s(session, feed))
        for name, rate in best.items():
            rates[name].append(rate)
    return rates


def _per_s(session: Any, feed: Arrays) -> float:
    session.run(None, feed)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < TURN_S:
        session.run(None, feed)
        count += 1
    return count / (time.perf_counter() - began)


def _load(address: str, model: str, rows: Arrays) -> float:
    """Inferences per second of a client that asks for the same batch again and again.

    One, because the curve is of one copy: a second client would have a second copy's help.
    """
    inputs = []
    for name, array in rows.items():
        inputs.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    with triton.InferenceServerClient(address) as client:
        client.infer(model, inputs)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < LOAD_S:
            client.infer(model, inputs)
            count += 1
        return count * len(next(iter(rows.values()))) / (time.perf_counter() - began)
