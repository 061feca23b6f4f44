"""Step "profile": what a file does on this machine: latency by batch size, memory, cold start.

Measured as a gateway runs it: ONNX Runtime with one thread a core but one, the spec's own data
where there are any. Each file is measured in a process of its own, so that memory is its own.
"""

import os
import resource
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from export import machine, onnx_graph, onnx_session, reference, samples
from export.errors import ConversionError, ProfileError
from export.manifest import CurvePoint, Profile
from export.onnx_session import Session
from export.sample_data import stacked
from export.samples import Arrays
from export.spec import ExportSpec
from export.steps import base
from export.tensors import BATCH

# A batch size is measured in rounds until two rounds in a row have nearly one median, or the time
# is up. A round is as long as it takes to average over a scheduler's slices.
ROUND_S: Final = 0.1
STEADY: Final = 0.03
LONGEST_S: Final = 1.5
FEWEST_RUNS: Final = 5
# Two batch sizes in a row that bring less than this are the end of the curve.
GAIN: Final = 0.05
MOST_INSTANCES: Final = 2
# Below this a gateway spends more on a batch than the model: a second run at its side is idle.
WORTH_A_COPY_MS: Final = 1.0


class Request(base.Request):
    """`model`: the file; `calls`: files of real calls; `threads` 0: as many as a gateway takes.

    `turn`: the how-manieth measurement of this file it is.
    """

    step: ClassVar[str] = "profile"
    spec: ExportSpec
    model: Path
    calls: tuple[Path, ...] = ()
    threads: int = 0
    provider: str = onnx_session.CPU
    turn: int = 1
    sizes: Mapping[str, int] = {}  # of named dims; default: the largest that was checked

    def artefacts(self) -> tuple[Path, ...]:
        """The file, its weights, the data."""
        return (*onnx_graph.files_of(self.model), *self.calls)


class Report(base.Report):
    """The figures."""

    profile: Profile

    def summary(self) -> str:
        """The knee, memory and cold start."""
        knee = self.profile.knee()
        return (
            f"{knee.throughput:,.0f}/s at batch {knee.batch} (p50 {knee.p50_ms:.3g} ms), "
            f"{self.profile.resident_bytes / 1e6:,.0f} MB, "
            f"cold start {self.profile.cold_start_s * 1000:,.0f} ms"
        )


def run(request: Request, folder: Path) -> Report:
    """Measure; raises `ProfileError`."""
    threads = request.threads or max(1, (os.cpu_count() or 1) - 1)
    first = _feed(request, 1)
    _forget(onnx_graph.files_of(request.model))
    on_gpu = request.provider == onnx_session.CUDA or request.model.suffix == ".plan"
    taken = machine.gpu_used_bytes if on_gpu else _anonymous_bytes
    before = taken()
    _reset_peak()
    begun = time.perf_counter()
    try:
        session = onnx_session.opened(request.model, threads=threads, provider=request.provider)
        _run(session, first)
    except ConversionError as error:
        raise ProfileError(str(error)) from error
    cold_start_s = time.perf_counter() - begun
    curve = _curve(session, request)
    profile = Profile(
        curve=curve,
        threads=threads,
        instances=1,
        resident_bytes=max(0, taken() - before),
        # A GPU has no high-water mark: what ONNX Runtime's arena keeps is what it has needed.
        peak_bytes=max(0, (taken() if on_gpu else _peak_bytes()) - before),
        cold_start_s=cold_start_s,
    )
    knee = profile.knee()
    instances = _instances(session, _feed(request, knee.batch), knee)
    return Report(profile=profile.model_copy(update={"instances": instances}))


def _feed(request: Request, batch: int) -> Arrays:
    spec = request.spec
    if request.calls and spec.batch_limit:
        return stacked([reference.read(request.calls[0])[0]], batch)
    if request.calls:
        return reference.read(request.calls[0])[0]
    sizes = {name: max(spec.dim_sizes.get(name, (11,))) for name in spec.named_dims}
    return samples.draw(spec, {**sizes, **request.sizes, BATCH: batch}, spec.seed)


def _curve(session: Session, request: Request) -> tuple[CurvePoint, ...]:
    points: list[CurvePoint] = []
    flat = 0
    for batch in _batches(request.spec.batch_limit):
        points.append(_measured(session, _feed(request, batch), batch))
        best = max((point.throughput for point in points[:-1]), default=0.0)
        flat = 0 if points[-1].throughput > best * (1 + GAIN) else flat + 1
        if flat == 2:
            break
    return tuple(points)


def _batches(limit: int) -> list[int]:
    """1, 2, 4, ... and the limit itself."""
    sizes = [1]
    while sizes[-1] * 2 <= limit:
        sizes.append(sizes[-1] * 2)
    return sizes if limit in (0, sizes[-1]) else [*sizes, limit]


def _measured(session: Session, feed: Arrays, batch: int) -> CurvePoint:
    _run(session, feed)
    times: list[float] = []
    last = None
    end = time.perf_counter() + LONGEST_S
    while True:
        taken = _round(lambda: _run(session, feed))
        times += taken
        median = float(np.median(taken))
        if last is not None and abs(median - last) <= STEADY * last:
            break
        if time.perf_counter() > end:
            break
        last = median
    return CurvePoint(
        batch=batch,
        p50_ms=float(np.percentile(times, 50)) * 1000,
        p99_ms=float(np.percentile(times, 99)) * 1000,
        throughput=batch / float(np.mean(times)),
    )


def _round(work: Callable[[], object]) -> list[float]:
    times: list[float] = []
    begun = now = time.perf_counter()
    while now - begun < ROUND_S or len(times) < FEWEST_RUNS:
        work()
        after = time.perf_counter()
        times.append(after - now)
        now = after
    return times


def _instances(session: Session, feed: Arrays, knee: CurvePoint) -> int:
    """How many runs side by side give the most; more than one only where it is worth a copy."""
    if (os.cpu_count() or 1) < MOST_INSTANCES or knee.p50_ms < WORTH_A_COPY_MS:
        return 1
    rounds: list[list[float]] = [[], []]

    def worker(number: int) -> None:
        rounds[number] = _round(lambda: _run(session, feed))

    begun = time.perf_counter()
    threads = [threading.Thread(target=worker, args=(n,)) for n in range(MOST_INSTANCES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = knee.batch * sum(map(len, rounds)) / (time.perf_counter() - begun)
    return MOST_INSTANCES if together > 1.25 * knee.throughput else 1


def _run(session: Session, feed: Arrays) -> list[Any]:
    try:
        return list(session.run(None, feed))
    except Exception as error:  # ONNX Runtime's errors share no base class of its own
        words = str(error)
        if "Failed to allocate" in words or "out of memory" in words.lower():
            raise ProfileError(
                f"out of memory at {next(iter(feed.values())).shape}: {words}",
                "give a smaller max_batch_size, or gpu memory that is free",
            ) from error
        raise ProfileError(f"ONNX Runtime fails: {words}") from error


def _forget(files: tuple[Path, ...]) -> None:
    """Have the page cache drop the files, so that the cold start reads the disk."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # only clean pages are dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _anonymous_bytes() -> int:
    return _status("RssAnon")


def _peak_bytes() -> int:
    """The most that was resident since `_reset_peak`, less what is mapped from files now."""
    return _status("VmHWM") - _status("RssFile") - _status("RssShmem")


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # no Linux: the peak stands for both
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (value,) = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(value) * 1024


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak then counts the interpreter's start, too
