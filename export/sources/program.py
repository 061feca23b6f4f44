"""Models that PyTorch wrote as a whole: an `ExportedProgram` (.pt2), a TorchScript archive."""

from pathlib import Path

import torch

from export.errors import SourceError


def load(path: Path) -> torch.nn.Module:
    """The module of a saved `torch.export.ExportedProgram`; raises `SourceError`."""
    try:
        return torch.export.load(path).module()
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise SourceError(
            f"{path.name} is no readable ExportedProgram: {type(error).__name__}: {error}",
            "write it again with torch.export.save(torch.export.export(module, ...), path)",
        ) from error


def load_script(path: Path) -> torch.nn.Module:
    """The module of a TorchScript archive, in eval mode; raises `SourceError`."""
    try:
        module: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise SourceError(f"{path.name} is no readable TorchScript archive: {error}") from error
    return module.eval()
