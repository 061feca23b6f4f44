"""Handwritten digits (scikit-learn's own copy of the UCI set) and the one held-out split."""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Digits = tuple[NDArray[np.float32], NDArray[np.int64]]


def training() -> Digits:
    """(images float32 [n, 1, 8, 8] in 0..1, labels int64 [n]): three quarters of the digits."""
    images, _, labels, _ = _split()
    return images, labels


def held_out() -> Digits:
    """(images, labels) of the quarter that training never sees."""
    _, images, _, labels = _split()
    return images, labels


def _split() -> tuple[
    NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]
]:
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, np.newaxis]
    labels = digits.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    return parts[0], parts[1], parts[2], parts[3]
