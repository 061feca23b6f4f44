"""An ONNX model on disk -> an open session, from the session cache where that gains."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gateway.core import ModelSpec
from gateway.engine import model_files, providers
from gateway.engine.memory import trim
from gateway.engine.model import OpenModel, Replicas
from gateway.engine.onnx_session import FATAL, OnnxSession, first_line
from gateway.engine.onnx_signature import check_signature
from gateway.engine.session_cache import WEIGHTS, NotCached, SessionCache
from gateway.engine.warm_up import warm_up
from gateway.errors import RepositoryError

log = logging.getLogger(__name__)

# A plain session of 1 MB opens in 5 ms, from the cache in 4; of 6 MB in 27 and 3.
MIN_CACHED_BYTES = 1 << 20


class Opened(NamedTuple):
    """An open model; `store`, where it is given, puts a copy into the session cache."""

    model: OpenModel
    store: Callable[[], None] | None = None


class OnnxOpener:
    """Opens ONNX models. Its methods block; they are safe in any thread.

    A session never holds a mapping of the repository's own files. ONNX Runtime maps external
    weights of a model that it opens by its path: overwriting such a file in place changes the
    results of the running session, and truncating it ends the process with SIGBUS. So these files
    are read (100 MB: 40 ms), and what is mapped are entries of the session cache, which nobody
    else writes to.

    `session_threads` are a session's own; 0: it shares the process's pool.
    """

    def __init__(
        self,
        ort: Any,
        cache_dir: Path | None,
        cache_max_bytes: int,
        gpu_memory_limit_bytes: int,
        session_threads: int,
    ) -> None:
        self._ort = ort
        self._session_threads = session_threads
        self._gpu_memory_limit_bytes = gpu_memory_limit_bytes
        self._cache = None
        self._builds: set[Any] = set()
        self._stopping = False
        if cache_dir is not None and cache_max_bytes > 0:
            runtime = f"{ort.__version__} {processor()}"
            self._cache = SessionCache(cache_dir, cache_max_bytes, runtime)

    def open(self, spec: ModelSpec) -> Opened:
        """Return the model, checked against its configuration. Raises `RepositoryError`."""
        file = spec.path / spec.model_file
        if not file.exists():
            raise RepositoryError(f"version {spec.key.version} has no file '{spec.model_file}'")
        if file.is_dir():  # Triton takes a folder of that name, too
            file = file / "model.onnx"
        ignored = providers.ignored(spec.runtime)
        if ignored:
            log.warning(
                "%s: these parameters have no effect here: %s", spec.key, ", ".join(ignored)
            )
        gpus = providers.devices(spec.runtime, self._ort.get_available_providers())
        try:
            if not gpus:
                return self._open_on_cpu(spec, file)
            models = [self._open_on_gpu(spec, file, number) for number in gpus]
        except RepositoryError:
            raise
        # ONNX Runtime's exceptions share no root of their own
        except Exception as error:
            raise RepositoryError(
                f"ONNX Runtime cannot open '{spec.model_file}': {first_line(error)}"
            ) from error
        return Opened(models[0] if len(models) == 1 else Replicas(models))

    def abort_stores(self) -> None:
        """Have every `store` under way end soon, without a copy, and none begin."""
        self._stopping = True
        for options in tuple(self._builds):
            options.set_load_cancellation_flag(True)

    def _open_on_cpu(self, spec: ModelSpec, file: Path) -> Opened:
        cache = self._cache if spec.file_bytes >= MIN_CACHED_BYTES else None
        session = None
        if cache is not None:
            try:
                session = cache.find(file, _variant(spec), partial(self._read_copy, spec))
            except NotCached as error:
                cache.complain(str(error))
                cache = None
        if session is not None:
            cache = None
        else:
            session = self._open_plain(spec, file, [(providers.CPU, {})])
        check_signature(spec, session)
        model = OnnxSession(self._ort, session, spec)
        return Opened(model, partial(self._store, cache, spec, file, model) if cache else None)

    def _store(self, cache: SessionCache, spec: ModelSpec, file: Path, model: OnnxSession) -> None:
        """Put a copy into the cache, and have the model run on it: its weights are shared then."""
        try:
            cache.store(file, _variant(spec), partial(self._build_copy, spec, file))
            copy = cache.find(file, _variant(spec), partial(self._read_copy, spec))
        except NotCached as error:
            if not self._stopping:
                cache.complain(str(error))
            return
        if copy is not None:
            check_signature(spec, copy)
            warm_up(OnnxSession(self._ort, copy, spec), spec)
            model.swap(copy)
            log.debug("%s runs on its copy in the session cache", spec.key)

    def _build_copy(self, spec: ModelSpec, file: Path, target: Path) -> None:
        """Write the optimised model. Takes 1.3 times as long as to open it, 4 where it prepacks."""
        options = self._options(spec)
        options.optimized_model_filepath = str(target)
        for name, value in (
            ("session.optimized_model_external_initializers_file_name", WEIGHTS),
            ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
            # as the kernels want them: 100 MB of matrices open in 44 ms instead of 75, and stay
            # mapped, where they would be copied
            ("session.save_external_prepacked_constant_initializers", "1"),
        ):
            options.add_session_config_entry(name, value)
        self._builds.add(options)
        try:
            if self._stopping:
                raise NotCached("the gateway is shutting down")
            buffers = self._read_weights(options, file)
            self._session(file, options, [(providers.CPU, {})])
            del buffers
        finally:
            self._builds.discard(options)
            trim()

    def _read_copy(self, spec: ModelSpec, entry: Path) -> Any:
        options = self._options(spec)
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return self._session(entry, options, [(providers.CPU, {})])

    def _open_on_gpu(self, spec: ModelSpec, file: Path, number: int) -> OpenModel:
        available = self._ort.get_available_providers()
        wanted = providers.on_gpu(spec.runtime, number, self._gpu_memory_limit_bytes)
        providers.check_took(wanted, available, spec.runtime)
        present = [provider for provider in wanted if provider[0] in available]
        # CUDA and cuDNN from PyPI (the extra `gpu`) lie where the loader does not look
        self._ort.preload_dlls()
        session = self._open_plain(spec, file, present)
        providers.check_took(present, session.get_providers(), spec.runtime)
        check_signature(spec, session)
        return OnnxSession(
            self._ort, session, spec, on_gpu=providers.CUDA in session.get_providers()
        )

    def _open_plain(self, spec: ModelSpec, file: Path, wanted: list[providers.Provider]) -> Any:
        options = self._options(spec)
        buffers = self._read_weights(options, file)
        session = self._session(file, options, wanted)
        del buffers  # ONNX Runtime has its own copy now
        if spec.file_bytes >= MIN_CACHED_BYTES:
            trim()  # a model of 100 MB leaves as much behind
        return session

    def _read_weights(self, options: Any, file: Path) -> list[bytes]:
        """Give external weights to a session as bytes, which must live until it is open."""
        names = model_files.weight_files(file)
        # a name that leads out of the folder is ONNX Runtime's to refuse
        inside = [name for name in names if _is_inside(file.parent, name)]
        buffers = [(file.parent / name).read_bytes() for name in inside]
        if buffers:
            options.add_external_initializers_from_files_in_memory(
                inside, buffers, [len(buffer) for buffer in buffers]
            )
        return buffers

    def _session(self, file: Path, options: Any, wanted: list[providers.Provider]) -> Any:
        # Without `enable_fallback` a GPU provider that fails is an error, and not another provider.
        return self._ort.InferenceSession(
            str(file), options, providers=wanted, enable_fallback=False
        )

    def _options(self, spec: ModelSpec) -> Any:
        options = self._ort.SessionOptions()
        options.use_per_session_threads = self._session_threads > 0
        options.intra_op_num_threads = self._session_threads
        options.log_severity_level = FATAL
        levels, level = self._ort.GraphOptimizationLevel, spec.runtime.graph_level
        options.graph_optimization_level = getattr(
            levels, providers.GRAPH_LEVELS.get(level, "ORT_ENABLE_ALL")
        )
        parameters = spec.runtime.parameters
        options.enable_cpu_mem_arena = _switch(parameters.get("enable_mem_arena", "1"))
        options.enable_mem_pattern = _switch(parameters.get("enable_mem_pattern", "1"))
        return options


def _variant(spec: ModelSpec) -> str:
    """Return what a copy depends on besides the model, the runtime and the processor."""
    return f"cpu graph={spec.runtime.graph_level}"


def processor() -> str:
    """Return what tells this processor's abilities from another's."""
    try:
        with open("/proc/cpuinfo") as file:
            first, *_ = file.read().partition("\n\n")
    except OSError:
        first = platform.processor()
    told = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU ")
    lines = [line for line in first.splitlines() if line.startswith(told)]
    return " ".join([platform.machine(), *lines])


def _is_inside(folder: Path, name: str) -> bool:
    return (folder / name).resolve().is_relative_to(folder.resolve())


def _switch(value: str) -> bool:
    return value.strip().lower() not in ("0", "false")
