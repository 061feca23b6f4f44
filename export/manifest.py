"""`manifest.json`: what is known of an exported version, in its folder, for people and gateways.

The schema is this file's models; docs/export.md explains them. A reader takes any manifest whose
`schema_version` it knows and ignores keys that it does not.
"""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

FILE: Final = "manifest.json"
SCHEMA_VERSION: Final = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class FileFacts(_Part):
    """One file of the version, or the weights that it was made from."""

    sha256: str
    bytes: int


class Source(_Part):
    """Where the trained model came from."""

    kind: str  # "callable", "transformers", "exported-program", "torchscript", "onnx"
    model: str  # as the spec names it, without folders
    files: dict[str, FileFacts] = {}  # weights and model files, by file name


class OutputParity(_Part):
    """What all checks of one output against PyTorch in float32 found: the worst, and the mean."""

    max_abs: float
    max_rel: float
    cosine: float = 1.0  # mean over rows; 1.0 where an output has no direction (integers)
    least_cosine: float = 1.0


class Parity(_Part):
    """How many comparisons were made, at which sizes, and what they found."""

    checks: int
    sizes: tuple[dict[str, int], ...]
    real_samples: int  # rows of the spec's own data among them
    outputs: dict[str, OutputParity]


class Metric(_Part):
    """The task's own score on labelled data: PyTorch's and this version's."""

    name: str
    reference: float
    value: float
    allowed_drop: float


class CurvePoint(_Part):
    """One batch size: latency of a batch in milliseconds, inferences per second."""

    batch: int
    p50_ms: float
    p99_ms: float
    throughput: float


class Profile(_Part):
    """What a format does on the machine that measured it."""

    curve: tuple[CurvePoint, ...]
    threads: int  # ONNX Runtime's intra-op threads
    instances: int  # copies that gave the most at the knee
    resident_bytes: int  # what a loaded copy keeps
    peak_bytes: int  # the most it took while it loaded and ran
    cold_start_s: float  # file not in the page cache -> first answer

    def knee(self) -> CurvePoint:
        """The smallest batch with nine tenths of the highest throughput."""
        most = max(point.throughput for point in self.curve)
        return next(point for point in self.curve if point.throughput >= 0.9 * most)


class Candidate(_Part):
    """One format that was tried: what became of it, and why."""

    format: str  # "onnx-fp32", "onnx-int8", "tensorrt-fp16", ...
    status: Literal["chosen", "ok", "failed", "skipped"]
    why: str = ""
    size_bytes: int | None = None
    parity: Parity | None = None
    metric: Metric | None = None
    profile: Profile | None = None


class StepFacts(_Part):
    """One step of the export."""

    name: str
    status: Literal["ok", "failed", "skipped"]
    why: str = ""
    seconds: float = 0.0
    reused: bool = False  # from an earlier run (--resume)


class Machine(_Part):
    """What measured."""

    cpu: str
    cores: int
    memory_bytes: int
    gpu: str | None = None
    driver: str | None = None
    compute_capability: str | None = None  # "8.9"; an engine is bound to it


class Manifest(_Part):
    """Everything that is known of a version."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    version: int
    created: str  # ISO 8601, UTC
    format: str
    objective: str
    memory_bytes: int | None = None  # what a gateway reserves for a copy; None: not measured
    source: Source
    files: dict[str, FileFacts]  # of the version's folder
    tools: dict[str, str]  # package -> version
    machine: Machine
    parity: Parity
    metric: Metric | None = None
    profile: Profile | None = None
    candidates: tuple[Candidate, ...] = ()
    steps: tuple[StepFacts, ...] = ()
