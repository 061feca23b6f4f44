"""A real S3 server on this machine, in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.gateway.process import eventually

_BUCKETS = count(1)


class Storage:
    """An S3 server with one bucket, whose requests are counted."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.log = log
        self.bucket = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.start()
        self.fs: Any = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/served"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=log,
                stderr=log,
            )
        eventually(self._answers)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def put(self, name: str, data: bytes | str) -> None:
        content = data.encode() if isinstance(data, str) else data
        self.fs.pipe_file(f"{self.bucket}/served/{name}", content)

    def fetches(self, name: str) -> int:
        """Return how often an object has been asked for."""
        return self.log.read_text().count(f'"GET /{self.bucket}/served/{name} ')

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/moto-api", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "tests")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_MAX_ATTEMPTS", "1")
        storage = Storage(port, tmp_path_factory.mktemp("storage") / "log")
        yield storage
        storage.stop()


@pytest.fixture
def storage(server: Storage) -> Storage:
    """The server, with an empty bucket."""
    if server.process is None:
        server.start()
    server.bucket = f"models-{next(_BUCKETS)}"
    server.fs.mkdir(server.bucket)
    return server
