"""Train and write the weights: `python -m examples.zoo.recommender.train`."""

from pathlib import Path

import torch
from torch.nn import functional

from examples.zoo.recommender.data import held_out, score, training
from examples.zoo.recommender.model import build
from examples.zoo.training import begin, fit, save


def main() -> None:
    """Write `recommender.safetensors` beside this file."""
    begin()
    ids, liked = training()
    pairs = [torch.from_numpy(ids[name]) for name in ("user", "item")]
    network = fit(
        build(),
        pairs,
        torch.from_numpy(liked),
        functional.binary_cross_entropy,
        epochs=15,
        batch=256,
        peak_rate=1e-2,
        weight_decay=0.1,
    )
    ids, liked = held_out()
    with torch.no_grad():
        guesses = network(*(torch.from_numpy(ids[name]) for name in ("user", "item")))
    found = f"area under the curve {score({'score': guesses.numpy()}, liked):.3f}"
    save(network, Path(__file__).with_name("recommender.safetensors"), found)


if __name__ == "__main__":
    main()
