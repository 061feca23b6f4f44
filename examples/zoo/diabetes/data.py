"""scikit-learn's diabetes data: 442 patients, ten standardised measurements each."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

Labelled = tuple[dict[str, NDArray[Any]], NDArray[Any]]


def training() -> Labelled:
    """Three quarters: measurements float64 [n, 10], progression float64 [n]."""
    return _split()[0]


def held_out() -> Labelled:
    """The quarter that the regression never sees."""
    return _split()[1]


def samples() -> dict[str, NDArray[Any]]:
    """The measurements of the training part."""
    return training()[0]


def score(outputs: Mapping[str, NDArray[Any]], progression: NDArray[Any]) -> float:
    """R squared: the share of the variance that is explained."""
    error = outputs["progression"][:, 0] - progression
    return float(1 - (error**2).sum() / ((progression - progression.mean()) ** 2).sum())


def _split() -> tuple[Labelled, Labelled]:
    values, target = load_diabetes(return_X_y=True)
    parts = train_test_split(values.astype(np.float64), target, test_size=0.25, random_state=0)
    return ({"measurements": parts[0]}, parts[2]), ({"measurements": parts[1]}, parts[3])
