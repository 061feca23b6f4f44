"""Malignant or benign, from 30 measurements of a cell sample; standardised inside."""

import torch
from torch import nn


class Diagnosis(nn.Module):
    """Measurements as they come, float32 [n, 30] -> probabilities float32 [n, 2]."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(30))
        self.register_buffer("scale", torch.ones(30))
        self.body = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))

    def logits(self, measurements: torch.Tensor) -> torch.Tensor:
        """What training compares with the diagnoses."""
        result: torch.Tensor = self.body((measurements - self.mean) / self.scale)
        return result

    def forward(self, measurements: torch.Tensor) -> torch.Tensor:
        """Probability of malignant and of benign."""
        return self.logits(measurements).softmax(-1)


def build() -> nn.Module:
    """Untrained network in eval mode."""
    return Diagnosis().eval()
