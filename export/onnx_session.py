"""Sessions as the steps use them: ONNX Runtime's, and TensorRT engines by the same verb."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import onnxruntime

from export.errors import ConversionError


class Session(Protocol):
    """What runs a file."""

    def run(self, names: Sequence[str] | None, inputs: dict[str, Any], /) -> list[Any]:
        """The named outputs; None: all."""
        ...


CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


def opened(path: Path, *, threads: int = 0, provider: str = CPU, exact: bool = False) -> Session:
    """A session of the file; raises `ConversionError` with ONNX Runtime's words.

    `threads`: 0 lets ONNX Runtime take all cores. `provider` has to be there: a session that fell
    back to the CPU measures the wrong thing. `exact`: a GPU multiplies float32 as float32, not with
    the 10 bits of TF32, which is its default and no measure of a file.
    """
    if path.suffix == ".plan":
        from export.plan_session import PlanSession

        return PlanSession(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters comes back as an exception or a miss
    options.intra_op_num_threads = threads
    chosen = (provider, {"use_tf32": "0"}) if exact and provider == CUDA else provider
    providers = [provider] if provider == CPU else [chosen, CPU]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors share no base class of its own
        raise ConversionError(f"ONNX Runtime cannot open the file: {error}") from error
    if provider not in session.get_providers():
        raise ConversionError(f"ONNX Runtime has fallen back from {provider} to the CPU")
    found: Session = session
    return found
