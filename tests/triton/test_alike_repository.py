"""The repository by REST, and what the index lists. Overrides are in test_repository_alike.py."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.gateway.onnx_models import identity
from tests.gateway.process import eventually
from tests.triton.alike import COMPATIBILITY, TRITON
from tests.triton.rest_questions import GOOD, Asked, http_ask
from tests.triton.server import Endpoint

INDEX, LOAD, UNLOAD = (
    "/v2/repository/index",
    "/v2/repository/models/spare/load",
    "/v2/repository/models/spare/unload",
)
CONFIG = json.dumps(
    {
        "backend": "onnxruntime",
        "max_batch_size": 2,
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
    }
)


@pytest.fixture
def unloaded(endpoint: Endpoint) -> Iterator[None]:
    """`spare` is there, and nobody has loaded it; so it is again afterwards."""
    yield
    assert http_ask(endpoint, Asked(UNLOAD, {})).code == 200
    eventually(lambda: {"READY", "UNLOADING"}.isdisjoint(spare_states(endpoint)))


def states(endpoint: Endpoint, **asked: Any) -> dict[tuple[str, str], str]:
    """Return the state of each version; of a model without any, "" of version ""."""
    listed = http_ask(endpoint, Asked(INDEX, asked)).json
    return {
        (each["name"], each.get("version", "")): each.get("state", "")
        for each in listed
        if each["name"] in ("two", "versions", "spare")
    }


def spare_states(endpoint: Endpoint) -> set[str]:
    return {state for (name, _), state in states(endpoint).items() if name == "spare"}


LOADED = {("two", "1"): "READY", ("versions", "1"): "READY", ("versions", "3"): "READY"}


def awake(endpoint: Endpoint) -> None:
    for version in ("1", "3"):
        with triton.InferenceServerClient(endpoint.grpc) as client:
            x = triton.InferInput("x", [1, 3], "FP32")
            x.set_data_from_numpy(np.zeros((1, 3), np.float32))
            client.infer("versions", [x], model_version=version)
            a, b = (triton.InferInput(name, [1, 2], "FP32") for name in "ab")
            for tensor in (a, b):
                tensor.set_data_from_numpy(np.zeros((1, 2), np.float32))
            client.infer("two", [a, b])


@pytest.mark.usefixtures("unloaded")
def test_index_lists_every_version_with_its_state(server: str, endpoint: Endpoint) -> None:
    awake(endpoint)
    eventually(lambda: "UNLOADING" not in spare_states(endpoint))
    listed = states(endpoint)
    assert {key: state for key, state in listed.items() if key[0] != "spare"} == LOADED
    # Triton does not look into the folder of a model before it is loaded
    never = "" if server == TRITON else "UNKNOWN"
    assert spare_states(endpoint) <= {never, "UNAVAILABLE"}
    assert states(endpoint, ready=True) == LOADED
    assert http_ask(endpoint, Asked(LOAD, {})).code == 200
    assert states(endpoint, ready=True) == {**LOADED, ("spare", "1"): "READY"}


def test_index_is_the_same_by_grpc_and_by_rest(
    endpoint: Endpoint, client: triton.InferenceServerClient
) -> None:
    awake(endpoint)
    by_grpc = [
        {"name": each.name, "version": each.version, "state": each.state}
        for each in client.get_model_repository_index().models
        if each.name in ("two", "versions")
    ]
    by_rest = [
        each
        for each in http_ask(endpoint, Asked(INDEX, b"")).json
        if each["name"] in ("two", "versions")
    ]
    assert by_rest == by_grpc


@pytest.mark.usefixtures("unloaded")
def test_model_is_loaded_and_unloaded_by_rest(
    server: str, endpoint: Endpoint, http_client: triton_http.InferenceServerClient
) -> None:
    answered = http_ask(endpoint, Asked(LOAD, b""))
    assert (answered.code, answered.body) == (200, b"")
    assert http_client.is_model_ready("spare")
    answered = http_ask(endpoint, Asked(UNLOAD, b""))
    assert (answered.code, answered.body) == (200, b"")

    def asleep() -> bool:
        return ("spare", "1") not in states(endpoint, ready=True)

    eventually(asleep)
    # a model that sleeps is a model
    assert http_client.is_model_ready("spare") == (server != TRITON)


@pytest.mark.usefixtures("unloaded")
def test_nvidias_http_client_loads_with_a_configuration_and_files(
    http_client: triton_http.InferenceServerClient,
) -> None:
    http_client.load_model(
        "spare", config=CONFIG, files={"file:5/model.onnx": identity(dims=("n", 3))}
    )
    x = triton_http.InferInput("x", [2, 3], "FP32")
    x.set_data_from_numpy(np.ones((2, 3), np.float32))
    assert http_client.infer("spare", [x]).get_response()["model_version"] == "5"
    assert http_client.get_model_config("spare")["max_batch_size"] == 2


@pytest.mark.usefixtures("unloaded")
def test_ensemble_is_loaded_and_unloaded_with_its_members(
    client: triton.InferenceServerClient,
) -> None:
    def ready() -> set[str]:
        index = client.get_model_repository_index().models
        return {each.name for each in index if each.state == "READY"} & {"lone", "spare"}

    client.load_model("lone")
    assert ready() == {"lone", "spare"}
    client.unload_model("lone")
    eventually(lambda: ready() == {"spare"})
    client.unload_model("spare")
    eventually(lambda: ready() == set())
    client.load_model("lone")
    client.unload_model("lone", unload_dependents=True)
    eventually(lambda: ready() == set())


@pytest.mark.parametrize(
    ("path", "body", "code", "text"),
    [
        (
            "/v2/repository/models/nobody/load",
            {},
            500,
            "failed to load 'nobody', failed to poll from model repository",
        ),
        (
            "/v2/repository/r/models/spare/load",
            {},
            501,
            "'repository_name' specification is not supported",
        ),
        (
            "/v2/repository/r/models/spare/unload",
            {},
            501,
            "'repository_name' specification is not supported",
        ),
        (LOAD, {"parameters": {"config": "{"}}, 500, "failed to load 'spare', "),
        (
            LOAD,
            {"parameters": {"file:1/model.onnx": base64.b64encode(b"x").decode()}},
            500,
            "failed to load 'spare', ",
        ),
        (UNLOAD, {"parameters": {"unload_dependents": True}}, 200, ""),
        (UNLOAD, {"parameters": {"foo": 1}}, 200, ""),
    ],
)
def test_rest_refuses_what_grpc_refuses(
    path: str, body: Any, code: int, text: str, endpoint: Endpoint
) -> None:
    answered = http_ask(endpoint, Asked(path, body))
    assert answered.code == code
    assert (answered.json or {"error": ""})["error"].startswith(text)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (LOAD, b"{"),
        (LOAD, {"parameters": 3}),
        (LOAD, {"parameters": {"config": 3}}),
        (LOAD, {"parameters": {"file:1/model.onnx": 3, "config": CONFIG}}),
        (LOAD, {"parameters": {"foo": "x"}}),
        (INDEX, b"{"),
        (INDEX, {"ready": 1}),
    ],
)
def test_fault_in_the_json_is_the_clients(
    path: str, body: Any, server: str, endpoint: Endpoint
) -> None:
    answered = http_ask(endpoint, Asked(path, body))
    assert answered.code == (500 if server == TRITON else 400)
    assert answered.json["error"]
    assert "| fault in the JSON |" in COMPATIBILITY


@pytest.mark.parametrize(
    "body", [b"{", {"parameters": 3}, {"parameters": {"unload_dependents": 1}}]
)
def test_unload_that_cannot_be_read_is_refused(body: Any, server: str, endpoint: Endpoint) -> None:
    answered = http_ask(endpoint, Asked(UNLOAD, body))
    assert answered.code == (200 if server == TRITON else 400)
    assert "| unload with a body that cannot be read |" in COMPATIBILITY


def test_index_of_a_named_repository_is_that_of_all_by_rest(endpoint: Endpoint) -> None:
    answered = http_ask(endpoint, Asked("/v2/repository/r/index", {}))
    assert answered.code == 200
    assert {"two", "versions"} <= {each["name"] for each in answered.json}


@pytest.mark.usefixtures("unloaded")
def test_cold_model_is_loaded_by_its_first_request(
    server: str, endpoint: Endpoint, http_client: triton_http.InferenceServerClient
) -> None:
    answered = http_ask(endpoint, Asked("/v2/models/spare/infer", GOOD))
    if server == TRITON:
        assert answered.code == 404
        with pytest.raises(InferenceServerException, match="Request for unknown model: 'spare'"):
            http_client.get_model_metadata("spare")
    else:
        assert answered.json["outputs"][0]["data"] == [1.0, 2.0, 3.0]
        assert http_client.get_model_metadata("spare")["name"] == "spare"
    assert "| a model that is not loaded |" in COMPATIBILITY
