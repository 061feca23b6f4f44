"""TraceSetting and LogSettings: Tidegate keeps and refuses what Triton does, by gRPC and REST."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2 as pb

from tests.triton.alike import COMPATIBILITY, TRITON
from tests.triton.questions import said
from tests.triton.rest_questions import Asked, http_ask
from tests.triton.server import Endpoint

TRACE, LOGGING = "/v2/trace/setting", "/v2/logging"
CLEAR = {"trace_level": None, "trace_rate": None, "trace_count": None, "log_frequency": None}
LOG_DEFAULTS = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


@pytest.fixture(autouse=True)
def as_they_were(endpoint: Endpoint) -> Iterator[None]:
    """The servers are everybody's."""
    yield
    for path in (TRACE, "/v2/models/two/trace/setting"):
        assert http_ask(endpoint, Asked(path, CLEAR)).code == 200
    settings = {name: value for name, value in LOG_DEFAULTS.items() if name != "log_file"}
    assert http_ask(endpoint, Asked(LOGGING, settings)).code == 200


def traced(**settings: Any) -> pb.TraceSettingRequest:
    """Return a request; each setting a text, several, or None, which clears it."""
    request = pb.TraceSettingRequest(model_name=settings.pop("model", ""))
    for name, value in settings.items():
        values = [value] if isinstance(value, str) else value or []
        request.settings[name].value.extend(values)
    return request


def shown(response: pb.TraceSettingResponse) -> dict[str, list[str]]:
    return {name: list(setting.value) for name, setting in response.settings.items()}


def test_trace_settings_are_kept_and_cleared(stub: Any) -> None:
    defaults = shown(stub.TraceSetting(pb.TraceSettingRequest()))
    assert {name: defaults[name] for name in ("trace_level", "trace_rate", "trace_count")} == {
        "trace_level": ["OFF"],
        "trace_rate": ["1000"],
        "trace_count": ["-1"],
    }
    changed = shown(stub.TraceSetting(traced(trace_rate="7", trace_count="5")))
    assert changed == {**defaults, "trace_rate": ["7"], "trace_count": ["5"]}
    assert shown(stub.TraceSetting(pb.TraceSettingRequest())) == changed
    assert shown(stub.TraceSetting(traced(trace_rate=None, trace_count=None))) == defaults


def test_trace_settings_of_a_model_are_its_own_until_they_are_cleared(
    client: triton.InferenceServerClient,
) -> None:
    def rate(model: str | None = None) -> str:
        settings = client.get_trace_settings(model).settings
        return str(settings["trace_rate"].value[0])

    client.update_trace_settings("two", {"trace_rate": "3"})
    assert (rate("two"), rate("every"), rate()) == ("3", "1000", "1000")
    client.update_trace_settings(settings={"trace_rate": "9"})
    assert (rate("two"), rate("every"), rate()) == ("3", "9", "9")
    client.update_trace_settings("two", {"trace_rate": []})
    assert rate("two") == "9"


BAD_TRACES = [
    (traced(model="nobody"), "INVALID_ARGUMENT Request for unknown model : nobody"),
    (
        traced(trace_file="/tmp/x"),
        "UNIMPLEMENTED trace file location can not be updated through network protocol",
    ),
    (
        traced(trace_level=["OFF", "TIMESTAMPS"]),
        "INVALID_ARGUMENT Expect only one trace level 'OFF' is specified",
    ),
    (traced(trace_rate=["1", "2"]), "INVALID_ARGUMENT expect only 1 value for 'trace_rate'"),
    (traced(trace_count=["1", "2"]), "INVALID_ARGUMENT expect only 1 value for 'trace_count'"),
    (traced(trace_rate="x"), "INVALID_ARGUMENT Unable to parse 'trace_rate', got: x"),
    (
        traced(trace_rate="4294967296"),
        "INVALID_ARGUMENT Unable to parse 'trace_rate', value is out of range "
        "[ 0, 4294967295 ], got: 4294967296",
    ),
    (
        traced(trace_count="-2"),
        "INVALID_ARGUMENT Unable to parse 'trace_count'. Expecting value >= -1, got: -2",
    ),
    (traced(foo="1"), "OK"),
    (traced(trace_level="FOO"), "OK"),
]


@pytest.mark.parametrize(("message", "says"), BAD_TRACES)
def test_trace_settings_that_mean_nothing_are_refused_or_ignored(
    message: pb.TraceSettingRequest, says: str, stub: Any
) -> None:
    before = stub.TraceSetting(pb.TraceSettingRequest())
    assert said(stub.TraceSetting, message) == says
    assert stub.TraceSetting(pb.TraceSettingRequest()) == before


def test_tracing_needs_a_place_to_trace_to(server: str, stub: Any) -> None:
    answer = said(stub.TraceSetting, traced(trace_level="TIMESTAMPS"))
    assert answer.startswith("INVALID_ARGUMENT Attempting to set invalid trace setting :")
    if server == TRITON:
        assert answer.endswith(":trace file name is not given")
    assert "| tracing without a place to trace to |" in COMPATIBILITY


def test_log_settings_are_kept(client: triton.InferenceServerClient) -> None:
    def settings(message: Any) -> dict[str, Any]:
        return {
            name: next(iter(value.values()))
            for name, value in MessageToDict(message)["settings"].items()
        }

    assert settings(client.get_log_settings()) == LOG_DEFAULTS
    changes = {"log_info": True, "log_verbose_level": 1, "log_format": "ISO8601"}
    changed = settings(client.update_log_settings(changes))
    assert changed == {**LOG_DEFAULTS, **changes}
    assert settings(client.get_log_settings()) == changed


def log(**settings: Any) -> pb.LogSettingsRequest:
    request = pb.LogSettingsRequest()
    kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    for name, value in settings.items():
        setattr(request.settings[name], kinds[type(value)], value)
    return request


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (log(log_info="true"), "INVALID_ARGUMENT expect boolean for 'log_info'"),
        (log(log_error=1), "INVALID_ARGUMENT expect boolean for 'log_error'"),
        (log(log_verbose_level="1"), "INVALID_ARGUMENT expect int32 for 'log_verbose_level'"),
        (log(log_format=True), "INVALID_ARGUMENT expect string for 'log_format'"),
        (
            log(log_format="weird"),
            "INVALID_ARGUMENT invalid argument for log_format, got: weird",
        ),
        (
            log(log_file="/tmp/x", log_verbose_level=1),
            "UNIMPLEMENTED log file location can not be updated through network protocol",
        ),
        (log(foo="1"), "OK"),
    ],
)
def test_log_settings_that_mean_nothing_are_refused_or_ignored(
    message: pb.LogSettingsRequest, says: str, stub: Any
) -> None:
    before = stub.LogSettings(pb.LogSettingsRequest())
    assert said(stub.LogSettings, message) == says
    assert stub.LogSettings(pb.LogSettingsRequest()) == before


def test_rest_shows_and_changes_settings(http_client: triton_http.InferenceServerClient) -> None:
    assert http_client.get_log_settings() == LOG_DEFAULTS
    assert http_client.update_log_settings({"log_verbose_level": 2})["log_verbose_level"] == 2
    defaults = http_client.get_trace_settings()
    assert (defaults["trace_level"], defaults["trace_rate"]) == (["OFF"], "1000")
    changed = http_client.update_trace_settings("two", {"trace_rate": "5", "trace_count": "8"})
    assert changed == {**defaults, "trace_rate": "5", "trace_count": "8"}
    assert http_client.get_trace_settings("two") == changed
    assert http_client.get_trace_settings() == defaults
    http_client.update_trace_settings("two", {"trace_rate": None, "trace_count": None})
    assert http_client.get_trace_settings("two") == defaults


_TEXT = "attempt to access JSON non-string as string"
_TRUTH = "attempt to access JSON non-boolean as boolean"
_SIZE = "attempt to access JSON non-unsigned-integer as unsigned-integer"
_ARRAY = "attempt to access JSON non-array as array"


@pytest.mark.parametrize(
    ("path", "body", "by_triton", "by_gateway"),
    [
        (TRACE, {"trace_rate": 7}, _TEXT, f"Unable to parse 'trace_rate': {_TEXT}"),
        (TRACE, {"trace_rate": ["7"]}, _TEXT, f"Unable to parse 'trace_rate': {_TEXT}"),
        (TRACE, {"trace_level": "OFF"}, _ARRAY, f"Unable to parse 'trace_level': {_ARRAY}"),
        (LOGGING, {"log_info": "true"}, _TRUTH, "expect boolean for 'log_info'"),
        (LOGGING, {"log_info": 1}, _TRUTH, "expect boolean for 'log_info'"),
        (LOGGING, {"log_verbose_level": "1"}, _SIZE, "expect int32 for 'log_verbose_level'"),
        (LOGGING, {"log_format": 3}, _TEXT, "expect string for 'log_format'"),
    ],
)
def test_rest_names_the_setting_that_is_of_a_wrong_type(
    path: str, body: Any, by_triton: str, by_gateway: str, server: str, endpoint: Endpoint
) -> None:
    code, text = (500, by_triton) if server == TRITON else (400, by_gateway)
    answered = http_ask(endpoint, Asked(path, body))
    assert (answered.code, answered.json) == (code, {"error": text})
    assert "| setting of a wrong JSON type |" in COMPATIBILITY


_NO_JSON = "failed to parse the request JSON buffer: "


@pytest.mark.parametrize(
    ("path", "body", "code", "text"),
    [
        (TRACE, {"trace_level": ["OFF", "TIMESTAMPS"]}, 400, "Expect only one trace level 'OFF'"),
        (TRACE, {"trace_rate": "x"}, 400, "Unable to parse 'trace_rate', got: x"),
        (TRACE, {"trace_file": "x"}, 501, "trace file location can not be updated through"),
        (TRACE, b"{", 500, _NO_JSON),
        (TRACE, b"", 500, _NO_JSON),
        ("/v2/models/nobody/trace/setting", {}, 400, "Request for unknown model : nobody"),
        (LOGGING, {"log_file": "x"}, 501, "log file location can not be updated through"),
        (LOGGING, b"{", 500, _NO_JSON),
        (LOGGING, b"", 500, _NO_JSON),
        (LOGGING, {}, 200, ""),
        (LOGGING, {"foo": 1}, 200, ""),
    ],
)
def test_rest_refuses_what_grpc_refuses(
    path: str, body: Any, code: int, text: str, server: str, endpoint: Endpoint
) -> None:
    answered = http_ask(endpoint, Asked(path, body))
    # a fault in the client's JSON is the client's
    assert answered.code == (code if server == TRITON or code != 500 else 400)
    assert answered.json.get("error", "").startswith(text)


def test_rest_calls_an_unknown_log_format_a_fault_of_the_request(
    server: str, endpoint: Endpoint
) -> None:
    answered = http_ask(endpoint, Asked(LOGGING, {"log_format": "weird"}))
    named = "--log_format" if server == TRITON else "log_format"
    assert answered.json == {"error": f"invalid argument for {named}, got: weird"}
    assert answered.code == (503 if server == TRITON else 400)
    assert "| unknown log format by REST |" in COMPATIBILITY
