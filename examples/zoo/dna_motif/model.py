"""Whether a stretch of DNA holds a binding site: a convolution over one-hot bases."""

import torch
from torch import nn

LENGTH = 100


class MotifFinder(nn.Module):
    """One-hot bases float32 [n, 4, 100] (A, C, G, T) -> probability [n, 1], signal [n, 100]."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv1d(4, 16, kernel_size=15, padding=7)
        self.mix = nn.Conv1d(16, 1, kernel_size=1)
        self.level = nn.Parameter(torch.zeros(1))

    def forward(self, bases: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The site's signal along the stretch, and what its highest point says."""
        signal = self.mix(self.filters(bases).relu()).squeeze(1)
        return (signal.amax(-1, keepdim=True) + self.level).sigmoid(), signal


def build() -> nn.Module:
    """Untrained network in eval mode."""
    return MotifFinder().eval()
