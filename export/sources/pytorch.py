"""A source of PyTorch's as the step "capture" uses it."""

from pathlib import Path
from typing import Any, Self

import torch

from export import to_onnx
from export.samples import Arrays
from export.sources.opened import Opened, open_source
from export.spec import ExportSpec, Sizes
from export.tensors import InputSpec
from export.trained import TrainedModel


class PytorchModel:
    """A trained module; `of(spec)` holds it to inputs and outputs."""

    def __init__(self, opened: Opened, trained: TrainedModel | None = None) -> None:
        self._opened = opened
        self._trained = trained
        self.kind = opened.kind
        self.files = opened.files
        self.weight_count = opened.weight_count
        self.inputs: tuple[InputSpec, ...] = opened.inputs
        self.dim_sizes = opened.dim_sizes
        self.parameters = opened.parameters

    def of(self, spec: ExportSpec) -> Self:
        """The same module, called by the spec's names."""
        return type(self)(self._opened, TrainedModel(self._opened, spec))

    @property
    def _held(self) -> TrainedModel:
        assert self._trained, "a model is called when its spec is known: this is a bug"
        return self._trained

    def run(self, inputs: Arrays, sizes: Sizes) -> Arrays:
        """Outputs by name, as the spec declares them."""
        return self._held.run(inputs, sizes)

    def raw(self, inputs: Arrays, sizes: Sizes) -> dict[str, Any]:
        """All outputs, by their own names."""
        return {
            name: value.detach().numpy() for name, value in self._held.raw(inputs, sizes).items()
        }

    def convert(self, folder: Path) -> str:
        """Write `folder/model.onnx`; what was written, in words."""
        return to_onnx.convert(self._held, folder).summary()

    def convert_bf16(self, folder: Path) -> str:
        """As `convert`, computing in bfloat16; the module is no longer float32 afterwards."""
        trained = TrainedModel(self._opened, self._held.spec, torch.bfloat16)
        return to_onnx.convert(trained, folder).summary()


def open_model(spec: ExportSpec, trust_pickle: bool) -> PytorchModel:
    """Open the spec's model; raises `SourceError`."""
    return PytorchModel(open_source(spec, trust_pickle=trust_pickle))
