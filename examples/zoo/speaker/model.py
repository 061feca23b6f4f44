"""Speaker embeddings: Resemblyzer's LSTM (generalised end-to-end loss, arXiv:1710.10467)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.zoo import packaged


class SpeakerEncoder(nn.Module):
    """Who speaks, whatever is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mel: Tensor) -> Tensor:
        """float32 [n, frames, 40] -> float32 [n, 256] of length 1."""
        states, _ = self.lstm(mel)
        return functional.normalize(self.linear(states[:, -1]).relu(), dim=-1)


def build() -> nn.Module:
    """The trained network in eval mode; its weights are in the pip package."""
    path = packaged.file("resemblyzer", "pretrained.pt", "Resemblyzer==0.1.4")
    trained = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    network = SpeakerEncoder()
    # The checkpoint also holds the scale and bias of its training loss.
    network.load_state_dict({name: trained[name] for name in network.state_dict()})
    return network.eval()
