"""Handwritten digits by a network whose convolutions do the work, unlike examples/digits."""

from torch import nn


def build() -> nn.Module:
    """Untrained network in eval mode: float32 [n, 1, 8, 8] -> logits float32 [n, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 64, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 96, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(96, 96, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96 * 4 * 4, 10),
    ).eval()
