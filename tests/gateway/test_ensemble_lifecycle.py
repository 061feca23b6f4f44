"""Cold, warm and broken members: what the control loop promises, on simulated time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import numpy as np
import pytest

from gateway.core import (
    InferResponse,
    ModelKey,
    ModelSpec,
    ModelState,
    Override,
    Tensor,
    TensorSpec,
)
from gateway.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    LoadFailed,
    ModelUnavailable,
)
from gateway.lifecycle.control import RepositoryControl
from gateway.repository.reader import ModelListing
from tests.gateway.ensembles import CHAIN, ensemble, question, step
from tests.gateway.fakes import Fail, FakeEngine, House, Ok, dynamic, house, spec
from tests.simulated_loop import simulate

READY = ModelState.READY


async def asked(
    h: House, value: float = 1.0, timeout_s: float = 1000.0, model: str = "e"
) -> InferResponse:
    x = Tensor("x", "FP32", np.full((1, 2), value, np.float32))
    now = asyncio.get_running_loop().time()
    return await h.admission.infer(question(model=model, inputs=[x], deadline=now + timeout_s))


def members_of_chain() -> tuple[ModelSpec, ModelSpec]:
    return spec("a"), spec("b")


def test_cold_members_are_loaded_together_with_the_first_request() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(5.0), Ok(3.0)])
        async with house(*members_of_chain(), CHAIN, engine=engine) as h:
            answer = await asked(h, 3.0)
            # not 5 + 3: then two runs of 0.01 s
            assert asyncio.get_running_loop().time() == pytest.approx(5.02)
            np.testing.assert_array_equal(answer.outputs[0].data, [[12.0, 12.0]])
            assert (answer.model, answer.version, answer.id) == ("e", 1, "7")
            assert engine.log == ["load a:1", "load b:1"]

    simulate(story())


def test_steps_of_many_requests_are_batched_each_for_itself() -> None:
    async def story() -> None:
        async with house(*members_of_chain(), CHAIN) as h:
            await asyncio.gather(*(asked(h, value) for value in range(6)))
            assert h.engine.batch_sizes == [6, 6]
            assert h.entry("e").stats.success == 6
            assert h.entry("a").stats.success == 6

    simulate(story())


def test_a_member_ready_early_does_not_sleep_before_the_last_one_is() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(100.0), Ok(1.0)])
        async with house(*members_of_chain(), CHAIN, engine=engine, idle_timeout_s=10) as h:
            await asked(h)
            assert engine.log == ["load a:1", "load b:1"]

    simulate(story())


def test_members_in_use_by_their_ensemble_never_sleep_and_idle_ones_do() -> None:
    async def story() -> None:
        async with house(*members_of_chain(), CHAIN, idle_timeout_s=10) as h:
            for _ in range(5):
                await asked(h)
                await asyncio.sleep(9)
            assert len(h.engine.log) == 2
            await asyncio.sleep(20)
            assert not h.engine.loaded
            await asked(h)

    simulate(story())


def test_deadline_passes_in_whatever_step_it_finds_the_request() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(1.0), Ok(50.0)])
        async with house(*members_of_chain(), CHAIN, engine=engine) as h:
            with pytest.raises(DeadlineExceeded, match=r"^in ensemble 'e', "):
                await asked(h, timeout_s=10)
            assert asyncio.get_running_loop().time() == pytest.approx(10)

    simulate(story())


def test_a_member_that_cannot_load_fails_the_ensemble_with_its_reason_at_once() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(50.0), Fail("the file is broken", 1.0)])
        async with house(*members_of_chain(), CHAIN, engine=engine) as h:
            with pytest.raises(ModelUnavailable) as refused:
                await asked(h)
            assert asyncio.get_running_loop().time() == pytest.approx(1.0)
            assert str(refused.value).endswith(
                "ensemble 'e' depends on 'b' which has no loaded version. Model 'b' loading failed "
                "with error: version 1 is at UNAVAILABLE state: the file is broken;"
            )
            assert "the file is broken" in h.registry.fault(h.entry("e"))

    simulate(story())


def test_an_unloaded_member_is_loaded_again_by_the_next_request() -> None:
    async def story() -> None:
        async with house(*members_of_chain(), CHAIN) as h:
            await asked(h)
            h.entry("a").unload_requested = True
            h.registry.poke()
            await h.state(ModelState.UNAVAILABLE, "a")
            await asked(h)
            assert h.engine.log == ["load a:1", "load b:1", "unload a:1", "load a:1"]

    simulate(story())


def test_an_error_inside_a_member_names_the_ensemble() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(), Fail("thirteen is unlucky")])
        async with house(*members_of_chain(), CHAIN, engine=engine) as h:
            with pytest.raises(InferenceFailed, match=r"^in ensemble 'e', thirteen is unlucky$"):
                await asked(h)
            assert h.entry("e").stats.failure == 1
            assert h.entry("b").stats.failure == 1

    simulate(story())


def test_ensembles_of_ensembles_wake_every_model_below_them() -> None:
    async def story() -> None:
        outer = ensemble(step("e", "x=x", "y=t"), step("c", "x=t", "y=y"), name="outer")
        engine = FakeEngine(loads=[Ok(4.0), Ok(4.0), Ok(4.0)])
        async with house(*members_of_chain(), CHAIN, spec("c"), outer, engine=engine) as h:
            answer = await asked(h, 1.0, model="outer")
            assert asyncio.get_running_loop().time() == pytest.approx(4.03)
            np.testing.assert_array_equal(answer.outputs[0].data, [[8.0, 8.0]])

    simulate(story())


@dataclass
class Shelf:
    """A catalogue of specs."""

    specs: dict[str, ModelSpec]

    async def names(self) -> list[str]:
        return list(self.specs)

    async def has(self, name: str) -> bool:
        return name in self.specs

    async def read(self, name: str, override: Override | None = None) -> ModelListing:
        return ModelListing(name, (self.specs[name],))


def test_explicit_load_returns_when_every_member_is_ready() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(5.0), Ok(3.0)])
        shelf = Shelf({one.key.name: one for one in (*members_of_chain(), CHAIN)})
        async with house(*shelf.specs.values(), engine=engine) as h:
            await RepositoryControl(shelf, h.registry).load("e")
            assert asyncio.get_running_loop().time() == pytest.approx(5.0)
            assert {h.entry(name).state for name in "abe"} == {READY}

    simulate(story())


def test_explicit_load_fails_with_the_members_reason_and_does_not_wait_for_its_back_off() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(), Fail("broken")])
        shelf = Shelf({one.key.name: one for one in (*members_of_chain(), CHAIN)})
        async with house(*shelf.specs.values(), engine=engine) as h:
            control = RepositoryControl(shelf, h.registry)
            with pytest.raises(LoadFailed, match=r"Model 'b' loading failed .*: broken;$"):
                await control.load("e")
            await control.load("e")
            assert h.entry("e").state is READY

    simulate(story())


def test_a_member_that_is_added_later_mends_its_ensemble() -> None:
    async def story() -> None:
        a, b = members_of_chain()
        shelf = Shelf({"a": a, "e": CHAIN})
        async with house(a, CHAIN) as h:
            control = RepositoryControl(shelf, h.registry)
            missing = "ensemble e contains models that are not available or ambiguous: b"
            assert h.registry.fault(h.entry("e")) == missing
            with pytest.raises(ModelUnavailable, match=missing):
                await asked(h)
            with pytest.raises(LoadFailed, match=missing):
                await control.load("e")
            shelf.specs["b"] = b
            await control.read_all()
            assert h.registry.fault(h.entry("e")) == ""
            await asked(h)  # without a wait for the back-off of the loads that failed

    simulate(story())


def test_an_ensemble_meets_a_member_that_was_replaced_anew() -> None:
    async def story() -> None:
        a, b = members_of_chain()
        async with house(a, b, CHAIN) as h:
            await asked(h)
            h.publish(replace(b, modified_ns=1, inputs=(TensorSpec("x", "FP32", (3,)),)))
            await h.state(ModelState.UNAVAILABLE, "e")
            assert "inconsistent shape" in h.registry.fault(h.entry("e"))
            with pytest.raises(ModelUnavailable, match=r"inconsistent shape"):
                await asked(h)
            h.publish(replace(b, modified_ns=2))
            await asked(h)

    simulate(story())


def test_an_output_without_labels_has_those_of_the_member_that_writes_it() -> None:
    async def story() -> None:
        a, b = members_of_chain()
        made = ensemble(step("a", "x=x", "y=t"), step("b", "x=t", "y=y"))
        own = replace(made, key=ModelKey("own", 1), labels={"y": (b"own",)})
        labelled = [replace(each, labels={"y": (each.key.name.encode(),)}) for each in (a, b)]
        async with house(*labelled, made, own) as h:
            assert h.entry("e").spec.labels == {"y": (b"b",)}
            assert h.entry("own").spec.labels == {"y": (b"own",)}

    simulate(story())


def test_a_request_that_does_not_fit_the_ensemble_reaches_no_member() -> None:
    async def story() -> None:
        async with house(*members_of_chain(), CHAIN) as h:
            wrong = question(inputs=[Tensor("x", "FP32", np.zeros((1, 5), np.float32))])
            with pytest.raises(InvalidRequest, match=r"for model 'e'. Expected"):
                await h.admission.infer(wrong)
            assert not h.engine.batches

    simulate(story())


def test_priorities_order_the_steps_of_waiting_requests() -> None:
    async def story() -> None:
        levels = replace(dynamic(1), priority_levels=2, default_level=2)
        a = spec("a", batching=levels, max_batch_size=1)
        made = replace(ensemble(step("a", "x=x", "y=y")), max_batch_size=1)
        async with house(a, made, engine=FakeEngine(runs=[Ok(1.0)])) as h:
            order: list[int] = []

            async def ask(number: int, priority: int) -> None:
                x = Tensor("x", "FP32", np.zeros((1, 2), np.float32))
                await h.admission.infer(question(inputs=[x], priority=priority))
                order.append(number)

            asks = [asyncio.create_task(ask(0, 2))]
            await asyncio.sleep(0.5)
            asks += [asyncio.create_task(ask(1, 2)), asyncio.create_task(ask(2, 1))]
            await asyncio.wait(asks)
            assert order == [0, 2, 1]

    simulate(story())


def test_an_ensemble_of_ensembles_is_made_anew_with_the_innermost_member() -> None:
    async def story() -> None:
        inner = ensemble(step("m", "x=x", "y=y"), name="f")
        outer = replace(ensemble(step("f", "x=x", "y=y")), cached=True)
        async with house(spec(), inner, outer, cache_bytes=100_000) as h:
            await asked(h)
            h.publish(replace(spec(), modified_ns=1))
            await asyncio.sleep(1)
            assert not len(h.cache)
            await asked(h)
            h.registry.remove("m")
            await asyncio.sleep(1)
            with pytest.raises(ModelUnavailable):
                await asked(h)

    simulate(story())


def test_a_newcomer_does_not_overtake_who_waits_for_the_ensemble() -> None:
    async def story() -> None:
        newcomers = []
        async with house(spec(), ensemble(step("m", "x=x", "y=y"))) as h:
            first = asyncio.create_task(asked(h, 1))
            await h.state(ModelState.LOADING, "e")
            entry = h.entry("e")
            move = entry.move

            def arrive(state: ModelState, reason: str = "") -> None:
                if state is READY:  # in the loop's queue before whom this wakes
                    newcomers.append(asyncio.create_task(asked(h, 2)))
                move(state, reason)

            entry.move = arrive  # type: ignore[method-assign]
            await first
            await asyncio.gather(*newcomers)
            assert [batch[:, 0].tolist() for batch in h.engine.batches] == [[1, 2]]

    simulate(story())
