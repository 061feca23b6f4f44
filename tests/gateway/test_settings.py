"""LogSettings and TraceSetting: shown and refused in Triton's words, and they act."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from gateway.errors import InvalidRequest, NotSupported
from gateway.logs import Logs, LogSettings
from gateway.trace_settings import TraceRule, TraceSettings
from tests.gateway.onnx_models import identity, put
from tests.gateway.process import Gateway, gateway
from tests.triton.server import running, why_not

LOG_DEFAULTS = {
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
    "log_file": "",
}
TRACE_DEFAULTS = {
    "trace_level": ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "trace_mode": ["triton"],
    "trace_file": [""],
    "log_frequency": ["0"],
}
LOG_FILE = "UNIMPLEMENTED log file location can not be updated through network protocol"
TRACE_FILE = "UNIMPLEMENTED trace file location can not be updated through network protocol"
INVALID = "INVALID_ARGUMENT "
# settings given -> the answer, where it is not all of them
LOG_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"log_info": "x"}, INVALID + "expect boolean for 'log_info'"),
    ({"log_error": 1}, INVALID + "expect boolean for 'log_error'"),
    ({"log_warning": None}, INVALID + "expect boolean for 'log_warning'"),
    ({"log_verbose_level": True}, INVALID + "expect int32 for 'log_verbose_level'"),
    ({"log_verbose_level": "1"}, INVALID + "expect int32 for 'log_verbose_level'"),
    ({"log_format": 1}, INVALID + "expect string for 'log_format'"),
    ({"log_format": "weird"}, INVALID + "invalid argument for log_format, got: weird"),
    ({"log_file": "/tmp/x"}, LOG_FILE),
    ({"log_file": "", "log_info": False}, LOG_FILE),
]
TRACE_REFUSALS: list[tuple[str, dict[str, list[str]], str]] = [
    ("nobody", {}, INVALID + "Request for unknown model : nobody"),
    ("m", {"trace_file": ["/tmp/x"]}, TRACE_FILE),
    ("", {"trace_file": []}, TRACE_FILE),
    ("m", {"trace_rate": ["x"]}, INVALID + "Unable to parse 'trace_rate', got: x"),
    ("m", {"trace_rate": ["1", "2"]}, INVALID + "expect only 1 value for 'trace_rate'"),
    (
        "m",
        {"trace_rate": ["4294967296"]},
        INVALID + "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], "
        "got: 4294967296",
    ),
    ("m", {"trace_count": ["x"]}, INVALID + "Unable to parse 'trace_count', got: x"),
    ("m", {"trace_count": ["1", "2"]}, INVALID + "expect only 1 value for 'trace_count'"),
    (
        "",
        {"trace_count": ["-2"]},
        INVALID + "Unable to parse 'trace_count'. Expecting value >= -1, got: -2",
    ),
    ("m", {"log_frequency": ["x"]}, INVALID + "Unable to parse 'log_frequency', got: x"),
    (
        "m",
        {"trace_level": ["OFF", "TIMESTAMPS"]},
        INVALID + "Expect only one trace level 'OFF' is specified",
    ),
]


class Server:
    """Asks a server for its settings, as plain values."""

    def __init__(self, url: str) -> None:
        self._channel = grpc.insecure_channel(url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def log(self, given: dict[str, Any]) -> dict[str, Any] | str:
        message = pb.LogSettingsRequest()
        for name, value in given.items():
            message.settings[name].SetInParent()
            kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
            if value is not None:
                setattr(message.settings[name], kinds[type(value)], value)
        try:
            settings = self._stub.LogSettings(message).settings
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"
        return {
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in settings.items()
        }

    def trace(self, model: str, given: dict[str, list[str]]) -> dict[str, list[str]] | str:
        message = pb.TraceSettingRequest(model_name=model)
        for name, values in given.items():
            message.settings[name].value.extend(values)
        try:
            settings = self._stub.TraceSetting(message).settings
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"
        return {name: list(setting.value) for name, setting in settings.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("settings")
    for name in "mn":
        put(root, name, identity(), "instance_group { count: 1 kind: KIND_CPU }\n")
    return root


@pytest.fixture(scope="module", params=("triton", "embedded"))
def server(request: pytest.FixtureRequest, models: Path) -> Iterator[Server]:
    """NVIDIA's server, to show that it says so, and the gateway."""
    if request.param == "triton":
        if reason := why_not():
            pytest.skip(f"no tritonserver: {reason}")
        with running(models) as process:
            with triton.InferenceServerClient(process.address) as client:
                for name in "mn":
                    client.load_model(name)
            asked = Server(process.address)
            yield asked
            asked.close()
    else:
        with gateway(models) as served:
            asked = Server(served.url)
            yield asked
            asked.close()
            assert served.stop() == 0


def test_log_settings_are_tritons_and_change_one_by_one(server: Server) -> None:
    assert server.log({}) == LOG_DEFAULTS
    for name, value in (("log_verbose_level", 2), ("log_format", "ISO8601"), ("log_info", False)):
        assert server.log({name: value, "nonsense": True}) == {**LOG_DEFAULTS, name: value}
        assert server.log({name: LOG_DEFAULTS[name]}) == LOG_DEFAULTS


def test_what_is_no_log_setting_is_refused_and_changes_nothing(server: Server) -> None:
    for given_, answer in LOG_REFUSALS:
        assert server.log(given_) == answer
    assert server.log({}) == LOG_DEFAULTS


def test_what_is_no_trace_setting_is_refused_and_changes_nothing(server: Server) -> None:
    for model, given_, answer in TRACE_REFUSALS:
        assert server.trace(model, given_) == answer
    assert server.trace("m", {}) == server.trace("", {}) == TRACE_DEFAULTS


def test_a_models_trace_settings_hide_those_of_all_until_they_are_cleared(server: Server) -> None:
    assert server.trace("m", {"trace_rate": ["7"]}) == {**TRACE_DEFAULTS, "trace_rate": ["7"]}
    changed = {**TRACE_DEFAULTS, "trace_rate": ["9"], "trace_count": ["4"]}
    assert server.trace("", {"trace_rate": ["9"], "trace_count": ["4"]}) == changed
    assert server.trace("m", {}) == {**changed, "trace_rate": ["7"]}
    assert server.trace("n", {"trace_mode": ["x"], "nonsense": ["1"]}) == changed
    assert server.trace("m", {"trace_rate": []}) == changed
    assert server.trace("", {"trace_rate": [], "trace_count": []}) == TRACE_DEFAULTS


def test_a_level_needs_somewhere_to_send_traces(server: Server) -> None:
    for model in ("", "m"):
        answer = server.trace(model, {"trace_level": ["TIMESTAMPS"]})
        assert str(answer).startswith(INVALID + "Attempting to set invalid trace setting :")


def logged(served: Gateway) -> list[dict[str, Any]]:
    assert served.process.stderr is not None
    return [json.loads(line) for line in served.process.stderr]


def test_the_verbose_level_adds_a_line_for_each_request_at_once(models: Path) -> None:
    x = triton.InferInput("x", [1, 3], "FP32")
    x.set_data_from_numpy(np.zeros((1, 3), np.float32))
    with gateway(models) as served, triton.InferenceServerClient(served.url) as client:
        client.infer("m", [x], request_id="quiet")
        client.update_log_settings({"log_verbose_level": 1})
        client.infer("m", [x], request_id="told")
        client.update_log_settings({"log_verbose_level": 0, "log_info": False})
        client.infer("n", [x], request_id="quiet")
        assert served.stop() == 0
        lines = logged(served)
    requests = [line["message"] for line in lines if line["level"] == "debug"]
    assert len(requests) == 1
    assert requests[0].startswith("[request id: told] m:1: answered in ")
    told = [line["message"] for line in lines if line["level"] == "info"]
    assert [text.split(" in ")[0] for text in told] == ["loaded m:1"]


def test_each_severity_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log = logging.getLogger("gateway.test")
    try:
        logs = Logs(LogSettings(), json_lines=False)
        for change in (
            LogSettings(warning=False),
            LogSettings(error=False, format="ISO8601"),
            LogSettings(info=False, verbose_level=1),
        ):
            logs.change(change)
            for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
                log.log(number, "said")
        lines = capsys.readouterr().err.splitlines()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("gateway").setLevel(logging.NOTSET)
    levels = [line.split()[-2] for line in lines]
    assert levels == ["INFO", "ERROR", "INFO", "WARNING", "DEBUG", "WARNING", "ERROR"]
    assert lines[2].split()[0].endswith("Z")


def test_every_nth_request_is_due_and_no_more_than_the_count() -> None:
    rule = TraceRule(("TIMESTAMPS",), rate=3, count=2)
    assert [rule.due(None) for _ in range(12)] == [False, False, True] * 2 + [False] * 6
    assert rule.count == 0
    assert not rule.due(True)
    rule = TraceRule(("TIMESTAMPS",), rate=1000)
    assert (rule.due(True), rule.due(False), rule.count) == (True, False, -1)
    assert not TraceRule().due(True)


Changes = st.dictionaries(
    st.sampled_from(
        ("trace_level", "trace_rate", "trace_count", "log_frequency", "trace_file", "other")
    ),
    st.lists(
        st.one_of(
            st.sampled_from(("OFF", "TIMESTAMPS", "TENSORS", "0", "-1", "7")), st.text(max_size=5)
        ),
        max_size=3,
    ),
)


def test_a_rate_of_nothing_is_refused_where_a_model_of_its_own_level_would_get_it() -> None:
    settings = TraceSettings("http://127.0.0.1:4318", 2)
    settings.update("m", {"trace_level": ["TIMESTAMPS"]})
    with pytest.raises(InvalidRequest, match="sample rate must be non-zero"):
        settings.update("", {"trace_level": ["OFF"], "trace_rate": ["0"]})
    assert settings.shown("m")["trace_rate"] == ["2"]


@given(st.lists(st.tuples(st.sampled_from(("", "a", "b")), Changes), max_size=20))
def test_whatever_is_set_the_rules_stay_usable(steps: list[tuple[str, Any]]) -> None:
    settings = TraceSettings("http://127.0.0.1:4318", 2)
    for model, changes in steps:
        before = {name: settings.shown(name) for name in ("", "a", "b")}
        try:
            settings.update(model, changes)
        except (InvalidRequest, NotSupported):
            assert {name: settings.shown(name) for name in ("", "a", "b")} == before
        settings.rule("a").due(None)
    for name in ("trace_level", "trace_rate", "trace_count", "log_frequency"):
        for model in ("a", "b", ""):
            settings.update(model, {name: []})
    assert (
        settings.shown("a")
        == settings.shown("")
        == TraceSettings("http://127.0.0.1:4318", 2).shown("")
    )
