"""The process of one step: `python -m export.worker STEP FOLDER`.

Reads FOLDER/request.json and writes FOLDER/result.json: {"report": ...} or {"error": ...}. What
libraries print goes to where the parent sends it, a log beside them.
"""

import contextlib
import errno
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, Final

from export.errors import ExportError, StepError

REQUEST: Final = "request.json"
RESULT: Final = "result.json"


def main() -> None:
    """Run the step; the exit code is 0 whenever there is a result."""
    step, folder = sys.argv[1], Path(sys.argv[2])
    module = importlib.import_module(f"export.steps.{step}")
    try:
        request = module.Request.model_validate_json((folder / REQUEST).read_text("utf-8"))
        report = module.run(request, folder)
        result: dict[str, Any] = {"report": report.model_dump(mode="json")}
    except ExportError as error:
        result = {"error": _told(error)}
    except Exception as error:
        traceback.print_exc()
        result = {"error": _told(_unforeseen(error, folder))}
    # Of a temporary name first: a result that is there is whole.
    unfinished = folder / f"{RESULT}.part"
    unfinished.write_text(json.dumps(result), "utf-8")
    unfinished.rename(folder / RESULT)
    # The user's modules and the runtimes may hang in their farewells: nothing is left to be done.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def _told(error: ExportError) -> dict[str, str]:
    return {"type": type(error).__name__, "why": str(error), "advice": error.advice}


def _unforeseen(error: Exception, folder: Path) -> ExportError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_space(folder)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}"
    words = str(error).strip() or "no message"
    if "Failed to allocate memory" in words or isinstance(error, MemoryError):
        return StepError(f"out of memory: {words}", "free memory, or give a smaller max_batch_size")
    return StepError(f"{type(error).__name__}: {words} ({place})", "the log has the whole trace")


def no_space(folder: Path) -> ExportError:
    """Return the error of a full disk; nothing half-written is left in the repository."""
    return StepError(
        f"no disk space is left in {folder}",
        "free some, or name another disk with --work-dir",
    )


if __name__ == "__main__":
    main()
