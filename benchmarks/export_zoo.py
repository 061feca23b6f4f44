"""Row "zoo": every model of the zoo is exported, verified, and asked through a gateway."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.bars import Outcome
from benchmarks.export_command import export, spec
from benchmarks.provenance import ROOT
from benchmarks.rows import Found


def measure(scratch: Path) -> Found:
    """Export all of it, then run the zoo's tests."""
    repository = scratch / "model_repository"
    names = sorted(path.stem for path in (ROOT / "examples" / "zoo").glob("*/*.toml"))
    models = {}
    for name in names:
        done = export(name, spec(name), repository=repository)
        models[name] = {
            "exported": done.code == 0,
            "seconds": round(done.seconds, 1),
            "format": done.manifest.get("format"),
            "parity": done.candidate("onnx-fp32")["parity"]["outputs"] if done.manifest else None,
            "metric": done.manifest.get("metric"),
            "failed": done.reason if done.code else None,
        }
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/zoo"],
        cwd=ROOT,
        env={**os.environ, "TIDEGATE_ZOO": str(repository)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    exported = sum(bool(each["exported"]) for each in models.values())
    claim = "zoo models exported and verified / all"
    answers = "tests of their answers through the gateway that pass / all"
    return (
        [
            Outcome("zoo", claim, 1.0, True, exported / len(names)),
            Outcome("zoo", answers, 1.0, True, float(tests.returncode == 0)),
        ],
        {"models": models, "tests": tests.stdout.strip().splitlines()[-1:]},
    )
