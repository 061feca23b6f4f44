"""Which scheduler serves a model version: the one place that chooses."""

from __future__ import annotations

import asyncio

from gateway.batching.batcher import Batcher
from gateway.batching.forwarder import Forwarder
from gateway.batching.scheduler import Scheduler
from gateway.core import ModelSpec, Stage
from gateway.engine.base import Engine
from gateway.metrics import ModelStats


def make_scheduler(
    engine: Engine,
    members: Stage,
    engine_timeout_s: float,
    spec: ModelSpec,
    stats: ModelStats,
    tasks: asyncio.TaskGroup,
) -> Scheduler:
    """Return the scheduler of a version that is ready.

    `members` answers the steps of an ensemble; `tasks` is the parent of what runs in the engine.
    """
    if spec.forwarded:
        return Forwarder(spec, engine, stats)
    return Batcher(spec, engine, tasks, stats, engine_timeout_s)
