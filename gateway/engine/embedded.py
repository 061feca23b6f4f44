"""The engine in this process: ONNX Runtime, and TensorRT's own runtime for its plans."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from gateway.core import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    ModelKey,
    ModelSpec,
    Parameters,
    Tensor,
)
from gateway.engine import plan, providers
from gateway.engine.base import Loaded
from gateway.engine.budget import Meter, gpu_bytes_in_use, own_bytes
from gateway.engine.memory import bound_leftovers
from gateway.engine.model import OpenModel
from gateway.engine.onnx_opener import OnnxOpener, Opened
from gateway.engine.warm_up import warm_up
from gateway.errors import StartError

log = logging.getLogger(__name__)

DEFAULT_CACHE_MAX_BYTES = 10 << 30
# A copy for the session cache is made after the requests that a load was for, and with files that
# have settled (`session_cache.SETTLED_NS`); it takes as long as two to four loads.
STORE_AFTER_S = 2.5
_LEAST_PRIORITY = 19


def check_one_runtime() -> None:
    """Raise `StartError` unless exactly one build of ONNX Runtime is installed.

    Both builds unpack into the same folder and overwrite each other; pip does not notice.
    """
    builds = ("onnxruntime", "onnxruntime-gpu")
    found = [name for name in builds if _installed(name)]
    if not found:
        raise StartError(
            "ONNX Runtime is not installed: run pip install 'tidegate[cpu]' or 'tidegate[gpu]'"
        )
    if len(found) > 1:
        raise StartError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "uninstall both, then install one of the extras tidegate[cpu], tidegate[gpu]"
        )


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


class EmbeddedEngine:
    """Runs models in this process.

    Sessions share one thread pool of `intra_op_threads` (0: one a core but one, which is left to
    the event loop). Runs and loads have worker threads of their own, so that a load never waits
    behind inference or the other way round; the runtimes let go of the interpreter lock in both.

    `cache_dir` is the folder of the session cache (None: without one), `cache_max_bytes` its
    bound: the first load of a model serves from a plain session, and `store_after_s` later a copy
    is made in the background, at the lowest priority, and takes over. `gpu_memory_limit_bytes`
    bounds what the CUDA provider takes for one session (0: no bound).

    A shared pool is the process's: ONNX Runtime makes it once, and every other session in the
    process has to use it too. `share_threads=False` gives each session a pool of its own.
    """

    def __init__(
        self,
        intra_op_threads: int = 0,
        cache_dir: Path | None = None,
        cache_max_bytes: int = DEFAULT_CACHE_MAX_BYTES,
        gpu_memory_limit_bytes: int = 0,
        store_after_s: float = STORE_AFTER_S,
        share_threads: bool = True,
    ) -> None:
        check_one_runtime()
        bound_leftovers()
        import onnxruntime  # 0.13 s, and absent where the gateway only fronts other servers

        cores = len(os.sched_getaffinity(0))
        threads = intra_op_threads or max(1, cores - 1)
        if share_threads:
            onnxruntime.set_global_thread_pool_sizes(threads, 1)
        self._onnx = OnnxOpener(
            onnxruntime,
            cache_dir,
            cache_max_bytes,
            gpu_memory_limit_bytes,
            session_threads=0 if share_threads else threads,
        )
        self.on_gpu = providers.CUDA in onnxruntime.get_available_providers()
        self._meter = Meter(gpu_bytes_in_use if self.on_gpu else own_bytes)
        self._models: dict[ModelKey, OpenModel] = {}
        self._runs = ThreadPoolExecutor(max(4, cores), thread_name_prefix="infer")
        self.loads_at_once = max(1, cores // 2)
        self._loads = ThreadPoolExecutor(self.loads_at_once, thread_name_prefix="load")
        self._store_after_s = store_after_s
        self._stores = ThreadPoolExecutor(1, thread_name_prefix="store", initializer=_yield_to_all)
        self._storing: set[asyncio.Task[None]] = set()

    async def load(self, spec: ModelSpec, *, awaited: bool = False) -> Loaded:
        """Open a version and warm it up.

        Its memory is taken to be the size of its files, or more where the process grew by more.
        """
        loop = asyncio.get_running_loop()
        opened = loop.run_in_executor(self._loads, self._open, spec, awaited)
        try:
            # A thread cannot be cancelled: whoever gives up still waits for what it opened, so
            # that the `unload` that follows finds it.
            with self._meter.load(spec.file_bytes) as taken:
                model, store = await asyncio.shield(opened)
        except asyncio.CancelledError:
            await asyncio.wait([opened])
            if opened.exception() is None:
                self._models[spec.key] = opened.result().model
            raise
        self._models[spec.key] = model
        if store is not None:
            task = asyncio.create_task(self._store(spec, store), name=f"store {spec.key}")
            self._storing.add(task)
            task.add_done_callback(self._storing.discard)
        return Loaded(spec, taken.bytes)

    async def stored(self) -> None:
        """Return when no copy for the session cache is due or being made."""
        if self._storing:
            await asyncio.wait(self._storing)

    async def unload(self, key: ModelKey) -> None:
        """Close a version and give its memory back to the system."""
        model = self._models.pop(key, None)
        if model is not None:
            await asyncio.get_running_loop().run_in_executor(self._loads, model.close)

    async def infer(
        self,
        key: ModelKey,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        parameters: Parameters = NO_PARAMETERS,
    ) -> list[Tensor]:
        """Run one batch, in a worker thread unless the model is a quick one; see `Engine.infer`.

        A caller that is cancelled gets its CancelledError at once. Its run, and no other, ends
        after the operator that it is in; until then it occupies a worker thread.
        """
        model = self._models[key]
        run = model.new_run()
        if model.is_quick(inputs):
            return model.run(inputs, outputs, run)
        self._meter.disturb()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._runs, model.run, inputs, outputs, run
            )
        except asyncio.CancelledError:
            run.terminate = True
            raise

    async def forward(self, key: ModelKey, request: InferRequest) -> InferResponse:
        """Never called: this engine schedules nothing."""
        raise AssertionError(f"{key} forwarded to the embedded engine: this is a bug")

    def stream(self, key: ModelKey, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Never called: this engine has no decoupled models."""
        raise AssertionError(f"{key} streamed from the embedded engine: this is a bug")

    async def close(self) -> None:
        """Abort what still runs (between two operators) and end the worker threads."""
        for task in self._storing:
            task.cancel()
        self._onnx.abort_stores()
        for model in self._models.values():
            model.abort()
        self._models.clear()
        # without waiting: this is the event loop
        self._runs.shutdown(wait=False, cancel_futures=True)
        self._loads.shutdown(wait=False, cancel_futures=True)
        self._stores.shutdown(wait=False, cancel_futures=True)
        if self._storing:
            await asyncio.wait(self._storing)

    def _open(self, spec: ModelSpec, awaited: bool) -> Opened:
        opened = Opened(plan.open_plan(spec)) if plan.is_plan(spec) else self._onnx.open(spec)
        try:
            warm_up(opened.model, spec, declared_only=awaited)
        except BaseException:
            opened.model.close()
            raise
        return opened

    async def _store(self, spec: ModelSpec, store: Callable[[], None]) -> None:
        await asyncio.sleep(self._store_after_s)
        try:
            with self._meter.other():
                await asyncio.get_running_loop().run_in_executor(self._stores, store)
        except Exception:
            log.exception("%s: cannot be put into the session cache: this is a bug", spec.key)


def _yield_to_all() -> None:
    """Give this thread the lowest priority: Linux has one for each thread."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)
