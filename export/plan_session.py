"""A TensorRT engine as a session: arrays in, arrays out, by way of PyTorch's GPU memory."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import ConversionError


class PlanSession:
    """`run()` as ONNX Runtime's sessions have it. Only for engines of this machine's own making."""

    def __init__(self, path: Path) -> None:
        import torch

        self._torch = torch
        self._trt: Any = importlib.import_module("tensorrt")
        runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ConversionError(f"TensorRT {self._trt.__version__} cannot load {path.name}")
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        output = self._trt.TensorIOMode.OUTPUT
        self._outputs = [n for n in names if self._engine.get_tensor_mode(n) == output]

    def run(
        self, names: Sequence[str] | None, inputs: dict[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """The named outputs (None: all); raises `ConversionError` for shapes out of range."""
        held = {}
        for name, array in inputs.items():
            held[name] = self._torch.from_numpy(np.ascontiguousarray(array)).cuda()
            if not self._context.set_input_shape(name, tuple(array.shape)):
                raise ConversionError(
                    f"the engine takes no {name!r} of shape {list(array.shape)}",
                    "tensorrt.sizes gives [smallest, usual, largest]",
                )
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            dtype = self._trt.nptype(self._engine.get_tensor_dtype(name))
            empty = np.empty(shape, dtype)
            held[name] = self._torch.from_numpy(empty).cuda()
        for name, tensor in held.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        stream = self._torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise ConversionError("TensorRT could not run the engine")
        stream.synchronize()
        return [held[name].cpu().numpy() for name in names or self._outputs]
