"""`tidegate loadtest`: run Locust against one model of an endpoint and say what came out.

Locust runs in a child process, since gevent must patch the standard library before anything else
is imported; the child writes its exact figures to a file and this process reports them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.answers import AnswerCheck, WrongAnswer
from loadtest.endpoint import EndpointError, describe, first_answer, open_channel
from loadtest.machine import describe_machine, describe_versions
from loadtest.metrics import MetricsUnreadable, ServerCounts, read_counts
from loadtest.payloads import PayloadError, parse_integers, parse_shapes, request_ring
from loadtest.report import Report

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
# Requests in flight when the time is up are waited for, so that client and server count the same.
STOP_TIMEOUT_S = 10
# Interpreter start, imports and Locust's own report, on a slow machine.
CHILD_GRACE_S = 60
INTERRUPTED = 130

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?")


class RunFailed(Exception):
    """Locust ended without figures; the text says what it said last."""


def main(argv: list[str]) -> int:
    """Return 0 if every request was answered rightly, 1 if not, 130 after Ctrl-C.

    Wrong usage leaves through argparse (`SystemExit(2)`).
    """
    options = build_parser().parse_args(argv)
    if importlib.util.find_spec("locust") is None:
        return _complain("Locust is not installed; it comes with: pip install 'tidegate[loadtest]'")
    try:
        return _run(options)
    except (EndpointError, PayloadError, RunFailed) as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `tidegate loadtest`."""
    parser = argparse.ArgumentParser(
        prog="tidegate loadtest",
        description="Measure latency and throughput of a model behind a KServe v2 gRPC endpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="model to test")
    add("--model-version", default="", help="its version; empty: the server's choice")
    add("--host", default="127.0.0.1:8001", help="gRPC address of the endpoint")
    add("--users", type=_positive, default=32, help="concurrent users, each waits for its answer")
    add("--duration", type=duration_s, default="15s", help="for example 15s, 5m, 1h30m")
    add("--spawn-rate", type=_positive, help="users started each second; default: all at once")
    add("--batch-size", type=_positive, default=1, help="rows in a request")
    add("--shape", action="append", default=[], help="dims of an open input, NAME:3,224,224")
    add("--integers", default="0,99", help="least and greatest value of integer inputs")
    add("--seed", type=int, default=0, help="seed of the request's values")
    add("--timeout-s", type=float, default=30.0, help="deadline of a request, in seconds")
    add(
        "--metrics",
        default="http://127.0.0.1:8002/metrics",
        help="the server's Prometheus endpoint, for the mean batch size",
    )
    add("--report-dir", type=Path, help="default: loadtest-report/<UTC time>-<model>")
    return parser


def duration_s(text: str) -> int:
    """Return the seconds of "15s", "1m30s", "2h" or "15"."""
    match = _DURATION.fullmatch(text.strip())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = hours * 3600 + minutes * 60 + seconds
    if total < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a duration like 15s, 5m or 1h30m")
    return total


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _complain(sentence: str) -> int:
    print(f"tidegate loadtest: {sentence}", file=sys.stderr)
    return 1


def _run(options: argparse.Namespace) -> int:
    console = Console()
    first_request_ms = _probe(options)
    started = datetime.now(UTC)
    before, server_note = _counts(options)
    report_dir = options.report_dir or Path(
        "loadtest-report", f"{started:%Y%m%dT%H%M%SZ}-{options.model.replace('/', '_')}"
    )
    report_dir.mkdir(parents=True, exist_ok=True)
    with console.status(f"{options.users} users for {options.duration} s ..."):
        measured, interrupted = _locust(options, report_dir)
    server = None
    if before is not None:
        after, server_note = _counts(options)
        server = after.since(before) if after is not None else None
    if server is not None and server.executions <= 0:
        server_note = f"{options.metrics} counted no batch of model '{options.model}'"
    report = Report(
        started_at=started.isoformat(timespec="seconds"),
        settings=_settings(options),
        **measured,
        first_request_ms=round(first_request_ms, 3),
        server=server,
        server_note=server_note,
        versions=describe_versions(["tidegate", "locust", "gevent", "grpcio", "tritonclient"]),
        machine=describe_machine(),
    )
    report.write(report_dir / "result.json")
    report.print(console)
    print(f"report: {report_dir / 'report.html'}  {report_dir / 'result.json'}")
    if interrupted:
        return INTERRUPTED
    if not report.requests:
        return _complain(f"no request ended within {options.duration} s")
    return 1 if report.failures else 0


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    settings = vars(options) | {"duration_s": options.duration, "percentiles": "nearest rank"}
    del settings["duration"], settings["report_dir"]
    return settings


def _probe(options: argparse.Namespace) -> float:
    """Return the milliseconds of one checked request: it wakes the model and shows it works."""
    with open_channel(options.host) as channel:
        about = describe(
            channel, options.host, options.model, options.model_version, options.timeout_s
        )
        requests = request_ring(
            about.metadata,
            about.config,
            batch_size=options.batch_size,
            model_version=options.model_version,
            shapes=parse_shapes(options.shape),
            integers=parse_integers(options.integers),
            seed=options.seed,
        )
        response, took_s = first_answer(channel, options.host, requests[0], options.timeout_s)
        try:
            AnswerCheck(about.metadata, about.config, options.batch_size)(response)
        except WrongAnswer as error:
            raise EndpointError(f"the first answer is wrong: {error}") from None
    return took_s * 1e3


def _counts(options: argparse.Namespace) -> tuple[ServerCounts | None, str]:
    try:
        return read_counts(options.metrics, options.model, options.model_version), ""
    except MetricsUnreadable as error:
        return None, f"unknown, the metrics cannot be read ({error})"


def _locust(options: argparse.Namespace, report_dir: Path) -> tuple[dict[str, Any], bool]:
    """Return the child's figures, and whether Ctrl-C cut it short. Raises `RunFailed`."""
    log_path = report_dir / "locust.log"
    with tempfile.TemporaryDirectory(prefix="tidegate-loadtest-") as scratch:
        measured = Path(scratch, "measured.json")
        command = _command(options, measured, report_dir / "report.html")
        with log_path.open("w") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            interrupted = False
            try:
                limit_s = options.duration + STOP_TIMEOUT_S + CHILD_GRACE_S
                try:
                    child.wait(limit_s)
                except KeyboardInterrupt:
                    # The terminal has sent the child the same signal: it stops and reports.
                    interrupted = True
                    child.wait(STOP_TIMEOUT_S + CHILD_GRACE_S)
            except subprocess.TimeoutExpired:
                raise RunFailed(f"Locust did not end in time; see {log_path}") from None
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if not measured.exists():
            lines = log_path.read_text().strip().splitlines() or ["(no output)"]
            raise RunFailed(
                f"Locust ended (code {child.returncode}) without figures; see {log_path}. "
                f"It said last: {lines[-1]}"
            )
        figures: dict[str, Any] = json.loads(measured.read_text())
        return figures, interrupted


def _command(options: argparse.Namespace, measured: Path, html: Path) -> list[str]:
    command = [sys.executable, "-m", "locust", "--headless", "--only-summary"]
    flags = {
        "--locustfile": LOCUSTFILE,
        "--host": options.host,
        "--users": options.users,
        "--spawn-rate": options.spawn_rate or options.users,
        "--run-time": f"{options.duration}s",
        "--stop-timeout": STOP_TIMEOUT_S,
        "--html": html,
        "--model": options.model,
        "--model-version": options.model_version,
        "--batch-size": options.batch_size,
        "--shape": ";".join(options.shape),
        "--integers": options.integers,
        "--seed": options.seed,
        "--timeout-s": options.timeout_s,
        "--measured": measured,
    }
    return command + [f"{flag}={value}" for flag, value in flags.items()]
