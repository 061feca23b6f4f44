"""Protobuf messages as Triton's JSON, and JSON as messages. No server."""

from __future__ import annotations

from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from gateway.errors import InvalidRequest
from gateway.transport.rest import rpc_json
from gateway.transport.rest.message_json import schema, to_json

NOWHERE = {"model": "", "version": "", "repository": "", "region": ""}


def test_defaults_are_written_and_what_can_be_absent_is_left_out() -> None:
    config = model_config_pb2.ModelConfig(name="m", max_batch_size=4)
    document = to_json(config)
    assert document["max_batch_size"] == 4
    assert document["platform"] == ""
    assert document["input"] == []
    assert document["parameters"] == {}
    assert not {"dynamic_batching", "sequence_batching", "optimization"} & document.keys()


def test_whole_numbers_are_numbers_and_enums_are_names() -> None:
    config = model_config_pb2.ModelConfig()
    config.input.add(name="x", data_type=model_config_pb2.TYPE_FP32, dims=[-1, 2**40])
    config.dynamic_batching.priority_queue_policy[3].max_queue_size = 9
    config.parameters["k"].string_value = "v"
    document = to_json(config)
    assert document["input"][0]["data_type"] == "TYPE_FP32"
    assert document["input"][0]["dims"] == [-1, 2**40]
    policy = document["dynamic_batching"]["priority_queue_policy"]["3"]
    assert (policy["max_queue_size"], policy["timeout_action"]) == (9, "REJECT")
    assert document["parameters"] == {"k": {"string_value": "v"}}


def test_bytes_are_base64() -> None:
    given = pb.CudaSharedMemoryRegisterRequest(raw_handle=b"\xff\x00")
    assert to_json(given)["raw_handle"] == "/wA="


def test_schema_describes_every_field_once() -> None:
    components: dict[str, Any] = {}
    reference = schema(model_config_pb2.ModelConfig.DESCRIPTOR, components)
    assert reference == {"$ref": "#/components/schemas/ModelConfig"}
    fields = components["ModelConfig"]["properties"]
    assert fields.keys() == to_json(model_config_pb2.ModelConfig()).keys() | fields.keys()
    assert fields["max_batch_size"] == {"type": "integer"}
    assert "TYPE_FP32" in components["ModelInput"]["properties"]["data_type"]["enum"]


def test_index_names_no_version_and_no_reason_where_there_is_none() -> None:
    response = pb.RepositoryIndexResponse()
    response.models.add(name="a", version="1", state="READY")
    response.models.add(name="b", state="UNAVAILABLE", reason="broken")
    assert rpc_json.index(response) == [
        {"name": "a", "version": "1", "state": "READY"},
        {"name": "b", "state": "UNAVAILABLE", "reason": "broken"},
    ]


def test_settings_go_there_and_back() -> None:
    given = {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "7", "trace_count": None}
    request = rpc_json.trace_request(NOWHERE, given)
    assert list(request.settings["trace_count"].value) == []
    response = pb.TraceSettingResponse()
    for name in ("trace_level", "trace_rate"):
        response.settings[name].value.extend(request.settings[name].value)
    assert rpc_json.trace_settings(response) == {
        "trace_level": ["TIMESTAMPS", "TENSORS"],
        "trace_rate": "7",
    }
    logged = {"log_info": False, "log_verbose_level": 2, "log_format": "ISO8601"}
    settings = rpc_json.log_request(NOWHERE, {**logged, "log_file": None}).settings
    response = pb.LogSettingsResponse()
    for name in settings:
        response.settings[name].CopyFrom(
            pb.LogSettingsResponse.SettingValue.FromString(settings[name].SerializeToString())
        )
    assert rpc_json.log_settings(response) == logged


@pytest.mark.parametrize(
    ("make", "body"),
    [
        (rpc_json.index_request, {"ready": 1}),
        (rpc_json.load_request, {"parameters": []}),
        (rpc_json.load_request, {"parameters": {"config": {}}}),
        (rpc_json.load_request, {"parameters": {"file:1/model.onnx": "?"}}),
        (rpc_json.unload_request, {"parameters": {"unload_dependents": "yes"}}),
        (rpc_json.system_registration, {"key": "k", "byte_size": -1}),
        (rpc_json.cuda_registration, {"raw_handle": "h", "byte_size": 1, "device_id": 0}),
        (rpc_json.trace_request, {"trace_level": "OFF"}),
        (rpc_json.trace_request, {"trace_level": [1]}),
        (rpc_json.trace_request, {"trace_rate": 7}),
        (rpc_json.log_request, {"log_verbose_level": -1}),
        (rpc_json.log_request, {"log_info": []}),
    ],
)
def test_json_of_the_wrong_kind_is_refused(make: Any, body: Any) -> None:
    with pytest.raises(InvalidRequest):
        make({**NOWHERE, "region": "r"}, body)
