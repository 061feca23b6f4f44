"""A tritonserver process of the gateway's own: started, watched, stopped."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import shutil
import signal
import socket
import tempfile
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from gateway.engine.budget import family_bytes, gpu_bytes_in_use
from gateway.engine.tritonserver import Installation
from gateway.errors import StartError

log = logging.getLogger(__name__)

START_WITHIN_S = 60.0
STOP_WITHIN_S = 20.0
EXIT_TIMEOUT_S = 15  # Triton's own limit for unloading its models when it is told to end
STUBS_END_WITHIN_S = 2.0  # those of a killed server mostly see within 0.7 s that it has gone
KEPT_LINES = 20
_SERVING = b"Started Metrics Service"  # the last of its services to start
# A signal that comes while tritonserver is still about to wait for signals is lost to it.
SETTLED_S = 1.0
_SHARED_MEMORY = Path("/dev/shm")
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class TritonProcess:
    """Serves a repository under explicit model control, on loopback ports that stay the same.

    It dies with this process, however that ends.
    """

    def __init__(self, installation: Installation, repository: Path) -> None:
        self._installation = installation
        self._repository = repository
        self._ports = _free_ports(3)
        # what a killed server leaves in shared memory is known by its name
        self._region = f"tidegate_{uuid.uuid4().hex[:12]}_"
        self._backends: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._serving = asyncio.Event()
        self._settled_at = 0.0

    @property
    def address(self) -> str:
        """Where its gRPC service is: "host:port"."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def metrics_url(self) -> str:
        """Where its Prometheus metrics are."""
        return f"http://127.0.0.1:{self._ports[2]}/metrics"

    @property
    def http_address(self) -> str:
        """HOST:PORT of its REST endpoint."""
        return f"127.0.0.1:{self._ports[1]}"

    @property
    def pid(self) -> int:
        """The running server's process id."""
        assert self._process is not None, "tritonserver has not been started: this is a bug"
        return self._process.pid

    def memory_bytes(self) -> int:
        """Return how much of the memory that its models take is in use: the GPUs', or its own."""
        return gpu_bytes_in_use() or family_bytes(self.pid)

    async def start(self) -> None:
        """Start the server and return once it serves.

        Raises `StartError` with what it said last where it ends before, or takes too long.
        """
        await self._end_reader()
        self._serving.clear()
        self._lines.clear()
        command = await asyncio.to_thread(self._command)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **self._installation.environment},
                # Triton's stubs import `model` from the working folder before any other
                cwd="/",
                # a process group of its own: a terminal's Ctrl-C is for the gateway, which drains
                # first and then ends the server
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            raise StartError(f"cannot start '{command[0]}': {error.strerror}") from None
        self._process = process
        self._reader = asyncio.create_task(self._read(process), name="tritonserver's log")
        serving = asyncio.create_task(self._serving.wait())
        try:
            await asyncio.wait(
                (serving, self._reader),
                timeout=START_WITHIN_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            serving.cancel()
            self._settled_at = asyncio.get_running_loop().time() + SETTLED_S
            ended = self._reader.done()
            if ended:  # its exit code, before `stop` would look for the process
                with suppress(TimeoutError):
                    async with asyncio.timeout(STUBS_END_WITHIN_S):
                        await process.wait()
            if not self._serving.is_set():
                await self.stop()
        if not self._serving.is_set():
            how = f"ended with {process.returncode} before it served"
            if not ended:
                how = f"did not start within {START_WITHIN_S:g} s"
            raise StartError(f"tritonserver {how}:\n" + "\n".join(self._lines))

    async def wait(self) -> int:
        """Return its exit code once it has ended; a signal's number as a negative one."""
        assert self._process is not None, "tritonserver has not been started: this is a bug"
        return await self._process.wait()

    async def stop(self, within_s: float = STOP_WITHIN_S) -> None:
        """End the server, if it runs; kill it where that takes longer. Returns once it is gone.

        Nothing of it is left: no process, no shared memory, no temporary file.
        """
        process = self._process
        if process is not None and process.returncode is None and self._serving.is_set():
            await asyncio.sleep(self._settled_at - asyncio.get_running_loop().time())
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(within_s):
                    await process.wait()
            except TimeoutError:
                log.warning("tritonserver did not end within %g s: killing it", within_s)
                os.killpg(process.pid, signal.SIGKILL)  # its stubs, too
                await process.wait()
        await self._end_reader()
        await asyncio.to_thread(self._clean_up)

    async def _end_reader(self) -> None:
        """Wait for the end of an ended server's log; kill the stubs that keep its pipe open."""
        if self._reader is None or self._process is None:
            return
        _, open_still = await asyncio.wait((self._reader,), timeout=STUBS_END_WITHIN_S)
        if open_still:
            # a stub of a server that crashed may stay; while one does, the group's number is its
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            # the pipe ends with them; cancelled before, the reader would leave it open
            _, open_still = await asyncio.wait((self._reader,), timeout=STUBS_END_WITHIN_S)
            if open_still:
                self._reader.cancel()
                await asyncio.wait((self._reader,))

    def _command(self) -> list[str]:
        grpc_port, http_port, metrics_port = self._ports
        command = [
            str(self._installation.binary),
            f"--model-repository={self._repository.absolute()}",
            "--model-control-mode=explicit",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={grpc_port}",
            "--http-address=127.0.0.1",
            f"--http-port={http_port}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={metrics_port}",
            f"--backend-config=python,shm-region-prefix-name={self._region}",
        ]
        if self._installation.package is not None:
            if self._backends is None:
                self._backends = Path(tempfile.mkdtemp(prefix="tidegate-triton-"))
                self._installation.make_backends(self._backends)
            command.append(f"--backend-directory={self._backends}")
        return command

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Pass the server's lines on to the log, until it ends."""
        assert process.stdout is not None
        async for raw in _lines(process.stdout):
            line = raw.decode(errors="replace").rstrip()
            self._lines.append(line)
            log.debug("tritonserver: %s", line)
            if _SERVING in raw:
                self._serving.set()

    def _clean_up(self) -> None:
        for region in _SHARED_MEMORY.glob(f"*{self._region}*"):
            region.unlink(missing_ok=True)
        if self._backends is not None:
            shutil.rmtree(self._backends, ignore_errors=True)
            self._backends = None


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines; one that is longer than the stream's buffer is left out."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line


def _die_with_parent() -> None:
    """Have the kernel end this process when the thread that forked it ends.

    Runs between fork and exec: one call into C, whose library was opened before.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now. Another process may take one before it is used: rare."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
