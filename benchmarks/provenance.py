"""Where a result came from: machine, versions, commit, time."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtest.machine import describe_machine, describe_versions

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = ("tidegate", "grpcio", "onnxruntime", "onnxruntime-gpu", "uvloop", "protobuf")


def describe() -> dict[str, Any]:
    """Return everything that a reader needs to place a figure, as JSON values."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", *(os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:])],
        "commit": _git("rev-parse", "HEAD") or "unknown",
        # The results themselves lie in the tree; they do not make the code another one.
        "modified": bool(_git("status", "--porcelain", "--", ":!benchmarks/results")),
        "machine": describe_machine(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "versions": describe_versions(DISTRIBUTIONS),
    }


def relative(command: tuple[str, ...] | list[str]) -> list[str]:
    """Return a command without this machine's paths to the interpreter and the repository."""
    return [
        "python" if part == sys.executable else part.removeprefix(f"{ROOT}{os.sep}")
        for part in command
    ]


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
