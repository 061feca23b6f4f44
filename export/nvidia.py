"""NVIDIA's parser and builder: an ONNX file -> a serialised engine, or NVIDIA's reasons why not.

One code for two libraries with one API: TensorRT proper, whose engines Triton runs and which needs
a GPU, and TensorRT-RTX, whose builder runs on any x86-64 machine and tells there whether the file
would be taken.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError

from export.errors import ConversionError
from export.spec import ExportSpec
from export.tensors import BATCH, InputSpec

TOLD: Final = 4  # messages of the builder's in an error
# What a builder without a GPU says beside every other error: 35 no driver, 100 no device.
_NO_GPU: Final = re.compile(r"\(cudaError (35|100): ")
_INTEGER_MATH: Final = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")


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


def build(trt: Any, file: Path, options: Options) -> Built:
    """Parse and build with the library `trt`; raises `ConversionError` in NVIDIA's words."""
    _refuse_doubles(file)
    log = _logger(trt)
    log.begin(gpu=options.ahead_of_time is None)
    try:
        builder = trt.Builder(log)
    except Exception as error:  # pybind's, which says nothing: the reason is in the log
        raise _refused("", log) from error
    flags = 0
    if _major(trt) < 11 and hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        # 11 knows no other networks; 10 has to be told that the file's types are meant.
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(file)):  # from the file: weights may lie beside it
        raise _unparsed(trt, parser, log)
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
    advice = "tensorrt.sizes gives [smallest, usual, largest] of the batch and of named dims"
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 not in tuple(tensor.shape) or not (shape := shapes.get(tensor.name)):
            continue
        try:
            profile.set_shape(tensor.name, shape.smallest, shape.usual, shape.largest)
        except (RuntimeError, ValueError) as error:
            raise ConversionError(
                f"NVIDIA's builder refuses the shapes of {tensor.name!r}: {error}", advice
            ) from error
    if config.add_optimization_profile(profile) == -1:
        raise ConversionError(f"NVIDIA's builder refuses the shapes: {log.worst()}", advice)


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
    # All that was said: the builder tries other tactics after one is out of memory, and says so.
    if any(
        "out of memory" in text.lower() or "OutOfMemory" in text
        for text in (words, *log.everything())
    ):
        return ConversionError(
            f"the GPU ran out of memory while the engine was built: {words or log.worst()}",
            "tensorrt.workspace_bytes bounds what the builder takes; a smaller largest batch helps",
        )
    said = "; ".join(filter(None, [words, log.worst()])) or "it gives no reason"
    return ConversionError(f"NVIDIA's builder gives no engine: {said}")


def _refuse_doubles(file: Path) -> None:
    """The parser makes float32 of double inputs and outputs, without a word."""
    try:
        graph = onnx.load(file, load_external_data=False).graph
    except (OSError, DecodeError):  # the parser says why
        return
    tensors = (*graph.input, *graph.output)
    double = [t.name for t in tensors if t.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE]
    if double:
        raise ConversionError(
            f"TensorRT has no double precision: it would make float32 of {', '.join(double)}",
            "serve the ONNX file, or train and export the model in float32",
        )


def _unparsed(trt: Any, parser: Any, log: Any) -> ConversionError:
    errors = [parser.get_error(index) for index in range(min(parser.num_errors, TOLD))]
    said = "; ".join(_parser_error(error, log) for error in errors) or log.worst()
    advice = ""
    if any(error.node_operator() in _INTEGER_MATH for error in errors):
        advice = "TensorRT takes no dynamically quantised graph: quantise it statically (onnx-int8)"
    elif any(error.node_operator() for error in errors):
        advice = "write that part with operators and dtypes that TensorRT has"
    return ConversionError(f"NVIDIA's parser refuses the file: {said}", advice)


def _parser_error(error: Any, log: Any) -> str:
    words = log.without_noise(error.desc())
    if not error.node_operator():
        return str(words)
    if words == "false":  # its whole answer to an operator that it does not know
        words = "TensorRT has no such operator"
    place = repr(error.node_name()) if error.node_name() else f"(node {error.node()})"
    return f"{error.node_operator()} {place}: {words}"


def _major(trt: Any) -> int:
    return int(str(trt.__version__).split(".")[0])


@functools.cache
def _logger(trt: Any) -> Any:
    """A logger that remembers: the builder has no other way to say what is wrong.

    One for all builds of a process: while anything keeps an earlier builder (an error's traceback
    does), the library goes on talking to that one's logger and ignores a new one.
    """
    severity = trt.ILogger.Severity

    class Memory(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.begin(gpu=True)

        def begin(self, *, gpu: bool) -> None:
            self._said: list[tuple[Any, str]] = []
            self._gpu = gpu

        def log(self, level: Any, message: str) -> None:
            if level <= severity.WARNING and (words := self.without_noise(message)):
                self._said.append((level, words))

        def without_noise(self, message: str) -> str:
            return message.strip() if self._gpu else _lines(message, _NO_GPU)

        def of_severity(self, name: str) -> list[str]:
            return [text for level, text in self._said if level == getattr(severity, name)]

        def everything(self) -> list[str]:
            return [text for _, text in self._said]

        def worst(self) -> str:
            errors = [text for level, text in self._said if level <= severity.ERROR]
            return "; ".join(errors[:TOLD])

    return Memory()


def _lines(text: str, without: re.Pattern[str]) -> str:
    return "\n".join(line for line in text.splitlines() if not without.search(line)).strip()
