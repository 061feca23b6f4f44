"""The JSON of those RPCs whose messages Triton spells in its own way. Pure.

Each `..._request` makes the message from the names in the path and the body's JSON.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from gateway.errors import InvalidRequest
from gateway.transport.rest import json_values
from gateway.transport.rest.message_json import to_json

Path = Mapping[str, str]
"""The names in a path; "" for those that a shorter path leaves out."""

_MAX_UINT32 = 2**32 - 1


def index(response: pb.RepositoryIndexResponse) -> list[dict[str, Any]]:
    """Return the models; without the version or the reason of one that has none."""
    return [{k: v for k, v in to_json(model).items() if v} for model in response.models]


def regions(response: Any) -> list[dict[str, Any]]:
    """Return the registered regions, of either kind."""
    return [to_json(response.regions[name]) for name in sorted(response.regions)]


def trace_settings(response: pb.TraceSettingResponse) -> dict[str, Any]:
    """Return the settings: the levels are a list, all others texts."""
    return {
        name: list(setting.value) if name == "trace_level" else ",".join(setting.value)
        for name, setting in response.settings.items()
    }


def log_settings(response: pb.LogSettingsResponse) -> dict[str, Any]:
    """Return the settings as what they are."""
    settings = response.settings
    kinds = {name: settings[name].WhichOneof("parameter_choice") for name in settings}
    return {name: getattr(settings[name], kind) for name, kind in kinds.items() if kind}


def index_request(_path: Path, body: Any) -> Any:
    """Ask for the index. The name of a repository in the path means nothing, as in Triton."""
    return pb.RepositoryIndexRequest(ready="ready" in body and json_values.boolean(body, "ready"))


def load_request(path: Path, body: Any) -> Any:
    """Load a model, perhaps with a configuration and files in place of its own."""
    request = pb.RepositoryModelLoadRequest(
        repository_name=path["repository"], model_name=path["model"]
    )
    given = body.get("parameters", {})
    for name in json_values.members(given, "parameters"):
        text = json_values.string(given, name)
        if name.startswith("file:"):
            request.parameters[name].bytes_param = _from_base64(name, text)
        else:
            request.parameters[name].string_param = text
    return request


def unload_request(path: Path, body: Any) -> Any:
    """Unload a model, perhaps with those that it depends on."""
    request = pb.RepositoryModelUnloadRequest(
        repository_name=path["repository"], model_name=path["model"]
    )
    name = "unload_dependents"
    given = body.get("parameters", {})
    if name in json_values.members(given, "parameters"):
        request.parameters[name].bool_param = json_values.boolean(given, name)
    return request


def system_registration(path: Path, body: Any) -> Any:
    """Register a region of system shared memory."""
    _check_region(path, body, "system", ("key", "byte_size"))
    return pb.SystemSharedMemoryRegisterRequest(
        name=path["region"],
        key=json_values.string(body, "key"),
        offset=json_values.unsigned(body, "offset") if "offset" in body else 0,
        byte_size=json_values.unsigned(body, "byte_size"),
    )


def cuda_registration(path: Path, body: Any) -> Any:
    """Register a region of GPU memory."""
    _check_region(path, body, "cuda", ("raw_handle", "byte_size", "device_id"))
    handle = json_values.string(body["raw_handle"], "b64")
    return pb.CudaSharedMemoryRegisterRequest(
        name=path["region"],
        raw_handle=_from_base64("raw_handle", handle),
        device_id=json_values.unsigned(body, "device_id"),
        byte_size=json_values.unsigned(body, "byte_size"),
    )


def _check_region(path: Path, body: Any, kind: str, needed: tuple[str, ...]) -> None:
    if not path["region"]:
        raise InvalidRequest(f"'region name' is necessary to register {kind} shared memory region")
    for name in needed:
        if name not in body:
            raise InvalidRequest(f"Shared memory register request has no '{name}' field")


def trace_request(path: Path, body: Any) -> Any:
    """Change trace settings; null clears one, which is a setting without a value."""
    request = pb.TraceSettingRequest(model_name=path["model"])
    for name, value in body.items():
        values = request.settings[name].value
        if name == "trace_level" and value is not None:
            values.extend(json_values.strings(body, name))
        elif value is not None:
            values.append(json_values.string(body, name))
    return request


def log_request(_path: Path, body: Any) -> Any:
    """Change log settings; null changes nothing."""
    request = pb.LogSettingsRequest()
    for name, value in body.items():
        match value:
            case None:
                pass
            case bool():
                request.settings[name].bool_param = value
            case str():
                request.settings[name].string_param = value
            case int() if 0 <= value <= _MAX_UINT32:
                request.settings[name].uint32_param = value
            case _:
                raise InvalidRequest(f"expect a bool, a text or an integer >= 0 for '{name}'")
    return request


def _from_base64(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"failed to decode '{name}': it is not base64") from None
