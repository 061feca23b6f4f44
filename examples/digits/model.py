"""A small convolutional network for 8 x 8 digits."""

from torch import nn


def build() -> nn.Module:
    """Untrained network in eval mode: float32 [n, 1, 8, 8] -> logits float32 [n, 10]."""
    return nn.Sequential(
        # The stride comes first: a quarter of the positions costs a quarter of the time.
        nn.Conv2d(1, 16, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    ).eval()
