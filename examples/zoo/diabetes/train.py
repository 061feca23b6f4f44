"""Fit by ridge regression and write the weights: `python -m examples.zoo.diabetes.train`."""

from pathlib import Path

import torch
from sklearn.linear_model import Ridge

from examples.zoo.diabetes.data import held_out, score, training
from examples.zoo.diabetes.model import build
from examples.zoo.training import save


def main() -> None:
    """Write `diabetes.safetensors` beside this file."""
    inputs, progression = training()
    ridge = Ridge(alpha=0.1).fit(inputs["measurements"], progression)
    network = build()
    weight, bias = torch.from_numpy(ridge.coef_)[None], torch.tensor([ridge.intercept_])
    network.load_state_dict({"weight": weight, "bias": bias.double()})
    inputs, progression = held_out()
    with torch.no_grad():
        outputs = {"progression": network(torch.from_numpy(inputs["measurements"])).numpy()}
    found = f"R squared {score(outputs, progression):.3f}"
    save(network, Path(__file__).with_name("diabetes.safetensors"), found)


if __name__ == "__main__":
    main()
