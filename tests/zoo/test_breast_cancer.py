import numpy as np
from sklearn.datasets import load_breast_cancer

from examples.zoo.breast_cancer.data import held_out
from tests.zoo.conftest import Zoo

MALIGNANT, BENIGN = 0, 1


def test_unseen_samples_are_told_apart(zoo: Zoo) -> None:
    inputs, diagnoses = held_out()
    halves = [
        zoo.ask("breast_cancer", {"measurements": rows})["probability"]
        for rows in np.array_split(inputs["measurements"], 4)
    ]
    probability = np.concatenate(halves)

    assert (probability.argmax(1) == diagnoses).mean() >= 0.95
    np.testing.assert_allclose(probability.sum(1), 1, atol=1e-2)


def test_the_typical_malignant_sample_is_malignant_and_the_benign_one_benign(zoo: Zoo) -> None:
    cells = load_breast_cancer()
    for diagnosis in (MALIGNANT, BENIGN):
        typical = np.median(cells.data[cells.target == diagnosis], axis=0).astype(np.float32)
        answer = zoo.ask("breast_cancer", {"measurements": typical[None]})["probability"][0]
        assert answer[diagnosis] > 0.95
