"""Chunks of speech, silence and noise, each with the memory that the stream has by then."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from examples.zoo.speech.clips import RATE, VOICES, clip
from examples.zoo.voice_activity.model import CHUNK, CONTEXT, STATE, build

Audio = NDArray[np.float32]
Inputs = dict[str, Audio]
LOUD, QUIET = 0.02, 0.0005  # root mean square of a chunk that surely is, and is not, speech


def stream(voice: str, sentence: str) -> Audio:
    """Half a second of silence, the sentence, half a second of silence: float32 [chunks, 512]."""
    pause = np.zeros(RATE // 2, np.float32)
    audio = np.concatenate([pause, clip(voice, sentence), pause])
    return audio[: len(audio) // CHUNK * CHUNK].reshape(-1, CHUNK)


def noise() -> Audio:
    """Two seconds of faint white noise: float32 [chunks, 512]."""
    draw = np.random.default_rng(0).normal(0, 0.002, (2 * RATE // CHUNK, CHUNK))
    return draw.astype(np.float32)


def samples() -> Inputs:
    """Every chunk of the harbour sentence in both voices, and of noise."""
    return _with_memory(*(stream(voice, "harbour") for voice in VOICES), noise())


def held_out() -> tuple[Inputs, NDArray[np.int64]]:
    """The surely loud (1) and surely silent (0) chunks of the contract sentence, both voices.

    What follows speech directly is left out: the network rightly bridges short pauses.
    """
    streams = [stream(voice, "contract") for voice in VOICES]
    labels = np.concatenate([_labels(chunks) for chunks in streams])
    known = labels >= 0
    return {name: rows[known] for name, rows in _with_memory(*streams).items()}, labels[known]


def score(outputs: Mapping[str, NDArray[Any]], labels: NDArray[np.int64]) -> float:
    """The share of chunks on the right side of one half."""
    return float(((outputs["speech"][:, 0] > 0.5) == labels).mean())


def _labels(chunks: Audio) -> NDArray[np.int64]:
    level = np.sqrt((chunks**2).mean(1))
    labels = np.full(len(chunks), -1)
    labels[level > LOUD] = 1
    settled = 8  # chunks, a quarter of a second
    for at in range(len(chunks)):
        if level[max(0, at - settled) : at + 1].max() < QUIET:
            labels[at] = 0
    return labels


def _with_memory(*streams: Audio) -> Inputs:
    rows = [row for chunks in streams for row in _played(chunks)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _played(chunks: Audio) -> Iterator[Inputs]:
    network = build()
    memory = [torch.zeros(1, size) for size in (CONTEXT, STATE, STATE)]
    for chunk in chunks:
        names = ("audio", "context", "hidden", "cell")
        given = [torch.from_numpy(chunk[np.newaxis]), *memory]
        yield {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        with torch.no_grad():
            _, *memory = network(*given)
