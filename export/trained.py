"""The trained PyTorch model as a function from named arrays to named arrays."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from export.dtypes import KSERVE, NUMPY
from export.errors import SourceError
from export.samples import Arrays
from export.spec import ExportSpec, OutputSpec, Sizes


@dataclass(frozen=True)
class TrainedModel:
    """An `nn.Module` in eval mode, on the CPU, held to its spec."""

    module: torch.nn.Module
    spec: ExportSpec

    def arguments(self, inputs: Arrays) -> tuple[torch.Tensor, ...]:
        """What `forward` takes: copies of the inputs (it may write to them), by position."""
        return tuple(torch.from_numpy(inputs[tensor.name].copy()) for tensor in self.spec.inputs)

    def run(self, inputs: Arrays, sizes: Sizes) -> Arrays:
        """Outputs by name; raises `SourceError` where they are not what the spec declares."""
        try:
            with torch.no_grad():
                result = self.module(*self.arguments(inputs))
        except Exception as error:
            raise SourceError(
                f"the PyTorch model fails{at(sizes)}: {blame(error)}" + self._hint(sizes)
            ) from error
        names = [tensor.name for tensor in self.spec.outputs]
        if isinstance(result, Mapping) and list(result) != names:
            raise SourceError(
                f"forward() returns a dict with the keys {list(result)}; "
                f"the spec's outputs are {names}: list them all, in the same order"
            )
        values = tree_leaves(result)
        if len(values) != len(names):
            raise SourceError(f"forward() returns {len(values)} outputs; the spec names {names}")
        return {
            tensor.name: self._array(tensor, value, sizes)
            for tensor, value in zip(self.spec.outputs, values, strict=True)
        }

    def _array(self, tensor: OutputSpec, value: Any, sizes: Sizes) -> Any:
        if not isinstance(value, torch.Tensor):
            raise SourceError(f"output {tensor.name!r} is a {type(value).__name__}, not a tensor")
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype != NUMPY[tensor.dtype].name:
            raise SourceError(
                f"output {tensor.name!r} has dtype {KSERVE.get(dtype, dtype)}; "
                f"the spec says {tensor.dtype}"
            )
        declared = self.spec.shape(tensor, sizes)
        fits = len(declared) == value.ndim and all(
            want in (None, got) for want, got in zip(declared, value.shape, strict=True)
        )
        if not fits:
            raise SourceError(
                f"output {tensor.name!r} has shape {list(value.shape)}{at(sizes)}; "
                f"the spec says {list(self.spec.symbolic_shape(tensor))}"
            )
        return value.detach().numpy()

    def _hint(self, sizes: Sizes) -> str:
        if not self.spec.named_dims:
            return ""
        return ". dim_sizes sets the sizes to try; dims that are always equal share one name"


def at(sizes: Sizes) -> str:
    """Phrase for `sizes` in a message: " at batch size 3, seq 11"."""
    words = [f"{'batch size' if name == 'batch' else name} {n}" for name, n in sizes.items()]
    return " at " + ", ".join(words) if words else ""


def blame(error: BaseException) -> str:
    """`error` in one line, with the place in the user's own code where it arose."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename
        and Path(frame.filename).parent != Path(__file__).parent
        and not frame.filename.startswith("<")
    ]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}{place}"
