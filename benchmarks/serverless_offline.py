"""A trace of requests for models, and how often fixed policies would have had them in memory.

Offline: no time, no size. A request that meets its model in memory is a hit; any other loads it at
once. That is how the gateway is counted, too: of those that wait for one load only one is no hit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray


def zipf(models: int, requests: int, seed: int, exponent: float = 1.0) -> NDArray[np.int64]:
    """Return which model each request is for: model k with a weight of 1 / (k + 1)^exponent."""
    weights = 1.0 / np.arange(1, models + 1) ** exponent
    chosen = np.random.default_rng(seed).choice(models, requests, p=weights / weights.sum())
    return chosen.astype(np.int64)


def poisson(rate: float, requests: int, seed: int) -> NDArray[np.float64]:
    """Return when requests are due, in seconds, `rate` of them a second on the average."""
    return np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, requests))


def lru_hits(trace: Sequence[int], slots: int) -> int:
    """Return the hits where whoever was used longest ago makes way."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for model in trace:
        if model in held:
            hits += 1
            held.move_to_end(model)
            continue
        if len(held) == slots:
            held.popitem(last=False)
        held[model] = None
    return hits


def belady_hits(trace: Sequence[int], slots: int) -> int:
    """Return the hits where whoever is needed last makes way: the most that there can be.

    Every request is served from memory, so a model that is asked for must be loaded. (L. Belady,
    IBM Systems Journal 5(2), 1966.)
    """
    never = len(trace)
    following = [never] * len(trace)
    last: dict[int, int] = {}
    for index in range(len(trace) - 1, -1, -1):
        following[index] = last.get(trace[index], never)
        last[trace[index]] = index
    held: dict[int, int] = {}  # model -> when it is needed next
    order: list[tuple[int, int]] = []  # the same as a heap, with entries that are out of date
    hits = 0
    for index, model in enumerate(trace):
        if model in held:
            hits += 1
        elif len(held) == slots:
            while held.get(order[0][1]) != -order[0][0]:
                heappop(order)
            del held[heappop(order)[1]]
        held[model] = following[index]
        heappush(order, (-following[index], model))
        if len(order) > 8 * slots + 8:
            order = [(-due, name) for name, due in held.items()]
            heapify(order)
    return hits


def popular_hits(trace: Sequence[int], slots: int) -> int:
    """Return the hits of who knows beforehand that model 0 is asked for most, then 1, and so on.

    All slots but one keep the most popular; the others take turns in that one. Where requests do
    not depend on those before, as in `zipf`, nothing that does not know the future does better.
    """
    kept: set[int] = set()
    guest = -1
    hits = 0
    for model in trace:
        hits += model in kept or model == guest
        if model < slots - 1:
            kept.add(model)
        else:
            guest = model
    return hits
