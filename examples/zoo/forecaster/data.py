"""Carbon dioxide over Mauna Loa, monthly means in ppm, March 1958 to December 2001.

Public domain: C. D. Keeling and T. P. Whorf, Atmospheric CO2 concentrations derived from flask air
samples at sites in the SIO network, Trends, Oak Ridge National Laboratory, 2004 (the weekly values
of statsmodels' data set `co2`; months without a value are filled linearly).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.zoo.forecaster.model import AHEAD

HISTORY = 36  # months that the forecast is made from
HELD_OUT = 96  # the last eight years


def series() -> NDArray[np.float32]:
    """All months, in order: float32 [526]."""
    return np.loadtxt(Path(__file__).with_name("co2.txt"), dtype=np.float32)


def training() -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Windows up to 1993: history [n, 36, 1] and what came next [n, 12]."""
    return _windows(series()[:-HELD_OUT])


def held_out() -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Windows whose twelve months ahead lie in the last eight years."""
    return _windows(series()[-HELD_OUT - HISTORY :])


def samples() -> dict[str, NDArray[Any]]:
    """The histories of the training part."""
    return training()[0]


def naive(history: NDArray[Any]) -> NDArray[Any]:
    """The seasonal rule of thumb: last year's months, and last year's rise on top."""
    last, before = history[:, -AHEAD:, 0], history[:, -2 * AHEAD : -AHEAD, 0]
    guess: NDArray[Any] = last + (last - before).mean(1, keepdims=True)
    return guess


def score(outputs: Mapping[str, NDArray[Any]], came: NDArray[Any]) -> float:
    """The negative mean absolute error in ppm: more is better."""
    return -float(np.abs(outputs["forecast"] - came).mean())


def _windows(values: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    starts = range(len(values) - HISTORY - AHEAD + 1)
    history = np.stack([values[s : s + HISTORY] for s in starts])[..., None]
    came = np.stack([values[s + HISTORY : s + HISTORY + AHEAD] for s in starts])
    return {"history": history}, came
