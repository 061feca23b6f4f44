"""Settings -> the fleet of engines, and the catalogue of models that they serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gateway.config import Settings
from gateway.engine import tritonserver
from gateway.engine.base import Engine
from gateway.engine.budget import gpu_budget_bytes, host_budget_bytes
from gateway.engine.embedded import EmbeddedEngine
from gateway.engine.own_triton import OwnTriton
from gateway.engine.process import TritonProcess
from gateway.engine.triton import TritonEngine
from gateway.errors import EngineUnavailable
from gateway.fleet import Fleet, Node
from gateway.lifecycle.control import Catalogue
from gateway.lifecycle.discovery import follow
from gateway.lifecycle.health import STALLED_AFTER_S, watch
from gateway.lifecycle.supervisor import supervise
from gateway.lifecycle.triton_catalogue import TritonCatalogue
from gateway.placement import EngineKind
from gateway.repository.catalogue import FolderCatalogue
from gateway.repository.mirror import Mirror
from gateway.repository.remote import RemoteCatalogue

log = logging.getLogger(__name__)

DNS = "dns:"
TRITON_LOADS_AT_ONCE = 4  # as many threads as Triton loads with; more would wait in the server

Adopt = Callable[[Mapping[str, Sequence[str]]], Awaitable[None]]
_Watch = Callable[[Adopt], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Engines:
    """What runs the models, and which engines have which ready already.

    `catalogue` lists the models: those of `files`, the repository, or what Tritons say of theirs.
    """

    title: str
    fleet: Fleet
    catalogue: Catalogue
    files: FolderCatalogue
    held: Mapping[str, list[str]]
    watchers: Sequence[_Watch]

    async def watch(self, adopt: Adopt) -> None:
        """Watch over the engines that may fail, come or go, until cancelled.

        `adopt` is told which models one that comes has ready already.
        """
        async with asyncio.TaskGroup() as tasks:
            for watch in self.watchers:
                tasks.create_task(watch(adopt))


@asynccontextmanager
async def open_fleet(settings: Settings, changed: Callable[[], None]) -> AsyncIterator[Engines]:
    """Give what the settings name; it is closed at the end. Raises `StartError`."""
    fleet = Fleet(changed=changed)
    files = await _files(settings)
    catalogue: Catalogue = files
    share = _share_bytes(settings)
    async with AsyncExitStack() as stack:
        if EngineKind.EMBEDDED in settings.engine_kinds:
            embedded = EmbeddedEngine(
                settings.intra_op_threads,
                settings.cache_dir,
                settings.cache_max_bytes,
                settings.gpu_memory_limit_bytes,
            )
            stack.push_async_callback(embedded.close)
            fleet.add(
                Node(
                    "embedded",
                    EngineKind.EMBEDDED,
                    embedded,
                    settings.memory_bytes if settings.memory_bytes is not None else share,
                    # more would wait for a thread, with memory set aside meanwhile
                    embedded.loads_at_once,
                )
            )
        watchers: list[_Watch] = []
        tritons: list[tuple[Node, TritonEngine]] = []
        for address in settings.triton.split(",") if settings.triton else ():
            if address.startswith(DNS):
                _named_tritons(address.removeprefix(DNS), settings, fleet, watchers, stack)
            else:
                tritons.append(_triton(address, settings, fleet, watchers, stack))
        if settings.spawn_triton:
            installation = tritonserver.find(settings.triton_env)
            told = settings.triton_memory_bytes
            for number in range(1, settings.spawn_triton + 1):
                process = TritonProcess(installation, files.root)
                _own_triton(
                    f"own-triton-{number}",
                    process,
                    share if told is None else told,
                    fleet,
                    watchers,
                    stack,
                )
        title = settings.repository
        if settings.triton or settings.spawn_triton:
            own = [f"{settings.spawn_triton} of its own"] if settings.spawn_triton else []
            title += f" with Triton: {', '.join([*filter(None, [settings.triton]), *own])}"
            if tritons and not settings.repository_given:
                catalogue = TritonCatalogue(tritons)
        yield Engines(title, fleet, catalogue, files, await _held(fleet), watchers)


async def _files(settings: Settings) -> FolderCatalogue:
    """Return the repository; one at a URL has been read. Raises `StartError`."""
    if not settings.repository_is_remote:
        return FolderCatalogue(Path(settings.repository), settings.engine_kinds)
    mirror = Mirror(
        settings.repository, settings.repository_cache_dir, settings.repository_cache_bytes
    )
    remote = RemoteCatalogue(mirror, settings.engine_kinds, settings.repository_refresh_s)
    await remote.open()
    return remote


def _share_bytes(settings: Settings) -> int:
    """Return what models may take in each engine of this machine where nobody has said."""
    here = int(EngineKind.EMBEDDED in settings.engine_kinds) + settings.spawn_triton
    return (gpu_budget_bytes() or host_budget_bytes()) // max(1, here)


def _triton(
    address: str, settings: Settings, fleet: Fleet, watchers: list[_Watch], stack: AsyncExitStack
) -> tuple[Node, TritonEngine]:
    """Take a Triton server that somebody else runs into the fleet."""
    triton = TritonEngine(address)
    stack.push_async_callback(triton.close)
    node = _node(address, triton, settings.triton_memory_bytes or 0, reads_files=False)
    fleet.add(node)
    watchers.append(lambda adopt: watch(node, triton, fleet.changed, partial(_adopt, adopt, node)))
    return node, triton


def _named_tritons(
    name: str, settings: Settings, fleet: Fleet, watchers: list[_Watch], stack: AsyncExitStack
) -> None:
    """Have the servers that a DNS name stands for in the fleet, as they come and go."""
    host, _, port = name.rpartition(":")
    opened: set[TritonEngine] = set()

    async def close() -> None:
        for triton in opened:
            await triton.close()

    async def join(adopt: Adopt, address: str, gone: asyncio.Event) -> None:
        triton = TritonEngine(address)
        opened.add(triton)
        node = _node(address, triton, settings.triton_memory_bytes or 0, reads_files=False)
        fleet.add(node)
        log.info("%s joins the fleet", address)
        adopt_held = partial(_adopt, adopt, node)
        watcher = asyncio.create_task(watch(node, triton, fleet.changed, adopt_held))
        try:
            await adopt_held()
            await gone.wait()
            log.info("%s leaves the fleet", address)
            node.leaving = True
            fleet.changed()
            await node.emptied.wait()
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])
        fleet.remove(address)
        opened.discard(triton)
        await triton.close()

    stack.push_async_callback(close)
    watchers.append(lambda adopt: follow(host, int(port), partial(join, adopt)))


def _own_triton(
    name: str,
    process: TritonProcess,
    budget_bytes: int,
    fleet: Fleet,
    watchers: list[_Watch],
    stack: AsyncExitStack,
) -> None:
    """Take a Triton server of the gateway's own into the fleet; it does not run yet."""
    own = OwnTriton(process, TritonEngine(process.address))
    stack.push_async_callback(own.close)
    node = _node(name, own, budget_bytes)
    fleet.add(node)
    watchers.append(lambda _adopt: supervise(node, own, fleet.changed))


def _node(name: str, engine: Engine, budget_bytes: int, reads_files: bool = True) -> Node:
    node = Node(
        name, EngineKind.TRITON, engine, budget_bytes, TRITON_LOADS_AT_ONCE, STALLED_AFTER_S
    )
    node.reads_files = reads_files
    return node


async def _adopt(adopt: Adopt, node: Node) -> None:
    await adopt(await _held([node]))


async def _held(nodes: Iterable[Node]) -> dict[str, list[str]]:
    """Return the names of the models that each engine has ready already."""
    held = {}
    for node in nodes:
        if not isinstance(node.engine, TritonEngine):
            continue
        try:
            held[node.name] = await node.engine.ready_names()
            node.seen = True
        except EngineUnavailable as error:
            node.suspect(str(error))  # it may come later
    return held
