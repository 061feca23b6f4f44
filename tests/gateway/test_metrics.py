"""The Prometheus page: Triton's names, labels and types where the meaning is Triton's."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families

from gateway.core import ModelKey, ModelState
from gateway.errors import Overloaded
from gateway.exposition import exposition
from gateway.metrics import Metrics
from tests.gateway.fakes import FakeEngine, Ok, dynamic, house, spec
from tests.gateway.onnx_models import identity, put
from tests.gateway.process import eventually, gateway
from tests.simulated_loop import simulate
from tests.triton.server import running, why_not

ONE = "instance_group { count: 1 kind: KIND_CPU }\n"
TAGGED = 'metric_tags { key: "team" value: "sea" }\n'
IMPATIENT = """max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
dynamic_batching {
  preferred_batch_size: 4
  max_queue_delay_microseconds: 20000000
  default_queue_policy { default_timeout_microseconds: 200000 }
}
"""


class Page:
    """What a scrape says. Prometheus' own parser would have counters end in _total."""

    def __init__(self, text: str) -> None:
        assert list(text_string_to_metric_families(text))
        self.types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for name, labels, value in re.findall(r"^(\w+)(?:{(.*)})? (\S+)$", text, re.MULTILINE):
            pairs = re.findall(r'(\w+)="((?:\\.|[^"\\])*)"', labels)
            own = frozenset((label, json.loads(f'"{text}"')) for label, text in pairs)
            self.samples[name, own] = float(value)

    def family(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        """Return a family's samples by their labels."""
        return {own: value for (found, own), value in self.samples.items() if found == name}

    def of(self, name: str, **labels: str) -> float:
        return sum(
            value
            for (found, own), value in self.samples.items()
            if found == name and labels.items() <= dict(own).items()
        )


def requests(url: str) -> None:
    """The same requests to either server: 3 + 1 answered, 1 that waits too long, 1 invalid."""
    with triton.InferenceServerClient(url) as client:
        for model, rows in (("m", 1), ("m", 2), ("m", 2), ("tagged", 1), ("impatient", 1)):
            x = triton.InferInput("x", [rows, 3], "FP32")
            x.set_data_from_numpy(np.zeros((rows, 3), np.float32))
            if model == "impatient":
                with pytest.raises(triton.InferenceServerException, match="timeout expired"):
                    client.infer(model, [x])
            else:
                client.infer(model, [x])
        x = triton.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.zeros((1, 4), np.float32))
        with pytest.raises(triton.InferenceServerException):
            client.infer("m", [x])


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is one")
def test_triton_and_the_gateway_publish_the_same_for_the_same_requests(tmp_path: Path) -> None:
    put(tmp_path, "m", identity(), ONE)
    put(tmp_path, "tagged", identity(), TAGGED + ONE)
    put(tmp_path, "impatient", identity(), IMPATIENT + ONE)
    with running(tmp_path) as process:
        with triton.InferenceServerClient(process.address) as client:
            for name in ("m", "tagged", "impatient"):
                client.load_model(name)
        requests(process.address)

        def page_of_triton() -> Page:
            with urllib.request.urlopen(process.metrics_url, timeout=10) as answer:
                return Page(answer.read().decode())

        # Triton counts after it has answered
        eventually(lambda: page_of_triton().of("nv_inference_request_failure") > 0)
        theirs = page_of_triton()
    with gateway(tmp_path) as served:
        requests(served.url)
        ours = Page(served.get("/metrics")[1])
        assert served.stop() == 0
    inference = {name for name in theirs.types if name.startswith("nv_inference_")}
    assert len(inference) == 10
    for name in inference:
        assert ours.types[name] == theirs.types[name], name
        their_samples, our_samples = theirs.family(name), ours.family(name)
        assert our_samples.keys() == their_samples.keys(), name
        if not name.endswith("_us"):
            assert our_samples == their_samples, name
        for own, value in our_samples.items():  # times differ, but what took none took none
            assert value == int(value)
            assert value == 0 or their_samples[own] > 0, (name, own)


def page(metrics: Metrics) -> Page:
    return Page(exposition(metrics).decode())


def test_every_histogram_counts_what_has_been_seen() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(0.02), Ok(0.02)])
        async with house(spec(batching=dynamic(8)), engine=engine) as h:
            await h.ask(1, 2)
            await h.ask(3)
            seen = page(h.metrics)
            for name, total in (
                ("tidegate_batch_rows", 3),
                ("tidegate_compute_seconds", 0.04),
                ("tidegate_queue_seconds", 0),
            ):
                assert seen.types[name] == "histogram"
                assert seen.of(f"{name}_count", model="m") == 2
                assert seen.of(f"{name}_sum", model="m") == pytest.approx(total, abs=1e-3)
            assert seen.of("tidegate_batch_rows_bucket", model="m", le="1") == 1
            assert seen.of("tidegate_compute_seconds_bucket", model="m", le="0.01") == 0
            assert seen.of("tidegate_compute_seconds_bucket", model="m", le="0.025") == 2
            assert seen.of("nv_inference_first_response_histogram_ms_bucket", le="+Inf") == 2
            assert seen.of("nv_model_load_duration_secs", model="m") >= 0

    simulate(story())


def test_a_cold_start_is_counted_by_phase_and_a_load_that_nobody_waits_for_is_none() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(2.0), Ok(7.0)], runs=[Ok(0.5), Ok(0.02)])
        async with house(spec(), spec("asked"), engine=engine) as h:
            await h.ask(1)
            await h.ask(2)
            h.entry("asked").load_requested = True
            h.registry.poke()
            await h.state(ModelState.READY, "asked")
            await h.ask(3, model="asked")
            seen, name = page(h.metrics), "tidegate_cold_start_seconds"
            for phase in ("wait", "load", "first_run"):
                assert seen.of(f"{name}_count", phase=phase) == 1
            assert seen.of(f"{name}_sum", phase="load") == pytest.approx(2.0)
            copy = {"model": "m", "engine": "embedded"}
            assert seen.of("tidegate_replica_bytes", **copy) == 1000
            assert seen.of("tidegate_model_waiting", model="m") == 0

    simulate(story())


def test_models_that_nobody_has_used_have_no_histograms() -> None:
    async def story() -> None:
        async with house(spec("used"), spec("unused")) as h:
            await h.ask(1, model="used")
            buckets = page(h.metrics).family("tidegate_queue_seconds_bucket")
            assert {dict(own)["model"] for own in buckets} == {"used"}

    simulate(story())


def test_requests_refused_at_the_door_are_counted_by_the_bound_they_met() -> None:
    async def story(per_model: int, total: int, **labels: str) -> None:
        async with house(max_inflight=total, per_model=per_model) as h:
            answers = await asyncio.gather(*(h.ask(n) for n in range(5)), return_exceptions=True)
            assert sum(isinstance(answer, Overloaded) for answer in answers) == 3
            assert page(h.metrics).of("tidegate_requests_overloaded_total", **labels) == 3

    simulate(story(2, 1000, model="m"))
    simulate(story(1000, 2, model=""))


def test_answers_later_than_the_models_objective_are_counted() -> None:
    async def story() -> None:
        slow = replace(dynamic(8), slo_s=0.05)
        engine = FakeEngine(runs=[Ok(0.01), Ok(0.2)])
        async with house(spec(batching=slow), engine=engine) as h:
            await h.ask(1)
            await h.ask(2)
            assert page(h.metrics).of("tidegate_objective_missed_total", model="m") == 1

    simulate(story())


def test_a_client_that_leaves_is_counted_as_cancelled() -> None:
    async def story() -> None:
        async with house(engine=FakeEngine(runs=[Ok(10.0)])) as h:
            asked = asyncio.create_task(h.ask(1))
            await asyncio.sleep(1)
            asked.cancel()
            await asyncio.wait([asked])
            failures = page(h.metrics).family("nv_inference_request_failure")
            counted = {dict(own)["reason"]: value for own, value in failures.items()}
            assert counted == {"CANCELED": 1, "REJECTED": 0, "BACKEND": 0, "OTHER": 0}

    simulate(story())


def test_a_version_that_has_left_takes_its_figures_along() -> None:
    async def story() -> None:
        async with house(spec("m"), spec("n")) as h:
            await h.ask(1, model="n")
            h.registry.remove("n")
            await asyncio.sleep(1)
            assert not h.registry.knows("n")
            assert list(h.metrics.models) == [ModelKey("m", 1)]

    simulate(story())


def test_names_and_tags_that_clients_and_people_choose_are_escaped() -> None:
    metrics = Metrics()
    metrics.model(ModelKey('a"b\\c\nd', 1)).tags = {"a-b": 'x"y'}
    (labels,) = page(metrics).family("nv_inference_count")
    assert dict(labels) == {"model": 'a"b\\c\nd', "version": "1", "_a_b": 'x"y'}


def test_the_page_is_readable_without_any_model() -> None:
    seen = page(Metrics())
    assert seen.types["nv_inference_count"] == "counter"
    assert seen.of("process_resident_memory_bytes") > 0
