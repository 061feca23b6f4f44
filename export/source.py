"""Step "load": the trained model, built by its callable, given its weights, tried once."""

import importlib
import importlib.util
import inspect
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from export import samples
from export.errors import SourceError
from export.spec import ExportSpec, ModelRef
from export.trained import TrainedModel, blame


@dataclass(frozen=True)
class LoadReport:
    """The model, ready to export."""

    model: TrainedModel
    parameters: int
    origin: str

    def summary(self) -> str:
        """What was loaded, in one line."""
        return f"{self.origin}, {self.parameters:,} parameters"


def load(spec: ExportSpec) -> LoadReport:
    """Model in eval mode with its trained weights; raises `SourceError`.

    Runs the user's callable, and the module once at the example's sizes.
    """
    module = _build(spec.model)
    origin = str(spec.model)
    if spec.weights is not None:
        _give_weights(module, _state_dict(spec.weights, spec.weights_key))
        origin += f" with {spec.weights.name}"
    _refuse_train_mode(module, spec.model)
    _check_order(module, spec)
    model = TrainedModel(module.cpu(), spec)
    sizes = spec.example_sizes()
    model.run(samples.draw(spec, sizes, spec.seed), sizes)
    return LoadReport(model, sum(p.numel() for p in module.parameters()), origin)


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _build(ref: ModelRef) -> torch.nn.Module:
    folder = ref.folder.resolve()
    with _importing_from(folder):
        build = _callable(ref, folder)
        try:
            module = build()
        except Exception as error:
            raise SourceError(f"{ref}() failed: {blame(error)}") from error
    if isinstance(module, torch.jit.ScriptModule):
        raise SourceError(f"{ref}() returned a TorchScript module; return the nn.Module it is from")
    if not isinstance(module, torch.nn.Module):
        raise SourceError(f"{ref}() returned a {type(module).__name__}, not an nn.Module")
    return module


def _callable(ref: ModelRef, folder: Path) -> Callable[[], Any]:
    try:
        if not ref.module.endswith(".py"):
            module = importlib.import_module(ref.module)
        else:
            path = folder / ref.module
            if not path.is_file():
                raise SourceError(f"model: there is no file {path}")
            # A name of its own, so that a file called json.py shadows nothing.
            found = importlib.util.spec_from_file_location(f"_exported_{path.stem}", path)
            assert found, "a .py file has a spec"
            assert found.loader, "a .py file has a loader"
            module = importlib.util.module_from_spec(found)
            sys.modules[found.name] = module
            found.loader.exec_module(module)
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(f"cannot import {ref.module}: {blame(error)}") from error
    function = getattr(module, ref.function, None)
    if not callable(function):
        raise SourceError(f"{ref.module} has no function {ref.function!r}")
    return function  # type: ignore[no-any-return]


def _state_dict(path: Path, key: str | None) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise SourceError(f"weights: there is no file {path}")
    checkpoint = _safetensors(path) if path.suffix == ".safetensors" else _checkpoint(path)
    if key is not None:
        if not isinstance(checkpoint, dict) or key not in checkpoint:
            raise SourceError(f"{path.name} has no key {key!r} (weights_key)")
        checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict):
        raise SourceError(f"{path.name} holds a {type(checkpoint).__name__}, not a state dict")
    if strangers := [name for name, v in checkpoint.items() if not isinstance(v, torch.Tensor)]:
        raise SourceError(
            f"{path.name} is not a state dict: {_listed(strangers)} no tensor; "
            f"if one of its keys {list(checkpoint)[:8]} is the state dict, name it with weights_key"
        )
    return checkpoint


def _safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path.name} is not a whole safetensors file: {error}") from error


def _checkpoint(path: Path) -> Any:
    """Content of a torch checkpoint; a pickle that holds more than data is never run."""
    try:
        with warnings.catch_warnings():
            # Both say in other words what the refusal below says.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            warnings.filterwarnings("ignore", "'torch.load' received a zip file", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise SourceError(
            f"{path.name} is refused: {_refusal(error)}. Loading it could run any code in it. "
            "Save the state dict alone: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from error


def _refusal(error: Exception) -> str:
    text = str(error)
    if "Unsupported global: GLOBAL " in text:
        name = text.partition("Unsupported global: GLOBAL ")[2].split()[0]
        return f"it is a pickle that needs {name}, which is code, not weights"
    if "TorchScript" in text:
        return "it is a TorchScript archive, which holds code beside its weights"
    if "Unsupported operand" in text:
        return "it is a plain pickle, not a checkpoint of torch.save"
    return f"it is no readable torch checkpoint ({type(error).__name__})"


def _give_weights(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes that differ
        lines = str(error).splitlines()
        raise SourceError("weights: " + "; ".join(line.strip() for line in lines[1:])) from error
    if missing or unexpected:
        parts = [f"{_listed(missing)} missing"] if missing else []
        parts += [f"{_listed(unexpected)} not in the module"] if unexpected else []
        raise SourceError("the weights do not fit the module: " + "; ".join(parts))


def _refuse_train_mode(module: torch.nn.Module, ref: ModelRef) -> None:
    training = [name or "the module itself" for name, m in module.named_modules() if m.training]
    if training:
        raise SourceError(
            f"{_listed(training)} in train mode, where dropout and batch norm give other answers; "
            f"call .eval() on the module in {ref}"
        )


def _check_order(module: torch.nn.Module, spec: ExportSpec) -> None:
    """Refuse inputs whose names say that they would reach the wrong parameter of forward()."""
    parameters = list(inspect.signature(module.forward).parameters)
    for position, tensor in enumerate(spec.inputs):
        if tensor.name in parameters and parameters.index(tensor.name) != position:
            raise SourceError(
                f"inputs are passed by position: {tensor.name!r} is number {position + 1} in the "
                f"spec and number {parameters.index(tensor.name) + 1} of forward({parameters})"
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    verb = "is" if len(names) == 1 else "are"
    return ", ".join(names[:3]) + f"{more} {verb}"
