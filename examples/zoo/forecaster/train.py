"""Train and write the weights: `python -m examples.zoo.forecaster.train`."""

from pathlib import Path

import torch
from torch.nn import functional

from examples.zoo.forecaster.data import held_out, naive, score, training
from examples.zoo.forecaster.model import build
from examples.zoo.training import begin, fit, save


def main() -> None:
    """Write `forecaster.safetensors` beside this file."""
    begin()
    inputs, came = training()
    network = fit(
        build(),
        [torch.from_numpy(inputs["history"])],
        torch.from_numpy(came),
        functional.l1_loss,
        epochs=150,
        batch=32,
        peak_rate=1e-2,
    )
    inputs, came = held_out()
    with torch.no_grad():
        forecast = network(torch.from_numpy(inputs["history"])).numpy()
    error, thumb = (
        -score({"forecast": forecast}, came),
        -score({"forecast": naive(inputs["history"])}, came),
    )
    found = f"mean error {error:.3f} ppm, the rule of thumb's {thumb:.3f}"
    save(network, Path(__file__).with_name("forecaster.safetensors"), found)


if __name__ == "__main__":
    main()
