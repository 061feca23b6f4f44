"""Tensor dtypes in KServe's words, and the numpy dtype that carries each."""

from typing import Final, Literal, get_args

import numpy as np

DtypeName = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
]

# KServe knows two more. Why an export cannot carry them:
REFUSED: Final = {
    "BYTES": "PyTorch has no string tensors; turn the text into numbers outside the model",
    "BF16": "ONNX Runtime gives no BF16 tensor back to check it; cast to FP32 at the model's edge",
}


def _numpy_dtype(name: str) -> np.dtype[np.generic]:
    return np.dtype(name.lower().replace("fp", "float"))


NUMPY: Final = {name: _numpy_dtype(name) for name in get_args(DtypeName)}
KSERVE: Final = {dtype.name: name for name, dtype in NUMPY.items()}
