"""Wisconsin's breast cancer data (scikit-learn's copy): 569 samples, 30 measurements each."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

Labelled = tuple[dict[str, NDArray[Any]], NDArray[Any]]


def training() -> Labelled:
    """Three quarters: measurements float32 [n, 30], diagnoses int64 [n] (0 malignant, 1 benign)."""
    return _split()[0]


def held_out() -> Labelled:
    """The quarter that training never sees."""
    return _split()[1]


def samples() -> dict[str, NDArray[Any]]:
    """The measurements of the training part."""
    return training()[0]


def _split() -> tuple[Labelled, Labelled]:
    cells = load_breast_cancer()
    values, target = cells.data.astype(np.float32), cells.target.astype(np.int64)
    parts = train_test_split(values, target, test_size=0.25, random_state=0, stratify=target)
    return ({"measurements": parts[0]}, parts[2]), ({"measurements": parts[1]}, parts[3])
