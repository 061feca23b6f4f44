"""The trained PyTorch model as a function from named arrays to named arrays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from export.arguments import arranged, leaves, name_of, places
from export.code import blame
from export.compare import at
from export.dtypes import KSERVE, NUMPY
from export.errors import SourceError
from export.samples import Arrays
from export.sources.opened import Opened
from export.spec import ExportSpec, Sizes
from export.tensors import OutputSpec


class Flat(torch.nn.Module):
    """A module with the spec's inputs in their order and a tuple of the spec's outputs.

    `lowered`: it computes in this dtype, between float32 inputs and outputs.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        where: Sequence[str],
        by_position: Sequence[str],
        select: Callable[[Any], tuple[Any, ...]],
        lowered: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self._where = tuple(where)
        self._by_position = tuple(by_position)
        self._select = select
        self._lowered = lowered
        self.training = False  # the module's own mode has been looked at; this shell has none

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call the module as it wants to be called."""
        given = [_cast(tensor, torch.float32, self._lowered) for tensor in tensors]
        positional, keywords = arranged(given, self._where, self._by_position)
        values = self._select(self.module(*positional, **keywords))
        return tuple(_cast(value, self._lowered, torch.float32) for value in values)


def _cast(tensor: torch.Tensor, of: torch.dtype | None, to: torch.dtype | None) -> torch.Tensor:
    return tensor.to(to) if of and to and tensor.dtype == of else tensor


class TrainedModel:
    """A module held to its spec: called by named arrays, answering in named arrays."""

    def __init__(
        self, opened: Opened, spec: ExportSpec, lowered: torch.dtype | None = None
    ) -> None:
        self.spec = spec
        self.opened = opened
        self._where = places(spec.inputs, opened.parameters)
        module = opened.module.to(lowered) if lowered else opened.module
        self.flat = Flat(module, self._where, opened.by_position, self._selected, lowered)

    def arguments(self, inputs: Arrays) -> tuple[torch.Tensor, ...]:
        """The inputs in the spec's order: copies, since forward() may write to them."""
        return tuple(torch.from_numpy(inputs[tensor.name].copy()) for tensor in self.spec.inputs)

    def raw(self, inputs: Arrays, sizes: Sizes) -> dict[str, torch.Tensor]:
        """Everything that forward() returns, by path; for a spec that names no outputs yet."""
        return named(self._call(inputs, sizes))

    def run(self, inputs: Arrays, sizes: Sizes) -> Arrays:
        """Outputs by name; raises `SourceError` where they are not what the spec declares."""
        values = self._selected(self._call(inputs, sizes))
        return {
            tensor.name: self._array(tensor, value, sizes)
            for tensor, value in zip(self.spec.outputs, values, strict=True)
        }

    def _call(self, inputs: Arrays, sizes: Sizes) -> Any:
        positional, keywords = arranged(
            self.arguments(inputs), self._where, self.opened.by_position
        )
        try:
            with torch.no_grad():
                return self.opened.module(*positional, **keywords)
        except Exception as error:
            raise SourceError(
                f"the PyTorch model fails{at(sizes)}: {blame(error)}", self._hint()
            ) from error

    def _selected(self, result: Any) -> tuple[torch.Tensor, ...]:
        names = [tensor.name for tensor in self.spec.outputs]
        values = named(result)
        if all(name in values for name in names):
            return tuple(values[name] for name in names)
        # By order only where order is all there is: two outputs of a dict are easily swapped.
        if len(values) != len(names) or (isinstance(result, Mapping) and len(names) > 1):
            raise SourceError(
                f"forward() returns {len(values)} outputs ({', '.join(values)}); "
                f"the spec names {names}",
                "name outputs as forward()'s dict does, or list all of them in its order",
            )
        return tuple(values.values())

    def _array(self, tensor: OutputSpec, value: torch.Tensor, sizes: Sizes) -> Any:
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

    def _hint(self) -> str:
        if not self.spec.named_dims:
            return ""
        return "dim_sizes sets the sizes to try; dims that are always equal share one name"


def named(result: Any) -> dict[str, torch.Tensor]:
    """The tensors in what forward() returned, by name: nested dicts flatten to a_b.

    What is no tensor (a cache, None) is left out; a lone tensor is called "output".
    """
    found = {
        name_of(path) or "output": leaf
        for path, leaf in leaves(result)
        if isinstance(leaf, torch.Tensor)
    }
    return {f"output_{name}" if name.isdecimal() else name: leaf for name, leaf in found.items()}
