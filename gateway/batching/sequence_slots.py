"""Which sequences are under way, which wait for that, and whose request is next. Pure."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gateway.core import Tensor
from gateway.sequence import SequenceMark

TicketT = TypeVar("TicketT")


@dataclass(slots=True, eq=False)
class LiveSequence(Generic[TicketT]):
    """One sequence: its state, and the tickets of requests that wait for their turn, in order.

    `active` while it has a slot, `busy` while a request has the turn. Once it `ended` no request
    joins it any more.
    """

    id: int | str
    states: list[Tensor] = field(default_factory=list)
    active: bool = False
    busy: bool = False
    ended: bool = False
    waiting: deque[TicketT] = field(default_factory=deque)


class SequenceSlots(Generic[TicketT]):
    """The sequences of one model. As many as there are slots are under way, the others wait.

    Every call that may let others go on returns their tickets. A sequence is kept while it has a
    request, or a slot: so there are no more of them than slots and requests.
    """

    def __init__(self, slots: int, max_idle_s: float) -> None:
        self._free = slots
        self._max_idle_s = max_idle_s
        self._known: dict[int | str, LiveSequence[TicketT]] = {}
        self._backlog: OrderedDict[LiveSequence[TicketT], None] = OrderedDict()
        # since when; all may be idle for equally long, so the first falls due first
        self._idle: OrderedDict[LiveSequence[TicketT], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def join(self, mark: SequenceMark) -> LiveSequence[TicketT] | None:
        """Return the sequence that a request belongs to, begun here with START.

        None where it was never begun, has ended or was idle for too long. One that begins again
        before its end keeps its place. With END nothing joins it any more: the next START of that
        id begins another.
        """
        sequence = self._known.get(mark.id)
        if sequence is None:
            if not mark.start:
                return None
            sequence = self._known[mark.id] = LiveSequence(mark.id)
            if self._free:
                self._free -= 1
                sequence.active = True
            else:
                self._backlog[sequence] = None
        self._idle.pop(sequence, None)
        if mark.end:
            sequence.ended = True
            del self._known[mark.id]
        return sequence

    def take_turn(self, sequence: LiveSequence[TicketT]) -> bool:
        """Whether a request that has just joined has the turn at once; else it is to wait."""
        if sequence.busy or sequence.waiting or not sequence.active:
            return False
        sequence.busy = True
        return True

    def end_turn(self, sequence: LiveSequence[TicketT], now: float) -> list[TicketT]:
        """Pass the turn on; return the tickets whose turn it is now."""
        sequence.busy = False
        return self._go_on(sequence, now)

    def leave(self, sequence: LiveSequence[TicketT], ticket: TicketT, now: float) -> list[TicketT]:
        """Take out a request that will not wait any longer; return tickets as `end_turn`."""
        sequence.waiting.remove(ticket)
        return self._go_on(sequence, now)

    def drop(self, sequence: LiveSequence[TicketT]) -> list[TicketT]:
        """Forget a sequence that never got a slot; return the tickets that waited for it."""
        tickets = list(sequence.waiting)
        sequence.waiting.clear()
        self._forget(sequence)
        return tickets

    def expire(self, now: float) -> list[TicketT]:
        """Forget sequences that have been idle for too long; return tickets as `end_turn`."""
        going_on: list[TicketT] = []
        while self._idle and self.next_expiry() <= now:
            sequence, _ = self._idle.popitem(last=False)
            self._forget(sequence)
            going_on += self._activate(now)
        return going_on

    def next_expiry(self) -> float:
        """Return when `expire` next has something to do; or inf."""
        return next(iter(self._idle.values()), math.inf) + self._max_idle_s

    def _go_on(self, sequence: LiveSequence[TicketT], now: float) -> list[TicketT]:
        if sequence.busy:
            return []
        if sequence.waiting:
            if not sequence.active:
                return []
            sequence.busy = True
            return [sequence.waiting.popleft()]
        if sequence.ended or not sequence.active:
            self._forget(sequence)
            return self._activate(now)
        self._idle[sequence] = now
        return []

    def _forget(self, sequence: LiveSequence[TicketT]) -> None:
        if self._known.get(sequence.id) is sequence:
            del self._known[sequence.id]
        if sequence.active:
            sequence.active = False
            self._free += 1
        else:
            self._backlog.pop(sequence, None)

    def _activate(self, now: float) -> list[TicketT]:
        """Give free slots to the sequences that have waited longest for one."""
        going_on: list[TicketT] = []
        while self._free and self._backlog:
            sequence, _ = self._backlog.popitem(last=False)
            self._free -= 1
            sequence.active = True
            going_on += self._go_on(sequence, now)
        return going_on
