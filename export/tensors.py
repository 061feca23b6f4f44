"""What a spec says of one input or output: name, dtype, dims, and how close is close enough."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    model_validator,
)

from export.dtypes import NUMPY, REFUSED, DtypeName

BATCH: Final = "batch"
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


class Table(BaseModel):
    """A table of the spec: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(Table):
    """What clients see of an input or output."""

    name: str = Field(min_length=1)
    dtype: Dtype
    dims: Dims


class InputSpec(TensorSpec):
    """One input. `range` (low, high) bounds the random values of the parity check.

    `argument` says where forward() takes it: "ids", "batch.ids" (a dict's key), "pair[0]" (a
    tuple's place). Without it: the parameter of the same name, else the next free one.
    """

    range: tuple[float, float] | None = None
    argument: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.\w+|\[\d+\])*$")] | None = None

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


class Tolerance(Table):
    """How far an output may be from PyTorch's: every value, and the direction of rows.

    |value - PyTorch's| may reach `atol + rtol * |PyTorch's|`; None: single values are not judged.
    `cosine` is the least allowed mean over all rows, `row_cosine` the least of any one.
    """

    atol: float | None = Field(default=None, ge=0)
    rtol: float | None = Field(default=None, ge=0)
    cosine: float | None = Field(default=None, ge=-1, le=1)
    row_cosine: float | None = Field(default=None, ge=-1, le=1)


# Of float32 files, by the output's dtype; every other dtype has to be equal.
EXACT: Final[Mapping[str, Tolerance]] = {
    "FP16": Tolerance(atol=1e-2, rtol=1e-2),
    "FP32": Tolerance(atol=1e-5, rtol=1e-3),
    "FP64": Tolerance(atol=1e-9, rtol=1e-6),
}
# Of files in a lower precision, whose single values may stray: half floats keep 11 bits, bfloat16
# 8, and what int8 loses depends on the data, so that only the direction and the task's metric tell.
LOWERED: Final[Mapping[str, Tolerance]] = {
    "fp16": Tolerance(atol=2e-2, rtol=2e-2, cosine=0.999),
    "bf16": Tolerance(atol=1e-1, rtol=1e-1, cosine=0.99),
    "int8": Tolerance(cosine=0.99, row_cosine=0.95),
}


class OutputSpec(TensorSpec):
    """One output; `labels` names its classes.

    `atol` and `rtol` replace those of float32 files, `tolerances` those of a lower precision.
    """

    labels: Path | None = None
    atol: float | None = Field(default=None, ge=0)
    rtol: float | None = Field(default=None, ge=0)
    tolerances: Mapping[str, Tolerance] = {}

    @model_validator(mode="after")
    def _precisions_exist(self) -> Self:
        for precision in self.tolerances:
            if precision not in LOWERED:
                raise ValueError(f"tolerances are of {', '.join(LOWERED)}, not {precision!r}")
        return self

    def tolerance(self, precision: str = "fp32") -> Tolerance:
        """What is allowed in a file of this precision ("fp32", "fp16", "bf16", "int8")."""
        exact = EXACT.get(self.dtype, Tolerance(atol=0.0, rtol=0.0))
        if precision == "fp32":
            own = {"atol": self.atol, "rtol": self.rtol}
        elif self.dtype in EXACT:
            exact = LOWERED[precision]
            own = self.tolerances.get(precision, Tolerance()).model_dump()
        elif self.tolerances.get(precision):
            return self.tolerances[precision]
        else:
            # Integers and booleans (a class, a position) may flip where two scores are close.
            return Tolerance()
        return exact.model_copy(update={k: v for k, v in own.items() if v is not None})
