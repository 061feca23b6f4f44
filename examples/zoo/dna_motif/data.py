"""Sequences by a stated rule.

Bases are drawn uniformly. Half of the stretches get a site planted at a random place: fifteen
bases, each drawn from the motif's own distribution (85 % the base of TGACTCATTGCAACG, 5 % each
other one), and half of these on the other strand (reversed, A with T and C with G exchanged).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.zoo.dna_motif.model import LENGTH

MOTIF = "TGACTCATTGCAACG"
BASES = "ACGT"
TRAINED, HELD_OUT = 8000, 2000

Labelled = tuple[dict[str, NDArray[Any]], NDArray[Any]]


def one_hot(bases: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Base numbers [n, length] -> float32 [n, 4, length]."""
    hot: NDArray[np.float32] = np.eye(4, dtype=np.float32)[bases].transpose(0, 2, 1)
    return hot


def stretches(count: int, seed: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(base numbers [count, 100], whether a site is planted, its middle or -1)."""
    rng = np.random.default_rng(seed)
    bases = rng.integers(0, 4, (count, LENGTH))
    planted = rng.random(count) < 0.5
    middle = np.full(count, -1)
    for row in np.flatnonzero(planted):
        start = rng.integers(0, LENGTH - len(MOTIF) + 1)
        bases[row, start : start + len(MOTIF)] = _site(rng)
        middle[row] = start + len(MOTIF) // 2
    return bases, planted, middle


def training() -> Labelled:
    """Bases float32 [8000, 4, 100], planted float32 [8000, 1]."""
    bases, planted, _ = stretches(TRAINED, 0)
    return {"bases": one_hot(bases)}, planted[:, None].astype(np.float32)


def held_out() -> Labelled:
    """2000 others."""
    bases, planted, _ = stretches(HELD_OUT, 1)
    return {"bases": one_hot(bases)}, planted[:, None].astype(np.float32)


def samples() -> dict[str, NDArray[Any]]:
    """Some of the training part."""
    return {"bases": training()[0]["bases"][:256]}


def score(outputs: Mapping[str, NDArray[Any]], planted: NDArray[Any]) -> float:
    """The share of right answers."""
    return float(((outputs["probability"] > 0.5) == (planted > 0.5)).mean())


def _site(rng: np.random.Generator) -> NDArray[Any]:
    motif = np.array([BASES.index(base) for base in MOTIF])
    drawn = np.where(rng.random(len(motif)) < 0.8, motif, rng.integers(0, 4, len(motif)))
    return drawn if rng.random() < 0.5 else 3 - drawn[::-1]  # A-T and C-G are opposite numbers
