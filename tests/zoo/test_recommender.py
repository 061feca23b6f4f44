import numpy as np

from examples.zoo.recommender import data
from examples.zoo.recommender.model import ITEMS
from tests.zoo.conftest import Zoo


def test_pairs_that_were_never_seen_are_ranked(zoo: Zoo) -> None:
    ids, liked = data.held_out()
    scores = [
        zoo.ask("recommender", {name: array[at : at + 250] for name, array in ids.items()})["score"]
        for at in range(0, 5000, 250)
    ]

    assert data.score({"score": np.concatenate(scores)}, liked[:5000]) >= 0.88


def test_what_a_user_would_love_stands_above_what_they_would_hate(zoo: Zoo) -> None:
    users, items = data.tastes()
    for user in range(10):
        liking = items @ users[user]
        ids = np.array([liking.argmax(), liking.argmin()])[:, None]
        best, worst = zoo.ask("recommender", {"user": np.full((2, 1), user), "item": ids})["score"][
            :, 0
        ]
        assert best > worst + 0.3


def test_the_best_ten_of_all_items_are_to_the_users_taste(zoo: Zoo) -> None:
    users, items = data.tastes()
    everything = np.arange(ITEMS)[:, None]
    scores = np.concatenate(
        [
            zoo.ask("recommender", {"user": np.full_like(part, 7), "item": part})["score"]
            for part in np.array_split(everything, 2)
        ]
    )[:, 0]

    liking = items @ users[7]
    assert liking[scores.argsort()[-10:]].mean() > liking.mean() + liking.std()
