"""Train and write the weights: `python -m examples.zoo.breast_cancer.train`."""

from pathlib import Path

import torch
from torch.nn import functional

from examples.zoo.breast_cancer.data import held_out, training
from examples.zoo.breast_cancer.model import Diagnosis
from examples.zoo.training import begin, fit, save


class Logits(torch.nn.Module):
    """The network before its softmax."""

    def __init__(self, network: Diagnosis) -> None:
        super().__init__()
        self.network = network

    def forward(self, measurements: torch.Tensor) -> torch.Tensor:
        """What cross-entropy takes."""
        return self.network.logits(measurements)


def main() -> None:
    """Write `breast_cancer.safetensors` beside this file."""
    begin()
    inputs, labels = training()
    measurements = torch.from_numpy(inputs["measurements"])
    network = Diagnosis()
    network.mean.copy_(measurements.mean(0))
    network.scale.copy_(measurements.std(0))
    target = torch.from_numpy(labels)
    fit(
        Logits(network),
        [measurements],
        target,
        functional.cross_entropy,
        epochs=60,
        batch=32,
        peak_rate=5e-3,
        weight_decay=0.1,
    )
    inputs, labels = held_out()
    with torch.no_grad():
        guesses = network.eval()(torch.from_numpy(inputs["measurements"])).argmax(1).numpy()
    found = f"accuracy {(guesses == labels).mean():.2%}"
    save(network, Path(__file__).with_name("breast_cancer.safetensors"), found)


if __name__ == "__main__":
    main()
