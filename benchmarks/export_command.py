"""`tidegate export` as the rows run it: a process of its own, its manifest read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.provenance import ROOT


@dataclass(frozen=True, slots=True)
class Exported:
    """How it ended, how long it took, what it said, and the manifest of the version."""

    name: str
    code: int
    seconds: float
    said: str
    manifest: dict[str, Any]
    folder: Path

    @property
    def reason(self) -> str:
        """The line that says why it failed."""
        lines = [line for line in self.said.splitlines() if line.startswith("tidegate export:")]
        return lines[0] if lines else self.said.strip()[-300:]

    def candidate(self, name: str) -> dict[str, Any]:
        """One of the formats that were tried."""
        (found,) = [each for each in self.manifest["candidates"] if each["format"] == name]
        return dict(found)


def export(name: str, *arguments: str, repository: Path) -> Exported:
    """Export into `repository`, working beside it."""
    command = [sys.executable, "-m", "gateway.cli", "export", *arguments]
    flags = ["--name", name, "--repository", str(repository)]
    work = ["--work-dir", str(repository.parent / "work")]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, *flags, *work],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    versions = sorted((repository / name).glob("*/manifest.json"), key=lambda p: int(p.parent.name))
    manifest = json.loads(versions[-1].read_text()) if versions else {}
    folder = versions[-1].parent if versions else repository / name
    return Exported(name, done.returncode, seconds, done.stdout, manifest, folder)


def spec(name: str) -> str:
    """The path of a zoo model's spec."""
    return str(ROOT / "examples" / "zoo" / name / f"{name}.toml")
