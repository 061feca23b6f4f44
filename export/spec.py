"""What to export, validated: the content of a spec file (TOML) with flags laid over it.

Dims leave the batch dimension out, as `config.pbtxt` does: it exists unless `max_batch_size` is 0
and is then the first dimension of every input and output.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import Field, PlainValidator, StrictInt, ValidationError, model_validator

from export.errors import SpecError
from export.objective import Objective
from export.tensors import BATCH, InputSpec, OutputSpec, Positive, Table, TensorSpec

# Odd, even, one, and not a divisor of each other: what a baked-in batch size cannot all satisfy.
CHECKED_BATCH_SIZES: Final = (1, 2, 3, 7)
CHECKED_DIM_SIZES: Final = (1, 3, 11)
# The largest batch that is tried where the spec leaves the choice to the measured curve.
LARGEST_BATCH_TRIED: Final = 64
OBJECT_STORE: Final = "://"
ENGINE_OF_A_GPU: Final = re.compile(r"model_cc(\d+)(\d)\.plan")

Sizes = Mapping[str, int]
Format = Literal[
    "onnx-fp32",
    "onnx-fp16",
    "onnx-bf16",
    "onnx-int8",
    "onnx-int8-dynamic",
    "tensorrt-fp32",
    "tensorrt-fp16",
    "tensorrt-bf16",
    "tensorrt-int8",
]
FORMATS: Final[tuple[str, ...]] = get_args(Format)
Target = Literal["cpu", "gpu"]


def _repository(value: object) -> Path | str:
    if not isinstance(value, str | Path):
        raise ValueError("a repository is a folder, or a URL such as s3://bucket/models")
    return value if OBJECT_STORE in str(value) else Path(value)


Repository = Annotated[Path | str, PlainValidator(_repository)]


class CodeRef(Table):
    """A Python callable: "module.path:function" or "path/to/file.py:function"."""

    folder: Path
    module: str
    function: str

    @classmethod
    def parse(cls, key: str, text: str, folder: Path) -> Self:
        """Read it, relative to `folder`; `key` is the spec's, for the error."""
        module, colon, function = text.rpartition(":")
        if not (colon and module and function.isidentifier()):
            raise SpecError(
                f"{key}: expected 'module.path:function' or 'path/to/file.py:function', "
                f"got {text!r}"
            )
        if module.endswith(".py"):
            path = folder / module
            return cls(folder=path.parent, module=path.name, function=function)
        return cls(folder=folder, module=module, function=function)

    def __str__(self) -> str:
        return f"{self.module}:{self.function}"


class DynamicBatching(Table):
    """Triton's `dynamic_batching` block; an empty one asks for its defaults."""

    preferred_batch_size: tuple[Positive, ...] = ()
    max_queue_delay_microseconds: Annotated[StrictInt, Field(ge=0)] = 0


class SequenceBatching(Table):
    """A model with memory: requests of one sequence meet one state (Triton's implicit state).

    `states` maps the input that a state comes in by to the output that it leaves by; `start` is
    the FP32 input of dims [1] that is 1 in a sequence's first request.
    """

    states: dict[str, str] = Field(min_length=1)
    start: str | None = None
    max_idle_us: Positive = 5_000_000


class MetricSpec(Table):
    """The task's own score, and how much of it a faster format may lose.

    `data` gives (inputs by name, labels). `score` is "accuracy" (argmax of the last axis of
    `output`) or a callable (outputs by name, labels) -> float, where more is better.
    """

    data: CodeRef
    score: Literal["accuracy"] | CodeRef = "accuracy"
    output: str | None = None  # default: the first
    allowed_drop: float = Field(default=0.005, ge=0)


class TensorRT(Table):
    """Of the engines: portability, and the sizes that the optimiser is shown.

    `sizes` are [smallest, usual, largest] of the batch and of named dims. `engines` are those that
    other machines made for their GPUs, named model_cc89.plan for compute capability 8.9: they are
    published beside this machine's.
    """

    version_compatible: bool = False
    hardware_compatible: bool = False
    workspace_bytes: Positive | None = None
    sizes: Mapping[str, tuple[Positive, Positive, Positive]] = {}
    engines: tuple[Path, ...] = ()

    @model_validator(mode="after")
    def _sizes_ascend(self) -> Self:
        for name, (smallest, usual, largest) in self.sizes.items():
            if not smallest <= usual <= largest:
                raise ValueError(f"sizes: {name!r} is [smallest, usual, largest], in this order")
        return self

    @model_validator(mode="after")
    def _engines_say_their_gpu(self) -> Self:
        for file in self.engines:
            if not ENGINE_OF_A_GPU.fullmatch(file.name):
                raise ValueError(
                    f"engines: {file.name} does not say its GPU: model_cc89.plan is for "
                    "compute capability 8.9"
                )
        return self


class ExportSpec(Table):
    """Everything an export needs to know. Without `inputs`, source or samples say what they are."""

    # A leading dot would hide the model; a slash would leave the repository.
    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    model: CodeRef | Path
    weights: Path | None = None
    weights_key: str | None = None
    repository: Repository = Path("model_repository")
    max_batch_size: Annotated[StrictInt, Field(ge=0)] | None = None
    seed: StrictInt = 0
    inputs: tuple[InputSpec, ...] = ()
    outputs: tuple[OutputSpec, ...] = ()
    dim_sizes: Mapping[str, Annotated[tuple[Positive, ...], Field(min_length=1)]] = {}
    samples: CodeRef | Path | None = None
    metric: MetricSpec | None = None
    formats: tuple[Format, ...] = ()
    target: Target | None = None
    objective: str = "throughput"
    dynamic_batching: DynamicBatching | Literal[False] | None = None
    sequence_batching: SequenceBatching | None = None
    tensorrt: TensorRT = TensorRT()

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        tensors: tuple[TensorSpec, ...] = (*self.inputs, *self.outputs)
        names = [tensor.name for tensor in tensors]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tensors are called {name!r}; ONNX needs distinct names")
        for name in self.dim_sizes:
            if self.inputs and name not in self.named_dims:
                raise ValueError(f"dim_sizes has {name!r}, which is no dim of an input")
        for name in self.tensorrt.sizes:
            if self.inputs and name not in (BATCH, *self.named_dims):
                raise ValueError(f"tensorrt.sizes has {name!r}, which is no dim of an input")
        Objective.parse(self.objective)
        self._check_batching()
        self._check_states()
        return self

    def _check_batching(self) -> None:
        if not (batching := self.dynamic_batching):
            return
        if self.max_batch_size == 0:
            raise ValueError("dynamic_batching needs a batch dimension: max_batch_size > 0")
        if self.sequence_batching:
            raise ValueError("a model has dynamic_batching or sequence_batching, not both")
        for size in batching.preferred_batch_size:
            if self.max_batch_size is not None and size > self.max_batch_size:
                raise ValueError(
                    f"preferred_batch_size {size} is above max_batch_size {self.max_batch_size}"
                )

    def _check_states(self) -> None:
        if self.sequence_batching is None:
            return
        inputs = {tensor.name: tensor for tensor in self.inputs}
        outputs = {tensor.name: tensor for tensor in self.outputs}
        for before, after in self.sequence_batching.states.items():
            if before not in inputs or after not in outputs:
                raise ValueError(
                    f"sequence_batching.states: {before!r} has to be one of the inputs and "
                    f"{after!r} one of the outputs"
                )
            said = [(t.dtype, t.dims) for t in (inputs[before], outputs[after])]
            if said[0] != said[1]:
                raise ValueError(
                    f"sequence_batching.states: {before!r} and {after!r} differ in dtype or dims"
                )
        if (start := self.sequence_batching.start) and start not in inputs:
            raise ValueError(f"sequence_batching.start: {start!r} is none of the inputs")

    @property
    def batch_limit(self) -> int:
        """The largest batch that the export has to do with; 0: the model has no batch dimension."""
        return LARGEST_BATCH_TRIED if self.max_batch_size is None else self.max_batch_size

    @property
    def named_dims(self) -> tuple[str, ...]:
        """Names of the inputs' dynamic dims, in order of appearance, without the batch."""
        dims = [dim for tensor in self.inputs for dim in tensor.dims if isinstance(dim, str)]
        return tuple(dict.fromkeys(dims))

    def symbolic_shape(self, tensor: TensorSpec) -> tuple[int | str, ...]:
        """`tensor`'s full shape in the ONNX file, numbers and names, batch first."""
        return (BATCH, *tensor.dims) if self.batch_limit else tensor.dims

    def shape(self, tensor: TensorSpec, sizes: Sizes) -> tuple[int | None, ...]:
        """`tensor`'s full shape at `sizes`; None where the model itself decides (outputs only)."""
        shape = self.symbolic_shape(tensor)
        return tuple(sizes.get(dim) if isinstance(dim, str) else dim for dim in shape)

    def checked_sizes(self) -> tuple[dict[str, int], ...]:
        """Sizes of the dynamic dims for each parity check; none holds a size of the example's."""
        axes = self._axes()
        if not axes:
            return ({}, {}, {})  # nothing to vary but the random values
        count = max(map(len, axes.values()))
        # The offset keeps dims of different names at different sizes, whatever their lists.
        return tuple(
            {name: sizes[(k + i) % len(sizes)] for i, (name, sizes) in enumerate(axes.items())}
            for k in range(count)
        )

    def example_sizes(self) -> dict[str, int]:
        """Sizes of the dynamic dims that `torch.export` sees: distinct, above 1, never checked.

        torch.export treats 0 and 1 as constants, and two dims of one size may be taken for one.
        """
        chosen: dict[str, int] = {}
        # A dim that says its own sizes may have a least one (a window, a stride): go on from there.
        floor = {name: max(2, min(sizes)) for name, sizes in self.dim_sizes.items()}
        for name, checked in self._axes().items():
            size = floor.get(name, 2)
            while size in checked or size in chosen.values():
                size += 1
            chosen[name] = size
        return chosen

    def _axes(self) -> dict[str, tuple[int, ...]]:
        axes: dict[str, tuple[int, ...]] = {}
        if limit := self.batch_limit:
            sizes = {size for size in CHECKED_BATCH_SIZES if size <= limit} | {limit}
            if self.max_batch_size is None:
                sizes.remove(limit)  # a bound of the search, nobody's promise
            axes[BATCH] = tuple(sorted(sizes))
        for name in self.named_dims:
            axes[name] = self.dim_sizes.get(name, CHECKED_DIM_SIZES)
        return axes


def load(
    text: str, folder: Path, flags: Mapping[str, Any], flags_folder: Path | None = None
) -> ExportSpec:
    """Spec from TOML `text` with `flags` (same keys) laid over it; raises `SpecError`.

    Paths are relative to where they are written: in the text to `folder`, in flags to
    `flags_folder`.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"not valid TOML: {error}") from None
    merged = _resolve(table, folder) | _resolve(flags, flags_folder or folder)
    try:
        return ExportSpec.model_validate(merged)
    except ValidationError as error:
        raise SpecError("\n".join(dict.fromkeys(_sentences(error)))) from None


def _resolve(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    resolved = dict(table)
    if isinstance(value := resolved.get("weights"), str):
        resolved["weights"] = folder / value
    if isinstance(value := resolved.get("repository"), str) and OBJECT_STORE not in value:
        resolved["repository"] = folder / value
    for key, files in (("model", "a model file or folder"), ("samples", "an .npz file")):
        if isinstance(value := resolved.get(key), str):
            resolved[key] = _code_or_file(key, value, folder, files)
    if isinstance(metric := resolved.get("metric"), dict):
        resolved["metric"] = {
            key: CodeRef.parse(f"metric.{key}", value, folder)
            if key in ("data", "score") and isinstance(value, str) and value != "accuracy"
            else value
            for key, value in metric.items()
        }
    built = resolved.get("tensorrt")
    if isinstance(built, dict) and isinstance(built.get("engines"), list):
        engines = [folder / file if isinstance(file, str) else file for file in built["engines"]]
        resolved["tensorrt"] = {**built, "engines": engines}
    if isinstance(outputs := resolved.get("outputs"), list):
        resolved["outputs"] = [
            {**output, "labels": folder / output["labels"]}
            if isinstance(output, dict) and isinstance(output.get("labels"), str)
            else output
            for output in outputs
        ]
    return resolved


def _code_or_file(key: str, text: str, folder: Path, files: str) -> CodeRef | Path:
    path = folder / text
    if ":" not in text and path.suffix != ".py" and (path.exists() or path.suffix):
        return path
    try:
        return CodeRef.parse(key, text, folder)
    except SpecError as error:
        raise SpecError(f"{error}; or {files}, and there is none of that name") from None


_TABLES: Final[Mapping[str, type[Table]]] = {
    "inputs": InputSpec,
    "outputs": OutputSpec,
    "dynamic_batching": DynamicBatching,
    "sequence_batching": SequenceBatching,
    "metric": MetricSpec,
    "tensorrt": TensorRT,
    "model": CodeRef,
}


_REFERENCES: Final[Mapping[object, str]] = {
    "model": "'file.py:function', or a model file or folder",
    "samples": "'file.py:function', or a .npz file",
}


def _sentences(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        # A field of several types names the type that was tried; nobody wrote that.
        *parents, key = [p for p in problem["loc"] if not (isinstance(p, str) and _is_type(p))] or [
            "spec"
        ]
        place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parents)[1:]
        if key in _REFERENCES and not parents:
            yield f"{key}: a text is expected: {_REFERENCES[key]}"
            continue
        if problem["type"] == "extra_forbidden":
            table = _TABLES.get(str(parents[0]), ExportSpec) if parents else ExportSpec
            near = get_close_matches(str(key), table.model_fields, n=2)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            yield f"unknown key {key!r}" + (f" in {place}" if place else "") + hint
        elif problem["type"] == "missing":
            yield f"missing key {key!r}" + (f" in {place}" if place else "")
        elif (
            problem["type"] == "literal_error"
            and "DynamicBatching" not in problem["loc"]
            and ("literal[False]" in problem["loc"])
        ):
            continue  # the other half of "a table, or false" says what is wrong
        else:
            name = f"{place}[{key}]" if isinstance(key, int) else f"{place}.{key}".lstrip(".")
            yield f"{name}: {problem['msg'].removeprefix('Value error, ')}"


def _is_type(part: str) -> bool:
    """Whether pydantic speaks of one of a field's types, and not of a key."""
    return part in ("DynamicBatching", "CodeRef", "path", "str") or part.startswith(
        ("literal[", "lax-or-strict[")
    )
