"""The engines that models may be placed in."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence

from gateway.core import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    ModelKey,
    ModelSpec,
    Parameters,
    Tensor,
)
from gateway.engine.base import Engine, Loaded
from gateway.placement import EngineKind
from gateway.rows import EngineRow


class Node:
    """One engine, and how it is.

    `up` says that it answers, as far as is known, and `reason` why it does not: whoever watches
    over it writes that. `seen` says that it has answered once. It `offers` the models of these
    names (None: all), and has files of its own unless it `reads_files` of the repository. A
    `leaving` one takes no more loads, and goes once it holds nothing. One that has runs and ends
    none of them for `stalled_after_s` is suspected.
    """

    def __init__(
        self,
        name: str,
        kind: EngineKind,
        engine: Engine,
        budget_bytes: int = 0,
        loads_at_once: int = 0,
        stalled_after_s: float = math.inf,
    ) -> None:
        self.name = name
        self.kind = kind
        self.engine = engine
        self.budget_bytes = budget_bytes
        self.loads_at_once = loads_at_once
        self._stalled_after_s = stalled_after_s
        self._running = 0
        self._ended = 0
        self._looking = stalled_after_s == math.inf  # whether a look at its runs is due
        self.up = True
        self.seen = False
        self.leaving = False
        self.reads_files = True
        self.offers: frozenset[str] | None = None
        self.reason = ""
        # set by whoever saw it fail, for who watches over it
        self.suspected = asyncio.Event()
        # set by the control loop once a leaving one holds nothing
        self.emptied = asyncio.Event()

    def suspect(self, reason: str) -> None:
        """Say that it did not answer, to whoever watches over it."""
        if self.up:
            self.reason = reason
        self.suspected.set()

    def run_begins(self) -> None:
        """Count a run in."""
        self._running += 1
        if not self._looking:
            self._look_later()

    def run_ends(self) -> None:
        """Count a run out, however it ended."""
        self._running -= 1
        self._ended += 1

    def _look_later(self) -> None:
        self._looking = True
        loop = asyncio.get_running_loop()
        loop.call_later(self._stalled_after_s, self._look, self._ended)

    def _look(self, ended_before: int) -> None:
        """Suspect it where nothing has come of its runs. One timer goes on while there are any."""
        self._looking = False
        if self._running:
            if self._ended == ended_before:
                self.suspect(f"nothing came from it for {self._stalled_after_s:g} s")
            self._look_later()

    def row(self) -> EngineRow:
        """Return what `decide` needs to know, frozen."""
        return EngineRow(
            self.name,
            self.kind,
            self.budget_bytes,
            self.up,
            self.leaving,
            self.loads_at_once,
            seen=self.seen,
            reason=self.reason,
            offers=self.offers,
        )


class Fleet:
    """Every engine, by name. `changed` is called with every change of one."""

    def __init__(self, nodes: Iterable[Node] = (), changed: Callable[[], None] = lambda: None):
        self._nodes = {node.name: node for node in nodes}
        self.changed = changed

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def of(self, kind: EngineKind) -> list[Node]:
        """Return the engines of one kind."""
        return [node for node in self if node.kind is kind]

    def add(self, node: Node) -> None:
        """Take in an engine."""
        self._nodes[node.name] = node
        self.changed()

    def remove(self, name: str) -> None:
        """Forget an engine that holds nothing."""
        self._nodes.pop(name, None)
        self.changed()

    def rows(self) -> tuple[EngineRow, ...]:
        """Return a snapshot of every engine."""
        return tuple(node.row() for node in self)


class NoEngine:
    """Where ensembles are placed: they take nothing; their members have engines of their own."""

    async def load(self, spec: ModelSpec, *, awaited: bool = False) -> Loaded:
        """Return an ensemble as it is."""
        return Loaded(spec, 0)

    async def unload(self, key: ModelKey) -> None:
        """Do nothing."""

    async def infer(
        self,
        key: ModelKey,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        parameters: Parameters = NO_PARAMETERS,
    ) -> list[Tensor]:
        """Never called: the steps are requests to the members."""
        raise AssertionError(f"{key} has no engine: this is a bug")

    async def forward(self, key: ModelKey, request: InferRequest) -> InferResponse:
        """Never called."""
        raise AssertionError(f"{key} has no engine: this is a bug")

    def stream(self, key: ModelKey, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Never called."""
        raise AssertionError(f"{key} has no engine: this is a bug")

    async def close(self) -> None:
        """Do nothing."""


NOWHERE = Node("", EngineKind.EMBEDDED, NoEngine())
