"""Train and write the weights: `python -m examples.zoo.digits_cnn.train` (a minute)."""

from pathlib import Path

import torch
from torch.nn import functional

from examples.digits.data import held_out, training
from examples.digits.train import distorted
from examples.zoo.digits_cnn.model import build
from examples.zoo.training import begin, fit, save


def main() -> None:
    """Write `digits_cnn.safetensors` beside this file."""
    begin()
    images, labels = map(torch.from_numpy, training())
    network = fit(
        build(),
        [images],
        labels,
        lambda logits, digits: functional.cross_entropy(logits, digits, label_smoothing=0.05),
        epochs=40,
        batch=64,
        peak_rate=3e-3,
        weight_decay=0.02,
        distorted=distorted,
    )
    images, labels = map(torch.from_numpy, held_out())
    with torch.no_grad():
        hits = (network(images).argmax(1) == labels).float().mean().item()
    save(network, Path(__file__).with_name("digits_cnn.safetensors"), f"accuracy {hits:.2%}")


if __name__ == "__main__":
    main()
