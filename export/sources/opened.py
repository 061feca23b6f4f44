"""Step "load" of PyTorch's kinds: the trained model of a spec, whatever it lies in."""

import inspect
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from export import code
from export.errors import SourceError
from export.sources import program, transformers_folder, weights
from export.spec import CodeRef, ExportSpec
from export.tensors import InputSpec


@dataclass(frozen=True)
class Opened:
    """A module in eval mode on the CPU, and what is known of where it came from.

    `inputs` are those that the source itself knows, `dim_sizes` where their dims can be checked;
    empty where only the spec can say.
    `scripted`: TorchScript, which only PyTorch's older exporter takes.
    """

    module: torch.nn.Module
    kind: str
    files: tuple[Path, ...]
    parameters: tuple[str, ...]  # of forward(), in order
    by_position: tuple[str, ...] = ()  # those that it does not take by name
    inputs: tuple[InputSpec, ...] = ()
    dim_sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scripted: bool = False

    @property
    def weight_count(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.module.parameters())


def open_source(spec: ExportSpec, *, trust_pickle: bool) -> Opened:
    """Open the spec's model; raises `SourceError`. Runs the user's callable."""
    files: tuple[Path, ...] = ()
    inputs: tuple[InputSpec, ...] = ()
    sizes: Mapping[str, tuple[int, ...]] = {}
    by_position: tuple[str, ...] = ()
    if isinstance(spec.model, CodeRef):
        kind, module = "callable", _called(spec.model)
    else:
        path = spec.model
        if not path.exists():
            raise SourceError(f"model: there is no file or folder {path}")
        if path.is_dir():
            kind = "transformers"
            module, files = transformers_folder.load(path)
            inputs = transformers_folder.inputs(module)
            sizes = transformers_folder.dim_sizes(module)
        elif path.suffix == ".pt2":
            kind, files = "exported-program", (path,)
            module, by_position = program.load(path)
        else:
            kind, module = _from_file(path, trust_pickle)
            files = (path,)
    if spec.weights is not None:
        weights.give(module, spec.weights, spec.weights_key, trust_pickle=trust_pickle)
        files += (spec.weights,)
    if kind != "exported-program":  # whose mode was decided when it was captured
        _refuse_train_mode(module, str(spec.model))
    transformers_folder.make_plain(module)
    scripted = isinstance(module, torch.jit.ScriptModule)
    return Opened(
        module=module.cpu(),
        kind=kind,
        files=files,
        parameters=_parameters(module),
        by_position=by_position,
        inputs=inputs,
        dim_sizes=sizes,
        scripted=scripted,
    )


def _called(ref: CodeRef) -> torch.nn.Module:
    module = code.call(ref)
    if not isinstance(module, torch.nn.Module):
        raise SourceError(f"{ref}() returned a {type(module).__name__}, not an nn.Module")
    return module


def _from_file(path: Path, trust_pickle: bool) -> tuple[str, torch.nn.Module]:
    if zipfile.is_zipfile(path) and any(
        "/code/" in name for name in zipfile.ZipFile(path).namelist()
    ):
        return "torchscript", program.load_script(path)
    content = weights.checkpoint(path, trust_pickle=trust_pickle)
    if not isinstance(content, torch.nn.Module):
        raise SourceError(
            f"{path.name} holds a {type(content).__name__}, not a whole model",
            "give the callable that builds the module as model, and this file as weights",
        )
    return "pickle", content


def _refuse_train_mode(module: torch.nn.Module, origin: str) -> None:
    training = [name or "the module itself" for name, m in module.named_modules() if m.training]
    if training:
        raise SourceError(
            f"{weights.listed(training)} in train mode, where dropout and batch norm give other "
            "answers",
            f"call .eval() on the module in {origin}",
        )


def _parameters(module: torch.nn.Module) -> tuple[str, ...]:
    if isinstance(module, torch.jit.ScriptModule):
        schema: Any = getattr(module.forward, "schema")  # noqa: B009
        return tuple(argument.name for argument in schema.arguments[1:])
    return tuple(
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    )
