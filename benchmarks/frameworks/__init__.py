"""The frameworks that Tidegate is compared with, each in an environment of its own.

    python -m benchmarks.frameworks install [NAME ...]

The environments lie under .bench/NAME, their pinned packages in benchmarks/frameworks/NAME. A name
that is installed already, with these very pins, is left alone.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.provenance import ROOT

FRAMEWORKS = ("mlserver", "kserve", "litserve", "ray", "bentoml")

_ENVIRONMENTS = ROOT / ".bench"


class NotInstalled(Exception):
    """A framework is not there; the text says why."""


def folder(name: str) -> Path:
    """Return the folder with a framework's server and its pins."""
    return ROOT / "benchmarks" / "frameworks" / name


def program(name: str, executable: str) -> Path:
    """Return an executable of a framework's environment, there or not."""
    return _ENVIRONMENTS / name / "bin" / executable


def reason_absent(name: str) -> str:
    """Return why a framework cannot be measured; empty where it can."""
    if _installed(name):
        return ""
    return f"not installed: python -m benchmarks.frameworks install {name}"


def main_pins(name: str) -> list[str]:
    """Return the pins that a reader of the figures wants to know."""
    known = (name, "onnxruntime", "numpy", "grpcio", "uvloop")
    return [pin for pin in _pins(name).read_text().split() if pin.split("==")[0] in known]


def install(name: str) -> None:
    """Make a framework's environment, unless it is there with the same pins.

    Raises `NotInstalled` with what pip said last.
    """
    if _installed(name):
        return
    environment = _ENVIRONMENTS / name
    _run([sys.executable, "-m", "venv", "--clear", str(environment)])
    # whoever looks through the tree (git, ruff, mypy) is not to find them
    (_ENVIRONMENTS / ".gitignore").write_text("*\n")
    pip = [str(program(name, "python")), "-m", "pip", "install", "--disable-pip-version-check"]
    _run([*pip, "--quiet", "--requirement", str(_pins(name))])
    _stamp(name).write_text(_pins(name).read_text())


def _installed(name: str) -> bool:
    try:
        return _stamp(name).read_text() == _pins(name).read_text()
    except FileNotFoundError:
        return False


def _pins(name: str) -> Path:
    return folder(name) / "requirements.txt"


def _stamp(name: str) -> Path:
    """Return the file that is written when an environment is complete: a copy of its pins."""
    return _ENVIRONMENTS / name / "installed.txt"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise NotInstalled(f"'{' '.join(command[1:4])}' failed: {said[-1][:300]}")
