"""The same few calls through each of NVIDIA's clients and the generated stubs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

from tests.triton.alike import GATEWAYS, TRITON
from tests.triton.questions import ask, floats
from tests.triton.server import Endpoint

A = np.array([[1, 2], [3, 4]], np.float32)
B = np.array([[5, 6], [7, 8]], np.float32)


class Client:
    """One of NVIDIA's clients; its coroutines are run to their end."""

    def __init__(self, api: Any, connected: Any, run: Callable[[Any], Any]) -> None:
        self.api = api
        self._connected = connected
        self._run = run

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **how: Any) -> Any:
            return self._run(getattr(self._connected, name)(*arguments, **how))

        return call

    def tensors(self, **arrays: Any) -> list[Any]:
        made = []
        for name, array in arrays.items():
            made.append(self.api.InferInput(name, list(array.shape), "FP32"))
            made[-1].set_data_from_numpy(array)
        return made

    @property
    def http(self) -> bool:
        return self.api in (triton_http, triton_http_aio)


@contextmanager
def connect(api: Any, endpoint: Endpoint) -> Iterator[Client]:
    url = endpoint.http if api in (triton_http, triton_http_aio) else endpoint.grpc
    if api in (triton, triton_http):
        with api.InferenceServerClient(url) as connected:
            yield Client(api, connected, lambda answer: answer)
        return
    with asyncio.Runner() as runner:

        async def open_it() -> Any:
            return api.InferenceServerClient(url)

        connected = runner.run(open_it())
        yield Client(api, connected, runner.run)
        runner.run(connected.close())


@pytest.fixture(
    params=[triton, triton_aio, triton_http, triton_http_aio],
    ids=["grpc", "grpc.aio", "http", "http.aio"],
)
def each_client(request: pytest.FixtureRequest, endpoint: Endpoint) -> Iterator[Client]:
    with connect(request.param, endpoint) as client:
        yield client


def test_health_and_metadata(server: str, each_client: Client) -> None:
    assert each_client.is_server_live()
    # a Triton in which one model could not be loaded is not ready any more
    assert each_client.is_server_ready() or server == TRITON
    assert each_client.is_model_ready("two")
    assert each_client.is_model_ready("versions", "3")
    more = {} if each_client.http else {"as_json": True}
    metadata = each_client.get_model_metadata("two", **more)
    assert [output["name"] for output in metadata["outputs"]] == ["sum", "product"]
    config = each_client.get_model_config("two", **more)
    assert (config if each_client.http else config["config"])["max_batch_size"] == 4
    assert each_client.get_server_metadata(**more)["name"] == (
        "tidegate" if server in GATEWAYS else "triton"
    )


def test_unknown_model_is_not_ready(server: str, each_client: Client) -> None:
    if server in GATEWAYS and not each_client.http:
        with pytest.raises(InferenceServerException, match="'nobody' is not found"):
            each_client.is_model_ready("nobody")
    else:
        assert not each_client.is_model_ready("nobody")


def test_inference(each_client: Client) -> None:
    outputs = [each_client.api.InferRequestedOutput(name) for name in ("sum", "product")]
    answer = each_client.infer(
        "two",
        each_client.tensors(a=A, b=B),
        outputs=outputs,
        request_id="17",
        priority=1,
        timeout=10_000_000,
        parameters={"mine": "x"},
    )
    np.testing.assert_array_equal(answer.as_numpy("sum"), A + B)
    np.testing.assert_array_equal(answer.as_numpy("product"), A * B)
    response = answer.get_response()
    assert (response["id"] if each_client.http else response.id) == "17"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_inference(coding: str, each_client: Client) -> None:
    how = {"compression_algorithm": coding}
    if each_client.http:
        how = {
            "request_compression_algorithm": coding,
            "response_compression_algorithm": coding,
        }
    x = np.tile(np.arange(100, dtype=np.float32), (4, 10))
    answer = each_client.infer("any_width", each_client.tensors(x=x), **how)
    np.testing.assert_array_equal(answer.as_numpy("y"), x)


@pytest.mark.parametrize("binary", [True, False])
def test_tensors_in_json_and_binary(binary: bool, endpoint: Endpoint) -> None:
    with connect(triton_http, endpoint) as client:
        a, b = (triton_http.InferInput(name, [2, 2], "FP32") for name in "ab")
        a.set_data_from_numpy(A, binary_data=binary)
        b.set_data_from_numpy(B, binary_data=not binary)
        outputs = [triton_http.InferRequestedOutput("sum", binary_data=binary)]
        answer = client.infer("two", [a, b], outputs=outputs)
        np.testing.assert_array_equal(answer.as_numpy("sum"), A + B)


def test_strings_in_both_directions(each_client: Client) -> None:
    texts = np.array([[b"tide", b"", "gäte".encode()]], np.object_)
    x = each_client.api.InferInput("x", [1, 3], "BYTES")
    x.set_data_from_numpy(texts)
    np.testing.assert_array_equal(each_client.infer("identity_BYTES", [x]).as_numpy("y"), texts)


def test_classes(each_client: Client) -> None:
    x = each_client.tensors(x=np.array([[1, 2, 3]], np.float32))
    wish = each_client.api.InferRequestedOutput("y", class_count=2)
    classes = each_client.infer("labelled", x, outputs=[wish]).as_numpy("y")
    assert classes.ravel().tolist() == [b"3.000000:2", b"2.000000:1:dog"]


# aiohttp warns of large bodies that its caller holds in memory
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_large_tensors(each_client: Client) -> None:
    x = np.random.default_rng(1).random((4, 1_000_000), np.float32)
    answer = each_client.infer("any_width", each_client.tensors(x=x))
    np.testing.assert_array_equal(answer.as_numpy("y"), x)


def test_errors_have_code_and_text(each_client: Client) -> None:
    wide = each_client.tensors(x=np.zeros((1, 4), np.float32))
    for model, code, status, text in (
        ("nobody", "404", "NOT_FOUND", "Request for unknown model: 'nobody' is not found"),
        ("identity_FP32", "400", "INVALID_ARGUMENT", "unexpected shape for input 'x'"),
    ):
        with pytest.raises(InferenceServerException, match=text) as refused:
            each_client.infer(model, wide)
        assert refused.value.status() == (code if each_client.http else f"StatusCode.{status}")


def test_statistics_settings_and_index(each_client: Client) -> None:
    more = {} if each_client.http else {"as_json": True}
    each_client.infer("two", each_client.tensors(a=A, b=B))
    (stats,) = each_client.get_inference_statistics("two", **more)["model_stats"]
    assert int(stats["inference_count"]) >= 2
    assert "trace_rate" in str(each_client.get_trace_settings(**more))
    assert "log_verbose_level" in str(each_client.get_log_settings(**more))
    index = each_client.get_model_repository_index(**more)
    models = index if each_client.http else index["models"]
    assert ("two", "1", "READY") in [
        (each["name"], each.get("version"), each.get("state")) for each in models
    ]


def test_asynchronous_calls_of_the_blocking_clients(endpoint: Endpoint) -> None:
    with triton_http.InferenceServerClient(endpoint.http, concurrency=4) as client:
        a, b = (triton_http.InferInput(name, [2, 2], "FP32") for name in "ab")
        a.set_data_from_numpy(A)
        b.set_data_from_numpy(B)
        pending = [client.async_infer("two", [a, b], request_id=str(n)) for n in range(20)]
        for number, each in enumerate(pending):
            answer = each.get_result()
            assert answer.get_response()["id"] == str(number)
            np.testing.assert_array_equal(answer.as_numpy("product"), A * B)


@pytest.mark.parametrize("coding", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_stubs_compress(coding: grpc.Compression, stub: Any) -> None:
    response = stub.ModelInfer(ask("any_width", floats(4, 5000)), compression=coding)
    assert response.raw_output_contents[0] == np.ones((4, 5000), np.float32).tobytes()
