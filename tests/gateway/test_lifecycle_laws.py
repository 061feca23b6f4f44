"""Cold, warm, asleep: what the control loop promises, on simulated time."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core import ModelKey, ModelSpec, ModelState, Override
from gateway.errors import DeadlineExceeded, LoadFailed, ModelNotFound, ModelUnavailable
from gateway.lifecycle.control import RepositoryControl
from gateway.lifecycle.policy import Decision, Defaults, Load, Unload, decide, retry_after_s
from gateway.placement import Cause, EngineKind
from gateway.repository.reader import ModelListing
from gateway.rows import EngineRow, ModelRow, ReplicaRow, Snapshot
from tests.gateway.fakes import Fail, FakeEngine, Hang, House, Ok, house, spec
from tests.simulated_loop import simulate

KEY = ModelKey("m", 1)


def row(state: ModelState = ModelState.READY, **changes: float | bool) -> ModelRow:
    values: dict[str, float | bool] = {
        "waiting": 0,
        "queued": 0,
        "running": 0,
        "in_flight": 0,
        "last_used": 0.0,
    }
    held = state is ModelState.READY
    replicas = (ReplicaRow("here", state, 1000),) if held else ()
    return ModelRow(KEY, state, replicas=replicas, **{**values, **changes})  # type: ignore[arg-type]


def decided(row: ModelRow, now: float) -> Decision:
    engine = EngineRow("here", EngineKind.EMBEDDED)
    return decide(Snapshot((row,), (engine,)), now, Defaults(idle_timeout_s=10.0))


def test_concurrent_first_requests_load_once_and_are_all_answered() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(2.0)])
        async with house(engine=engine) as h:
            await asyncio.gather(*(h.ask(value) for value in range(20)))
            assert engine.log == ["load m:1"]

    simulate(story())


def test_idle_model_sleeps_after_exactly_its_idle_time() -> None:
    async def story() -> None:
        async with house(idle_timeout_s=300) as h:
            await h.ask(1)
            loop = asyncio.get_running_loop()
            await asyncio.sleep(200)
            await h.ask(2)
            used = loop.time()
            await h.state(ModelState.UNAVAILABLE)
            assert loop.time() - used == pytest.approx(300)
            assert not h.engine.loaded
            await h.ask(3)
            assert h.engine.log == ["load m:1", "unload m:1", "load m:1"]

    simulate(story())


def test_model_in_use_never_sleeps() -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(1000.0)])
        async with house(engine=engine, idle_timeout_s=10) as h:
            await h.ask(1, timeout_s=2000)
            assert engine.log == ["load m:1"]

    simulate(story())


def test_request_that_arrives_in_unloading_is_served_after_the_reload() -> None:
    async def story() -> None:
        engine = FakeEngine(unload_s=5.0)
        async with house(engine=engine, idle_timeout_s=10) as h:
            await h.ask(1)
            await h.state(ModelState.UNLOADING)
            await h.ask(2)
            assert engine.log == ["load m:1", "unload m:1", "load m:1"]

    simulate(story())


def test_failed_load_tells_every_waiter_at_once() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Fail("the file is broken", 1.0)])
        async with house(engine=engine) as h:
            loop = asyncio.get_running_loop()
            answers = await asyncio.gather(h.ask(1), h.ask(2), return_exceptions=True)
            assert loop.time() == pytest.approx(1.0)
            for answer in answers:
                assert isinstance(answer, ModelUnavailable)
                assert "the file is broken" in str(answer)

    simulate(story())


def test_failed_load_is_not_repeated_before_its_back_off_and_is_forgiven_after() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Fail("broken"), Fail("broken"), Ok()])
        async with house(engine=engine) as h:
            for expected_loads, wait_s in ((1, 0.5), (1, 0.6), (2, 2.1)):
                with pytest.raises(ModelUnavailable, match="broken"):
                    await h.ask(1)
                assert len(engine.log) == expected_loads
                await asyncio.sleep(wait_s)
            await h.ask(1)

    simulate(story())


def test_unload_follows_a_cancelled_load() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Hang()])
        async with house(engine=engine) as h:
            ask = asyncio.create_task(h.ask(1))
            await asyncio.sleep(1)
            assert engine.loaded == {KEY}
            ask.cancel()
            await asyncio.wait([ask])
        assert engine.log == ["load m:1", "unload m:1"]
        assert not engine.loaded

    simulate(story())


def test_deadline_ends_a_wait_for_a_load_that_goes_on() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(10.0)])
        async with house(engine=engine) as h:
            with pytest.raises(Exception, match="deadline"):
                await h.ask(1, timeout_s=1.0)
            await h.ask(2)
            assert engine.log == ["load m:1"]

    simulate(story())


def test_new_reading_of_a_loaded_version_reloads_it_and_fails_nobody() -> None:
    async def story() -> None:
        async with house() as h, asyncio.TaskGroup() as clients:
            await h.ask(1)
            h.publish(spec(max_batch_size=4))
            for value in range(5):
                clients.create_task(h.ask(value))
            await asyncio.sleep(1)
            assert h.entry().spec.max_batch_size == 4
            assert h.engine.log == ["load m:1", "unload m:1", "load m:1"]

    simulate(story())


def test_version_that_leaves_the_repository_is_unloaded_and_forgotten() -> None:
    async def story() -> None:
        async with house() as h:
            await h.ask(1)
            h.publish(spec(version=2))
            await asyncio.sleep(1)
            assert (await h.ask(2)).version == 2
            assert [entry.key for entry in h.registry.entries()] == [ModelKey("m", 2)]
            h.registry.remove("m")
            with pytest.raises(ModelNotFound):
                await h.ask(3)
            await asyncio.sleep(1)
            assert not h.registry.knows("m")  # so that it is taken in when it comes back

    simulate(story())


def test_request_for_a_version_that_leaves_meanwhile_is_told_at_once() -> None:
    async def story() -> None:
        engine = FakeEngine(unload_s=5.0)
        async with house(engine=engine) as h:
            await h.ask(1)
            h.entry().unload_requested = True
            h.registry.poke()
            await h.state(ModelState.UNLOADING)
            asked = asyncio.create_task(h.ask(2))
            await asyncio.sleep(1)
            h.registry.remove("m")
            loop = asyncio.get_running_loop()
            with pytest.raises(ModelNotFound):
                await asked
            assert loop.time() < 2.0

    simulate(story())


@pytest.mark.parametrize("by_name", [True, False])
def test_model_is_not_unloaded_under_a_batch_whose_callers_have_left(by_name: bool) -> None:
    async def story() -> None:
        engine = FakeEngine(runs=[Ok(10.0)])
        async with house(engine=engine, idle_timeout_s=5) as h:
            with pytest.raises(DeadlineExceeded):
                await h.ask(1, timeout_s=1.0)
            if by_name:
                h.entry().unload_requested = True
                h.registry.poke()
            await h.state(ModelState.UNAVAILABLE)
            assert asyncio.get_running_loop().time() >= 10.0
            await h.ask(2)

    simulate(story())


class _Repository:
    """One model's folder as the control reads it: scripted, since time is."""

    def __init__(self, h: House, *specs: ModelSpec) -> None:
        self.listing = ModelListing("m", specs)
        self.control = RepositoryControl(self, h.registry)

    async def names(self) -> list[str]:
        return [self.listing.name]

    async def has(self, name: str) -> bool:
        return name == self.listing.name

    async def read(self, name: str, override: Override | None = None) -> ModelListing:
        return self.listing


def test_unload_by_name_ends_a_load_under_way_and_stays() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(5.0)])
        async with house(engine=engine) as h:
            repository = _Repository(h, spec())
            loading = asyncio.create_task(repository.control.load("m"))
            await asyncio.sleep(1)
            await repository.control.unload("m")
            await loading
            await asyncio.sleep(1)
            assert engine.log == ["load m:1", "unload m:1"]

    simulate(story())


def test_load_after_the_file_was_mended_is_not_blamed_for_the_old_one() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Fail("broken", 5.0), Ok()])
        async with house(engine=engine) as h:
            repository = _Repository(h, spec(max_batch_size=4))
            asked = asyncio.create_task(h.ask(1))
            await asyncio.sleep(1)  # the broken file is being loaded
            await repository.control.load("m")
            assert h.entry().spec.max_batch_size == 4
            await asked
            assert engine.log == ["load m:1", "load m:1"]

    simulate(story())


def test_load_of_versions_that_leave_meanwhile_does_not_hang() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(5.0)])
        async with house(engine=engine) as h:
            repository = _Repository(h, spec(), spec(version=2))
            both = asyncio.create_task(repository.control.load("m"))
            await asyncio.sleep(1)
            repository.listing = ModelListing("m", (spec(),))
            await repository.control.load("m")
            with pytest.raises(LoadFailed, match="it has left the repository"):
                await both

    simulate(story())


def test_faulty_files_do_not_disturb_what_is_loaded_or_being_loaded() -> None:
    async def story() -> None:
        engine = FakeEngine(loads=[Ok(5.0)])
        async with house(engine=engine) as h:
            repository = _Repository(h)
            asked = asyncio.create_task(h.ask(1))
            repository.listing = ModelListing("m", (), "config.pbtxt is nonsense")
            for _ in range(2):
                await asyncio.sleep(1)
                with pytest.raises(LoadFailed, match="is nonsense"):
                    await repository.control.load("m")
                await asyncio.sleep(10)
            await asked
            await h.ask(2)

    simulate(story())


def test_states_move_only_as_the_table_allows() -> None:
    async def story() -> None:
        async with house() as h:
            with pytest.raises(AssertionError, match="UNKNOWN -> READY: this is a bug"):
                h.entry().move(ModelState.READY)

    simulate(story())


def test_a_gap_between_snapshots_counts_as_elapsed_time() -> None:
    used = row(last_used=100.0)
    assert decided(used, 105.0) == Decision((), 110.0)
    assert decided(used, 115.0).actions == (Unload(KEY, "here", "idle", Cause.IDLE),)


def test_a_fresh_gateway_does_not_unload_before_one_idle_window() -> None:
    async def story() -> None:
        await asyncio.sleep(10_000)  # the clock is far along when the model becomes ready
        async with house(idle_timeout_s=300) as h:
            h.entry().load_requested = True
            h.registry.poke()
            await h.state(ModelState.READY)
            loop = asyncio.get_running_loop()
            ready = loop.time()
            await h.state(ModelState.UNLOADING)
            assert loop.time() - ready == pytest.approx(300)

    simulate(story())


def test_nothing_is_done_about_a_cold_model_that_nobody_wants() -> None:
    assert decided(row(ModelState.UNKNOWN), 1e9) == Decision((), float("inf"))


def test_demand_loads_after_the_back_off_and_a_named_load_at_once() -> None:
    cold = row(ModelState.UNAVAILABLE, waiting=1, retry_at=50.0)
    assert decided(cold, 49.0) == Decision((), 50.0)
    assert decided(cold, 50.0).actions == (Load(KEY, "here"),)
    asked = row(ModelState.UNAVAILABLE, load_requested=True, retry_at=50.0)
    assert decided(asked, 0.0).actions == (Load(KEY, "here"),)


def test_back_off_doubles_and_ends_within_minutes() -> None:
    assert [retry_after_s(n) for n in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert retry_after_s(1000) == 120
