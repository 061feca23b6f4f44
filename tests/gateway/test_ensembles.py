"""Models made of models: what an ensemble's scheduler promises, on simulated time."""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, ModelConfig

from gateway.batching.ensemble import EnsembleScheduler
from gateway.core import (
    InferRequest,
    InferResponse,
    ModelSpec,
    Tensor,
    TensorSpec,
)
from gateway.errors import (
    DeadlineExceeded,
    QueueFull,
    RepositoryError,
)
from gateway.metrics import ModelStats
from gateway.repository.config_pbtxt import check
from gateway.repository.model_spec import model_spec
from gateway.sequence import SequenceMark
from tests.gateway.ensembles import CHAIN, Members, ensemble, question, step
from tests.simulated_loop import simulate


async def answer_of(made: ModelSpec, members: Members, **changes: object) -> InferResponse:
    scheduler = EnsembleScheduler(made, members, ModelStats())
    try:
        return await scheduler.infer(question(**changes))
    finally:
        assert scheduler.idle
        scheduler.close()


def test_steps_run_as_soon_as_their_inputs_are_there() -> None:
    async def story() -> None:
        made = ensemble(
            step("left", "x=x", "y=l"),
            step("right", "x=x", "y=r"),
            step("after_left", "x=l", "y=ll"),
            step("both", "a=ll b=r", "y=y"),
        )
        members = Members({"left": 1.0, "right": 5.0, "after_left": 1.0, "both": 1.0})
        answer = await answer_of(made, members)
        assert members.starts() == {"left": 0.0, "right": 0.0, "after_left": 1.0, "both": 5.0}
        # left 1, after_left 2, right 1, both 2 + 1 + 1
        np.testing.assert_array_equal(answer.outputs[0].data, [[4.0, 4.0]])
        assert asyncio.get_running_loop().time() == 6.0

    simulate(story())


@st.composite
def graphs(draw: st.DrawFn) -> tuple[ModelSpec, dict[str, float], list[str]]:
    """Steps m0, m1 ... that write t0, t1 ..., in any order; their times; the outputs wanted."""
    count = draw(st.integers(1, 6))
    steps = []
    for number in range(count):
        sources = st.sampled_from(["x", *(f"t{earlier}" for earlier in range(number))])
        taken = draw(st.lists(sources, min_size=1, max_size=3))
        inputs = " ".join(f"i{index}={tensor}" for index, tensor in enumerate(taken))
        steps.append(step(f"m{number}", inputs, f"y=t{number}"))
    seconds = {f"m{number}": draw(st.sampled_from((1.0, 2.0, 5.0))) for number in range(count)}
    tensors = [f"t{number}" for number in range(count)]
    wanted = draw(st.lists(st.sampled_from(tensors), min_size=1, unique=True))
    return ensemble(*draw(st.permutations(steps)), outputs=tensors), seconds, wanted


@given(graphs())
def test_any_graph_of_steps_takes_its_longest_path_and_runs_each_needed_step_once(
    graph: tuple[ModelSpec, dict[str, float], list[str]],
) -> None:
    made, seconds, wanted = graph
    by_output = {each.outputs["y"]: each for each in made.steps}
    needed: set[str] = set()

    def expected(tensor: str) -> tuple[float, float]:
        """Return a tensor's value, and when it is there."""
        if tensor == "x":
            return 0.0, 0.0
        writer = by_output[tensor]
        needed.add(writer.model)
        values, times = zip(*map(expected, writer.inputs.values()), strict=True)
        return sum(values) + 1.0, max(times) + seconds[writer.model]

    async def story() -> None:
        members = Members(seconds)
        answer = await answer_of(made, members, outputs=wanted)
        found = [(tensor.name, float(tensor.data[0, 0])) for tensor in answer.outputs]
        assert found == [(name, expected(name)[0]) for name in wanted]
        assert asyncio.get_running_loop().time() == max(expected(name)[1] for name in wanted)
        assert sorted(each.model for each in members.asked) == sorted(needed)

    simulate(story())


tensors_of_a_map = st.lists(st.sampled_from("abcd"), max_size=2)


@given(
    st.lists(st.tuples(tensors_of_a_map, tensors_of_a_map), max_size=4),
    st.lists(st.sampled_from("abcd"), unique=True, max_size=2),
    st.lists(st.sampled_from("abcd"), unique=True, max_size=2),
)
def test_every_configuration_is_refused_or_has_an_answer(
    maps: list[tuple[list[str], list[str]]], inputs: list[str], outputs: list[str]
) -> None:
    config = ModelConfig(name="e", platform="ensemble", max_batch_size=8)
    config.ensemble_scheduling.SetInParent()
    for declared, names in ((config.input, inputs), (config.output, outputs)):
        for name in names:
            declared.add(name=name, data_type=TYPE_FP32, dims=[2])
    for taken, given_out in maps:
        added = config.ensemble_scheduling.step.add(model_name="m", model_version=-1)
        added.input_map.update({f"i{index}": name for index, name in enumerate(taken)})
        added.output_map.update({f"o{index}": name for index, name in enumerate(given_out)})
    try:
        check(config, "e")
    except RepositoryError:
        return
    made = model_spec(config, 1, Path("e"))

    async def story() -> None:
        x = [Tensor(name, "FP32", np.zeros((1, 2), np.float32)) for name in inputs]
        answer = await answer_of(made, Members(), inputs=x)
        assert [tensor.name for tensor in answer.outputs] == outputs

    simulate(story())


def test_a_step_is_asked_only_for_what_is_needed_and_not_at_all_without_need() -> None:
    async def story() -> None:
        made = ensemble(
            step("two", "x=x", "p=t q=z"),
            step("other", "x=x", "y=w"),
            step("last", "x=t", "y=y"),
            outputs=("y", "z", "w"),
        )
        members = Members()
        answer = await answer_of(made, members, outputs=["y"])
        assert [(each.model, each.outputs) for each in members.asked] == [
            ("two", ["p"]),
            ("last", ["y"]),
        ]
        assert [tensor.name for tensor in answer.outputs] == ["y"]
        answer = await answer_of(made, Members(), outputs=["w", "z"])
        assert [tensor.name for tensor in answer.outputs] == ["w", "z"]

    simulate(story())


def test_everything_but_the_tensors_goes_to_the_steps_as_it_came() -> None:
    async def story() -> None:
        members = Members()
        mark = SequenceMark(5, start=True, end=False)
        asked = {
            "id": "17",
            "deadline": 99.0,
            "priority": 2,
            "timeout_us": 5,
            "sequence": mark,
            "parameters": {"factor": 2},
        }
        await answer_of(CHAIN, members, **asked)
        for each in members.asked:
            assert {name: getattr(each, name) for name in asked} == asked
        assert [each.version for each in members.asked] == ["", ""]
        pinned = ensemble(step("a", "x=x", "y=y", version=3))
        members = Members()
        await answer_of(pinned, members)
        assert members.asked[0].version == "3"

    simulate(story())


def test_an_optional_input_that_is_absent_is_absent_for_the_member() -> None:
    async def story() -> None:
        made = ensemble(step("a", "x=x o=o", "y=y"))
        made = replace(made, inputs=(*made.inputs, TensorSpec("o", "FP32", (2,), optional=True)))
        members = Members()
        await answer_of(made, members)
        assert [tensor.name for tensor in members.asked[0].inputs] == ["x"]

    simulate(story())


def test_a_tensor_is_let_go_once_no_step_needs_it() -> None:
    async def story() -> None:
        alive: list[bool] = []

        class Watching(Members):
            async def infer(self, request: InferRequest) -> InferResponse:
                response = await super().infer(request)
                self.asked.clear()
                if request.model == "a":
                    self.first = weakref.ref(response.outputs[0].data)
                if request.model == "c":
                    alive.append(self.first() is not None)
                return response

        made = ensemble(step("a", "x=x", "y=t"), step("b", "x=t", "y=u"), step("c", "x=u", "y=y"))
        await answer_of(made, Watching())
        assert alive == [False]

    simulate(story())


def test_shapes_are_the_members_own_where_one_has_no_batch_dimension() -> None:
    async def story() -> None:
        unbatched = replace(step("a", "x=x", "y=t"), ranks={"x": 1})
        batched = replace(step("b", "x=t", "y=y"), ranks={"x": 2})
        members = Members()
        answer = await answer_of(ensemble(unbatched, batched), members)
        assert [each.inputs[0].data.shape for each in members.asked] == [(2,), (1, 2)]
        assert answer.outputs[0].data.shape == (1, 2)

    simulate(story())


def test_reshaped_inputs_and_outputs_reach_the_members_as_the_model_sees_them() -> None:
    async def story() -> None:
        made = ensemble(step("a", "x=x", "y=y"))
        made = replace(
            made,
            inputs=(TensorSpec("x", "FP32", (1, 2), reshape=(2,)),),
            outputs=(TensorSpec("y", "FP32", (2, 1), reshape=(2,)),),
        )
        members = Members()
        x = Tensor("x", "FP32", np.zeros((3, 1, 2), np.float32))
        answer = await answer_of(made, members, inputs=[x])
        assert members.asked[0].inputs[0].data.shape == (3, 2)
        assert answer.outputs[0].data.shape == (3, 2, 1)

    simulate(story())


def test_a_failed_step_fails_the_request_in_tritons_words_and_cancels_the_others() -> None:
    async def story() -> None:
        made = ensemble(
            step("a", "x=x", "y=s"), step("b", "x=x", "y=t"), step("c", "a=s b=t", "y=y")
        )
        members = Members({"b": 9.0}, {"a": QueueFull("Exceeds maximum queue size")})
        with pytest.raises(QueueFull, match=r"^in ensemble 'e', Exceeds maximum queue size$"):
            await answer_of(made, members)
        assert members.log[-1] == ("cancelled", "b", 1.0)
        assert "c" not in members.starts()

    simulate(story())


def test_a_cancelled_caller_cancels_its_steps() -> None:
    async def story() -> None:
        made = ensemble(
            step("a", "x=x", "y=s"), step("b", "x=x", "y=t"), step("c", "a=s b=t", "y=y")
        )
        members = Members({"a": 9.0, "b": 9.0})
        asking = asyncio.create_task(answer_of(made, members))
        await asyncio.sleep(1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert sorted(members.log[-2:]) == [("cancelled", "a", 1.0), ("cancelled", "b", 1.0)]

    simulate(story())


def test_a_bounded_step_holds_back_what_is_more_and_within_the_deadline() -> None:
    async def story() -> None:
        made = ensemble(step("a", "x=x", "y=y", max_inflight=2))
        members = Members({"a": 10.0})
        scheduler = EnsembleScheduler(made, members, ModelStats())
        asks = [asyncio.create_task(scheduler.infer(question())) for _ in range(3)]
        late = asyncio.create_task(scheduler.infer(question(deadline=5.0)))
        await asyncio.wait([late])
        assert asyncio.get_running_loop().time() == 5.0
        assert isinstance(late.exception(), DeadlineExceeded)
        assert len(members.asked) == 2
        await asyncio.wait(asks)
        assert [at for what, _, at in members.log if what == "start"] == [0.0, 0.0, 10.0]
        scheduler.close()

    simulate(story())
