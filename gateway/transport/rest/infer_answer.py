"""An answer as the body of an HTTP response: JSON, and bytes behind it. Pure."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson

from gateway import wire
from gateway.core import InferResponse, Tensor
from gateway.errors import InvalidRequest
from gateway.transport.delivery import Placed
from gateway.transport.rest.infer_body import Question


def write(response: InferResponse, placed: Placed, question: Question) -> tuple[bytes, int | None]:
    """Return the body, and the size of the JSON where bytes stand behind it."""
    contents: list[wire.Bytes] = []
    outputs = []
    for tensor in response.outputs:
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.data.shape,
        }
        if tensor.name in placed:
            pass  # in shared memory; the client knows where
        elif question.binary.get(tensor.name, question.others_binary):
            content = wire.contents(tensor)
            output["parameters"] = {"binary_data_size": len(content)}
            if content:
                contents.append(content)
        else:
            output["data"] = _elements(tensor)
        outputs.append(output)
    document: dict[str, Any] = {"id": response.id} if response.id else {}
    document["model_name"] = response.model
    document["model_version"] = str(response.version)
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    document["outputs"] = outputs
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((text, *contents)), len(text)) if contents else (text, None)


def _elements(tensor: Tensor) -> Any:
    """Return what orjson writes as an array of all elements."""
    if tensor.datatype == "BYTES":
        try:
            return [element.decode() for element in tensor.data.ravel()]
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"output '{tensor.name}' has strings that are not UTF-8. Please use the binary "
                "data format for it"
            ) from None
    if tensor.datatype in ("FP16", "BF16"):
        raise InvalidRequest(
            f"sending {tensor.datatype} data via JSON is not supported. Please use the binary "
            "data format for output"
        )
    data = np.ascontiguousarray(tensor.data).reshape(-1)
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        # orjson would write null for what Triton, and Python, write as NaN and Infinity
        return orjson.Fragment(json.dumps(data.tolist()))
    return data
