"""A two-tower recommender: how much a user will like an item."""

import torch
from torch import nn

USERS, ITEMS, WIDTH = 500, 300, 16


class TwoTowers(nn.Module):
    """Ids int64 [n, 1] each -> score float32 [n, 1] in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(USERS, WIDTH)
        self.items = nn.Embedding(ITEMS, WIDTH)
        self.user_tower = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 8))
        self.item_tower = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 8))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """The towers meet in a dot product."""
        left = self.user_tower(self.users(user)).squeeze(1)
        right = self.item_tower(self.items(item)).squeeze(1)
        score: torch.Tensor = (left * right).sum(-1, keepdim=True).sigmoid()
        return score


def build() -> nn.Module:
    """Untrained network in eval mode."""
    return TwoTowers().eval()
