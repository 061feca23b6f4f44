"""How far diabetes has gone a year on, from ten measurements, in double precision throughout."""

import torch
from torch import nn


def build() -> nn.Module:
    """Untrained regression in eval mode: float64 [n, 10] -> float64 [n, 1]."""
    return nn.Linear(10, 1, dtype=torch.float64).eval()
