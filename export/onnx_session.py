"""ONNX Runtime sessions as the steps use them."""

from pathlib import Path

import onnxruntime

from export.errors import ConversionError

Session = onnxruntime.InferenceSession
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


def opened(
    path: Path, *, optimise: bool = True, threads: int = 0, provider: str = CPU
) -> onnxruntime.InferenceSession:
    """A session of the file; raises `ConversionError` with ONNX Runtime's words.

    `threads`: 0 lets ONNX Runtime take all cores. `provider` has to be there: a session that fell
    back to the CPU measures the wrong thing.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters comes back as an exception or a miss
    options.intra_op_num_threads = threads
    if not optimise:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    providers = [provider] if provider == CPU else [provider, CPU]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors share no base class of its own
        raise ConversionError(f"ONNX Runtime cannot open the file: {error}") from error
    if provider not in session.get_providers():
        raise ConversionError(f"ONNX Runtime has fallen back from {provider} to the CPU")
    return session
