"""The copies of one model version, and which of them gets the next batch."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from gateway.core import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    ModelKey,
    ModelState,
    Parameters,
    Tensor,
)
from gateway.engine.base import Engine
from gateway.errors import EngineUnavailable, ModelLost
from gateway.fleet import Node
from gateway.metrics import Histogram
from gateway.rows import ReplicaRow
from gateway.sequence import SequenceMark

log = logging.getLogger(__name__)

LATELY = 0.1  # weight of the newest run in a copy's typical time
# A sequence that had no request for so long has no home any more. Triton's own limit, by default
# 1 s and in `max_sequence_idle_microseconds`, ends it long before.
HOMELESS_AFTER_S = 3600.0
HOMES_BEFORE_SWEEP = 1024


@dataclass(slots=True, eq=False)
class Replica:
    """One copy in one engine. `bytes` is set aside for it from the start of its load."""

    node: Node
    state: ModelState = ModelState.LOADING
    bytes: int = 0
    running: int = 0
    lost: bool = False
    run_s: float = 0.0  # what a run of its takes, lately
    first_run: Histogram | None = None  # where its first run is to be counted
    _one_less: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def run(self) -> Iterator[Engine]:
        """Count a batch in for as long as it runs here."""
        self.running += 1
        self.node.run_begins()
        started = time.perf_counter()
        try:
            yield self.node.engine
        finally:
            self.running -= 1
            self.node.run_ends()
            took_s = time.perf_counter() - started
            self.run_s += LATELY * (took_s - self.run_s)
            if self.first_run is not None:
                self.first_run.observe(took_s)
                self.first_run = None
            self._one_less.set()

    @property
    def load(self) -> float:
        """How long one more run would take, if those under way went one after the other."""
        return (self.running + 1) * self.run_s

    async def drained(self) -> None:
        """Return when nothing runs here."""
        while self.running:
            self._one_less.clear()
            await self._one_less.wait()

    @property
    def serves(self) -> bool:
        """Whether it takes work."""
        return self.state is ModelState.READY and not self.lost and self.node.up

    def row(self) -> ReplicaRow:
        """Return what `decide` needs to know, frozen."""
        return ReplicaRow(self.node.name, self.state, self.bytes, self.running, self.lost)


class Homes:
    """Which copy has the state of which sequence; those that never ended are swept out."""

    def __init__(self) -> None:
        self._homes: dict[int | str, tuple[Replica, float]] = {}
        self._sweep_at = HOMES_BEFORE_SWEEP

    def find(self, sequence: int | str, now: float) -> Replica | None:
        """Return a sequence's copy; None where it has none."""
        replica, used = self._homes.get(sequence, (None, 0.0))
        return replica if now - used < HOMELESS_AFTER_S else None

    def keep(self, sequence: int | str, replica: Replica, now: float) -> None:
        """Note where a sequence is."""
        self._homes[sequence] = (replica, now)
        if len(self._homes) >= self._sweep_at:
            alive = now - HOMELESS_AFTER_S
            self._homes = {key: home for key, home in self._homes.items() if home[1] > alive}
            self._sweep_at = max(HOMES_BEFORE_SWEEP, 2 * len(self._homes))

    def forget(self, sequence: int | str) -> None:
        """Let a sequence go that has ended."""
        self._homes.pop(sequence, None)


class Replicas:
    """Runs batches in the copies that are ready; a `BatchEngine` to what schedules the version.

    `changed` is called where a copy has been lost.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._by_node: dict[str, Replica] = {}
        self._homes = Homes()
        self._changed = changed

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._by_node.values())

    def __len__(self) -> int:
        return len(self._by_node)

    def __getitem__(self, engine: str) -> Replica:
        return self._by_node[engine]

    def add(self, replica: Replica) -> None:
        """Take in a copy that is about to be loaded."""
        self._by_node[replica.node.name] = replica

    def remove(self, replica: Replica) -> None:
        """Forget a copy that is not in memory any more."""
        del self._by_node[replica.node.name]

    @property
    def serving(self) -> int:
        """How many copies take work."""
        return sum(replica.serves for replica in self)

    def rows(self) -> tuple[ReplicaRow, ...]:
        """Return a snapshot of every copy."""
        return tuple(replica.row() for replica in self)

    async def infer(
        self,
        key: ModelKey,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        parameters: Parameters = NO_PARAMETERS,
    ) -> list[Tensor]:
        """Run one batch in a copy; see `Engine.infer`.

        One whose engine is lost under it runs once more in another. Raises `ModelLost` where
        there is none.
        """
        try:
            with self._running(key) as engine:
                return await engine.infer(key, inputs, outputs, parameters)
        except ModelLost as error:
            if not self.serving:
                raise
            log.warning("%s: running a batch once more elsewhere: %s", key, error)
        with self._running(key) as engine:
            return await engine.infer(key, inputs, outputs, parameters)

    async def forward(self, key: ModelKey, request: InferRequest) -> InferResponse:
        """Return the answer to one request that the engine schedules itself."""
        with self._running(key, request.sequence) as engine:
            return await engine.forward(key, request)

    async def stream(
        self, key: ModelKey, request: InferRequest
    ) -> AsyncGenerator[InferResponse, None]:
        """Yield the answers of a decoupled model as they come."""
        with self._running(key, request.sequence) as engine:
            async with aclosing(engine.stream(key, request)) as answers:
                async for answer in answers:
                    yield answer

    @contextmanager
    def _running(self, key: ModelKey, mark: SequenceMark | None = None) -> Iterator[Engine]:
        """Count a run in where it is due. One that is lost there becomes a `ModelLost`."""
        replica = self._pick(key) if mark is None else self._home(key, mark)
        try:
            with replica.run() as engine:
                yield engine
        except (EngineUnavailable, ModelLost) as error:
            replica.lost = True
            if isinstance(error, EngineUnavailable):
                replica.node.suspect(str(error))
            self._changed()
            raise ModelLost(str(error)) from None

    def _home(self, key: ModelKey, mark: SequenceMark) -> Replica:
        """Return the copy that has a sequence's state."""
        now = time.monotonic()
        home = self._homes.find(mark.id, now)
        if home is None or not home.serves or mark.start:
            home = self._pick(key)
        if mark.end:
            self._homes.forget(mark.id)
        else:
            self._homes.keep(mark.id, home, now)
        return home

    def _pick(self, key: ModelKey) -> Replica:
        """Return the one of two copies that serve, taken at random, which has less to do.

        The power of two choices: M. Mitzenmacher, IEEE TPDS 12(10), 2001.
        """
        serving = [replica for replica in self if replica.serves]
        if not serving:
            raise ModelLost(f"no engine has '{key.name}' ready any more")
        if len(serving) == 1:
            return serving[0]
        return min(random.sample(serving, 2), key=lambda replica: replica.load)
