"""Where an export works: each step in a process of its own, each result under its content's hash.

A step's folder is named by what its result depends on: the request, the content of the files that
it reads, the versions of the tools, the machine. With `resume` a folder that has a result is not
made again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from export import machine
from export.errors import BY_NAME, ExportError, StepError
from export.fingerprint import own_code, sha256, versions
from export.steps.base import Report, Request
from export.worker import REQUEST, RESULT, no_space

LOG: Final = "log.txt"
FULL_BYTES: Final = 1 << 20

R = TypeVar("R", bound=Report)


@dataclass(frozen=True)
class Done(Generic[R]):
    """A step's report, the folder with what it wrote, and whether an earlier run made it."""

    report: R
    folder: Path
    seconds: float
    reused: bool


class Workshop:
    """The working folder of one export; a step that takes longer than `timeout_s` is killed.

    Use `opened()`.
    """

    def __init__(self, folder: Path, *, resume: bool, timeout_s: float) -> None:
        self.folder = folder
        self._resume = resume
        self._timeout_s = timeout_s
        # An engine is its GPU's, figures are this processor's: folders move between machines.
        self._here = json.dumps([versions(), own_code(), machine.facts().model_dump()])
        self._made: set[Path] = set()  # in this run: never made twice, whatever `resume` says

    def run(self, request: Request, kind: type[R]) -> Done[R]:
        """Return the step's report; raises the `ExportError` that it ended with."""
        key = self._key(request)
        folder = self.folder / f"{request.step}-{key[:16]}"
        may_be_kept = self._resume or folder in self._made
        if may_be_kept and (report := _kept(folder, kind)):
            return Done(report, folder, 0.0, reused=True)
        shutil.rmtree(folder, ignore_errors=True)
        begun = time.perf_counter()
        try:
            folder.mkdir(parents=True)
            (folder / REQUEST).write_text(request.model_dump_json(), "utf-8")
            _process(request.step, folder, self._timeout_s)
            report = _report(folder, kind)
        except (OSError, ExportError) as error:
            # A library that could not write gives reasons of its own.
            if shutil.disk_usage(self.folder).free < FULL_BYTES:
                raise no_space(self.folder) from error
            raise
        self._made.add(folder)
        return Done(report, folder, time.perf_counter() - begun, reused=False)

    def _key(self, request: Request) -> str:
        digest = hashlib.sha256(f"{self._here}\n{request.model_dump_json()}".encode())
        for path in request.artefacts():
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and file.name not in (LOG, RESULT, REQUEST):
                    digest.update(f"{file.name} {sha256(file)}\n".encode())
        return digest.hexdigest()


@contextlib.contextmanager
def opened(name: str, parent: Path | None, *, resume: bool, timeout_s: float) -> Iterator[Workshop]:
    """The workshop of model `name`: what an earlier run left is used (`resume`) or removed.

    One whose folder another export works in gets a folder that is gone at the end.
    """
    with contextlib.ExitStack() as stack:
        home = parent or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        folder = home / "tidegate" / "export" / name if parent is None else home / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / ".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            temporary = tempfile.TemporaryDirectory(prefix="tidegate-export-")
            folder = Path(stack.enter_context(temporary))
        except OSError as error:
            raise StepError(
                f"cannot work in {folder}: {error.strerror}", "name another with --work-dir"
            ) from error
        if not resume:
            for left in folder.iterdir():
                if (left / REQUEST).is_file():  # a step's, and nothing of the user's
                    shutil.rmtree(left)
        yield Workshop(folder, resume=resume, timeout_s=timeout_s)


def _kept(folder: Path, kind: type[R]) -> R | None:
    try:
        result = json.loads((folder / RESULT).read_text("utf-8"))
        report = kind.model_validate(result["report"]) if "report" in result else None
    except (OSError, ValueError):
        return None
    if report is None:
        return None  # what failed is tried again
    for path, was in report.depends.items():
        if not Path(path).is_file() or sha256(Path(path)) != was:
            return None
    return report


def _process(step: str, folder: Path, timeout_s: float) -> None:
    with (folder / LOG).open("wb") as log:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the step whole.
        process = subprocess.Popen(
            [sys.executable, "-m", "export.worker", step, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise StepError(
                f"took longer than {timeout_s:g} s and was ended",
                "allow more with --step-timeout-s",
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if not (folder / RESULT).exists():
        raise StepError(_end(code, folder), f"{folder / LOG} has what it said")


def _end(code: int, folder: Path) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed, most likely because memory ran out"
    said = (folder / LOG).read_text("utf-8", "replace").strip().splitlines()
    last = f": {said[-1]}" if said else ""
    if code < 0:
        return f"its process crashed ({signal.Signals(-code).name}){last}"
    return f"its process ended with exit code {code}{last}"


def _report(folder: Path, kind: type[R]) -> R:
    result = json.loads((folder / RESULT).read_text("utf-8"))
    if error := result.get("error"):
        advice = error["advice"].replace("the log has", f"{folder / LOG} has")
        raise BY_NAME.get(error["type"], ExportError)(error["why"], advice)
    return kind.model_validate(result["report"])
