"""Likes by a stated rule.

Each user and each item has four tastes, drawn from a normal distribution (seed 0). A user likes an
item where the dot product of their tastes, plus noise of a quarter of its spread, is above zero.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from examples.zoo.recommender.model import ITEMS, USERS

Labelled = tuple[dict[str, NDArray[Any]], NDArray[Any]]
PAIRS, TRAINED = 60_000, 50_000


def tastes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What nobody tells the network: tastes of users [USERS, 4] and of items [ITEMS, 4]."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((USERS, 4)), rng.standard_normal((ITEMS, 4))


def training() -> Labelled:
    """Pairs that were seen: user and item int64 [n, 1], liked float32 [n, 1]."""
    return _pairs(slice(0, TRAINED))


def held_out() -> Labelled:
    """Pairs that training never sees, of the same users and items."""
    return _pairs(slice(TRAINED, PAIRS))


def samples() -> dict[str, NDArray[Any]]:
    """Some of the pairs that were seen."""
    return {name: array[:512] for name, array in training()[0].items()}


def score(outputs: Mapping[str, NDArray[Any]], liked: NDArray[Any]) -> float:
    """Area under the ROC curve: how often a liked item stands above another one."""
    return float(roc_auc_score(liked[:, 0], outputs["score"][:, 0]))


def _pairs(part: slice) -> Labelled:
    users, items = tastes()
    rng = np.random.default_rng(1)
    user, item = rng.integers(0, USERS, PAIRS), rng.integers(0, ITEMS, PAIRS)
    liking = (users[user] * items[item]).sum(1)
    liked = liking + rng.standard_normal(PAIRS) * liking.std() / 4 > 0
    ids = {"user": user[part, None], "item": item[part, None]}
    return ids, liked[part, None].astype(np.float32)
