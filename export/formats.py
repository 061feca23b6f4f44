"""Which formats make sense on a machine, and why the others do not. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from export.spec import FORMATS, ExportSpec, Target

BASE: Final = "onnx-fp32"  # what all others are made from and held against


@dataclass(frozen=True)
class Have:
    """What there is. Each `no_...` says why something is missing; None: it is there."""

    target: Target
    no_cuda: str | None
    no_tensorrt: str | None
    no_preflight: str | None
    capability: tuple[int, int] | None = None


@dataclass(frozen=True)
class Planned:
    """A format to be tried, or the reason why it is not."""

    format: str
    skipped: str = ""


def precision(name: str) -> str:
    """ "fp32", "fp16", "bf16" or "int8" of a format."""
    return "int8" if "int8" in name else name.rpartition("-")[2]


def made_from(name: str) -> str:
    """The ONNX format whose file a TensorRT engine is built from."""
    return name.replace("tensorrt-", "onnx-")


def plan(spec: ExportSpec, have: Have) -> tuple[Planned, ...]:
    """Every format of `spec` (all, where it names none), the base first, engines last."""
    asked = set(spec.formats)
    chosen = [name for name in FORMATS if not asked or name in asked or name == BASE]
    return tuple(Planned(name, _reason(name, spec, have)) for name in chosen)


def describe(have: Have) -> Iterable[tuple[str, str]]:
    """(format, why it is not tried by default; "" where it is) for a spec with samples."""
    for name in FORMATS:
        yield name, _machine(name, have, asked=False)


def _reason(name: str, spec: ExportSpec, have: Have) -> str:
    if why := _machine(name, have, asked=name in spec.formats):
        return why
    if precision(name) == "int8" and spec.samples is None:
        done = "judged" if "dynamic" in name else "calibrated"
        return f"no samples are given: int8 is {done} on real inputs"
    return ""


def _machine(name: str, have: Have, *, asked: bool) -> str:
    kind, _, _ = name.partition("-")
    if kind == "tensorrt":
        return have.no_tensorrt or ""
    if name == "onnx-bf16":
        if have.no_cuda:
            return f"ONNX Runtime computes bfloat16 on a GPU only: {have.no_cuda}"
        if have.capability and have.capability < (8, 0):
            return f"bfloat16 needs compute capability 8.0, this GPU has {_dotted(have.capability)}"
        return ""
    if name == "onnx-fp16" and have.target == "cpu" and not asked:
        return "on a CPU half floats are computed as floats, with casts around them"
    if name == "onnx-int8-dynamic" and have.target == "gpu" and not asked:
        return "on a GPU nothing computes it faster"
    return ""


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
