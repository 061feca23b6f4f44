"""Which scheduler serves a model version: the one place that chooses."""

from __future__ import annotations

import asyncio

from gateway.batching.batcher import Batcher
from gateway.batching.caching import CachingScheduler
from gateway.batching.ensemble import EnsembleScheduler
from gateway.batching.forwarder import Forwarder
from gateway.batching.scheduler import Scheduler
from gateway.batching.sequence_batcher import SequenceBatcher
from gateway.core import ModelSpec, Stage
from gateway.engine.base import ModelEngine
from gateway.metrics import ModelStats
from gateway.response_cache import ResponseCache


def make_scheduler(
    members: Stage,
    engine_timeout_s: float,
    cache: ResponseCache,
    spec: ModelSpec,
    stats: ModelStats,
    engine: ModelEngine,
    tasks: asyncio.TaskGroup,
) -> Scheduler:
    """Return the scheduler of a version that is ready.

    `members` answers the steps of an ensemble; `tasks` is the parent of what runs in the engine.
    """
    scheduler = _scheduler(engine, members, engine_timeout_s, spec, stats, tasks)
    if cache.max_bytes and spec.cached and not spec.forwarded and spec.sequence is None:
        return CachingScheduler(scheduler, cache, spec, stats)
    return scheduler


def _scheduler(
    engine: ModelEngine,
    members: Stage,
    engine_timeout_s: float,
    spec: ModelSpec,
    stats: ModelStats,
    tasks: asyncio.TaskGroup,
) -> Scheduler:
    if spec.forwarded:
        return Forwarder(spec, engine, stats)
    if spec.steps:
        return EnsembleScheduler(spec, members, stats)
    if spec.sequence is not None:
        return SequenceBatcher(spec, engine, tasks, stats, engine_timeout_s)
    return Batcher(spec, engine, tasks, stats, engine_timeout_s)
