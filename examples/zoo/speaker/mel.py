"""Mel spectrograms as the speaker model was trained on them, in numpy.

The same figures as librosa's `melspectrogram` with its defaults (Slaney's scale and norm, Hann
window, zero-padded centres): power, not decibels.
"""

import numpy as np
from numpy.typing import NDArray

from examples.zoo.speech.clips import RATE

WINDOW, HOP, BANDS = 400, 160, 40  # 25 ms, 10 ms
LEVEL = 10 ** (-30 / 20)  # root mean square that quieter speech is raised to
_LINEAR_HZ, _LOG_FROM_HZ, _LOG_STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def spectrogram(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [samples] at 16 kHz -> float32 [frames, 40], a frame each 10 ms."""
    audio = audio * max(1.0, LEVEL / float(np.sqrt((audio**2).mean())))
    padded = np.pad(audio, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    mel: NDArray[np.float32] = (power @ _filters().T).astype(np.float32)
    return mel


def _filters() -> NDArray[np.float64]:
    """Triangles of equal area, [40, 201]."""
    top = _LOG_FROM_HZ / _LINEAR_HZ + np.log(RATE / 2 / _LOG_FROM_HZ) / _LOG_STEP
    mels = np.linspace(0, top, BANDS + 2)
    above = mels * _LINEAR_HZ > _LOG_FROM_HZ
    logarithmic = _LOG_FROM_HZ * np.exp(_LOG_STEP * (mels - _LOG_FROM_HZ / _LINEAR_HZ))
    edges = np.where(above, logarithmic, mels * _LINEAR_HZ)[:, np.newaxis]
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    triangles: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return triangles
