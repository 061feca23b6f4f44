"""Where models go and which make way: laws of `decide`, by tables and in a simulated world."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import ModelKey, ModelState
from gateway.errors import ModelUnavailable
from gateway.fleet import Node
from gateway.lifecycle.policy import (
    STARVING_S,
    Action,
    Decision,
    Defaults,
    Drop,
    Load,
    Refuse,
    Unload,
    decide,
)
from gateway.placement import Cause, EngineKind, Placement
from gateway.rows import EngineRow, ModelRow, ReplicaRow, Snapshot
from tests.gateway.fakes import Fail, FakeEngine, house, spec
from tests.simulated_loop import simulate

E = EngineKind.EMBEDDED
READY, UNKNOWN, LOADING = ModelState.READY, ModelState.UNKNOWN, ModelState.LOADING


def model(name: str, state: ModelState = UNKNOWN, *engines: str, **changes: Any) -> ModelRow:
    size = int(changes.get("size_bytes", 100))
    row = ModelRow(
        ModelKey(name, 1),
        state,
        waiting=0,
        queued=0,
        running=0,
        in_flight=0,
        last_used=0.0,
        replicas=tuple(ReplicaRow(engine, state, size) for engine in engines),
        size_bytes=100,
        load_s=0.1,
    )
    return replace(row, **changes)


def resident(name: str, *engines: str, uses: float = 1.0, **changes: Any) -> ModelRow:
    return model(name, READY, *(engines or ("a",)), frequency=uses, **changes)


def wanted(name: str, since: float = 10.0, **changes: Any) -> ModelRow:
    return model(name, waiting=1, waiting_since=since, **changes)


def engine(name: str = "a", budget: int = 0, **changes: Any) -> EngineRow:
    return replace(EngineRow(name, E, budget), **changes)


def actions(
    *models: ModelRow, engines: tuple[EngineRow, ...] = (engine("a", 300),), now: float = 10.0
) -> tuple[Action, ...]:
    return decide(Snapshot(models, engines), now, Defaults()).actions


def evicted(name: str, by: str, engine: str = "a") -> Unload:
    return Unload(ModelKey(name, 1), engine, f"evicted for {by}:1", Cause.EVICTED)


def load(name: str, engine: str = "a") -> Load:
    return Load(ModelKey(name, 1), engine)


def test_nothing_is_evicted_while_there_is_space() -> None:
    assert actions(resident("x"), resident("y"), wanted("new")) == (load("new"),)


def test_who_is_used_least_makes_way_and_no_more_than_needed() -> None:
    rows = (resident("x", uses=5.0), resident("y", uses=2.0), resident("z", uses=9.0))
    assert actions(*rows, wanted("new")) == (evicted("y", by="new"),)


def test_large_and_cheap_ones_make_way_before_small_and_dear_ones() -> None:
    rows = (
        resident("large", size_bytes=200, uses=3.0),
        resident("small", size_bytes=100, uses=2.0, load_s=5.0, loaded_at=-100.0),
    )
    assert actions(*rows, wanted("new")) == (evicted("large", by="new"),)


def test_uses_of_long_ago_count_less_than_those_of_late() -> None:
    rows = (
        resident("once", uses=20.0, frequency_at=0.0),
        resident("now", uses=2.0, frequency_at=3600.0, last_used=3600.0),
    )
    space = (engine("a", 200),)
    made = actions(*rows, wanted("new", since=3600.0), engines=space, now=3600.0)
    assert Unload(ModelKey("once", 1), "a", "idle", Cause.IDLE) in made


def test_pinned_used_and_waited_for_ones_stay() -> None:
    rows = (
        resident("pinned", uses=0.0, min_replicas=1),
        resident("used", in_flight=1),
        resident("sequences", keep_s=60.0, last_used=9.0),
    )
    assert actions(*rows, wanted("new")) == ()


def test_young_one_stays_for_ten_of_its_load_times_and_no_longer() -> None:
    young = resident("young", loaded_at=9.5)
    snapshot = Snapshot((young, wanted("new")), (engine("a", 100),))
    assert decide(snapshot, 10.0, Defaults()) == Decision((), 10.5)
    assert decide(snapshot, 10.6, Defaults()).actions == (evicted("young", by="new"),)


def test_young_one_makes_way_only_while_a_grown_one_is_worth_more() -> None:
    young = resident("young", loaded_at=9.5, uses=2.0)
    two = (engine("a", 200),)
    made = (evicted("young", by="new"),)
    assert actions(young, resident("dear", uses=3.0), wanted("new"), engines=two) == made
    assert actions(young, resident("d", uses=3.0, in_flight=1), wanted("new"), engines=two) == made
    made = (evicted("cheap", by="new"),)
    assert actions(young, resident("cheap", uses=1.0), wanted("new"), engines=two) == made
    used = resident("used", uses=1.0, in_flight=1)
    assert actions(young, used, wanted("new"), engines=two) == ()
    pinned = resident("pinned", uses=9.0, min_replicas=1)  # it would not go anyway
    assert actions(young, pinned, wanted("new"), engines=two) == ()


def test_who_has_waited_too_long_takes_space_from_one_in_use() -> None:
    rows = (resident("used", in_flight=1), wanted("new", since=10.0))
    space = (engine("a", 100),)
    assert actions(*rows, engines=space, now=10.0 + STARVING_S - 0.1) == ()
    assert actions(*rows, engines=space, now=10.0 + STARVING_S) == (evicted("used", by="new"),)


def test_space_being_made_is_kept_for_who_waits_for_it() -> None:
    leaving = model("leaving", ModelState.UNLOADING, "a", size_bytes=200)
    rows = (leaving, wanted("large", since=1.0, size_bytes=300), wanted("small", since=2.0))
    assert actions(*rows) == ()
    beside = (engine("a", 300), engine("b", 100))
    assert actions(*rows, engines=beside) == (load("small", "b"),)


def test_model_that_fits_nowhere_is_refused_with_the_figures() -> None:
    (refusal,) = actions(wanted("huge", size_bytes=301))
    text = (
        "it takes 301 bytes, and no engine's memory budget has more than 300 beside pinned models"
    )
    assert refusal == Refuse(ModelKey("huge", 1), text)


def test_model_that_pinned_ones_leave_no_room_for_is_refused() -> None:
    (refusal,) = actions(resident("x", min_replicas=1, size_bytes=250), wanted("new"))
    assert isinstance(refusal, Refuse)
    assert "more than 50 beside pinned models" in refusal.reason


def test_oversized_engine_gives_up_what_is_worth_least() -> None:
    rows = (resident("x", size_bytes=250), resident("y", uses=9.0))
    (unload,) = actions(*rows)
    assert (unload.key.name, unload.cause) == ("x", Cause.OVERSIZED)  # type: ignore[union-attr]


def test_model_goes_where_it_is_already_and_else_where_most_space_is() -> None:
    two = (engine("a", 300), engine("b", 300))
    assert actions(resident("x"), wanted("new"), engines=two) == (load("new", "b"),)
    held = wanted("new", held_by=frozenset({"a"}))
    assert actions(resident("x"), held, engines=two) == (load("new", "a"),)


def test_pinned_model_is_in_as_many_engines_as_it_wants_and_there_are() -> None:
    three = tuple(engine(name) for name in "abc")
    row = model("m", min_replicas=2)
    assert actions(row, engines=three) == (load("m", "a"),)
    one = resident("m", min_replicas=2)
    assert actions(one, engines=three) == (load("m", "b"),)
    assert actions(replace(one, min_replicas=9), engines=(engine("a"),)) == ()
    both = resident("m", "a", "b", min_replicas=2)
    assert actions(both, engines=three, now=1e9) == ()


def test_engine_that_does_not_answer_has_lost_its_copies_and_gets_none() -> None:
    down = (engine("a", up=False, reason="no connection"), engine("b"))
    lost = Unload(ModelKey("m", 1), "a", "its engine has it no more", Cause.LOST)
    assert actions(resident("m"), engines=down) == (lost,)
    assert actions(wanted("m"), engines=down) == (load("m", "b"),)


def test_requests_wait_for_an_engine_that_was_there_and_for_no_other() -> None:
    gone = engine("a", up=False, reason="no connection")
    assert actions(wanted("m"), engines=(gone,)) == ()
    refusal = (Refuse(ModelKey("m", 1), "no connection"),)
    assert actions(wanted("m"), engines=(replace(gone, seen=False),)) == refusal
    assert actions(model("m", load_requested=True), engines=(gone,)) == refusal


def test_version_that_left_memory_while_a_copy_of_it_loads_waits_for_that_to_end() -> None:
    row = replace(wanted("m"), replicas=(ReplicaRow("a", LOADING, 100),))
    assert actions(row, engines=(engine("a"),)) == ()
    assert actions(row, engines=(engine("a"), engine("b"))) == (load("m", "b"),)


def test_engine_takes_so_many_loads_at_once() -> None:
    rows = (model("x", LOADING, "a"), wanted("new"))
    assert actions(*rows, engines=(engine("a", loads_at_once=1),)) == ()
    assert actions(*rows, engines=(engine("a", loads_at_once=2),)) == (load("new"),)


def test_of_many_engines_those_give_way_whose_copies_are_worth_least() -> None:
    engines = tuple(engine(f"e{number}", 100) for number in range(20))
    rows = [
        resident(f"m{number}", f"e{number}", uses=100.0 - number, size_bytes=100)
        for number in range(20)
    ]
    needs = [wanted(f"new{number}", size_bytes=100) for number in range(3)]
    made = actions(*rows, *needs, engines=engines)
    assert {action.key.name for action in made} == {"m19", "m18", "m17"}


def test_who_fits_nowhere_hinders_nobody_who_fits_elsewhere() -> None:
    engines = (engine("a", 100, offers=frozenset({"x", "new"})), engine("b", 100))
    rows = (
        resident("x", "a", size_bytes=100, in_flight=1),
        resident("y", "b", size_bytes=100),
        wanted("z", since=1.0, size_bytes=100, replicas=(ReplicaRow("b", LOADING, 0),)),
    )
    made = actions(*rows, wanted("w", since=9.5, size_bytes=100), engines=engines)
    assert evicted("y", by="w", engine="b") in made


def test_model_goes_only_where_it_is_offered() -> None:
    engines = (engine("a", 1000, offers=frozenset({"x"})), engine("b", 500))
    assert actions(wanted("x"), engines=engines) == (load("x", "a"),)
    assert actions(wanted("y"), engines=engines) == (load("y", "b"),)


def test_nobody_makes_way_for_a_load_that_may_not_begin() -> None:
    rows = (model("x", LOADING, "a"), resident("y"), wanted("new", 1.0), wanted("newer", 2.0))
    full = engine("a", 200, loads_at_once=1)
    assert actions(*rows, engines=(full,)) == ()
    two = replace(full, loads_at_once=2)
    assert actions(*rows, engines=(two,)) == (evicted("y", by="new"),)
    done = (resident("x", uses=9.0), *rows[1:])
    assert actions(*done, engines=(full,)) == (evicted("y", by="new"),)


def test_declared_size_counts_where_a_load_took_less() -> None:
    async def story() -> None:
        fake = FakeEngine()  # whose models take 1000 bytes
        node = Node("embedded", E, fake, budget_bytes=3000)
        models = [
            replace(spec(name), placement=Placement(memory_bytes=1500)) for name in ("a", "b", "c")
        ]
        async with house(*models, engine=fake, nodes=[node]) as h:
            for name in "abc":
                await h.ask(1, model=name)
            assert len(fake.loaded) == 2

    simulate(story())


def test_fewer_copies_where_fewer_will_do() -> None:
    two = (engine("a"), engine("b"))
    row = resident("m", "a", "b", desired=1, last_used=10.0)
    (unload,) = actions(row, engines=two)
    assert unload.cause is Cause.SURPLUS  # type: ignore[union-attr]
    assert actions(replace(row, desired=0), engines=two) == ()
    bounded = resident("m", desired=9, placement=Placement(max_replicas=1), last_used=10.0)
    assert actions(bounded, engines=two) == ()


@dataclass
class World:
    """Engines and models that do what `decide` says, each load and unload taking its time."""

    engines: tuple[EngineRow, ...]
    rows: dict[ModelKey, ModelRow]
    load_s: float
    now: float = 0.0
    due: list[tuple[float, ModelKey, str, str]] = field(default_factory=list)
    longest_wait_s: float = 0.0

    def ask(self, key: ModelKey) -> None:
        row = self.rows[key]
        if row.state is READY:
            self._put(key, frequency=row.frequency + 1, last_used=self.now)
        elif not row.waiting:
            self._put(key, waiting=1, waiting_since=self.now)

    def run(self, until: float) -> None:
        while True:
            wake = self._decide()
            when = min([wake, until, *(each[0] for each in self.due)])
            assert when > self.now or self.due or when == until, "decides again and again"
            self.now = max(self.now, when)
            if when >= until and not any(each[0] <= until for each in self.due):
                return
            for done in [each for each in self.due if each[0] <= self.now]:
                self.due.remove(done)
                self._finish(*done[1:])

    def _decide(self) -> float:
        snapshot = Snapshot(tuple(self.rows.values()), self.engines)
        decision = decide(snapshot, self.now, Defaults(idle_timeout_s=50.0))
        for action in decision.actions:
            self._start(action)
        self._check()
        snapshot = Snapshot(tuple(self.rows.values()), self.engines)
        again = decide(snapshot, self.now, Defaults(idle_timeout_s=50.0)).actions
        assert not again, f"asked again without a change: {again}"
        return decision.wake_at

    def _start(self, action: Action) -> None:
        row = self.rows[action.key]
        if isinstance(action, Load):
            assert row.state is UNKNOWN
            replica = ReplicaRow(action.engine, LOADING, row.size_bytes)
            self._put(action.key, state=LOADING, replicas=(replica,))
            self.due.append((self.now + self.load_s, action.key, action.engine, "loaded"))
        elif isinstance(action, Unload):
            assert row.state is READY
            assert not row.min_replicas, f"{action} of a pinned model"
            self._put(action.key, state=ModelState.UNLOADING)
            self.due.append((self.now + 0.01, action.key, action.engine, "unloaded"))
        elif isinstance(action, Refuse):
            self._put(action.key, waiting=0)
        else:
            assert not isinstance(action, Drop)

    def _finish(self, key: ModelKey, engine: str, what: str) -> None:
        row = self.rows[key]
        if what == "unloaded":
            self._put(key, state=UNKNOWN, replicas=())
            return
        if row.waiting:
            self.longest_wait_s = max(self.longest_wait_s, self.now - row.waiting_since)
        self._put(
            key,
            state=READY,
            replicas=(ReplicaRow(engine, READY, row.size_bytes),),
            waiting=0,
            load_s=self.load_s,
            loaded_at=self.now,
            last_used=self.now,
            frequency=row.frequency + 1,
        )

    def _check(self) -> None:
        for each in self.engines:
            held = sum(
                replica.bytes
                for row in self.rows.values()
                for replica in row.replicas
                if replica.engine == each.name
            )
            assert held <= (each.budget_bytes or math.inf), f"{each.name} holds {held}"

    def _put(self, key: ModelKey, **changes: Any) -> None:
        self.rows[key] = replace(self.rows[key], **changes)


@settings(max_examples=60, deadline=None)
@given(
    budgets=st.lists(st.integers(100, 400), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 150), min_size=1, max_size=12),
    asks=st.lists(st.tuples(st.integers(0, 11), st.floats(0.0, 3.0)), max_size=60),
    load_s=st.sampled_from([0.001, 0.1, 1.0]),
)
def test_budget_holds_and_whoever_fits_is_loaded_before_long(
    budgets: list[int], sizes: list[int], asks: list[tuple[int, float]], load_s: float
) -> None:
    names = [ModelKey(f"m{number}", 1) for number in range(len(sizes))]
    rows = {
        key: replace(model(key.name, size_bytes=size), min_replicas=int(number == 0 and size < 90))
        for number, (key, size) in enumerate(zip(names, sizes, strict=True))
    }
    engines = tuple(engine(f"e{n}", budget) for n, budget in enumerate(budgets))
    world = World(engines, rows, load_s)
    for index, pause_s in asks:
        world.ask(names[index % len(names)])
        world.run(world.now + pause_s)
    world.run(world.now + 100)
    assert not any(row.waiting for row in world.rows.values())
    pinned = world.rows[names[0]]
    assert not pinned.min_replicas or pinned.state is READY
    # each that came before may have to be served first, and each waits for at most so long
    assert world.longest_wait_s <= (STARVING_S + load_s + 0.1) * len(sizes)


def test_models_share_a_budget_and_all_are_answered() -> None:
    async def story() -> None:
        fake = FakeEngine()
        node = Node("embedded", E, fake, budget_bytes=2000)
        models = [spec(name) for name in "abcdef"]
        async with house(*models, engine=fake, nodes=[node]) as h:
            for _ in range(3):
                await asyncio.gather(*(h.ask(1, model=name) for name in "abcdef"))
                assert len(fake.loaded) <= 2
            causes = [h.entry(name).stats.unload_causes[Cause.EVICTED] for name in "abcdef"]
            assert sum(causes) >= 4

    simulate(story())


def test_model_larger_than_the_budget_is_refused_at_once() -> None:
    async def story() -> None:
        fake = FakeEngine()
        node = Node("embedded", E, fake, budget_bytes=999)
        async with house(engine=fake, nodes=[node]) as h:
            with pytest.raises(ModelUnavailable, match="takes 1000 bytes"):
                await h.ask(1)
            assert fake.log == []

    simulate(story())


def test_second_copy_takes_work_and_the_first_may_die() -> None:
    async def story() -> None:
        fakes = [FakeEngine(), FakeEngine()]
        nodes = [Node(f"t{n}", E, fake) for n, fake in enumerate(fakes)]
        pinned = replace(spec(max_batch_size=1), placement=Placement(min_replicas=2))
        async with house(pinned, engine=fakes[0], nodes=nodes) as h:
            await h.ask(1)
            await asyncio.sleep(1)
            assert [fake.loaded for fake in fakes] == [{pinned.key}, {pinned.key}]
            await asyncio.gather(*(h.ask(value) for value in range(10)))
            assert all(len(fake.batches) >= 3 for fake in fakes)
            nodes[0].up = False
            h.registry.poke()
            await asyncio.gather(*(h.ask(value) for value in range(10)))
            await asyncio.sleep(1)
            assert fakes[0].loaded == set()
            assert h.entry().state is READY
        assert not fakes[1].loaded

    simulate(story())


def test_copy_that_cannot_be_loaded_leaves_the_other_alone() -> None:
    async def story() -> None:
        fakes = [FakeEngine(), FakeEngine(loads=[Fail("no memory", 1.0)])]
        nodes = [Node(f"t{n}", E, fake) for n, fake in enumerate(fakes)]
        pinned = replace(spec(), placement=Placement(min_replicas=2))
        async with house(pinned, engine=fakes[0], nodes=nodes) as h:
            await h.ask(1)
            await asyncio.sleep(30)
            assert h.entry().state is READY
            assert fakes[1].log == ["load m:1"]
            await asyncio.sleep(60)
            assert fakes[1].loaded

    simulate(story())
