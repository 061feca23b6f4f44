"""Models of the Python backend of Triton: what no ONNX model does.

A gateway has them served by the Triton behind it.
"""

from __future__ import annotations

from pathlib import Path

_CONFIG = """backend: "python"
input { name: "x" data_type: TYPE_INT32 dims: 1 }
output { name: "y" data_type: TYPE_INT32 dims: 1 }
"""
_ONE, _TWO = (f"instance_group {{ count: {count} kind: KIND_CPU }}\n" for count in (1, 2))
_DECOUPLED = "max_batch_size: 0\nmodel_transaction_policy { decoupled: true }\n" + _ONE
_BATCHED = "max_batch_size: 8\ndynamic_batching { }\n" + _ONE
_ORDERED = "max_batch_size: 1\ndynamic_batching { preserve_ordering: true }\n" + _TWO

# answers a request for n with 0, 1 ... n - 1; fails at 13
_COUNT = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            n = int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy()[0])
            if n == 13:
                error = pb_utils.TritonError("thirteen is not counted to")
                sender.send(pb_utils.InferenceResponse(error=error))
            else:
                for i in range(n):
                    y = pb_utils.Tensor("y", np.array([i], np.int32))
                    sender.send(pb_utils.InferenceResponse([y]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
# answers x times the parameter "factor"; fails at 13, where its batch-mates do not
_TIMES = """
import json
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            factor = json.loads(request.parameters() or "{}").get("factor", 1)
            if (x == 13).any():
                error = pb_utils.TritonError("thirteen is not multiplied")
                answers.append(pb_utils.InferenceResponse(error=error))
            else:
                answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x * factor)]))
        return answers
"""
# answers x after x milliseconds
_SLEEPER = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        x = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        time.sleep(max(each.max() for each in x) / 1e3)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", each)]) for each in x]
"""


def put_python_models(root: Path) -> None:
    """Write a decoupled model, one that looks at parameters, and one that takes its time."""
    for name, code, config in (
        ("count", _COUNT, _DECOUPLED),
        ("times", _TIMES, _BATCHED),
        ("sleeper", _SLEEPER, _ORDERED),
    ):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(_CONFIG + config)
        (root / name / "1" / "model.py").write_text(code)
