"""An ensemble becomes ready by its members: all of them are woken at once."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from gateway.core import ModelSpec
from gateway.entry import Entry
from gateway.errors import ModelUnavailable
from gateway.registry import Registry
from gateway.repository import ensemble_config


async def activate(registry: Registry, ensemble: ModelSpec) -> ModelSpec:
    """Return an ensemble as its members make it, once every one of them is ready.

    A decoupled one is for its Triton to run, members and all: they stay as they are. Raises
    `RepositoryError` with what keeps a member from being ready, as soon as that is known.
    """
    joined = registry.joined(ensemble)
    if joined.forwarded:
        return joined
    members = registry.members(ensemble)
    with ExitStack() as awake:
        for member in members:  # the first to be ready must not sleep before the last one is
            awake.enter_context(member.awaited())
        try:
            async with asyncio.TaskGroup() as tasks:
                for member in members:
                    tasks.create_task(_ready(registry, ensemble.key.name, member))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
    # once more: loaded, a member may be other than its files had said
    return registry.joined(ensemble)


async def _ready(registry: Registry, ensemble: str, member: Entry) -> None:
    try:
        await registry.ready(member)
    except ModelUnavailable:
        raise ensemble_config.broken(ensemble, member.key, member.reason) from None
