"""Answers kept for requests that come again: equal, bounded, and gone with their model."""

from __future__ import annotations

import asyncio
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import given
from hypothesis import strategies as st

from gateway.batching.caching import digest_takes_long
from gateway.batching.scheduling import make_scheduler
from gateway.core import InferRequest, ModelSpec, ModelState, Tensor
from gateway.ensemble import EnsembleStep
from gateway.errors import InferenceFailed
from gateway.metrics import ModelStats
from gateway.placement import EngineKind
from gateway.repository.reader import read_model
from gateway.response_cache import ENTRY_BYTES, OUTPUT_BYTES, ResponseCache, digest_of
from gateway.sequence import SequenceMark
from tests.gateway.fakes import Fail, FakeEngine, Ok, house, spec
from tests.gateway.onnx_models import add_and_multiply, identity, put
from tests.gateway.process import gateway
from tests.simulated_loop import simulate

ENABLED = "response_cache { enable: true }\n"


def floats(*values: float, name: str = "y") -> Tensor:
    return Tensor(name, "FP32", np.array(values, np.float32))


def answer(size_bytes: int) -> list[Tensor]:
    """An answer that the cache counts as so many bytes."""
    return [Tensor("y", "UINT8", np.zeros(size_bytes - ENTRY_BYTES - OUTPUT_BYTES, np.uint8))]


def request(*inputs: Tensor, **changes: object) -> InferRequest:
    values: dict[str, object] = {"model": "m", "version": "", "id": "", "outputs": []}
    return InferRequest(**{**values, "inputs": list(inputs), "deadline": 1e9, **changes})  # type: ignore[arg-type]


Steps = st.lists(
    st.tuples(
        st.sampled_from(("put", "get", "forget")),
        st.integers(1, 3),
        st.integers(0, 5),
        st.integers(ENTRY_BYTES + OUTPUT_BYTES, 4000),
    ),
    max_size=60,
)


@given(Steps)
def test_it_never_holds_more_than_its_bound_and_counts_what_it_holds(
    steps: list[tuple[str, int, int, int]],
) -> None:
    cache = ResponseCache(10_000)
    expected: dict[tuple[int, int], int] = {}  # in the order of their last use
    for what, owner, number, size in steps:
        digest = bytes([number])
        if what == "put":
            cache.put(owner, digest, answer(size))
            expected.pop((owner, number), None)
            while sum(expected.values()) + size > cache.max_bytes:
                del expected[next(iter(expected))]
            expected[owner, number] = size
        elif what == "get":
            assert (cache.get(owner, digest) is None) == ((owner, number) not in expected)
            if (owner, number) in expected:
                expected[owner, number] = expected.pop((owner, number))
        else:
            cache.forget(owner)
            expected = {key: size for key, size in expected.items() if key[0] != owner}
        assert cache.held_bytes == sum(expected.values()) <= cache.max_bytes
        assert len(cache) == len(expected)


def test_an_answer_larger_than_the_cache_is_not_kept_and_costs_none_its_place() -> None:
    cache = ResponseCache(2000)
    cache.put(1, b"small", answer(1000))
    cache.put(1, b"large", answer(2001))
    assert cache.get(1, b"small") is not None
    assert cache.get(1, b"large") is None


def test_what_is_kept_is_a_copy_that_nobody_can_write_to() -> None:
    cache = ResponseCache(10_000)
    batch = np.arange(6, dtype=np.float32).reshape(3, 2)
    cache.put(1, b"k", [Tensor("y", "FP32", batch[1:2])])
    batch[:] = 0
    (kept,) = cache.get(1, b"k") or ()
    np.testing.assert_array_equal(kept.data, [[2, 3]])
    assert kept.data.base is None
    with pytest.raises(ValueError, match="read-only"):
        kept.data[0, 0] = 1


def test_the_count_of_bytes_is_not_below_what_the_memory_says() -> None:
    cache = ResponseCache(1 << 30)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(2000):
            text = np.array([b"word %d" % number] * 2, np.object_)
            text[1] = b"another %d" % number
            digest = digest_of(request(floats(number)), parametric=False)
            cache.put(1, digest, [floats(number, number), Tensor("t", "BYTES", text)])
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.5 < taken / cache.held_bytes <= 1.0


def digest(*inputs: Tensor, parametric: bool = False, **changes: object) -> bytes:
    return digest_of(request(*inputs, **changes), parametric)


def test_requests_are_equal_by_their_inputs_alone() -> None:
    a, b = floats(1, 2, name="a"), floats(3, 4, name="b")
    same = digest(a, b)
    assert digest(b, a, id="7", priority=3, timeout_us=5, deadline=5.0, outputs=["y"]) == same
    assert digest(a, b, parameters={"k": 1}) == same
    assert digest(a, b, parametric=True, parameters={"k": 1}) != digest(a, b, parametric=True)
    words = np.array([b"ab", b"c"], np.object_)
    others = [
        digest(a),
        digest(a, b._replace(name="c")),
        digest(a, b._replace(datatype="INT32")),
        digest(a, floats(3, 5, name="b")),
        digest(a._replace(data=a.data.reshape(2, 1)), b),
        digest(Tensor("t", "BYTES", words)),
        digest(Tensor("t", "BYTES", np.array([b"a", b"bc"], np.object_))),
    ]
    assert len({same, *others}) == len(others) + 1


def cached(name: str = "m") -> ModelSpec:
    return replace(spec(name), cached=True)


def test_an_equal_request_is_answered_without_the_engine() -> None:
    async def story() -> None:
        async with house(cached(), cache_bytes=100_000) as h:
            for _ in range(3):
                await h.ask(1, 2)
            await h.ask(1, 3)
            assert h.engine.batch_sizes == [2, 2]
            stats = h.entry().stats
            assert (stats.cache_hits, stats.cache_misses) == (2, 2)
            assert (stats.success, stats.executions) == (4, 2)

    simulate(story())


def test_nothing_is_kept_where_nobody_asked_for_it() -> None:
    async def story(spec: ModelSpec, cache_bytes: int) -> None:
        async with house(spec, cache_bytes=cache_bytes) as h:
            await h.ask(1)
            await h.ask(1)
            assert h.engine.batch_sizes == [1, 1]
            assert not len(h.cache)
            assert h.entry().stats.cache_misses == 0

    simulate(story(cached(), 0))
    simulate(story(spec(), 100_000))


def test_a_failure_is_not_kept() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Fail("once"), Ok()])
        async with house(cached(), engine=engine, cache_bytes=100_000) as h:
            with pytest.raises(InferenceFailed):
                await h.ask(1)
            await h.ask(1)
            assert h.entry().stats.cache_misses == 1

    simulate(story())


def test_an_answer_goes_with_the_version_that_gave_it() -> None:
    async def story() -> None:
        async with house(cached(), cached("n"), cache_bytes=100_000) as h:
            await h.ask(1)
            await h.ask(1, model="n")
            assert len(h.cache) == 2
            h.publish(replace(cached(), modified_ns=1))
            await h.state(ModelState.UNAVAILABLE)
            assert len(h.cache) == 1
            await h.ask(1)
            assert len(h.engine.batches) == 3

    simulate(story())


def test_an_ensembles_whole_answer_is_kept_whatever_its_members_keep() -> None:
    async def story() -> None:
        step = EnsembleStep("m", 0, {"x": "x"}, {"y": "y"})
        ensemble = replace(cached("e"), steps=(step,))
        async with house(spec(), ensemble, cache_bytes=100_000) as h:
            for _ in range(3):
                await h.ask(1, model="e")
            assert h.engine.batch_sizes == [1]
            assert (h.entry("e").stats.cache_hits, h.entry("e").stats.cache_misses) == (2, 1)
            assert h.entry("m").stats.success == 1
        around = replace(spec("e"), steps=(step,))
        async with house(cached(), around, cache_bytes=100_000) as h:
            for _ in range(3):
                await h.ask(1, model="e")
            assert h.engine.batch_sizes == [1]
            assert (h.entry("m").stats.cache_hits, h.entry("m").stats.success) == (2, 3)

    simulate(story())


def test_a_share_of_a_batch_is_kept_and_not_the_batch() -> None:
    async def story() -> None:
        async with house(cached(), cache_bytes=100_000) as h:
            await asyncio.gather(*(h.ask(value) for value in range(8)))
            assert h.engine.batch_sizes == [8]
            assert h.cache.held_bytes == 8 * (ENTRY_BYTES + OUTPUT_BYTES + 8)
            await asyncio.gather(*(h.ask(value) for value in range(8)))
            assert h.engine.batch_sizes == [8]

    simulate(story())


def test_a_large_request_is_digested_off_the_loop_and_kept_like_any_other() -> None:
    # in real time: the simulated loop knows no threads
    async def story() -> None:
        wide = replace(cached(), inputs=(replace(spec().inputs[0], dims=(300_000,)),))
        engine = FakeEngine(loads=[Ok(0)], runs=[Ok(0), Ok(0)])
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            await engine.load(wide)
            stats = ModelStats()
            cache = ResponseCache(10_000_000)
            scheduler = make_scheduler(None, 10.0, cache, wide, stats, engine, tasks)  # type: ignore[arg-type]
            data = np.zeros((1, 300_000), np.float32)
            for _ in range(2):
                await scheduler.infer(request(Tensor("x", "FP32", data)))
            assert (stats.cache_hits, stats.cache_misses) == (1, 1)
            scheduler.close()
            assert not len(cache)

    asyncio.run(story())


def test_requests_of_sequences_are_not_answered_from_it() -> None:
    async def story() -> None:
        async with house(cached(), cache_bytes=100_000) as h:
            for _ in range(2):
                data = np.zeros((1, 2), np.float32)
                mark = SequenceMark(7)
                await h.admission.infer(request(Tensor("x", "FP32", data), sequence=mark))
            assert h.engine.batch_sizes == [1, 1]
            assert not len(h.cache)

    simulate(story())


@pytest.mark.parametrize(
    ("data", "takes_long"),
    [
        (np.zeros(100_000, np.float32), False),
        (np.zeros(200_000, np.float32), True),
        (np.array([b"word"] * 2000, np.object_), False),
        (np.array([b"word"] * 3000, np.object_), True),
        (np.array([bytes(1 << 20)], np.object_), True),
    ],
)
def test_a_digest_takes_long_by_bytes_and_by_strings(
    data: np.ndarray[Any, Any], takes_long: bool
) -> None:
    datatype = "BYTES" if data.dtype == np.object_ else "FP32"
    assert digest_takes_long([Tensor("x", datatype, data)]) is takes_long


def test_what_may_answer_equal_requests_differently_has_no_cache(tmp_path: Path) -> None:
    text = "Response Cache does not currently support model m with {}. "
    text += "Please disable the response cache."
    put(tmp_path, "m", identity(), ENABLED + "sequence_batching { }\nmax_batch_size: 4\n")
    assert read_model(tmp_path, "m").error == text.format("sequence batching scheduler")
    decoupled = "model_transaction_policy { decoupled: true }\n"
    (tmp_path / "m" / "config.pbtxt").write_text(ENABLED + decoupled)
    error = read_model(tmp_path, "m", {EngineKind.TRITON}).error
    assert error == text.format("'decoupled' transaction policy")


def test_real_answers_come_back_equal_whichever_outputs_are_asked_for(tmp_path: Path) -> None:
    put(tmp_path, "two", add_and_multiply(), ENABLED)
    put(tmp_path, "text", identity("BYTES"), ENABLED)
    with gateway(tmp_path) as served, triton.InferenceServerClient(served.url) as client:

        def ask(*outputs: str) -> list[tuple[str, list[list[float]]]]:
            inputs = []
            for name in "ab":
                tensor = triton.InferInput(name, [1, 2], "FP32")
                tensor.set_data_from_numpy(np.array([[2.0, 5.0]], np.float32))
                inputs.append(tensor)
            wanted = [triton.InferRequestedOutput(name) for name in outputs]
            answer = client.infer("two", inputs, request_id=str(outputs), outputs=wanted or None)
            response = answer.get_response()
            assert response.id == str(outputs)
            return [(each.name, answer.as_numpy(each.name).tolist()) for each in response.outputs]

        assert ask("product") == [("product", [[4.0, 25.0]])]
        assert ask() == [("sum", [[4.0, 10.0]]), ("product", [[4.0, 25.0]])]
        assert ask("product", "sum") == ask()[::-1]
        assert served.metric("nv_inference_exec_count", model="two") == 1
        assert served.metric("nv_inference_request_success", model="two") == 4

        words = np.array([[b"tide", b"", "g\u00e4te".encode()]], np.object_)
        text = triton.InferInput("x", [1, 3], "BYTES")
        text.set_data_from_numpy(words)
        for _ in range(2):
            got = client.infer("text", [text]).as_numpy("y")
            assert got.tolist() == words.tolist()
        assert served.metric("nv_inference_exec_count", model="text") == 1
        assert served.stop() == 0
