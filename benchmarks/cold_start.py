"""Row `cold`: a session opened from the gateway's cache beside a plain one, a CNN of 100 MB.

The files of both are in the page cache: what is compared is the work of opening, not the disk.
The measuring is a process of its own, `python -m benchmarks.cold_start FOLDER ROUNDS`, since ONNX
Runtime's thread pools can be set up once in a process.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.bars import Outcome, ratio
from benchmarks.provenance import ROOT
from gateway.core import ModelSpec
from gateway.engine.onnx_opener import OnnxOpener
from gateway.engine.session_cache import SETTLED_NS
from gateway.repository.reader import read_model

CLAIM = "session from the cache / plain session, time to open"
LIMIT = 0.15
NAME = "cnn"
LAYERS, CHANNELS = 11, 512  # of 3 x 3 convolutions: 104 MB of weights
CACHE_BYTES = 2**30


def measure(scratch: Path, rounds: int) -> tuple[list[Outcome], dict[str, Any]]:
    """Return the outcome and the milliseconds of each open, plain and cached in turn."""
    folder = scratch / "cold" / NAME / "1"
    folder.mkdir(parents=True)
    onnx.save(cnn(), folder / "model.onnx")
    # a younger file is hashed anew at each open, as no model in service is
    time.sleep(1.1 * SETTLED_NS / 1e9)
    command = [sys.executable, "-m", "benchmarks.cold_start", str(scratch / "cold"), str(rounds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        return [Outcome("cold", CLAIM, LIMIT, False, None, said[-1], broken=True)], {}
    opened: dict[str, list[float]] = json.loads(done.stdout)
    plain, cached = opened["plain_ms"], opened["cached_ms"]
    print(f"cold     plain {min(plain):.0f} ms, from the cache {min(cached):.0f} ms", flush=True)
    return [Outcome("cold", CLAIM, LIMIT, False, ratio(cached, plain))], dict(opened)


def open_in_turn(repository: Path, rounds: int) -> dict[str, list[float]]:
    """Return how many milliseconds each open took. The cache's entry is made before."""
    (spec,) = read_model(repository, NAME).versions
    onnxruntime.set_global_thread_pool_sizes(1, 1)
    plain = OnnxOpener(onnxruntime, None, 0, 0, session_threads=0)
    cache = repository.parent / "session-cache"
    cached = OnnxOpener(onnxruntime, cache, CACHE_BYTES, 0, session_threads=0)
    _timed_ms(plain, spec)
    if (store := cached.open(spec).store) is not None:
        store()
    _timed_ms(cached, spec)
    pairs = [(_timed_ms(plain, spec), _timed_ms(cached, spec)) for _ in range(rounds)]
    return {"plain_ms": [pair[0] for pair in pairs], "cached_ms": [pair[1] for pair in pairs]}


def _timed_ms(opener: OnnxOpener, spec: ModelSpec) -> float:
    gc.collect()
    started_s = time.perf_counter()
    session = opener.open(spec)
    took_ms = (time.perf_counter() - started_s) * 1e3
    del session
    return round(took_ms, 2)


def cnn() -> onnx.ModelProto:
    """Return 12 convolutions of 3 x 3 over 32 x 32 pixels: 104 MB of weights."""
    rng = np.random.default_rng(20261123)
    nodes, weights = [], []
    value, channels = "x", 3
    for layer in range(LAYERS + 1):
        scale = np.sqrt(2 / (channels * 9))
        kernel = rng.normal(0, scale, (CHANNELS, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        nodes.append(
            helper.make_node("Conv", [value, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        value, channels = f"r{layer}", CHANNELS
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"]))
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CHANNELS, 1, 1])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


if __name__ == "__main__":
    print(json.dumps(open_in_turn(Path(sys.argv[1]), int(sys.argv[2]))))
