"""Windows of 1.6 s over two voices."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.zoo.speaker.mel import spectrogram
from examples.zoo.speech.clips import VOICES, clip

FRAMES = 160  # the length that the model was trained on


def windows(voice: str, sentence: str) -> NDArray[np.float32]:
    """Windows of a clip, one each 10 ms: float32 [n, 160, 40]."""
    mel = spectrogram(clip(voice, sentence))
    return np.stack([mel[at : at + FRAMES] for at in range(len(mel) - FRAMES + 1)])


def samples() -> dict[str, NDArray[np.float32]]:
    """The harbour sentence in both voices."""
    return {"mel": np.concatenate([windows(voice, "harbour") for voice in VOICES])}


def held_out() -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """The contract sentence in both voices, and which voice it is (0, 1)."""
    parts = [windows(voice, "contract") for voice in VOICES]
    labels = np.repeat(np.arange(len(VOICES)), [len(part) for part in parts])
    return {"mel": np.concatenate(parts)}, labels


def score(outputs: Mapping[str, NDArray[Any]], voices: NDArray[np.int64]) -> float:
    """The mean margin by which windows of one voice are more alike than those of different ones."""
    similarity = outputs["embedding"] @ outputs["embedding"].T
    same = voices[:, np.newaxis] == voices
    return float(similarity[same].mean() - similarity[~same].mean())
