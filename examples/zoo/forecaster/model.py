"""The next twelve months of a series with a trend and seasons, from any number of months before."""

import torch
from torch import nn

AHEAD = 12


class Forecaster(nn.Module):
    """History float32 [n, steps, 1], steps >= 2 -> the next values float32 [n, 12].

    The network sees each step's change and adds to the last value what it expects to come.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.GRU(1, 32, batch_first=True)
        self.changes = nn.Linear(32, AHEAD)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """Expected values, in the history's own unit."""
        steps = history[:, 1:] - history[:, :-1]
        memory, _ = self.memory(steps)
        expected: torch.Tensor = history[:, -1] + self.changes(memory[:, -1])
        return expected


def build() -> nn.Module:
    """Untrained network in eval mode."""
    return Forecaster().eval()
