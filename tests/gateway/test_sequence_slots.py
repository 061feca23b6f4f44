"""Any order of requests keeps what sequences are promised."""

from __future__ import annotations

import asyncio
import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.batching.sequence_slots import LiveSequence, SequenceSlots
from gateway.sequence import SequenceMark
from tests.gateway.fakes import house
from tests.gateway.test_sequences import Adder, ask, sequences
from tests.simulated_loop import simulate

steps = st.lists(
    st.tuples(
        st.integers(1, 5),  # sequence
        st.integers(0, 100),  # value
        st.booleans(),  # starts anew
        st.booleans(),  # ends
        st.sampled_from([0.0, 0.0, 0.005, 0.03]),  # pause after it
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(steps=steps, slots=st.integers(1, 4), instances=st.integers(1, 2))
def test_any_interleaving_gives_each_sequence_the_answers_of_the_unbatched_model(
    steps: list[tuple[int, int, bool, bool, float]], slots: int, instances: int
) -> None:
    async def story() -> None:
        engine = Adder()
        served = sequences(slots=slots, idle_s=0.5, instances=instances)
        async with house(served, engine=engine) as h, asyncio.TaskGroup() as clients:
            totals: dict[int, int] = {}
            asked: list[tuple[asyncio.Task[float], int]] = []
            for number, value, anew, end, pause_s in steps:
                start = anew or number not in totals
                total = totals[number] = value + (0 if start else totals[number])
                if end:
                    del totals[number]
                task = clients.create_task(ask(h, value, SequenceMark(number, start, end)))
                asked.append((task, total))
                await asyncio.sleep(pause_s)
            for task, total in asked:
                assert await task == total

    simulate(story())


class Bookkeeper(RuleBasedStateMachine):
    """Any order of joins, ends and departures keeps the promises of the slots."""

    SLOTS, IDLE_S = 3, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.slots: SequenceSlots[int] = SequenceSlots(self.SLOTS, self.IDLE_S)
        self.now = 0.0
        self.tickets = iter(range(10**9))
        self.waiting: dict[int, LiveSequence[int]] = {}
        self.running: list[LiveSequence[int]] = []

    def go_on(self, tickets: list[int]) -> None:
        self.running += [self.waiting.pop(ticket) for ticket in tickets]

    @rule(number=st.integers(1, 6), start=st.booleans(), end=st.booleans())
    def join(self, number: int, start: bool, end: bool) -> None:
        sequence = self.slots.join(SequenceMark(number, start, end))
        if sequence is None:
            assert not start
        elif self.slots.take_turn(sequence):
            self.running.append(sequence)
        else:
            ticket = next(self.tickets)
            sequence.waiting.append(ticket)
            self.waiting[ticket] = sequence

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end_turn(self, data: st.DataObject) -> None:
        sequence = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.go_on(self.slots.end_turn(sequence, self.now))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        self.go_on(self.slots.leave(self.waiting.pop(ticket), ticket, self.now))

    @rule(seconds=st.sampled_from([1.0, 9.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.go_on(self.slots.expire(self.now))
        assert self.slots.next_expiry() > self.now

    @invariant()
    def no_more_run_than_there_are_slots_and_each_once(self) -> None:
        assert len({id(sequence) for sequence in self.running}) == len(self.running) <= self.SLOTS
        assert len(self.slots) <= self.SLOTS + len(self.waiting)

    @invariant()
    def nobody_waits_while_a_slot_is_free(self) -> None:
        if self.waiting:
            assert self.running or self.slots.next_expiry() < math.inf

    def teardown(self) -> None:
        while self.running or self.slots.next_expiry() < math.inf:
            if self.running:
                self.go_on(self.slots.end_turn(self.running.pop(), self.now))
            self.now += 2 * self.IDLE_S
            self.go_on(self.slots.expire(self.now))
        assert not self.waiting
        assert len(self.slots) == 0
        fresh = [self.slots.join(SequenceMark(number, start=True)) for number in range(100, 104)]
        turns = [sequence is not None and self.slots.take_turn(sequence) for sequence in fresh]
        assert turns == [True, True, True, False]


TestBookkeeper = Bookkeeper.TestCase
