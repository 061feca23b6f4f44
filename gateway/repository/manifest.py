"""What an exporter says of a version, in its folder: `manifest.json`. Only what is used here."""

from __future__ import annotations

import json
from pathlib import Path

from gateway.errors import RepositoryError

FILE = "manifest.json"
MEMORY = "memory_bytes"  # what one copy takes when it is loaded


def memory_bytes(version: Path) -> int | None:
    """Return what a version's manifest says that it takes; None where nothing is said.

    Raises `RepositoryError` where that is no number of bytes.
    """
    try:
        told = json.loads((version / FILE).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RepositoryError(f"cannot read {FILE}: {error}") from None
    size = told.get(MEMORY) if isinstance(told, dict) else None
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise RepositoryError(f"{FILE}: '{MEMORY}' is no number of bytes: {size!r}")
    return size
