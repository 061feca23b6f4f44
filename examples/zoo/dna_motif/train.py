"""Train and write the weights: `python -m examples.zoo.dna_motif.train`."""

from pathlib import Path

import torch
from torch.nn import functional

from examples.zoo.dna_motif.data import held_out, score, training
from examples.zoo.dna_motif.model import build
from examples.zoo.training import begin, fit, save


def main() -> None:
    """Write `dna_motif.safetensors` beside this file."""
    begin()
    inputs, planted = training()
    network = fit(
        build(),
        [torch.from_numpy(inputs["bases"])],
        torch.from_numpy(planted),
        lambda answer, target: functional.binary_cross_entropy(answer[0], target),
        epochs=20,
        batch=64,
        peak_rate=1e-2,
    )
    inputs, planted = held_out()
    with torch.no_grad():
        probability, _ = network(torch.from_numpy(inputs["bases"]))
    found = f"accuracy {score({'probability': probability.numpy()}, planted):.2%}"
    save(network, Path(__file__).with_name("dna_motif.safetensors"), found)


if __name__ == "__main__":
    main()
