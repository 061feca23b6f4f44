import numpy as np

from examples.zoo.forecaster import data
from tests.zoo.conftest import Zoo


def test_the_next_year_is_nearer_than_by_the_rule_of_thumb(zoo: Zoo) -> None:
    inputs, came = data.held_out()
    forecast = np.concatenate(
        [
            zoo.ask("forecaster", {"history": rows})["forecast"]
            for rows in np.array_split(inputs["history"], 4)
        ]
    )

    error = -data.score({"forecast": forecast}, came)
    thumb = -data.score({"forecast": data.naive(inputs["history"])}, came)
    assert error < 0.7 * thumb
    assert error < 0.6  # ppm


def test_the_forecast_knows_the_seasons(zoo: Zoo) -> None:
    months = data.series()  # from March 1958: the first twelve months end in February
    history = months[-36:, None][None]  # ends in December 2001

    forecast = zoo.ask("forecaster", {"history": history})["forecast"][0]

    assert forecast.argmax() in (3, 4, 5)  # carbon dioxide peaks in May, before the leaves
    assert forecast[8] < forecast[4] - 3  # and is lowest in September


def test_any_length_of_history_is_taken(zoo: Zoo) -> None:
    months = data.series()
    for steps in (2, 24, 120):
        history = months[-steps:, None][None]
        forecast = zoo.ask("forecaster", {"history": history})["forecast"]
        assert forecast.shape == (1, 12)
        assert np.abs(forecast - months[-1]).max() < 12
