"""Models that PyTorch wrote as a whole: an `ExportedProgram` (.pt2), a TorchScript archive."""

import inspect
import warnings
from pathlib import Path

import torch

from export.errors import SourceError


def load(path: Path) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """(module of a saved `torch.export.ExportedProgram`, the parameters it wants by position).

    Such a module is called exactly as it was when it was captured. Raises `SourceError`.
    """
    try:
        program = torch.export.load(path)
        module = program.module()
        _, keywords = program.call_spec.in_spec.children()
        names = list(inspect.signature(module.forward).parameters)
        return module, tuple(name for name in names if name not in (keywords.context or ()))
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise SourceError(
            f"{path.name} is no readable ExportedProgram: {type(error).__name__}: {error}",
            "write it again with torch.export.save(torch.export.export(module, ...), path)",
        ) from error


def load_script(path: Path) -> torch.nn.Module:
    """The module of a TorchScript archive, in eval mode; raises `SourceError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
            module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                path, map_location="cpu"
            )
    except (RuntimeError, ValueError) as error:
        raise SourceError(f"{path.name} is no readable TorchScript archive: {error}") from error
    return module.eval()
