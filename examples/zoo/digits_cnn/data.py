"""The digits of examples/digits, by input name."""

from typing import Any

from numpy.typing import NDArray

from examples.digits import data


def samples() -> dict[str, NDArray[Any]]:
    """Training images, for calibration: float32 [512, 1, 8, 8]."""
    return {"image": data.training()[0][:512]}


def held_out() -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Images that training never sees, and their digits."""
    images, labels = data.held_out()
    return {"image": images}, labels
