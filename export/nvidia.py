"""NVIDIA's parser and builder: an ONNX file -> a serialised engine, or NVIDIA's reasons why not.

One code for two libraries with one API: TensorRT proper, whose engines Triton runs and which needs
a GPU, and TensorRT-RTX, whose builder runs on any x86-64 machine and tells there whether the file
would be taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from export.errors import ConversionError
from export.spec import ExportSpec
from export.tensors import BATCH, InputSpec

TOLD: Final = 4  # messages of the builder's in an error


@dataclass(frozen=True)
class Range:
    """Shapes of one input that an engine is made for: smallest, usual, largest."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True)
class Options:
    """What the builder is asked for. `ahead_of_time`: a compute capability without its GPU."""

    ranges: Mapping[str, Range]
    version_compatible: bool = False
    hardware_compatible: bool = False
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    ahead_of_time: str | None = None


@dataclass(frozen=True)
class Built:
    """A serialised engine, its layers, and what the builder warned of."""

    engine: bytes
    layers: int
    warnings: tuple[str, ...] = field(default=())


def ranges(spec: ExportSpec) -> dict[str, Range]:
    """The shapes of each input: what `tensorrt.sizes` says, else what is verified anyway."""
    sizes = {name: _sizes(spec, name) for name in (BATCH, *spec.named_dims)}

    def at(tensor: InputSpec, which: int) -> tuple[int, ...]:
        shape = spec.symbolic_shape(tensor)
        return tuple(dim if isinstance(dim, int) else sizes[dim][which] for dim in shape)

    return {t.name: Range(at(t, 0), at(t, 1), at(t, 2)) for t in spec.inputs}


def _sizes(spec: ExportSpec, name: str) -> tuple[int, int, int]:
    if name in spec.tensorrt.sizes:
        return spec.tensorrt.sizes[name]
    if name == BATCH:
        limit = max(1, spec.batch_limit)
        return 1, max(1, limit // 2), limit
    checked = sorted((*spec.dim_sizes.get(name, (1, 11)), spec.example_sizes()[name]))
    return checked[0], checked[len(checked) // 2], checked[-1]


def build(trt: Any, onnx: Path, options: Options) -> Built:
    """Parse and build with the library `trt`; raises `ConversionError` in NVIDIA's words."""
    log = _logger(trt)
    builder = trt.Builder(log)
    flags = 0
    if _major(trt) < 11 and hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        # 11 knows no other networks; 10 has to be told that the file's types are meant.
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):  # from the file: weights may lie beside it
        raise ConversionError(
            f"NVIDIA's parser refuses the file: {_parser_errors(parser) or log.worst()}",
            "write it with operators that TensorRT has; a dynamically quantised graph never is",
        )
    config = builder.create_builder_config()
    _configure(trt, config, options)
    _add_profile(builder, network, config, options.ranges, log)
    cache = _with_timing_cache(config, options.timing_cache)
    try:
        engine = builder.build_serialized_network(network, config)
    except Exception as error:
        raise _refused(str(error), log) from error
    if engine is None:
        raise _refused("", log)
    if cache is not None and options.timing_cache is not None:
        _keep(cache, options.timing_cache)
    return Built(bytes(engine), network.num_layers, tuple(log.of_severity("WARNING")))


def _configure(trt: Any, config: Any, options: Options) -> None:
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.ahead_of_time is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, options.ahead_of_time), 0)


def _add_profile(
    builder: Any, network: Any, config: Any, shapes: Mapping[str, Range], log: Any
) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape) and (shape := shapes.get(tensor.name)):
            profile.set_shape(tensor.name, shape.smallest, shape.usual, shape.largest)
    if config.add_optimization_profile(profile) == -1:
        raise ConversionError(
            f"NVIDIA's builder refuses the shapes: {log.worst()}",
            "tensorrt.sizes gives [smallest, usual, largest] of the batch and of named dims",
        )


def _with_timing_cache(config: Any, path: Path | None) -> Any:
    if path is None:
        return None
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    config.set_timing_cache(cache, ignore_mismatch=True)
    return cache


def _keep(cache: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(bytes(cache.serialize()))
    unfinished.replace(path)


def _refused(words: str, log: Any) -> ConversionError:
    said = "; ".join(filter(None, [words, log.worst()])) or "it gives no reason"
    if "out of memory" in said.lower() or "OutOfMemory" in said:
        return ConversionError(
            f"the GPU ran out of memory while the engine was built: {said}",
            "tensorrt.workspace_bytes bounds what the builder takes; a smaller largest batch helps",
        )
    return ConversionError(f"NVIDIA's builder gives no engine: {said}")


def _parser_errors(parser: Any) -> str:
    told = []
    for index in range(min(parser.num_errors, TOLD)):
        error = parser.get_error(index)
        node = f"{error.node_operator()} {error.node_name()!r}: " if error.node_operator() else ""
        told.append(f"{node}{error.desc()}".strip())
    return "; ".join(told)


def _major(trt: Any) -> int:
    return int(str(trt.__version__).split(".")[0])


def _logger(trt: Any) -> Any:
    """A logger that remembers: the builder has no other way to say what is wrong."""
    severity = trt.ILogger.Severity

    class Memory(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._said: list[tuple[Any, str]] = []

        def log(self, level: Any, message: str) -> None:
            if level <= severity.WARNING:
                self._said.append((level, message))

        def of_severity(self, name: str) -> list[str]:
            return [text for level, text in self._said if level == getattr(severity, name)]

        def worst(self) -> str:
            errors = [text for level, text in self._said if level <= severity.ERROR]
            return "; ".join(errors[:TOLD])

    return Memory()
