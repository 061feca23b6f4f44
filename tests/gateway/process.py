"""A real `tidegate serve` in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

START_LIMIT_S = 30.0


def command(repository: Path | None, *flags: str) -> list[str]:
    named = [] if repository is None else ["--repository", str(repository)]
    return [sys.executable, "-m", "gateway.cli", "serve", *named, *flags]


def run_to_end(repository: Path, *flags: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a gateway that is expected to stop by itself; return its exit code and stderr."""
    done = subprocess.run(
        command(repository, *flags),
        stderr=subprocess.PIPE,
        text=True,
        timeout=START_LIMIT_S,
        env={**os.environ, **(env or {})},
        check=False,
    )
    return done.returncode, done.stderr


@dataclass
class Gateway:
    """A running gateway."""

    process: subprocess.Popen[str]
    url: str
    http: str

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.http + path, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that carry these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            # the parser appends _total to the names of counters, which Triton's do not have
            if sample.name in (name, f"{name}_total") and labels.items() <= sample.labels.items()
        )

    def stop(self) -> int:
        """Send SIGTERM; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=START_LIMIT_S)


def eventually(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Return once `holds()`: what another process does cannot be awaited, only looked at."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, "did not happen in time"


@contextmanager
def gateway(repository: Path | None, *flags: str) -> Iterator[Gateway]:
    """A gateway on free ports; its stderr is JSON lines. Ended at the end if it still runs."""
    process = subprocess.Popen(
        command(repository, "--port", "0", "--http-port", "0", "--log-format", "json", *flags),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        line = _until_serving(process)
        found = re.search(r"gRPC on (\S+), HTTP on (\S+)", line["message"])
        assert found is not None
        yield Gateway(process, found[1], f"http://{found[2]}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()


def _until_serving(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stderr is not None
    for text in process.stderr:
        line: dict[str, Any] = json.loads(text)
        if "gRPC on" in line["message"]:
            return line
    raise AssertionError(f"the gateway ended with {process.wait()} before it served")
