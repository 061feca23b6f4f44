"""What to export, validated: the content of a spec file (TOML) with flags laid over it.

Dims leave the batch dimension out, as `config.pbtxt` does: it exists when `max_batch_size > 0`
and is then the first dimension of every input and output.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from export.dtypes import NUMPY, REFUSED, DtypeName
from export.errors import SpecError

BATCH: Final = "batch"
# Odd, even, one, and not a divisor of each other: what a baked-in batch size cannot all satisfy.
CHECKED_BATCH_SIZES: Final = (1, 2, 3, 7)
CHECKED_DIM_SIZES: Final = (1, 3, 11)
# (atol, rtol); every other dtype has to be equal.
DEFAULT_TOLERANCE: Final = {"FP16": (1e-2, 1e-2), "FP32": (1e-5, 1e-3), "FP64": (1e-9, 1e-6)}

Sizes = Mapping[str, int]
Positive = Annotated[StrictInt, Field(ge=1)]


def _dim(value: object) -> object:
    if isinstance(value, str):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError(f"a dim's name is made of letters, digits and _, not {value!r}")
        if value == BATCH:
            raise ValueError("'batch' is the batch dimension, which dims leave out")
    elif isinstance(value, int) and value < 1:
        raise ValueError(f"a dim is a positive number or a name, not {value}")
    return value


def _dtype(value: object) -> object:
    if value in REFUSED:
        raise ValueError(f"{value} cannot be exported: {REFUSED[str(value)]}")
    return value


Dims = tuple[Annotated[StrictInt | StrictStr, BeforeValidator(_dim)], ...]
Dtype = Annotated[DtypeName, BeforeValidator(_dtype)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRef(_Table):
    """Where the callable is that returns the `nn.Module`."""

    folder: Path
    module: str
    function: str

    @classmethod
    def parse(cls, text: str, folder: Path) -> Self:
        """Read "module.path:function" or "path/to/file.py:function", relative to `folder`."""
        module, colon, function = text.rpartition(":")
        if not (colon and module and function.isidentifier()):
            raise SpecError(
                f"model: expected 'module.path:function' or 'path/to/file.py:function', "
                f"got {text!r}"
            )
        if module.endswith(".py"):
            path = folder / module
            return cls(folder=path.parent, module=path.name, function=function)
        return cls(folder=folder, module=module, function=function)

    def __str__(self) -> str:
        return f"{self.module}:{self.function}"


class TensorSpec(_Table):
    """What clients see of an input or output."""

    name: str = Field(min_length=1)
    dtype: Dtype
    dims: Dims


class InputSpec(TensorSpec):
    """One input. `range` (low, high) bounds the random values of the parity check."""

    range: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _range_is_usable(self) -> Self:
        integer = np.iinfo(NUMPY[self.dtype].name) if NUMPY[self.dtype].kind in "iu" else None
        if self.range is None:
            if integer:
                raise ValueError(
                    f"a dtype of {self.dtype} needs a range, e.g. range = [0, 99]: "
                    "only you know which integers the model accepts"
                )
            return self
        low, high = self.range
        if low > high:
            raise ValueError(f"range is [low, high], got [{low}, {high}]")
        if integer and not (integer.min <= low and high <= integer.max):
            raise ValueError(f"range [{low:.0f}, {high:.0f}] does not fit into {self.dtype}")
        return self


class OutputSpec(TensorSpec):
    """One output. |onnx - torch| may reach `atol + rtol * |torch|`; `labels` names its classes."""

    labels: Path | None = None
    atol: float | None = Field(default=None, ge=0)
    rtol: float | None = Field(default=None, ge=0)

    @property
    def tolerance(self) -> tuple[float, float]:
        """(atol, rtol), the dtype's default where the spec is silent."""
        atol, rtol = DEFAULT_TOLERANCE.get(self.dtype, (0.0, 0.0))
        return (
            atol if self.atol is None else self.atol,
            rtol if self.rtol is None else self.rtol,
        )


class DynamicBatching(_Table):
    """Triton's `dynamic_batching` block; an empty one asks for its defaults."""

    preferred_batch_size: tuple[Positive, ...] = ()
    max_queue_delay_microseconds: Annotated[StrictInt, Field(ge=0)] = 0


class ExportSpec(_Table):
    """Everything an export needs to know."""

    # A leading dot would hide the model; a slash would leave the repository.
    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    model: ModelRef
    weights: Path | None = None
    weights_key: str | None = None
    repository: Path = Path("model_repository")
    max_batch_size: Annotated[StrictInt, Field(ge=0)]
    seed: StrictInt = 0
    inputs: tuple[InputSpec, ...] = Field(min_length=1)
    outputs: tuple[OutputSpec, ...] = Field(min_length=1)
    dim_sizes: dict[str, Annotated[tuple[Positive, ...], Field(min_length=1)]] = {}
    dynamic_batching: DynamicBatching | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        tensors: tuple[TensorSpec, ...] = (*self.inputs, *self.outputs)
        names = [tensor.name for tensor in tensors]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tensors are called {name!r}; ONNX needs distinct names")
        for name in self.dim_sizes:
            if name not in self.named_dims:
                raise ValueError(f"dim_sizes has {name!r}, which is no dim of an input")
        if batching := self.dynamic_batching:
            if self.max_batch_size == 0:
                raise ValueError("dynamic_batching needs a batch dimension: max_batch_size > 0")
            for size in batching.preferred_batch_size:
                if size > self.max_batch_size:
                    raise ValueError(
                        f"preferred_batch_size {size} is above max_batch_size {self.max_batch_size}"
                    )
        return self

    @property
    def named_dims(self) -> tuple[str, ...]:
        """Names of the inputs' dynamic dims, in order of appearance, without the batch."""
        dims = [dim for tensor in self.inputs for dim in tensor.dims if isinstance(dim, str)]
        return tuple(dict.fromkeys(dims))

    def symbolic_shape(self, tensor: TensorSpec) -> tuple[int | str, ...]:
        """`tensor`'s full shape in the ONNX file, numbers and names, batch first."""
        return (BATCH, *tensor.dims) if self.max_batch_size else tensor.dims

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
        for name, checked in self._axes().items():
            size = 2
            while size in checked or size in chosen.values():
                size += 1
            chosen[name] = size
        return chosen

    def _axes(self) -> dict[str, tuple[int, ...]]:
        axes: dict[str, tuple[int, ...]] = {}
        if limit := self.max_batch_size:
            sizes = {size for size in CHECKED_BATCH_SIZES if size <= limit} | {limit}
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
        raise SpecError("\n".join(_sentences(error))) from None


def _resolve(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    resolved = dict(table)
    for key in ("weights", "repository"):
        if isinstance(value := resolved.get(key), str):
            resolved[key] = folder / value
    if isinstance(value := resolved.get("model"), str):
        resolved["model"] = ModelRef.parse(value, folder)
    if isinstance(outputs := resolved.get("outputs"), list):
        resolved["outputs"] = [
            {**output, "labels": folder / output["labels"]}
            if isinstance(output, dict) and isinstance(output.get("labels"), str)
            else output
            for output in outputs
        ]
    return resolved


_TABLES: Final[Mapping[str, type[_Table]]] = {
    "inputs": InputSpec,
    "outputs": OutputSpec,
    "dynamic_batching": DynamicBatching,
    "model": ModelRef,
}


def _sentences(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        *parents, key = problem["loc"] or ("spec",)
        place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parents)[1:]
        if problem["type"] == "extra_forbidden":
            table = _TABLES.get(str(parents[0]), ExportSpec) if parents else ExportSpec
            near = get_close_matches(str(key), table.model_fields, n=2)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            yield f"unknown key {key!r}" + (f" in {place}" if place else "") + hint
        elif problem["type"] == "missing":
            yield f"missing key {key!r}" + (f" in {place}" if place else "")
        else:
            name = f"{place}[{key}]" if isinstance(key, int) else f"{place}.{key}".lstrip(".")
            yield f"{name}: {problem['msg'].removeprefix('Value error, ')}"
