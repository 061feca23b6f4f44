import numpy as np

from examples.zoo.dna_motif import data
from examples.zoo.dna_motif.model import LENGTH
from tests.zoo.conftest import Zoo


def bases(text: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array([data.BASES.index(base) for base in text])


def test_planted_sites_are_found(zoo: Zoo) -> None:
    inputs, planted = data.held_out()
    parts = [
        zoo.ask("dna_motif", {"bases": rows})["probability"]
        for rows in np.array_split(inputs["bases"], 20)
    ]

    assert data.score({"probability": np.concatenate(parts)}, planted) >= 0.9


def test_the_signal_follows_the_site(zoo: Zoo) -> None:
    background = np.random.default_rng(5).integers(0, 4, LENGTH)
    for start in (5, 40, 80):
        stretch = background.copy()
        stretch[start : start + len(data.MOTIF)] = bases(data.MOTIF)
        answer = zoo.ask("dna_motif", {"bases": data.one_hot(stretch[None])})
        assert answer["probability"][0, 0] > 0.9
        assert abs(answer["signal"][0].argmax() - (start + len(data.MOTIF) // 2)) <= 1


def test_the_other_strand_counts(zoo: Zoo) -> None:
    stretch = np.random.default_rng(5).integers(0, 4, LENGTH)
    without = zoo.ask("dna_motif", {"bases": data.one_hot(stretch[None])})["probability"][0, 0]
    stretch[30:45] = 3 - bases(data.MOTIF)[::-1]
    with_site = zoo.ask("dna_motif", {"bases": data.one_hot(stretch[None])})["probability"][0, 0]

    assert with_site > 0.9
    assert without < 0.5
