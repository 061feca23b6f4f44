"""The names of an output's classes: the file that `label_filename` names, a line for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gateway.errors import RepositoryError
from gateway.repository.config_pbtxt import ModelConfig


def read_labels(config: ModelConfig, folder: Path) -> Mapping[str, tuple[bytes, ...]]:
    """Return the labels of each output that has some. Raises `RepositoryError`."""
    return {
        output.name: _lines(folder, output.label_filename)
        for output in config.output
        if output.label_filename
    }


def _lines(folder: Path, name: str) -> tuple[bytes, ...]:
    if name.startswith("/") or ".." in name.split("/"):
        raise RepositoryError(f"label_filename '{name}' leads out of the model's folder")
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise RepositoryError(f"cannot read label_filename '{name}': {error.strerror}") from None
    return tuple(content.removesuffix(b"\n").split(b"\n"))
