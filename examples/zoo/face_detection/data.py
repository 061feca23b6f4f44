"""A portrait with one face: the astronaut Eileen Collins (NASA, public domain).

`astronaut.npy` (uint8 [72, 128, 3]) is the upper part of scikit-image's `data.astronaut()` at a
quarter of its size.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
SIDE = 32
FACE = (21, 8, 34, 24)  # left, top, right, bottom in pixels of `portrait()`, by eye


def portrait() -> Image:
    """The picture at half its size, where the face fits a window: float32 [3, 36, 64] in 0..255."""
    pixels = _full()
    halved: Image = pixels.reshape(3, 36, 2, 64, 2).mean((2, 4))
    return halved


def samples() -> dict[str, Image]:
    """Random cut-outs of both sizes: float32 [128, 3, 32, 32]."""
    random = np.random.default_rng(0)
    cuts = []
    for picture in (_full(), portrait()):
        _, height, width = picture.shape
        for _ in range(64):
            top, left = random.integers(height - SIDE), random.integers(width - SIDE)
            cuts.append(picture[:, top : top + SIDE, left : left + SIDE])
    return {"image": np.stack(cuts)}


def _full() -> Image:
    pixels = np.load(Path(__file__).with_name("astronaut.npy"))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)
