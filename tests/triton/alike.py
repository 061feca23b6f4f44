"""The alike suite: what it asks about, what Triton answers, where the gateway means to differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.gateway.onnx_models import ELEMENT_TYPES, add_and_multiply, every, identity, put
from tests.triton.python_models import put_python_models

TRITON, EMBEDDED, BEFORE_TRITON = "triton", "embedded", "before_triton"
SERVERS = (TRITON, EMBEDDED, BEFORE_TRITON)
GATEWAYS = (EMBEDDED, BEFORE_TRITON)

# Triton's own answer, "OK" or a status and its text
ANSWERS: dict[str, str] = json.loads(Path(__file__).with_name("answers.json").read_text())

_LABEL = "INVALID_ARGUMENT [request id: <id_unknown>] "

# What the gateway says instead, on purpose: docs/compatibility.md has the reasons.
DIFFERENCES: dict[str, str] = {
    "version with a tail": (
        "INVALID_ARGUMENT failed to get model version from specified version string '1.0' "
        "(details: stol), version should be an integral value > 0"
    ),
    "unknown data type": _LABEL + "input 'x' has an unknown data type 'FP31'",
    "batch of none": "OK",
    "negative dim": _LABEL + "input 'x' has a negative dim or more than 64 dims: [-1, 3]",
    "batch sizes differ": _LABEL + "input 'b' batch size does not match other inputs for 'two'",
    "input too many": ("INVALID_ARGUMENT unexpected inference input 'z' for model 'identity_FP32'"),
    "raw entry too many": (
        _LABEL + "expected 1 raw input contents but got 2 for model 'identity_FP32'"
    ),
    "decoupled model": (
        "UNAVAILABLE model 'count' is not available: the embedded engine serves no decoupled "
        "models: they need --triton or --spawn-triton"
    ),
}

# And where Triton has its say all the same.
BEFORE_TRITON_DIFFERENCES: dict[str, str] = {
    "batch of none": ANSWERS["batch of none"].replace("[request id: <id_unknown>] ", ""),
    "decoupled model": ANSWERS["decoupled model"],
}

COMPATIBILITY = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()

# Fields of ModelConfig that an embedded engine leaves as they were written.
CONFIG_DIFFERENCES = {
    EMBEDDED: {"instanceGroup", "optimization", "runtime"},
    BEFORE_TRITON: set[str](),
    TRITON: set[str](),
}

ONE = "instance_group { count: 1 kind: KIND_CPU }\n"
DECLARED = """max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
"""
RESHAPED = """max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }
output { name: "y" data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }
"""
BOUNDED = """dynamic_batching {
  preferred_batch_size: 4
  max_queue_delay_microseconds: 20000000
  default_queue_policy { max_queue_size: 1 default_timeout_microseconds: 400000 }
}
"""
PAIRED = """dynamic_batching {
  preferred_batch_size: 4
  max_queue_delay_microseconds: 20000000
}
"""
RANKED = """metric_tags { key: "team" value: "sea" }
dynamic_batching {
  preferred_batch_size: 4
  max_queue_delay_microseconds: 20000000
  priority_levels: 3
  default_priority_level: 2
}
"""
LABELLED = """max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 3 label_filename: "labels.txt" }
"""
CHAIN = """platform: "ensemble"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
ensemble_scheduling {
  step {
    model_name: "declared" model_version: -1
    input_map { key: "x" value: "x" }
    output_map { key: "y" value: "between" }
  }
  step {
    model_name: "labelled" model_version: -1
    input_map { key: "x" value: "between" }
    output_map { key: "y" value: "y" }
  }
}
"""
LONE = (
    CHAIN[: CHAIN.index("  step {")].replace("max_batch_size: 4", "max_batch_size: 2")
    + """
  step {
    model_name: "spare" model_version: -1
    input_map { key: "x" value: "x" }
    output_map { key: "y" value: "y" }
  }
}
"""
)
CACHED = "response_cache { enable: true }\n"
# Not loaded when the tests begin: one cannot be, tests load and unload the others.
UNLOADED = frozenset({"truncated", "spare", "lone"})
# A Python-based backend carries no BF16.
DATATYPES = tuple(datatype for datatype in ELEMENT_TYPES if datatype != "BF16")


def fill(root: Path) -> None:
    """Put the models into a repository; `truncated` cannot be loaded."""
    put(root, "every", every(DATATYPES), ONE)
    for datatype in ("FP32", "FP16", "BYTES"):
        put(root, f"identity_{datatype}", identity(datatype), ONE)
    put(root, "truncated", identity()[:40], DECLARED + ONE)
    put(root, "two", add_and_multiply(), ONE)
    put(root, "any_width", identity(dims=("n", "k")), ONE)
    put(root, "unbatched", identity(dims=(2, 3)), ONE)
    put(root, "scalars", identity(dims=("n",)), RESHAPED + ONE)
    put(root, "declared", identity(), DECLARED + ONE)
    put(root, "bounded", identity(), DECLARED + BOUNDED + ONE)
    put(root, "paired", identity(), DECLARED + PAIRED + ONE)
    put(root, "labelled", identity(), LABELLED + ONE)
    (root / "labelled" / "labels.txt").write_text("cat\ndog\n")
    put(root, "cached", identity(), DECLARED + CACHED + ONE)
    put(root, "counted", identity(), DECLARED + ONE)
    put(root, "spare", identity(), DECLARED + ONE)
    put(root, "ranked", identity(), DECLARED + RANKED + ONE)
    for name, config in (("chain", CHAIN), ("lone", LONE)):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)
    put_python_models(root)
    for version in (1, 3):
        put(root, "versions", identity(), "version_policy { all { } }\n" + ONE, version)
        put(root, "newest", identity(), ONE, version)
        put(
            root,
            "first",
            identity(),
            "version_policy { specific { versions: 1 } }\n" + ONE,
            version,
        )


METADATA: dict[str, dict[str, Any]] = {
    "two": {
        "name": "two",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": ["-1", "2"]},
            {"name": "b", "datatype": "FP32", "shape": ["-1", "2"]},
        ],
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": ["-1", "2"]},
            {"name": "product", "datatype": "FP32", "shape": ["-1", "2"]},
        ],
    },
    "unbatched": {
        "name": "unbatched",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["2", "3"]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": ["2", "3"]}],
    },
    "versions": {
        "name": "versions",
        "versions": ["1", "3"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "3"]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": ["-1", "3"]}],
    },
    "scalars": {
        "name": "scalars",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "1"]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": ["-1", "1"]}],
    },
}

# what Triton completes a configuration to, without what only the server can say
CONFIGS: dict[str, dict[str, Any]] = {
    "two": {
        "maxBatchSize": 4,
        "dynamicBatching": {"preferredBatchSize": [4]},
        "input": [
            {"name": "a", "dataType": "TYPE_FP32", "dims": ["2"]},
            {"name": "b", "dataType": "TYPE_FP32", "dims": ["2"]},
        ],
        "output": [
            {"name": "sum", "dataType": "TYPE_FP32", "dims": ["2"]},
            {"name": "product", "dataType": "TYPE_FP32", "dims": ["2"]},
        ],
    },
    "unbatched": {
        "input": [{"name": "x", "dataType": "TYPE_FP32", "dims": ["2", "3"]}],
        "output": [{"name": "y", "dataType": "TYPE_FP32", "dims": ["2", "3"]}],
    },
    "declared": {
        "maxBatchSize": 4,
        "input": [{"name": "x", "dataType": "TYPE_FP32", "dims": ["3"]}],
        "output": [{"name": "y", "dataType": "TYPE_FP32", "dims": ["3"]}],
    },
    "scalars": {
        "maxBatchSize": 8,
        "input": [{"name": "x", "dataType": "TYPE_FP32", "dims": ["1"], "reshape": {}}],
        "output": [{"name": "y", "dataType": "TYPE_FP32", "dims": ["1"], "reshape": {}}],
    },
    "versions": {
        "maxBatchSize": 4,
        "versionPolicy": {"all": {}},
        "dynamicBatching": {"preferredBatchSize": [4]},
        "input": [{"name": "x", "dataType": "TYPE_FP32", "dims": ["3"]}],
        "output": [{"name": "y", "dataType": "TYPE_FP32", "dims": ["3"]}],
    },
}
SERVERS_OWN: dict[str, Callable[[str], Any]] = {
    "instanceGroup": lambda model: [{"name": f"{model}_0", "count": 1, "kind": "KIND_CPU"}],
    "optimization": lambda _model: {
        "inputPinnedMemory": {"enable": True},
        "outputPinnedMemory": {"enable": True},
    },
    "runtime": lambda _model: "model.py",
}
FITTING = {
    "two": {name: np.zeros((1, 2), np.float32) for name in "ab"},
    "unbatched": {"x": np.zeros((2, 3), np.float32)},
    "declared": {"x": np.zeros((1, 3), np.float32)},
    "scalars": {"x": np.zeros((1, 1), np.float32)},
    "versions": {"x": np.zeros((1, 3), np.float32)},
}
