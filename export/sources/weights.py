"""Weights from a file: safetensors, or a checkpoint of plain tensors."""

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from export.errors import SourceError

SAVE_AS_SAFETENSORS = (
    "save the state dict alone: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)
TRUST = "where you trust its author, --trust-pickle loads it"


def give(module: torch.nn.Module, path: Path, key: str | None, *, trust_pickle: bool) -> None:
    """Load `path` into `module`; raises `SourceError` where the two do not fit."""
    state = _state_dict(path, key, trust_pickle)
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes that differ
        lines = str(error).splitlines()
        raise SourceError("weights: " + "; ".join(line.strip() for line in lines[1:])) from error
    if missing or unexpected:
        parts = [f"{listed(missing)} missing"] if missing else []
        parts += [f"{listed(unexpected)} not in the module"] if unexpected else []
        raise SourceError(
            "the weights do not fit the module: " + "; ".join(parts),
            "build the module as it was trained, or name the state dict's key with weights_key",
        )


def checkpoint(path: Path, *, trust_pickle: bool) -> Any:
    """Content of a torch checkpoint; code in it runs only with `trust_pickle`."""
    try:
        with warnings.catch_warnings():
            # Both say in other words what the refusal below says.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            warnings.filterwarnings("ignore", "'torch.load' received a zip file", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise SourceError(
            f"{path.name} is refused: {_refusal(error)}. Loading it could run any code in it",
            f"{SAVE_AS_SAFETENSORS}; {TRUST}",
        ) from error


def listed(names: Sequence[str]) -> str:
    """The first names in words, with "is" or "are" behind them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    verb = "is" if len(names) == 1 else "are"
    return ", ".join(names[:3]) + f"{more} {verb}"


def _state_dict(path: Path, key: str | None, trust_pickle: bool) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise SourceError(f"weights: there is no file {path}")
    if path.suffix == ".safetensors":
        content = _safetensors(path)
    else:
        content = checkpoint(path, trust_pickle=trust_pickle)
    if key is not None:
        if not isinstance(content, dict) or key not in content:
            raise SourceError(f"{path.name} has no key {key!r} (weights_key)")
        content = content[key]
    if not isinstance(content, dict):
        raise SourceError(f"{path.name} holds a {type(content).__name__}, not a state dict")
    if strangers := [name for name, v in content.items() if not isinstance(v, torch.Tensor)]:
        raise SourceError(
            f"{path.name} is not a state dict: {listed(strangers)} no tensor",
            f"if one of its keys {list(content)[:8]} is the state dict, name it with weights_key",
        )
    return content


def _safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path.name} is not a whole safetensors file: {error}") from error


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
