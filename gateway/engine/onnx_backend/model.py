"""A Python-based Triton backend named `onnxruntime`, for servers that lack NVIDIA's own in C++.

tritonserver runs it in its own environment (`make triton`): nothing of the gateway is here to be
imported. It takes the models that NVIDIA's backend of that name takes, so that one repository
serves under both. Each model instance is a process of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

# beside this file: a backend's folder is on the path of its processes
from implicit_state import Forgotten, Memory, controls, states  # type: ignore[import-not-found]
from ragged_batch import Misfit, batch_input, scatter  # type: ignore[import-not-found]

DEFAULT_FILE = "model.onnx"
DEFAULT_MAX_BATCH_SIZE = 4
_FATAL = 4  # what ONNX Runtime has to say is in its exceptions

_DATA_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


class TritonPythonModel:
    """One instance of one ONNX model."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Fill in what the configuration leaves open, as NVIDIA's backend does.

        Where the inputs or the outputs are not declared and every first dimension is dynamic,
        requests are batched: up to 4 where the configuration does not say.
        """
        known = config.as_dict()
        if known["input"] and known["output"]:
            return config
        session = _open(known)
        nodes = [*session.get_inputs(), *session.get_outputs()]
        if all(_dims(node)[:1] == [-1] for node in nodes):
            if known["max_batch_size"] == 0:
                config.set_max_batch_size(DEFAULT_MAX_BATCH_SIZE)
            if known["max_batch_size"] > 1 and "sequence_batching" not in known:
                config.set_dynamic_batching()
        elif known["max_batch_size"] > 0:
            raise pb_utils.TritonModelException(
                f"autofill failed for model '{known['name']}': model does not support batching "
                "while non-zero max_batch_size is specified"
            )
        batched = known["max_batch_size"] > 0
        # written into it, because `add_input` takes no reshape
        own = _own_inputs(known) | {state["output_name"] for state in states(known)}
        for side, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
            clients = [node for node in values if node.name not in own]
            known[side] = known[side] or [_described(node, batched) for node in clients]
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model, and hold its configuration against it."""
        self._config = json.loads(args["model_config"])
        self._session = _open(self._config)
        self._batched = int(self._config["max_batch_size"]) > 0
        self._ragged = {t["name"] for t in self._config["input"] if t.get("allow_ragged_batch")}
        self._scattered = {
            target: entry["source_input"][0]
            for entry in self._config.get("batch_output", ())
            for target in entry["target_name"]
        }
        self._memory = Memory(self._config)
        needed = {node.name: node for node in self._session.get_inputs()}
        optional = {node.name: node for node in self._session.get_overridable_initializers()}
        nodes = needed | optional
        for tensor in self._config["input"]:
            _check(tensor, nodes, "input", self._batched)
        own = _own_inputs(self._config)
        _check_own(own, nodes, "input")
        _check_complete(own | {tensor["name"] for tensor in self._config["input"]}, needed)
        outputs = {node.name: node for node in self._session.get_outputs()}
        for tensor in self._config["output"]:
            if tensor["name"] not in self._scattered:  # these have the shapes of what clients send
                _check(tensor, outputs, "output", self._batched)
        _check_own({*self._scattered}, outputs, "output")
        _check_own({state["output_name"] for state in states(self._config)}, outputs, "output")
        self._requests_own = [
            *(tensor["name"] for tensor in self._config["input"]),
            *controls(self._config),
        ]
        # Triton has no tensors without dims: a scalar is declared as one element
        self._scalars = {name for name, node in nodes.items() if not node.shape}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request; those of one shape in one run."""
        feeds = []
        answers: list[Any] = [None] * len(requests)
        for index, request in enumerate(requests):
            try:
                feeds.append((index, self._feed(request)))
            except UnicodeDecodeError:
                answers[index] = _refusal("ONNX Runtime takes strings in UTF-8 only")
            except Forgotten as error:
                answers[index] = _refusal(str(error))
        groups: dict[object, list[tuple[int, dict[str, Any]]]] = {}
        for index, feed in feeds:
            shapes = tuple(
                (name, None if name in self._ragged else array.shape[1:])
                for name, array in feed.items()
            )
            groups.setdefault(shapes if self._batched else index, []).append((index, feed))
        for members in groups.values():
            self._run(members, requests, answers)
        return answers

    def _run(
        self, members: list[tuple[int, dict[str, Any]]], requests: list[Any], answers: list[Any]
    ) -> None:
        feeds = [feed for _, feed in members]
        outputs = self._config["output"]
        names = [output["name"] for output in outputs]
        own = [name for name in self._memory.outputs if name not in names]
        try:
            arrays = self._session.run(names + own, self._joined(feeds))
            by_name = dict(zip(names + own, arrays, strict=True))
            shares = self._shares(by_name, feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no root of their own
            text = str(error) if isinstance(error, Misfit) else f"ONNX Runtime: {error}"
            for index, _ in members:
                answers[index] = _refusal(text)
            return
        for position, (index, _) in enumerate(members):
            asked = requests[index].requested_output_names()
            tensors = [
                pb_utils.Tensor(
                    output["name"], self._outside(output, shares[output["name"]][position])
                )
                for output in outputs
                if output["name"] in asked
            ]
            mine = {name: shares[name][position] for name in self._memory.outputs}
            self._memory.keep(requests[index], mine)
            answers[index] = pb_utils.InferenceResponse(tensors)

    def _joined(self, feeds: list[dict[str, Any]]) -> dict[str, Any]:
        joined = {}
        for name in feeds[0]:
            parts = [feed[name] for feed in feeds]
            if name in self._ragged:
                parts = [part.reshape(-1) for part in parts]
            joined[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        for entry in self._config.get("batch_input", ()):
            source = entry["source_input"][0]
            if source in feeds[0]:
                made = batch_input(entry, [feed[source].shape for feed in feeds])
                joined[entry["target_name"][0]] = made
        return joined

    def _shares(self, arrays: dict[str, Any], feeds: list[dict[str, Any]]) -> dict[str, list[Any]]:
        """Return each output as its members' shares of it."""
        if not self._batched:
            return {name: [array] for name, array in arrays.items()}
        ends = np.cumsum([_rows(feed) for feed in feeds])
        shares = {}
        for name, array in arrays.items():
            if name in self._scattered:
                (dims,) = [o["dims"] for o in self._config["output"] if o["name"] == name]
                shapes = [feed[self._scattered[name]].shape for feed in feeds]
                shares[name] = scatter(name, array, shapes, [-1, *map(int, dims)])
            elif array.shape[:1] != (ends[-1],):  # whose row is whose? nobody's answer is right
                raise Misfit(
                    f"a batch of {ends[-1]} gave output '{name}' the shape {list(array.shape)}"
                )
            else:
                shares[name] = np.split(array, ends[:-1])
        return shares

    def _feed(self, request: Any) -> dict[str, Any]:
        feed: dict[str, Any] = self._memory.recall(request)
        for name in self._requests_own:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:  # an optional one
                continue
            array = tensor.as_numpy()
            if array.dtype == np.object_:
                texts = [element.decode() for element in array.ravel()]
                array = np.array(texts, np.object_).reshape(array.shape)
            if name in self._scalars and array.size == 1:
                array = array.reshape(())
            feed[name] = array
        return feed

    def _outside(self, declared: dict[str, Any], array: Any) -> Any:
        """Return an output as Triton takes it: strings as bytes, a scalar with its dims."""
        if array.dtype == np.object_:
            encoded = [text.encode() for text in array.ravel()]
            array = np.array(encoded, np.object_).reshape(array.shape)
        if not array.ndim and "reshape" not in declared:
            array = array.reshape([1] * len(declared["dims"]))
        return np.ascontiguousarray(array) if array.ndim else array


def _own_inputs(config: dict[str, Any]) -> set[str]:
    """Return the inputs that no client gives."""
    made = {entry["target_name"][0] for entry in config.get("batch_input", ())}
    return made | {*controls(config)} | {state["input_name"] for state in states(config)}


def _open(config: dict[str, Any]) -> Any:
    name = config.get("default_model_filename") or DEFAULT_FILE
    path = Path(pb_utils.get_model_dir(), name)
    if path.is_dir():
        path = path / DEFAULT_FILE
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = _threads(config)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # see above
        raise pb_utils.TritonModelException(f"cannot open '{name}': {error}") from None


def _threads(config: dict[str, Any]) -> int:
    """Return the threads of one instance: NVIDIA's parameter, 0 for every core, or else 1.

    Triton makes two instances on a CPU. With ONNX Runtime's own default, every core for each, they
    spin against each other: a small MLP gave 0.5 to 0.7 of the requests/s on 2 quiet cores.
    """
    parameter = config.get("parameters", {}).get("intra_op_thread_count", {})
    text: str = parameter.get("string_value") or "1"
    if not (text.isascii() and text.isdecimal()):
        raise pb_utils.TritonModelException(
            f"parameter 'intra_op_thread_count' must be a whole number, not '{text}'"
        )
    return int(text)


def _rows(feed: dict[str, Any]) -> int:
    return len(next(iter(feed.values())))


def _dims(node: Any) -> list[int]:
    return [dim if isinstance(dim, int) else -1 for dim in node.shape or ()]


def _described(node: Any, batched: bool) -> dict[str, Any]:
    if node.type not in _DATA_TYPES:
        raise pb_utils.TritonModelException(f"tensor '{node.name}' has the type {node.type}")
    dims = _dims(node)[int(batched) :]
    described = {"name": node.name, "data_type": _DATA_TYPES[node.type], "dims": dims or [1]}
    if batched and not dims:
        described["reshape"] = {"shape": []}
    return described


def _check(tensor: dict[str, Any], nodes: dict[str, Any], kind: str, batched: bool) -> None:
    node = nodes.get(tensor["name"])
    if node is None:
        names = ", ".join(sorted(nodes))
        raise pb_utils.TritonModelException(
            f"the configuration names {kind} '{tensor['name']}', which the model has not; "
            f"it has: {names}"
        )
    if _DATA_TYPES.get(node.type) != tensor["data_type"]:
        raise pb_utils.TritonModelException(
            f"the configuration gives {kind} '{tensor['name']}' the type {tensor['data_type']}, "
            f"the model {node.type}"
        )
    actual = _dims(node)
    if not actual and (kind == "output" or not batched):
        return  # a scalar, or of a rank that ONNX Runtime does not know: [] is what it says then
    dims = tensor["reshape"].get("shape", []) if "reshape" in tensor else tensor["dims"]
    declared = [-1] * batched + [int(dim) for dim in dims]
    if tensor.get("allow_ragged_batch"):
        declared = [-1]  # the elements of all requests, one after the other
    fits = len(actual) == len(declared) and all(
        # a fixed output of a dim declared open is right; a fixed input would refuse clients
        a in (d, -1) or (d == -1 and kind == "output" and not (batched and i == 0))
        for i, (a, d) in enumerate(zip(actual, declared, strict=True))
    )
    if not fits:
        raise pb_utils.TritonModelException(
            f"the configuration gives {kind} '{tensor['name']}' the dims {declared}"
            f"{' (batch first)' if batched else ''}, the model {actual}"
        )


def _check_own(names: set[str], nodes: dict[str, Any], kind: str) -> None:
    for name in sorted(names - nodes.keys()):
        raise pb_utils.TritonModelException(
            f"the configuration names {kind} '{name}', which the model has not; "
            f"it has: {', '.join(sorted(nodes))}"
        )


def _check_complete(declared: set[str], nodes: dict[str, Any]) -> None:
    missing = sorted(nodes.keys() - declared)
    if missing:
        raise pb_utils.TritonModelException(
            f"the configuration does not name the model's input '{missing[0]}', which it needs"
        )


def _refusal(text: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
