"""What a spec leaves open about inputs and outputs, from calls that were seen. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from export.arguments import name_of
from export.dtypes import KSERVE
from export.errors import SampleError
from export.sample_data import Call
from export.spec import ExportSpec
from export.tensors import InputSpec, OutputSpec

Shapes = Mapping[str, tuple[int, ...]]


def has_batch(calls: Sequence[Call], max_batch_size: int | None) -> bool:
    """Whether the first axis of all arrays is a batch: equal in each call, or said to be one."""
    if max_batch_size == 0:
        return False
    return all(
        all(array.ndim for array in call.values())
        and len({array.shape[0] for array in call.values()}) == 1
        for call in calls
    )


def inputs_of(
    calls: Sequence[Call], parameters: Sequence[str], max_batch_size: int | None
) -> tuple[InputSpec, ...]:
    """The inputs that these calls have; raises `SampleError` where they do not fit together.

    A dim whose size differs between calls is dynamic; dims that are always equal share a name.
    Integers are drawn from the range that was seen.
    """
    first = calls[0]
    for number, call in enumerate(calls):
        if [(p, a.dtype, a.ndim) for p, a in call.items()] != [
            (p, a.dtype, a.ndim) for p, a in first.items()
        ]:
            raise SampleError(f"samples: call {number} has other arrays than the first one")
    skip = 1 if has_batch(calls, max_batch_size) else 0
    if max_batch_size and not skip:
        raise SampleError("samples: the inputs of a call differ in their first size, the batch")
    names: dict[tuple[int, ...], str] = {}
    found = []
    for path, array in first.items():
        seen = [call[path] for call in calls]
        argument = _argument(path, parameters)
        name = name_of(argument)
        dims: list[int | str] = []
        for axis in range(skip, array.ndim):
            sizes = tuple(each.shape[axis] for each in seen)
            fixed = len(set(sizes)) == 1
            dims.append(sizes[0] if fixed else names.setdefault(sizes, f"{name}_dim_{axis}"))
        found.append(
            InputSpec(
                name=name,
                dtype=KSERVE[array.dtype.name],
                dims=tuple(dims),
                range=_range(seen),
                argument=argument if argument != name else None,
            )
        )
    return tuple(found)


def _argument(path: str, parameters: Sequence[str]) -> str:
    """A positional place by its parameter's name: "[1].mask" -> "batch.mask"."""
    if not path.startswith("["):
        return path
    number, rest = path[1:].split("]", 1)
    return (
        parameters[int(number)] + rest if int(number) < len(parameters) else f"input_{number}{rest}"
    )


def _range(seen: Sequence[Any]) -> tuple[float, float] | None:
    if seen[0].dtype.kind not in "iu":
        return None
    return float(min(a.min() for a in seen)), float(max(a.max() for a in seen))


def outputs_of(
    runs: Sequence[tuple[Mapping[str, int], Mapping[str, Any]]], spec: ExportSpec
) -> tuple[OutputSpec, ...]:
    """The outputs, from what two runs at different sizes returned: (sizes, tensors by name).

    A dim that has the size of a dynamic dim in every run gets its name; another that differs
    between runs a name of its own.
    """
    found = []
    for name, first in runs[0][1].items():
        shapes = [tuple(values[name].shape) for _, values in runs]
        dims: list[int | str] = []
        for axis in range(1 if spec.batch_limit else 0, len(shapes[0])):
            at = [shape[axis] for shape in shapes]
            owners = [
                dim
                for dim in spec.named_dims
                if all(sizes.get(dim) == size for (sizes, _), size in zip(runs, at, strict=True))
            ]
            dims.append(
                owners[0] if owners else at[0] if len(set(at)) == 1 else f"{name}_dim_{axis}"
            )
        dtype = str(np.asarray(first).dtype)
        if dtype not in KSERVE:
            raise SampleError(f"output {name!r} is {dtype}, which KServe does not know")
        found.append(OutputSpec(name=name, dtype=KSERVE[dtype], dims=tuple(dims)))
    return tuple(found)


def as_toml(inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]) -> str:
    """The tensors as a spec has them, to be read and copied."""
    lines = []
    for kind, tensors in (("inputs", inputs), ("outputs", outputs)):
        for tensor in tensors:
            dims = ", ".join(f'"{d}"' if isinstance(d, str) else str(d) for d in tensor.dims)
            lines += [f"[[{kind}]]", f'name = "{tensor.name}"', f'dtype = "{tensor.dtype}"']
            lines.append(f"dims = [{dims}]")
            if isinstance(tensor, InputSpec):
                if tensor.range:
                    lines.append(f"range = [{tensor.range[0]:g}, {tensor.range[1]:g}]")
                if tensor.argument:
                    lines.append(f'argument = "{tensor.argument}"')
            lines.append("")
    return "\n".join(lines).rstrip()
