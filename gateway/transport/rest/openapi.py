"""The API as an OpenAPI document, made from the table of operations. Pure."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

from gateway.core import DTYPES
from gateway.transport.rest.operations import OPERATIONS, Operation, Schema

_INFER_PATHS = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
_JSON_SIZE = "Inference-Header-Content-Length"

_STRING: Schema = {"type": "string"}
_SIZE: Schema = {"type": "integer", "minimum": 0}
_SHAPE: Schema = {"type": "array", "items": _SIZE}
_DATATYPE: Schema = {"type": "string", "enum": list(DTYPES)}
_DATA: Schema = {
    "type": "array",
    "description": "The elements, row-major, flat or nested. FP16 and BF16 go as bytes only.",
    "items": {"type": ["number", "string", "boolean", "array"]},
}
_REGION: Schema = {
    "shared_memory_region": _STRING,
    "shared_memory_offset": _SIZE,
    "shared_memory_byte_size": _SIZE,
}
_PARAMETERS: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}


def _parameters(**known: Schema) -> Schema:
    return {**_PARAMETERS, "properties": known}


def _tensor(parameters: Schema) -> Schema:
    return {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": _STRING,
            "datatype": _DATATYPE,
            "shape": _SHAPE,
            "data": _DATA,
            "parameters": parameters,
        },
    }


_COMPONENTS: Schema = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": _STRING}},
    "InferenceRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": _STRING,
            "parameters": _parameters(
                sequence_id={"type": ["integer", "string"]},
                sequence_start={"type": "boolean"},
                sequence_end={"type": "boolean"},
                priority=_SIZE,
                timeout={**_SIZE, "description": "in the queue, microseconds"},
                binary_data_output={"type": "boolean"},
            ),
            "inputs": {
                "type": "array",
                "items": _tensor(_parameters(binary_data_size=_SIZE, **_REGION)),
            },
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": _STRING,
                        "parameters": _parameters(
                            binary_data={"type": "boolean"}, classification=_SIZE, **_REGION
                        ),
                    },
                },
            },
        },
    },
    "InferenceResponse": {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "id": _STRING,
            "model_name": _STRING,
            "model_version": _STRING,
            "parameters": _PARAMETERS,
            "outputs": {"type": "array", "items": _tensor(_parameters(binary_data_size=_SIZE))},
        },
    },
}

_PAGES = {
    "/healthz": ("Whether the gateway serves; 503 once it drains", "application/json"),
    "/metrics": ("Every figure, as Prometheus reads them", "text/plain"),
    "/openapi.json": ("This document", "application/json"),
    "/docs": ("This document as a page", "text/html"),
}


def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    components = dict(_COMPONENTS)
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        for path in operation.paths:
            about = _operation(operation, path, components)
            paths.setdefault(path, {})[operation.method.lower()] = about
    for path in _INFER_PATHS:
        paths[path] = {"post": _infer(path)}
    for path, (summary, media_type) in _PAGES.items():
        answer = {"description": summary, "content": {media_type: {}}}
        paths[path] = {"get": {"summary": summary, "responses": {"200": answer}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidegate",
            "version": version("tidegate"),
            "description": "The Open Inference Protocol (KServe v2) and Triton's extensions of it.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": components},
    }


def _operation(operation: Operation, path: str, components: Schema) -> Schema:
    answer: Schema = {"description": operation.summary}
    if operation.answer.schema is not None:
        answer["content"] = _json(operation.answer.schema(components))
    about: Schema = {
        "summary": operation.summary,
        "tags": [operation.rpc],
        "parameters": _in_path(path),
        "responses": {"200": answer, "default": _ERROR},
    }
    if operation.body is not None:
        about["requestBody"] = {
            "required": operation.needs_body,
            "content": _json(operation.body),
        }
    return about


def _infer(path: str) -> Schema:
    header: Schema = {
        "description": "How many bytes of the body are JSON; contents follow as bytes. 0: the "
        "whole body is the contents of the model's one input.",
        "schema": _SIZE,
    }
    octets: Schema = {"application/octet-stream": {}}
    return {
        "summary": "Run a model",
        "tags": ["ModelInfer"],
        "parameters": [*_in_path(path), {"name": _JSON_SIZE, "in": "header", **header}],
        "requestBody": {
            "required": True,
            "content": {**_json({"$ref": "#/components/schemas/InferenceRequest"}), **octets},
        },
        "responses": {
            "200": {
                "description": "The outputs",
                "headers": {_JSON_SIZE: header},
                "content": {**_json({"$ref": "#/components/schemas/InferenceResponse"}), **octets},
            },
            "default": _ERROR,
        },
    }


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


_ERROR: Schema = {
    "description": "What went wrong",
    "content": _json({"$ref": "#/components/schemas/Error"}),
}


def _in_path(path: str) -> list[Schema]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _STRING}
        for name in re.findall(r"{(\w+)}", path)
    ]
