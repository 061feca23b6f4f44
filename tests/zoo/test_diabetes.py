from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from examples.zoo.diabetes import data
from tests.zoo.conftest import Zoo


def test_double_precision_survives_the_way(zoo: Zoo) -> None:
    inputs, progression = data.held_out()
    parts = [
        zoo.ask("diabetes", {"measurements": rows})["progression"]
        for rows in np.array_split(inputs["measurements"], 3)
    ]
    answer = np.concatenate(parts)

    weights = load_file(Path(data.__file__).with_name("diabetes.safetensors"))
    by_hand = inputs["measurements"] @ weights["weight"].T + weights["bias"]
    assert answer.dtype == np.float64
    np.testing.assert_allclose(answer, by_hand, rtol=1e-13)
    assert data.score({"progression": answer}, progression) > 0.35


def test_a_higher_body_mass_means_more_progression(zoo: Zoo) -> None:
    patient = np.zeros((2, 10))
    patient[1, 2] = 0.1  # the third measurement is the body mass index

    lean, heavy = zoo.ask("diabetes", {"measurements": patient})["progression"][:, 0]

    assert heavy > lean + 20
