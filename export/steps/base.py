"""What the requests and reports of all steps have in common."""

from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """What a step is asked for. `artefacts` are files whose content decides the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    step: ClassVar[str]  # the module in export.steps

    def artefacts(self) -> tuple[Path, ...]:
        """Return the files that are read; folders stand for all files in them."""
        return ()


class Report(BaseModel):
    """What a step has done."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    # Files that the user's code came from, path -> sha256: with others the result is another.
    depends: dict[str, str] = {}

    def summary(self) -> str:
        """Return one line for the progress display."""
        raise NotImplementedError
