"""What the sequences of a model instance leave behind for their next requests.

Triton's core gives a sequence's requests to one instance, in order, with their control inputs. It
keeps implicit state for backends in C++ only, so this one in Python keeps it itself.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

QUEUE_S = 60.0  # longer than a request waits in Triton for its instance


class Forgotten(Exception):
    """A request's sequence has no state."""


class Memory:
    """The state of each sequence of this instance.

    A request that fails leaves its sequence's state as it was. Nobody tells a Python backend that
    a sequence has idled out: where there are more than can be, the oldest go, once they cannot
    have requests left in Triton's queue.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        declared = states(config)
        self._inputs = {state["input_name"]: state["output_name"] for state in declared}
        self.outputs = list(self._inputs.values())
        batched = int(config["max_batch_size"]) > 0
        self._initial = {state["input_name"]: _initial(state, batched) for state in declared}
        oldest = config.get("sequence_batching", {}).get("oldest", {})
        slots = int(oldest.get("max_candidate_sequences", 0))
        self._slots = slots or max(1, int(config["max_batch_size"]))
        batching = config.get("sequence_batching", {})
        idle_s = int(batching.get("max_sequence_idle_microseconds", 0)) / 1e6
        self._keep_s = 2 * idle_s + QUEUE_S
        # each state with when it was left
        self._sequences: OrderedDict[Any, tuple[float, dict[str, Any]]] = OrderedDict()

    def recall(self, request: Any) -> dict[str, Any]:
        """Return the state inputs of a request. Raises `Forgotten`."""
        if not self._inputs:
            return {}
        sequence = request.correlation_id()
        if not sequence:  # it stands for a slot that is not ready
            return dict(self._initial)
        if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            self._put(sequence, self._initial)
        if sequence not in self._sequences:
            raise Forgotten(f"the state of sequence {sequence} is not there any more")
        return dict(self._sequences[sequence][1])

    def keep(self, request: Any, outputs: dict[str, Any]) -> None:
        """Take the state outputs of a request that was answered."""
        sequence = request.correlation_id()
        if not self._inputs or not sequence:
            return
        if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END:
            self._sequences.pop(sequence, None)
        else:
            left = {name: outputs[output].copy() for name, output in self._inputs.items()}
            self._put(sequence, left)

    def _put(self, sequence: Any, state: dict[str, Any]) -> None:
        now = time.monotonic()
        self._sequences[sequence] = (now, state)
        self._sequences.move_to_end(sequence)
        while len(self._sequences) > self._slots:
            (left_at, _) = next(iter(self._sequences.values()))
            if now - left_at < self._keep_s:
                break
            self._sequences.popitem(last=False)


def states(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the states that a configuration declares."""
    found: list[dict[str, Any]] = config.get("sequence_batching", {}).get("state", [])
    return found


def controls(config: dict[str, Any]) -> list[str]:
    """Return the names of the control inputs."""
    inputs = config.get("sequence_batching", {}).get("control_input", [])
    return [control["name"] for control in inputs]


def _initial(state: dict[str, Any], batched: bool) -> Any:
    """Return what a sequence begins with: zeros, or what a file of the model holds."""
    given = (state.get("initial_state") or [{}])[0]
    dims = [abs(int(dim)) for dim in given.get("dims", state["dims"])]
    shape = [1, *dims] if batched else dims
    if state["data_type"] == "TYPE_STRING":
        if given.get("data_file"):
            raise pb_utils.TritonModelException(
                f"state '{state['input_name']}': TYPE_STRING is read from no file here"
            )
        return np.full(shape, "", np.object_)
    dtype = pb_utils.triton_string_to_numpy(state["data_type"])
    if not given.get("data_file"):
        return np.zeros(shape, dtype)
    file = Path(pb_utils.get_model_dir()).parent / "initial_state" / given["data_file"]
    try:
        return np.frombuffer(file.read_bytes(), dtype, count=math.prod(shape)).reshape(shape)
    except (OSError, ValueError) as error:
        raise pb_utils.TritonModelException(f"initial_state '{file.name}': {error}") from None
