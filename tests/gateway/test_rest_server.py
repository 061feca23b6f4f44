"""REST as a server: bounds, deadlines, the drain, and what it says of itself."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gateway.transport.rest.operations import OPERATIONS
from tests.gateway.onnx_models import identity, put
from tests.gateway.process import Gateway, eventually, gateway
from tests.gateway.rest_calls import INFER, ask, error_of, question


def test_too_much_is_refused_however_it_comes(served: Gateway) -> None:
    large = json.dumps(question(id="a" * 1_100_000)).encode()  # the bound is 1,000,000 bytes
    assert ask(served, "POST", INFER, large)[0] == 413
    assert ask(served, "POST", INFER, gzip.compress(large), Content_Encoding="gzip")[0] == 413
    bomb = zlib.compress(bytes(100_000_000))
    assert ask(served, "POST", INFER, bomb, Content_Encoding="deflate")[0] == 413
    code, text = error_of(ask(served, "POST", INFER, large[:999], Content_Encoding="br"))
    assert (code, text) == (501, "Unsupported compression type")
    host, port = served.http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nx: " + bytes(100_000).replace(b"\0", b"a"))
        assert b"400" in connection.recv(100)


def test_chunks_make_a_body(served: Gateway) -> None:
    text = json.dumps(question()).encode()
    head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    host, port = served.http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head)
        for at in range(0, len(text), 7):
            part = text[at : at + 7]
            connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_document_describes_every_route(served: Gateway) -> None:
    document = json.loads(ask(served, "GET", "/openapi.json")[2])
    assert document["openapi"].startswith("3.1")
    for operation in OPERATIONS:
        for path in operation.paths:
            assert operation.method.lower() in document["paths"][path]
    assert "post" in document["paths"]["/v2/models/{model}/infer"]
    references = _references(document)
    assert references
    for reference in references:
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]
    page = ask(served, "GET", "/docs")[2].decode()
    assert "/v2/models/{model}/infer" in page
    assert "https:" not in page  # it works where there is no network


def _references(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(_references, node))
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(_references, node.values()))
    return set()


SLOW = "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: %d }"


def test_client_that_leaves_takes_its_request_with_it(tmp_path: Path) -> None:
    put(tmp_path, "slow", identity(), SLOW % 60_000_000)
    with gateway(tmp_path) as running:
        text = json.dumps(question()).encode()
        host, port = running.http.removeprefix("http://").split(":")
        head = f"POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n"
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(head.encode() + b"\r\n" + text)
            eventually(lambda: running.metric("tidegate_model_in_flight") == 1)
        eventually(lambda: running.metric("tidegate_model_in_flight") == 0)
        assert running.stop() == 0


def test_drain_answers_what_is_in_flight_and_refuses_what_is_new(tmp_path: Path) -> None:
    put(tmp_path, "slow", identity(), SLOW % 2_000_000)
    put(tmp_path, "quick", identity())
    with gateway(tmp_path) as running, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, running, "POST", "/v2/models/slow/infer", question())
        eventually(lambda: running.metric("tidegate_model_in_flight") == 1)
        running.process.terminate()
        eventually(lambda: ask(running, "GET", "/v2/health/ready")[0] == 400)
        assert ask(running, "GET", "/v2/health/live")[0] == 200
        refused = ask(running, "POST", "/v2/models/quick/infer", question())
        assert error_of(refused) == (503, "the gateway is shutting down")
        assert answer.result()[0] == 200
        assert running.process.wait(timeout=20) == 0


def test_deadline_of_a_proxy_is_kept(tmp_path: Path) -> None:
    put(tmp_path, "slow", identity(), SLOW % 60_000_000)
    with gateway(tmp_path) as running:
        hurried = {"x_envoy_expected_rq_timeout_ms": "100"}
        code, _ = error_of(ask(running, "POST", "/v2/models/slow/infer", question(), **hurried))
        assert code == 504
        assert running.stop() == 0
