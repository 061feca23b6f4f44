import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from loadtest.metrics import MetricsUnreadable, ServerCounts, parse_counts, read_counts

# As Triton writes it (typed as counter) ...
TRITON = """\
# HELP nv_inference_count Number of inferences performed (does not include cached requests)
# TYPE nv_inference_count counter
nv_inference_count{model="digits",version="1"} 120
nv_inference_count{model="digits",version="2"} 40
nv_inference_count{model="other",version="1"} 999
# HELP nv_inference_exec_count Number of model executions performed
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="digits",version="1"} 30
nv_inference_exec_count{model="digits",version="2"} 10
# HELP nv_inference_request_success Number of successful inference requests
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="digits",version="1"} 100
nv_cpu_utilization 0.5
"""
# ... and as the gateway does (untyped, since its library would rename a counter).
GATEWAY = TRITON.replace(" counter\n", " untyped\n")


@pytest.mark.parametrize("text", [TRITON, GATEWAY])
def test_counts_are_summed_over_versions_or_read_for_one(text: str) -> None:
    both = parse_counts(text, "digits")
    assert both == ServerCounts(inferences=160, executions=40, successes=100, failures=0)
    assert parse_counts(text, "digits", "2").inferences == 40
    assert parse_counts(text, "unheard-of") == ServerCounts()


def test_the_mean_batch_is_that_of_the_run_and_not_of_the_servers_life() -> None:
    before = ServerCounts(inferences=1000, executions=1000)
    after = ServerCounts(inferences=1800, executions=1100)
    assert after.since(before).mean_batch_rows == 8.0
    assert before.since(before).mean_batch_rows is None


@pytest.mark.parametrize("text", ["", "up 1\n", "<html>not found</html>", 'a{b="c} 1'])
def test_text_without_the_metrics_is_unreadable_and_not_zero(text: str) -> None:
    with pytest.raises(MetricsUnreadable):
        parse_counts(text, "digits")


@pytest.fixture
def page() -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(TRITON.encode())

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_counts_are_read_over_http(page: str) -> None:
    assert read_counts(f"{page}/metrics", "digits").executions == 40
    with pytest.raises(MetricsUnreadable, match="404"):
        read_counts(f"{page}/elsewhere", "digits")
    with pytest.raises(MetricsUnreadable, match="unknown url"):
        read_counts("metrics", "digits")
