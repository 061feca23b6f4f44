"""What an OpenTelemetry collector hears of requests, and that nobody hears or pays without one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from gateway.core import InferRequest, Tensor
from gateway.trace_settings import TraceSettings
from gateway.tracing import FLUSH_S, Tracing
from tests.gateway.onnx_models import add_and_multiply, identity, put
from tests.gateway.process import Gateway, gateway, run_to_end

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
ENSEMBLE = """platform: "ensemble"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
ensemble_scheduling {
  step { model_name: "m" model_version: -1
    input_map { key: "x" value: "x" } output_map { key: "y" value: "between" } }
  step { model_name: "n" model_version: -1
    input_map { key: "x" value: "between" } output_map { key: "y" value: "y" } }
}
"""
CACHED = "response_cache { enable: true }\n"


class Collector:
    """Takes spans over OTLP/HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                message: Message = ExportTraceServiceRequest.FromString(body)
                collector.take(message)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def take(self, message: Any) -> None:
        for resource in message.resource_spans:
            self.resources.append(resource.resource)
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)

    @contextmanager
    def listening(self) -> Iterator[Collector]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def roots(self) -> list[Any]:
        return [span for span in self.spans if span.name == "ModelInfer"]

    def below(self, root: Any) -> dict[str, Any]:
        """The spans right below one, by name; those of steps by name and model."""
        return {
            f"{span.name} {attributes(span)['model']}": span
            for span in self.spans
            if span.parent_span_id == root.span_id
        }


def attributes(span: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


def took(span: Any) -> float:
    return float(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector().listening() as listening:
        yield listening


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("traced")
    put(root, "m", identity())
    put(root, "n", identity())
    put(root, "cached", identity(), CACHED)
    put(root, "two", add_and_multiply())
    (root / "e" / "1").mkdir(parents=True)
    (root / "e" / "config.pbtxt").write_text(ENSEMBLE)
    return root


def ask(
    served: Gateway, model: str, parent: str = "", rows: int = 1, **more: Any
) -> triton.InferResult:
    x = triton.InferInput("x", [rows, 3], "FP32")
    x.set_data_from_numpy(np.zeros((rows, 3), np.float32))
    headers = {"traceparent": parent} if parent else None
    with triton.InferenceServerClient(served.url) as client:
        return client.infer(model, [x], headers=headers, **more)


def test_a_traced_request_says_where_its_time_went(models: Path, collector: Collector) -> None:
    with gateway(models, "--trace-endpoint", collector.url) as served:
        ask(served, "m", SAMPLED, rows=2, request_id="q7")
        assert served.stop() == 0  # what is left is sent at the end
    (root,) = collector.roots()
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert root.kind == root.SPAN_KIND_SERVER
    wanted = {"rpc.system": "grpc", "model": "m", "version": "", "request_id": "q7"}
    assert attributes(root) == wanted
    below = collector.below(root)
    assert list(below) == ["cold_start m:1", "queue m:1", "engine m:1"]
    assert {span.trace_id for span in collector.spans} == {root.trace_id}
    engine = below["engine m:1"]
    assert attributes(engine) == {"model": "m:1", "rows": 2, "requests": 1}
    assert engine.start_time_unix_nano >= root.start_time_unix_nano
    assert engine.end_time_unix_nano <= root.end_time_unix_nano
    stages = sum(took(span) for span in below.values())
    assert 0.5 * took(root) < stages <= took(root)
    assert attributes(collector.resources[0])["service.name"] == "tidegate"


def test_a_callers_trace_decides_and_without_one_every_nth_is_traced(
    models: Path, collector: Collector
) -> None:
    with gateway(models, "--trace-endpoint", collector.url, "--trace-rate", "3") as served:
        for _ in range(5):
            ask(served, "m", UNSAMPLED)
        for _ in range(7):
            ask(served, "n")
        ask(served, "m", SAMPLED)
        ask(served, "m", "no trace context")
        assert served.stop() == 0
    assert [attributes(root)["model"] for root in collector.roots()] == ["n", "n", "m"]
    assert len({root.trace_id for root in collector.roots()}) == 3


def test_steps_of_an_ensemble_and_answers_from_the_cache_are_seen(
    models: Path, collector: Collector
) -> None:
    with gateway(models, "--trace-endpoint", collector.url) as served:
        ask(served, "e", SAMPLED)
        ask(served, "cached", SAMPLED)
        ask(served, "cached", SAMPLED)
        assert served.stop() == 0
    ensemble, _missed, hit = collector.roots()
    assert {"engine m:1", "engine n:1", "cold_start e:1"} <= set(collector.below(ensemble))
    assert list(collector.below(hit)) == ["cache_hit cached:1"]


def test_errors_and_streamed_requests_are_traced(models: Path, collector: Collector) -> None:
    with gateway(models, "--trace-endpoint", collector.url) as served:
        with pytest.raises(triton.InferenceServerException):
            ask(served, "two", SAMPLED)
        message = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(12)])
        message.inputs.add(name="x", datatype="FP32", shape=[1, 3])
        with grpc.insecure_channel(served.url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            metadata = [("traceparent", SAMPLED)]
            assert (
                len(list(stub.ModelStreamInfer(iter([message, message]), metadata=metadata))) == 2
            )
        assert served.stop() == 0
    failed, *streamed = collector.roots()
    assert failed.status.code == failed.status.STATUS_CODE_ERROR
    assert "unexpected inference input 'x'" in failed.status.message
    assert attributes(failed)["error.type"] == "InvalidRequest"
    assert [bool(collector.below(root)) for root in streamed] == [True, True]


def test_trace_settings_decide_which_requests_are_traced(
    models: Path, collector: Collector
) -> None:
    with (
        gateway(models, "--trace-endpoint", collector.url, "--trace-rate", "1") as served,
        triton.InferenceServerClient(served.url) as client,
    ):
        client.update_trace_settings("m", {"trace_count": "2", "trace_level": ["TENSORS"]})
        for _ in range(4):
            ask(served, "m")
        left = client.get_trace_settings("m").settings
        assert (left["trace_count"].value, left["trace_mode"].value) == (["0"], ["opentelemetry"])
        assert left["url"].value == [collector.url]
        client.update_trace_settings(settings={"trace_level": ["OFF"]})
        ask(served, "n", SAMPLED)
        client.update_trace_settings(settings={"trace_level": None})
        ask(served, "n")
        assert served.stop() == 0
    roots = [attributes(root) for root in collector.roots()]
    assert [root["model"] for root in roots] == ["m", "m", "n"]
    assert [root.get("input.x") for root in roots] == ["FP32 [1, 3]", "FP32 [1, 3]", None]


def test_without_an_endpoint_a_sampled_request_is_served_and_nothing_is_imported(
    models: Path,
) -> None:
    with gateway(models) as served:
        ask(served, "m", SAMPLED)
        assert served.stop() == 0
    code = "import sys, gateway.app; assert not [m for m in sys.modules if 'opentelemetry' in m]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_gateway_without_the_packages_says_which_extra_has_them(
    models: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "opentelemetry"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('No module named opentelemetry')\n")
    flags = ("--port", "0", "--http-port", "0", "--trace-endpoint", "http://127.0.0.1:9")
    code, said = run_to_end(models, *flags, env={"PYTHONPATH": str(tmp_path)})
    assert code == 1
    assert "--trace-endpoint needs the extra 'tracing', pip install 'tidegate[tracing]'" in said


def test_a_collector_that_hangs_does_not_keep_the_gateway_from_its_end(models: Path) -> None:
    class Hanging(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            over.wait()

        def log_message(self, format: str, *args: object) -> None: ...

    over = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hanging)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    async def story() -> None:
        loop = asyncio.get_running_loop()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        tracing = Tracing(TraceSettings(endpoint, 1), endpoint)
        zeros = Tensor("x", "FP32", np.zeros((1, 3), np.float32))
        with tracing.traced(InferRequest("m", "", "", [zeros], [], 1e9), {}, "grpc"):
            pass
        started = loop.time()
        await tracing.close()
        assert loop.time() - started < FLUSH_S + 1

    try:
        asyncio.run(story())
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()
